"""Slices of a report: what was there, what was found, and what module S read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ssm_jax import visualize
from ssm_jax.evaluation.predicted_slices import PredictedSlice
from ssm_jax.predictor import Prediction, RoIRows
from ssm_jax.report import charts
from ssm_jax.report.html import Html, details, element, join, picture, table
from ssm_jax.report.page import number

TOP_ROWS = 12  # distinct rows of a RoI batch that are listed
_TITLES = {
    ("seg", "best"): ("Segmentation: best slices", "highest mean per-image AP"),
    ("seg", "worst"): ("Segmentation: worst slices", "lowest mean per-image AP"),
    ("seg", "random"): ("Segmentation: slices drawn at random", ""),
    ("cls", "best"): ("Classification: best slices", "highest probability of the true class"),
    ("cls", "worst"): ("Classification: worst slices", "lowest probability of the true class"),
    ("cls", "random"): ("Classification: slices drawn at random", ""),
}


def section(slices: Sequence[PredictedSlice], class_names: Sequence[str]) -> Html:
    """All slices, in groups that can be folded.

    Args:
      slices: to show.
      class_names: of the image classes; none for a model of segmentation alone.
    """
    if not slices:
        return element("p", "No slice was drawn.")
    groups = []
    for (part, group), (title, order) in _TITLES.items():
        members = [s for s in slices if (s.part, s.group) == (part, group)]
        if members:
            count = f"{len(members)} {'slice' if len(members) == 1 else 'slices'}"
            heading = join(title, element("small", f"{order}, {count}" if order else count))
            articles = [_article(s, class_names) for s in members]
            groups.append(details(heading, *articles, open_=True, class_="group"))
    return join(_keys(), groups)


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


def _keys() -> Html:
    """What colors mean."""
    return element(
        "p",
        element("span", element("span", class_="swatch"), "outline of a true lesion"),
        element("span", "filled: predicted lesions with box and score"),
        element("span", "box of the RoI batch, score 0", element("span", class_="ramp"), "1"),
        class_="keys",
    )


def _article(slice_: PredictedSlice, class_names: Sequence[str]) -> Html:
    prediction = slice_.prediction
    panels = visualize.slice_panels(slice_.image, prediction, slice_.instances)
    rois = prediction.roi_batch
    if rois is not None:
        drawn = [first for first, _ in runs(rois.rows)] if rois.count else []
        panel = visualize.roi_batch_panel(slice_.image, rois.boxes[drawn], rois.rows[drawn, 0])
        panels.append((f"Read by S: {len(rois.rows)} rows, {rois.count} distinct boxes", panel))
    figures = [
        element(
            "figure", picture(image, f"{caption}, {slice_.file}"), element("figcaption", caption)
        )
        for caption, image in panels
    ]
    content = [
        element("h4", slice_.file),
        _says(slice_, class_names),
        element("div", figures, class_="panels" if len(panels) == 4 else "panels three"),
        _shares(slice_, class_names),
        _detections(prediction),
    ]
    if rois is not None:
        content.append(_rois(rois))
    return element("article", content, class_="slice")


def _says(slice_: PredictedSlice, class_names: Sequence[str]) -> Html:
    """One line: figures of the slice, or the class and whether it is right."""
    prediction = slice_.prediction
    if slice_.figures is not None:
        half, ap = slice_.figures[0], slice_.figures.mean()
        text = f"Per-image AP@0.5 {half:.3f}, AP@[0.5:0.95] {ap:.3f}"
        if prediction.predicted_class is not None:
            text += f"; predicted class {class_names[prediction.predicted_class]}"
        return element("p", text, class_="says")
    right = prediction.predicted_class == slice_.label
    verdict = element("span", "right" if right else "wrong", class_=_verdict(right))
    predicted, true = class_names[prediction.predicted_class], class_names[slice_.label]
    return element("p", f"True class {true}, predicted {predicted}: ", verdict, class_="says")


def _verdict(right: bool) -> str:
    return "verdict right" if right else "verdict wrong"


def _shares(slice_: PredictedSlice, class_names: Sequence[str]) -> Html | None:
    """Class probabilities of a classification slice as bars."""
    if slice_.part != "cls":
        return None
    bars = []
    for name, share in zip(class_names, slice_.prediction.class_probabilities, strict=True):
        value = float(share)
        bar = element("meter", min=0, max=1, value=f"{value:.4f}", aria_label=name)
        bars += [element("span", name), bar, element("span", f"{100 * value:.1f}%")]
    return element("div", bars, class_="shares")


def _detections(prediction: Prediction) -> Html | None:
    """Boxes and scores of the detections, folded."""
    if not len(prediction.scores):
        return None
    rows = [
        [str(rank), f"{score:.3f}", *(f"{v:.1f}" for v in box)]
        for rank, (box, score) in enumerate(
            zip(prediction.boxes, prediction.scores, strict=True), 1
        )
    ]
    listed = table(["Rank", "Score", "x1", "y1", "x2", "y2"], rows, "Boxes in pixels of the slice")
    count = f"{len(rows)} predicted {'lesion' if len(rows) == 1 else 'lesions'}"
    return details(count, element("div", listed, class_="read"))


def _rois(rois: RoIRows) -> Html:
    """The rows that module S read, folded: all scores, and the first distinct rows."""
    summary = f"RoI batch: {len(rois.rows)} ranked rows, {rois.count} distinct boxes"
    if not rois.count:
        return details(summary, element("p", "No box survived: every row is zero."))
    listed = []
    for first, length in runs(rois.rows)[:TOP_ROWS]:
        place = f"{first + 1}" if length == 1 else f"{first + 1}–{first + length}"
        row, box = rois.rows[first], rois.boxes[first]
        encoded = [number(float(v), ".3f") for v in row]
        listed.append([place, *encoded, *(f"{v:.0f}" for v in box)])
    head = ["Row", "Score", "tx", "ty", "tw", "th", "x1", "y1", "x2", "y2"]
    caption = f"The first {len(listed)} distinct rows: score and encoded box, as S reads them, and "
    caption += "the same box in pixels"
    shown = charts.scores(rois.rows[:, 0], "scores of the rows of the RoI batch, by rank")
    return details(summary, element("div", shown, table(head, listed, caption), class_="read"))
