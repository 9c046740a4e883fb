"""Evaluates a trained model on a split.

Writes into the output folder: metrics.json (all figures with bootstrap intervals), report.html (a
page that needs no other file), predictions.json and predictions_bbox.json (COCO results of masks
and of boxes), truth.json (COCO instances), and image_probabilities.json (of every slice: its class,
the predicted one, and the probabilities of all). Slices come from the data that the checkpoint's
run used (the phantom for imported weights), or from --seg_dir and --cls_dir. Without --checkpoint,
the model that comes with the package is evaluated on the slices of --seg_dir. `ssm-jax compare`
sets several evaluations side by side.

Examples:

    ssm-jax evaluate --checkpoint=runs/demo --output_dir=out/demo
    ssm-jax evaluate --checkpoint=runs/mine --output_dir=out/mine --split=test \\
        --seg_dir=DATA/ct_lesion_seg --cls_dir=DATA/ct_classes --score_threshold=0.05
    ssm-jax evaluate --output_dir=out/box --seg_dir=DATA/ct_lesion_seg
"""

from __future__ import annotations

import dataclasses
import pathlib
import shlex
import sys

from ssm_jax.cli import common
from ssm_jax.cli.model import ModelFlag, tell_box
from ssm_jax.report.options import Options

PARTS = {"both": ("seg", "cls"), "segmentation": ("seg",), "classification": ("cls",)}
NAMES = {"samples": "bootstrap_samples", "unit": "bootstrap_unit"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationFlags:
    """Evaluation of a model.

    Attributes:
      output_dir: Folder for everything that is written; created.
      part: Which slices are evaluated.
      options: How to evaluate.
    """

    output_dir: pathlib.Path
    part: str = dataclasses.field(default="both", metadata={"choices": tuple(PARTS)})
    options: Options = dataclasses.field(metadata={"names": NAMES, "omit": ("parts",)})

    def all_options(self) -> Options:
        """The options with the parts."""
        return dataclasses.replace(self.options, parts=PARTS[self.part])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(EvaluationFlags, ModelFlag):
    """Flags of `evaluate`."""


def command_line() -> str:
    """The command as it was typed, for reports."""
    return shlex.join(["ssm-jax", *sys.argv[1:]])


def main(flags: Flags) -> None:
    """The program."""
    common.start_jax(flags.options.data_dir)
    from ssm_jax import box
    from ssm_jax.evaluation.evaluator import summary
    from ssm_jax.report.evaluate import evaluate_checkpoint

    options, output = flags.all_options(), flags.output_dir
    if flags.checkpoint is None:
        tell_box(box.facts())
    print(summary(evaluate_checkpoint(flags.checkpoint, output, options, command_line())))
    print(f"{flags.checkpoint or 'the model of the package'} -> {output / 'report.html'}")
