"""Trains a model, evaluates it, and keeps checkpoints.

Started again with the same working directory, it goes on where it was. Ctrl-C (or SIGTERM) saves
and ends; a second one ends at once. The working directory receives metrics.json (the latest
evaluation), metrics.jsonl (all of the run), TensorBoard events, checkpoints, and overlays (pictures
of a few test slices).

Examples:

    python -m experiments.main --config=configs/demo.py
    python -m experiments.main --config=configs/scratch_r18.py --workdir=runs/first \\
        --config.train.learning_rate=1e-4 --config.seed=1
    python -m experiments.main --config=configs/scratch_r18.py \\
        --config.data.seg_dir=DATA/ct_lesion_seg --config.data.cls_dir=DATA/ct_classes

The paper's systems take their backbone behind a colon: r18_2, r18_3, r34_2 or r34_3. Two of the
three start from segmentation pretraining:

    python -m experiments.main --config=configs/pretrain.py:r34_2
    python -m experiments.main --config=configs/ssm2.py:r34_2 \\
        --config.init_from=runs/pretrain_r34_2

All devices of the machine share a batch that can be split over them. So do several processes, which
are started with one command line each; they need a working directory that all of them see:

    python -m experiments.main --config=configs/scratch_r18.py --config.train.batch_size=16 \\
        --coordinator=HOST:PORT --num_processes=2 --process_id=0
"""

import pathlib

from absl import flags
from ml_collections import config_flags

from ssm_jax.cli import common, processes

flags.adopt_module_key_flags(processes)
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "File with get_config(); --config.a.b=value overrides a field of it."
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the run; default runs/<config file> or runs/<config file>_<variant>.",
)
flags.mark_flag_as_required("config")


def config_name() -> str:
    """The name of the configuration: "demo" for configs/demo.py, "ssm_r18_3" for ssm.py:r18_3."""
    path, _, variant = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return pathlib.Path(path).stem + (f"_{variant}" if variant else "")


def parse_flags(argv: list[str]) -> list[str]:
    """Reads the command line; a missing file or field of the configuration ends it in one line."""
    with common.one_line_errors(AttributeError, OSError, ValueError):
        try:
            return flags.FLAGS(argv)
        except flags.Error as error:
            # What a config file raises comes with its traceback; the last line says it.
            text = str(error).strip()
            raise ValueError(text.splitlines()[-1] if "Traceback" in text else text) from error


def main(argv: list[str]) -> None:
    """The program."""
    common.start(argv)
    from ssm_jax.training.loop import TrainingError, train

    with common.one_line_errors(ValueError, OSError, TrainingError, KeyboardInterrupt):
        processes.join()
        common.use_compilation_cache(_CONFIG.value.data.data_dir)
        train(_CONFIG.value, _WORKDIR.value or f"runs/{config_name()}")
