"""Average precision computed image by image: the criterion of the paper's Table 2.

It is not the COCO criterion: every image is ranked on its own, and the figure is the mean over
images, so an image with one lesion weighs as much as one with twenty. Only an IoU matrix, labels
and scores are needed, so a test set can be streamed: compute `average_precisions` per image, keep
the row of figures, and `summarize` the rows at the end.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64
from numpy.typing import ArrayLike

# Quotients of integers, so that an IoU of exactly 3/5 is not above the threshold 0.6.
IOU_THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))


def average_precisions(
    iou: ArrayLike,
    scores: ArrayLike,
    labels: ArrayLike,
    truth_labels: ArrayLike,
    thresholds: Sequence[float] = IOU_THRESHOLDS,
) -> Float64[np.ndarray, "{len(thresholds)}"]:
    """Average precision of one image at several IoU thresholds (reference implementation).

    Predictions are ranked by decreasing score (ties: lower index first). Each ground-truth object
    in turn takes the prediction with the highest IoU above the threshold among those of its class
    (ties: the better ranked); objects may take the same prediction, which then counts once as a
    true positive. Precision over the ranked list is made non-increasing from the right; the
    result is the area under precision over recall.

    Args:
      iou: float [P, G], mask IoU of predictions and ground-truth objects.
      scores: float [P].
      labels: int [P], predicted classes.
      truth_labels: int [G].
      thresholds: an IoU must be strictly greater to match.

    Returns:
      Numbers in [0, 1]. 1 with neither predictions nor objects, 0 with only one of the two.

    Raises:
      ValueError: shapes that do not fit together.
    """
    iou, scores = np.asarray(iou, np.float64), np.asarray(scores, np.float64)
    labels, truth_labels = np.asarray(labels), np.asarray(truth_labels)
    _check_shapes(iou, scores, labels, truth_labels)
    predicted, objects = len(scores), len(truth_labels)
    if predicted == 0 or objects == 0:
        return np.full(len(thresholds), float(predicted == objects))
    order = np.argsort(-scores, kind="stable")
    same_class = labels[order][:, None] == truth_labels[None, :]
    candidates = np.where(same_class, iou[order], -1.0)  # [P, G], ranked
    best = candidates.argmax(axis=0)  # [G]
    best_iou = candidates.max(axis=0)
    figures = np.zeros(len(thresholds))
    for index, threshold in enumerate(thresholds):
        hit = np.zeros(predicted, bool)
        hit[best[best_iou > threshold]] = True
        figures[index] = _area_under_curve(hit, objects)
    return figures


def _area_under_curve(hit: Bool[np.ndarray, "P"], objects: int) -> float:
    """Area under precision over recall of a ranked list, for one object or more."""
    precision = np.cumsum(hit) / np.arange(1, len(hit) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    # Recall grows by 1 / objects at every hit and nowhere else.
    return float(envelope[hit].sum() / objects)


def _check_shapes(
    iou: np.ndarray, scores: np.ndarray, labels: np.ndarray, truth_labels: np.ndarray
) -> None:
    if scores.ndim != 1 or labels.shape != scores.shape or truth_labels.ndim != 1:
        raise ValueError(
            "scores and labels must have the shape [P] and truth_labels [G], not "
            f"{list(scores.shape)}, {list(labels.shape)} and {list(truth_labels.shape)}"
        )
    expected = (len(scores), len(truth_labels))
    if iou.shape != expected:
        raise ValueError(
            f"iou must have a row per prediction and a column per object, {list(expected)}, "
            f"not {list(iou.shape)}"
        )


def summarize(
    per_image: Sequence[np.ndarray] | np.ndarray, thresholds: Sequence[float] = IOU_THRESHOLDS
) -> dict[str, float]:
    """Means over images, as the paper's Table 2 prints them.

    Args:
      per_image: N rows of T figures, as `average_precisions` returns them.
      thresholds: the T IoU thresholds; must hold 0.5 and 0.75.

    Returns:
      "ap50", "ap75" and "ap" (the mean over all thresholds). NaN without images.

    Raises:
      ValueError: rows of another length, or a threshold is missing.
    """
    columns = {"ap50": 0.5, "ap75": 0.75}
    missing = sorted(set(columns.values()) - set(thresholds))
    if missing:
        raise ValueError(f"thresholds lack {missing}")
    if len(per_image) == 0:
        return dict.fromkeys([*columns, "ap"], float("nan"))
    rows = np.asarray(per_image, np.float64)
    if rows.shape != (len(per_image), len(thresholds)):
        raise ValueError(
            f"{len(thresholds)} figures an image are needed, one a threshold; the shape of all is "
            f"{list(rows.shape)}"
        )
    means = rows.mean(axis=0)
    summary = {name: float(means[list(thresholds).index(t)]) for name, t in columns.items()}
    return {**summary, "ap": float(means.mean())}
