"""The environment of every test process and of every notebook kernel that nbval starts."""

import os

os.environ.setdefault("TQDM_DISABLE", "1")  # a progress bar is never the same twice
os.environ.setdefault("OMP_NUM_THREADS", "1")  # digits are too small to share between threads
