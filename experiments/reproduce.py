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

from __future__ import annotations

import dataclasses
import pathlib
import sys

from experiments import systems
from ssm_jax.cli import common


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of the program.

    Attributes:
      workdir: Folder with one run a system.
      table: File with the two lines; a missing file is made.
      seed: Seed of every run.
      data_dir: Where phantoms are kept. Default: as ever.
      systems: Only these, with commas, such as ssm2_r18_2. Default: all.
      table_only: Run nothing; write what is finished.
    """

    workdir: pathlib.Path = pathlib.Path("runs/reproduce")
    table: pathlib.Path = pathlib.Path("docs/results.md")
    seed: int = dataclasses.field(default=0, metadata={"least": 0})
    data_dir: str = ""
    systems: str = ""
    table_only: bool = False


def main(flags: Flags) -> None:
    """The program."""
    plan = systems.Plan(flags.workdir, flags.seed, flags.data_dir)
    chosen = systems.selected(flags.systems.split(",") if flags.systems else [])
    runner = None if flags.table_only else systems.run_program
    systems.reproduce(plan, chosen, flags.table, runner)


if __name__ == "__main__":
    common.run("python -m experiments.reproduce", __doc__, Flags, main, sys.argv[1:])
