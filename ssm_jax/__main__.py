"""The command `ssm-jax`, also `python -m ssm_jax`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import ssm_jax
from ssm_jax import memory
from ssm_jax.classes import METHOD

COMMANDS = {
    "train": "train a model, evaluate it, and keep checkpoints",
    "predict": "find lesions and the class of slices and scans",
    "evaluate": "evaluate a model on a split, with intervals and a report",
    "compare": "set evaluations side by side, beside the paper's numbers",
    "serve": "show a page on this machine that takes dropped scans",
    "export": "write a model as one file that runs without this package",
    "prepare-data": "check a data set and make a folder to train on",
    "import-reference": "read weights of the reference implementation",
    "export-reference": "write weights that the reference implementation reads",
}


def overview() -> str:
    """The help of `ssm-jax` itself."""
    listed = "\n".join(f"  {command:17}{text}" for command, text in COMMANDS.items())
    return (
        f"Lesions and class of chest CT slices: the {METHOD} in JAX.\n\n"
        f"usage: ssm-jax COMMAND [--flag=value ...]\n\n{listed}\n\n"
        "ssm-jax COMMAND --help shows the flags of a command, with examples:\n\n"
        "  ssm-jax train --config=demo\n"
        "  ssm-jax predict --checkpoint=runs/demo --inputs=slice.png --output_dir=out\n\n"
        "Not a medical device."
    )


def run(arguments: Sequence[str]) -> None:
    """Runs a command.

    Args:
      arguments: its name and its flags, or flags of `ssm-jax` itself.

    Raises:
      SystemExit: the command failed; the code is a line of text, or a number.
    """
    name, *rest = arguments or ["--help"]
    if name in ("-h", "help", "--help", "--helpfull"):
        print(overview())
        return
    if name == "--version":
        print(f"ssm-jax {ssm_jax.__version__}")
        return
    from ssm_jax.cli import common, flags

    if name not in COMMANDS:
        near = flags.nearest(name, list(COMMANDS))
        sys.exit(f"error: there is no command {name!r}{near or '; ssm-jax --help lists them'}")
    with common.one_line_errors():  # Ctrl-C may come while modules are imported
        program = importlib.import_module(f"ssm_jax.cli.{name.replace('-', '_')}")
    common.run(f"ssm-jax {name}", program.__doc__ or "", program.Flags, program.main, rest)


def main() -> None:
    """Runs the command that the command line names."""
    if sys.argv[1:2] == ["train"]:
        memory.with_huge_pages()
    run(sys.argv[1:])


if __name__ == "__main__":
    main()
