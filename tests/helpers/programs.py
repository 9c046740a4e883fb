"""The command-line programs, run as a user runs them."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def command(program, *arguments):
    """The command line of a program: "main", or a command of `ssm-jax`."""
    own = ["experiments.main"] if program == "main" else ["ssm_jax", program.replace("_", "-")]
    return [sys.executable, "-m", *own, *map(str, arguments)]


def run(program, *arguments):
    """Runs a program; returns the completed process with its output."""
    return subprocess.run(
        command(program, *arguments), cwd=ROOT, capture_output=True, text=True, check=False
    )
