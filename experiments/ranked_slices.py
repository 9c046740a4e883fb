"""Draws truth beside prediction on slices chosen by rank: the best, the median and the worst.

The slices are those of a run's test split (or another) that have lesions, ranked by their own
infection Dice or per-image AP; nobody picks them. Show pictures of public slices with their source.

Examples:

    python -m experiments.ranked_slices --checkpoint=runs/covid19_ct_seg --output=slices.png
    python -m experiments.ranked_slices --checkpoint=runs/box --seg_dir=DATA --figure=ap50
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ssm_jax.cli import common
from ssm_jax.evaluation import infection
from ssm_jax.evaluation.evaluator import Evaluator
from ssm_jax.evaluation.predicted_slices import (
    Loading,
    PredictedSlice,
    evaluate,
    predicted_slice,
)

FIGURES = {"dice": "infection Dice", "ap50": "AP@0.5", "ap": "AP@[0.5:0.95]"}
RANKS = ("best", "median", "worst")
_GAP, _TITLE, _FONT = 8, 26, 15
_GROUND, _TEXT = (255, 255, 255), (30, 30, 30)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of the program.

    Attributes:
      checkpoint: A run's working directory, or the folder of one step.
      output: Picture to write, PNG or JPEG.
      figure: Of a slice, by which slices are ranked.
      split: Whose slices.
      seg_dir: Segmentation slices. Default: those of the run.
      data_dir: Where prepared data are kept. Default: as the run has it.
      side: Longer side of a slice in the picture, pixels.
      max_slices: Slices that are ranked, evenly spread; 0: all.
    """

    checkpoint: str
    output: pathlib.Path = pathlib.Path("ranked_slices.png")
    figure: str = dataclasses.field(default="dice", metadata={"choices": tuple(FIGURES)})
    split: str = "test"
    seg_dir: str = ""
    data_dir: str = ""
    side: int = dataclasses.field(default=300, metadata={"least": 32, "most": 2048})
    max_slices: int = dataclasses.field(default=0, metadata={"least": 0})


def slice_values(evaluator: Evaluator, figure: str) -> np.ndarray:
    """A figure of every segmentation slice by itself: float64 [N]."""
    if figure == "dice":
        return infection.patient_figures(np.stack(evaluator.pixels))[:, 0]
    rows = np.stack(evaluator.per_image)
    return rows[:, 0] if figure == "ap50" else rows.mean(axis=1)


def ranked(values: np.ndarray, with_lesions: np.ndarray) -> dict[str, int]:
    """Rank -> index of its slice, among those with lesions; of equals the first.

    Raises:
      ValueError: fewer slices with lesions than ranks.
    """
    chosen = np.flatnonzero(with_lesions)
    if len(chosen) < len(RANKS):
        raise ValueError(f"{len(chosen)} slices with lesions are too few to rank")
    order = chosen[np.argsort(-values[chosen], kind="stable")]
    return dict(zip(RANKS, order[[0, len(order) // 2, -1]].tolist(), strict=True))


def picture(rows: Sequence[tuple[str, PredictedSlice]], side: int) -> Image.Image:
    """A row a slice: the slice, its true lesions, and the predicted ones.

    Args:
      rows: title and slice.
      side: longer side of a slice, pixels.
    """
    from ssm_jax.visualize import slice_panels

    canvas = Image.new("RGB", (3 * (side + _GAP) + _GAP, len(rows) * (side + 2 * _TITLE)), _GROUND)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(_FONT)
    for number, (title, shown) in enumerate(rows):
        top = number * (side + 2 * _TITLE)
        draw.text((_GAP, top + 5), title, _TEXT, font)
        panels = slice_panels(shown.image, shown.prediction, shown.instances)
        for column, (caption, panel) in enumerate(panels):
            left = _GAP + column * (side + _GAP)
            panel.thumbnail((side, side), Image.Resampling.LANCZOS)
            canvas.paste(panel, (left, top + _TITLE))
            draw.text((left, top + _TITLE + side + 3), caption, _TEXT, font)
    return canvas


def main(flags: Flags) -> None:
    """The program."""
    common.start_jax(flags.data_dir or None)
    from ssm_jax.checkpoints import load_model
    from ssm_jax.predictor import Predictor
    from ssm_jax.report.evaluate import config_of, sources_of
    from ssm_jax.report.options import Options

    model, variables, info = load_model(flags.checkpoint)
    options = Options(
        split=flags.split, seg_dir=flags.seg_dir, data_dir=flags.data_dir, parts=("seg",)
    )
    config = config_of(model, info, options)
    source = sources_of(config, options)[0]["seg"]
    settings = config.eval
    predictor = Predictor(
        model,
        variables,
        settings.score_threshold,
        settings.nms_threshold,
        classes=info.classes,
    )
    loading = Loading(max_slices=flags.max_slices)
    evaluator = evaluate({"seg": source}, predictor, loading)
    values, indices = slice_values(evaluator, flags.figure), np.array(loading.indices(source))
    rows = []
    for rank, k in ranked(values, source.object_counts[indices] > 0).items():
        shown = predicted_slice("seg", source, indices[k], predictor)
        rows.append((f"{rank}: {shown.file}, {FIGURES[flags.figure]} {values[k]:.3f}", shown))
    flags.output.parent.mkdir(parents=True, exist_ok=True)
    picture(rows, flags.side).save(flags.output)
    for title, _ in rows:
        print(title)
    print(flags.output)


if __name__ == "__main__":
    common.run("python -m experiments.ranked_slices", __doc__, Flags, main, sys.argv[1:])
