"""Trains every system of the paper on phantoms, small and short, and writes a table of them.

All 12 systems and the segmentation pretraining that eight of them start from are trained by their
own configurations, under one budget that is far below the paper's: the table shows that everything
runs and what it costs, not how good the systems are. It replaces what stands between two lines of
the file --table. Ended at any point and started again, the program goes on where it was: finished
systems are not run again.

Examples:

    python -m experiments.reproduce
    python -m experiments.reproduce --systems=ssm2_r18_2,ssm_s_r18_2 --table=docs/two.md
    python -m experiments.reproduce --table_only
"""

import pathlib

from absl import app, flags

from experiments import systems
from ssm_jax.cli import common

_WORKDIR = flags.DEFINE_string("workdir", "runs/reproduce", "Folder with one run a system.")
_TABLE = flags.DEFINE_string(
    "table",
    "docs/results.md",
    f"File with the lines {systems.BEGIN} and {systems.END}; a missing file is made.",
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of every run.", lower_bound=0)
_DATA_DIR = flags.DEFINE_string("data_dir", "", "Where phantoms are kept; default: as ever.")
_SYSTEMS = flags.DEFINE_list("systems", [], "Only these, such as ssm2_r18_2; default: all.")
_TABLE_ONLY = flags.DEFINE_bool("table_only", False, "Run nothing; write what is finished.")


def main(argv: list[str]) -> None:
    """The program."""
    common.start(argv)
    with common.one_line_errors(ValueError, OSError):
        plan = systems.Plan(pathlib.Path(_WORKDIR.value), _SEED.value, _DATA_DIR.value)
        runner = None if _TABLE_ONLY.value else systems.run_program
        systems.reproduce(
            plan, systems.selected(_SYSTEMS.value), pathlib.Path(_TABLE.value), runner
        )


if __name__ == "__main__":
    app.run(main)
