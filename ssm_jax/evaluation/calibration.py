"""Calibration: whether a class given with 80% confidence is right in 80% of the slices."""

import dataclasses

import numpy as np
from jaxtyping import Float64, Int64
from numpy.typing import ArrayLike

BINS = 15


@dataclasses.dataclass(frozen=True)
class Reliability:
    """Slices by confidence, the probability of the predicted class.

    Attributes:
      edges: limits of the bins; bin b holds edges[b] < confidence <= edges[b + 1].
      count: slices.
      confidence: mean confidence; NaN in an empty bin.
      accuracy: share of right classes; NaN in an empty bin.
      ece: expected calibration error: |accuracy - confidence| averaged over the slices, in [0, 1].
    """

    edges: Float64[np.ndarray, "E"]
    count: Int64[np.ndarray, "B"]
    confidence: Float64[np.ndarray, "B"]
    accuracy: Float64[np.ndarray, "B"]
    ece: float


def reliability(probabilities: ArrayLike, labels: ArrayLike, bins: int = BINS) -> Reliability:
    """Sorts predictions into bins of equal width by their confidence.

    The usual estimate of the expected calibration error (Guo et al. 2017, "On calibration of
    modern neural networks"). It depends on the bins and is too large on few slices.

    Args:
      probabilities: [N, K], class probabilities; the largest is the prediction (ties: the lower
        class) and its confidence.
      labels: int [N], true classes.
      bins: B.

    Returns:
      Reliability. Without slices all is empty and the error is NaN.

    Raises:
      ValueError: shapes that do not fit, values outside [0, 1], or no bin.
    """
    probabilities, labels = np.asarray(probabilities, np.float64), np.asarray(labels)
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1]:
        raise ValueError(
            "probabilities must have the shape [N, K] and labels [N], not "
            f"{list(probabilities.shape)} and {list(labels.shape)}"
        )
    if bins < 1:
        raise ValueError(f"bins={bins} is not possible; at least 1")
    # Rounding may carry a softmax of float32 a little above 1.
    if not ((probabilities >= 0) & (probabilities <= 1 + 1e-5)).all():
        raise ValueError("probabilities must lie in [0, 1]")
    edges = np.linspace(0, 1, bins + 1)
    confidence = probabilities.max(axis=1, initial=0)
    right = probabilities.argmax(axis=1) == labels if len(labels) else np.zeros(0, bool)
    where = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    count = np.bincount(where, minlength=bins)
    sums = [np.bincount(where, values, minlength=bins) for values in (confidence, right)]
    mean_confidence, accuracy = (
        np.divide(total, count, out=np.full(bins, np.nan), where=count > 0) for total in sums
    )
    total = len(labels)
    ece = float(np.abs(sums[0] - sums[1]).sum() / total) if total else float("nan")
    return Reliability(edges, count, mean_confidence, accuracy, ece)
