"""The command-line programs. Each is run as `python -m experiments.<name>`; try `--help`."""

import os

# Libraries that read this when they are imported keep their start-up messages to themselves.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
