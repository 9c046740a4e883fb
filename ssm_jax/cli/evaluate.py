"""Evaluates a trained model on a split, and compares evaluations with the paper.

Writes into the output folder: metrics.json (all figures with bootstrap intervals), report.html (a
page that needs no other file), predictions.json and predictions_bbox.json (COCO results of masks
and of boxes), truth.json (COCO instances), and classes.json (class probabilities of every slice).
Slices come from the data that the checkpoint's run used (the phantom for imported weights), or from
--seg_dir and --cls_dir.

With --compare it sets evaluations side by side, as Tables 1 to 3 of the paper and beside its
numbers, in compare.md and compare.html. Each DIR is the output folder of an evaluation, or a
checkpoint, which is evaluated first.

Examples:

    ssm-jax evaluate --checkpoint=runs/demo --output_dir=out/demo
    ssm-jax evaluate --checkpoint=runs/mine --output_dir=out/mine --split=test \\
        --seg_dir=DATA/ct_lesion_seg --cls_dir=DATA/ct_classes --score_threshold=0.05
    ssm-jax evaluate --output_dir=out/all --compare out/demo out/mine runs/third
"""

import pathlib
import shlex
import sys
from typing import Any

from absl import app, flags

from ssm_jax.cli import common

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    common.CHECKPOINT_HELP,
)
_COMPARE = flags.DEFINE_multi_string(
    "compare",
    [],
    "Output folder of an evaluation, or a checkpoint. Repeat the flag, or list more after it.",
)
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "Folder for what is written; created.", required=True
)
_SPLIT = flags.DEFINE_string(
    "split", "test", "test, train, or the name of another subfolder of the data."
)
_SEG_DIR = flags.DEFINE_string(
    "seg_dir", "", "Segmentation slices: <seg_dir>/<split>/{imgs,masks}; default those of the run."
)
_CLS_DIR = flags.DEFINE_string(
    "cls_dir",
    "",
    "Classification slices: <cls_dir>/<split>/<class>_<patient>_<scan>_<slice>.png; default those "
    "of the run.",
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", "", "Where prepared data are kept; default as the run has it."
)
_PART = flags.DEFINE_enum(
    "part", "both", ["both", "segmentation", "classification"], "What to evaluate."
)
_SCORE_THRESHOLD = flags.DEFINE_float(
    "score_threshold",
    None,
    "Detections have a larger score; default as the run has it.",
    lower_bound=0,
    upper_bound=1,
)
_NMS_THRESHOLD = flags.DEFINE_float(
    "nms_threshold",
    None,
    "Of two detections with a larger IoU the lower-scored one is dropped; default as the run has "
    "it.",
    lower_bound=0,
    upper_bound=1,
)
_MAX_SLICES = flags.DEFINE_integer(
    "max_slices", 0, "Slices of each part, evenly spread; 0: all.", lower_bound=0
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 0, "Slices predicted at once; 0: 1 on a CPU, 8 elsewhere.", lower_bound=0
)
_SAMPLES = flags.DEFINE_integer(
    "bootstrap_samples", 1000, "Samples behind the 95% intervals; 0: none.", lower_bound=0
)
_UNIT = flags.DEFINE_enum(
    "bootstrap_unit",
    "patients",
    ["patients", "slices"],
    "What is drawn; slices too where file names do not tell patients.",
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the bootstrap, and of slices drawn for the report.")
_OVERLAYS = flags.DEFINE_integer(
    "overlays", 4, "Slices a group (best, worst, random) in the report; 0: none.", lower_bound=0
)

PARTS = {"both": ("seg", "cls"), "segmentation": ("seg",), "classification": ("cls",)}


def options() -> Any:
    """The flags as `ssm_jax.report.evaluate.Options`."""
    from ssm_jax.report.evaluate import Options

    return Options(
        split=_SPLIT.value,
        seg_dir=_SEG_DIR.value,
        cls_dir=_CLS_DIR.value,
        data_dir=_DATA_DIR.value,
        score_threshold=_SCORE_THRESHOLD.value,
        nms_threshold=_NMS_THRESHOLD.value,
        parts=PARTS[_PART.value],
        max_slices=_MAX_SLICES.value,
        batch_size=_BATCH_SIZE.value,
        samples=_SAMPLES.value,
        seed=_SEED.value,
        unit=_UNIT.value,
        overlays=_OVERLAYS.value,
    )


def main(argv: list[str]) -> None:
    """The program."""
    common.set_up_logging()
    folders = [*_COMPARE.value, *argv[1:]]
    if bool(_CHECKPOINT.value) == bool(_COMPARE.value):
        raise app.UsageError("give either --checkpoint or --compare")
    if _CHECKPOINT.value and argv[1:]:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; flags start with --")
    command = shlex.join(["ssm-jax", "evaluate", *sys.argv[1:]])
    output = pathlib.Path(_OUTPUT_DIR.value)
    from ssm_jax.evaluation.evaluator import summary
    from ssm_jax.report.comparison import compare
    from ssm_jax.report.evaluate import evaluate_checkpoint

    with common.one_line_errors(ValueError, OSError, KeyboardInterrupt):
        common.use_compilation_cache(_DATA_DIR.value)
        if folders:
            compare(folders, output, options(), command)
            print(f"{len(folders)} models -> {output / 'compare.html'}")
            return
        result = evaluate_checkpoint(_CHECKPOINT.value, output, options(), command)
    print(summary(result))
    print(f"{_CHECKPOINT.value} -> {output / 'report.html'}")
