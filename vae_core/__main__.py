"""`python -m vae_core`: the command line of `experiments.command_line`."""

import sys

from vae_core.experiments.command_line import main

if __name__ == "__main__":
    sys.exit(main())
