"""Trains a model, evaluates it, and keeps checkpoints.

Started again with the same working directory, it goes on where it was. Ctrl-C (or SIGTERM) saves
and ends; a second one ends at once. The working directory receives metrics.json (the latest
evaluation), metrics.jsonl (all of the run), TensorBoard events, checkpoints, and overlays (pictures
of a few test slices).

The paper's systems take their backbone behind a colon: r18_2, r18_3, r34_2 or r34_3. Two of the
three start from segmentation pretraining:

    ssm-jax train --config=pretrain:r34_2
    ssm-jax train --config=ssm2:r34_2 \\
        --config.init_from=runs/pretrain_r34_2

All devices of the machine share a batch that can be split over them. So do several processes, which
are started with one command line each; they need a working directory that all of them see:

    ssm-jax train --config=scratch_r18 --config.train.batch_size=16 \\
        --coordinator=HOST:PORT --num_processes=2 --process_id=0

Examples:

    ssm-jax train --config=demo
    ssm-jax train --config=scratch_r18 --workdir=runs/first \\
        --config.train.learning_rate=1e-4 --config.seed=1
    ssm-jax train --config=scratch_r18 \\
        --config.data.seg_dir=DATA/ct_lesion_seg --config.data.cls_dir=DATA/ct_classes
"""

from __future__ import annotations

import dataclasses

from ssm_jax.cli import common, configs
from ssm_jax.cli.processes import ProcessFlags, ending_at_once, join

SHOWN = "--config.SECTION.FIELD=VALUE"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of `train`.

    Attributes:
      config: The configuration: one that is packaged, by name, such as demo or scratch_r18, or
        a Python file with get_config(), by path; then perhaps a colon and a variant.
      workdir: Folder of the run. Default: runs/<configuration> or runs/<configuration>_<variant>.
      changes: Sets a field of the configuration.
      processes: Several processes that are one job.
    """

    config: str
    workdir: str | None = None
    changes: tuple[str, ...] = dataclasses.field(
        default=(), metadata={"positional": True, "prefix": "config.", "shown": SHOWN}
    )
    processes: ProcessFlags


def main(flags: Flags) -> None:
    """The program."""
    config = configs.changed(configs.load(flags.config), flags.changes)
    from ssm_jax.training.loop import TrainingError, train

    with ending_at_once(), common.one_line_errors(TrainingError):
        join(flags.processes)
        common.start_jax(config.data.data_dir)
        train(config, flags.workdir or f"runs/{configs.name_of(flags.config)}")
