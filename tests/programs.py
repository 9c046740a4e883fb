"""The command-line programs, run as a user runs them."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def run(program, *arguments):
    """Runs `python -m experiments.<program>`; returns the completed process with its output."""
    return subprocess.run(
        [sys.executable, "-m", f"experiments.{program}", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
