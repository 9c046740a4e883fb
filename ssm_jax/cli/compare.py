"""Sets evaluations side by side, as Tables 1 to 3 of the paper and beside its numbers.

Writes compare.md and compare.html into the output folder. Each DIR is the output folder of
`ssm-jax evaluate`, or a checkpoint, which is evaluated first, into a folder of its name in the
output folder.

Examples:

    ssm-jax compare --output_dir=out/all out/demo out/mine runs/third
"""

from __future__ import annotations

import dataclasses

from ssm_jax.cli import common
from ssm_jax.cli.evaluate import EvaluationFlags, command_line
from ssm_jax.cli.model import require_folder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(EvaluationFlags):
    """Flags of `compare`.

    Attributes:
      folders: Output folder of an evaluation, or a checkpoint.
    """

    folders: tuple[str, ...] = dataclasses.field(
        metadata={"positional": True, "shown": "DIR DIR ..."}
    )

    def __post_init__(self):
        for folder in self.folders:
            require_folder(folder)


def main(flags: Flags) -> None:
    """The program."""
    common.start_jax(flags.options.data_dir)
    from ssm_jax.report.comparison import compare

    compare(flags.folders, flags.output_dir, flags.all_options(), command_line())
    print(f"{len(flags.folders)} models -> {flags.output_dir / 'compare.html'}")
