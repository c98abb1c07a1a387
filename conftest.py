"""The environment of every test process and of every notebook kernel that nbval starts; how its outputs compare."""

import os
from pathlib import Path

pytest_plugins = ["tolerance"]  # decimal numbers within what the cell's metadata states

os.environ.setdefault("TQDM_DISABLE", "1")  # a progress bar is never the same twice
os.environ.setdefault("OMP_NUM_THREADS", "1")  # digits are too small to share between threads


def pytest_configure(config) -> None:
    """Tell nbval what to leave out of the comparison, by an absolute path: pytest may be started in any folder."""
    config.option.nbval_sanitize_with = str(Path(__file__).with_name("tests") / "sanitize.cfg")
