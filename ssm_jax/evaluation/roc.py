"""Area under the ROC curve of every image class: the chance that a slice of the class scores higher
than one of another class."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float64, Integer
from numpy.typing import ArrayLike

_CHUNK = 4_000_000  # numbers held at once, by slices and samples


def auc(
    scores: ArrayLike, positive: ArrayLike, weights: Integer[np.ndarray, "R N"] | None = None
) -> Float64[np.ndarray, "R"]:
    """Area under the ROC curve; of equal scores half a pair counts (Mann-Whitney).

    Args:
      scores: float [N], larger where the class is more likely.
      positive: bool [N], slices of the class.
      weights: how often each slice is in each of R samples; None: once, in one sample.

    Returns:
      An area for each sample, in [0, 1]; NaN without slices of the class, or with no others.
    """
    scores, positive = np.asarray(scores), np.asarray(positive, bool)
    weights = np.ones((1, len(scores)), int) if weights is None else weights
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.nan) != 0)  # of equal scores
    areas = np.full(len(weights), np.nan)
    step = max(1, _CHUNK // max(len(scores), 1))
    for start in range(0, len(weights) if len(scores) else 0, step):
        drawn = weights[start : start + step, order].astype(np.float64)
        inside, outside = (
            np.add.reduceat(drawn * chosen[order], starts, axis=1)
            for chosen in (positive, ~positive)
        )
        below = np.cumsum(outside, axis=1) - outside / 2
        pairs = inside.sum(axis=1) * outside.sum(axis=1)
        areas[start : start + step] = np.divide(
            (inside * below).sum(axis=1), pairs, out=np.full(len(pairs), np.nan), where=pairs > 0
        )
    return areas


def names_of(classes: Sequence[str]) -> list[str]:
    """Names of the figures of `class_aucs`, of a model of these classes."""
    return [f"auc_{name}" for name in (classes if len(classes) > 2 else classes[1:])]


def class_aucs(
    probabilities: Float[np.ndarray, "N K"],
    labels: Integer[np.ndarray, "N"],
    classes: Sequence[str],
    weights: Integer[np.ndarray, "R N"] | None = None,
) -> dict[str, Float64[np.ndarray, "R"]]:
    """Each class against all others; of two classes the second alone, since both have the same.

    Args:
      probabilities: of the classes.
      labels: true classes.
      classes: K names, as they appear in the metric names.
      weights: as for `auc`.

    Returns:
      "auc_<name>" -> an area for each sample.
    """
    first = len(classes) - len(names_of(classes))
    return {
        name: auc(probabilities[:, k], labels == k, weights)
        for k, name in enumerate(names_of(classes), first)
    }
