"""Slices of a report: what was there, what was found, and what module S read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from ssm_jax import visualize
from ssm_jax.evaluation.predicted_slices import PredictedSlice
from ssm_jax.predictor import RoIRows
from ssm_jax.report import charts
from ssm_jax.report.page import number, parts
from ssm_jax.report.pictures import data_uri, jpeg

_PARTS = parts("slices.html")
TOP_ROWS = 12  # distinct rows of a RoI batch that are listed
_TITLES = {
    ("seg", "best"): ("Segmentation: best slices", "highest mean per-image AP"),
    ("seg", "worst"): ("Segmentation: worst slices", "lowest mean per-image AP"),
    ("seg", "random"): ("Segmentation: slices drawn at random", ""),
    ("cls", "best"): ("Classification: best slices", "highest probability of the true class"),
    ("cls", "worst"): ("Classification: worst slices", "lowest probability of the true class"),
    ("cls", "random"): ("Classification: slices drawn at random", ""),
}


def section(slices: Sequence[PredictedSlice], class_names: Sequence[str]) -> Markup:
    """All slices, in groups that can be folded.

    Args:
      slices: to show.
      class_names: of the image classes; none for a model of segmentation alone.
    """
    groups = []
    for (part, group), (title, order) in _TITLES.items():
        members = [s for s in slices if (s.part, s.group) == (part, group)]
        if members:
            articles = [_article(s, class_names) for s in members]
            groups.append({"title": title, "order": order, "articles": articles})
    return _PARTS.section(groups)


def runs(rows: np.ndarray) -> list[tuple[int, int]]:
    """Neighboring rows that are the same.

    Args:
      rows: [S, 5].

    Returns:
      (first row, how many) of each run, in order.
    """
    if not len(rows):
        return []
    starts = np.flatnonzero(np.append(True, (rows[1:] != rows[:-1]).any(axis=1)))
    lengths = np.diff(np.append(starts, len(rows)))
    return list(zip(starts.tolist(), lengths.tolist(), strict=True))


def _article(slice_: PredictedSlice, class_names: Sequence[str]) -> Markup:
    prediction, bars, right = slice_.prediction, None, None
    panels = visualize.slice_panels(slice_.image, prediction, slice_.instances)
    rois, lesions = prediction.roi_batch, prediction.classes.lesion_titles
    if rois is not None:
        drawn = [first for first, _ in runs(rois.rows)] if rois.count else []
        panel = visualize.roi_batch_panel(slice_.image, rois.boxes[drawn], rois.rows[drawn, 0])
        panels.append((f"Read by S: {len(rois.rows)} rows, {rois.count} distinct boxes", panel))
    if slice_.part == "cls":
        shares = prediction.class_probabilities.tolist()
        bars = dict(zip(class_names, shares, strict=True))
        right = prediction.predicted_class == slice_.label
    return _PARTS.article(
        slice_.file,
        _says(slice_, class_names),
        right,
        [_picture(image, caption) for caption, image in panels],
        bars,
        [
            [str(rank), f"{score:.3f}", lesions[int(label)], *(f"{v:.1f}" for v in box)]
            for rank, (box, score, label) in enumerate(
                zip(prediction.boxes, prediction.scores, prediction.labels, strict=True), 1
            )
        ],
        None if rois is None else _rois(rois),
    )


def _picture(image: Image.Image, caption: str) -> dict[str, Any]:
    uri = data_uri(jpeg(image.convert("RGB"), 84))
    return {"uri": uri, "caption": caption, "width": image.width, "height": image.height}


def _says(slice_: PredictedSlice, class_names: Sequence[str]) -> str:
    """One line: figures of the slice, or its class."""
    predicted = slice_.prediction.predicted_class
    said = "" if predicted is None else class_names[predicted]
    if slice_.figures is None:
        true = "" if slice_.label is None else class_names[slice_.label]
        return f"True class {true}, predicted {said}"
    half, ap = slice_.figures[0], slice_.figures.mean()
    text = f"Per-image AP@0.5 {half:.3f}, AP@[0.5:0.95] {ap:.3f}"
    return f"{text}; predicted class {said}" if said else text


def _rois(rois: RoIRows) -> dict[str, Any]:
    """The rows that module S read: all scores, and the first distinct rows."""
    listed = []
    for first, length in runs(rois.rows)[:TOP_ROWS] if rois.count else []:
        place = f"{first + 1}" if length == 1 else f"{first + 1}–{first + length}"
        encoded = [number(float(v), ".3f") for v in rois.rows[first]]
        listed.append([place, *encoded, *(f"{v:.0f}" for v in rois.boxes[first])])
    chart = charts.scores(rois.rows[:, 0], "scores of the rows of the RoI batch, by rank")
    return {"ranked": len(rois.rows), "distinct": rois.count, "rows": listed, "chart": chart}
