"""The command `ssm-jax`, also `python -m ssm_jax`."""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    "train": "train a model, evaluate it, and keep checkpoints",
    "predict": "find lesions and the class of slices and scans",
    "evaluate": "evaluate a model with intervals, and compare evaluations",
    "serve": "show a page on this machine that takes dropped scans",
    "export": "write a model as one file that runs without this package",
    "prepare-data": "check a published data set and make a folder to train on",
    "import-reference": "read weights of the reference implementation",
    "export-reference": "write weights that the reference implementation reads",
}


def main() -> None:
    """Runs the command that the first argument names."""
    from absl import app

    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name not in COMMANDS:
        listed = "\n".join(f"  {command:17}{text}" for command, text in COMMANDS.items())
        usage = f"usage: ssm-jax COMMAND [flags]\n\n{listed}\n\nssm-jax COMMAND --help lists flags"
        if name in ("-h", "--help", "--helpfull", "help"):
            print(usage)
            return
        sys.exit(f"error: there is no command {name!r}\n\n{usage}")
    program = importlib.import_module(f"ssm_jax.cli.{name.replace('-', '_')}")
    sys.argv = [f"ssm-jax {name}", *sys.argv[2:]]
    app.run(program.main, flags_parser=getattr(program, "parse_flags", None))


if __name__ == "__main__":
    main()
