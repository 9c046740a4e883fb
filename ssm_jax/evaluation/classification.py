"""Classification metrics from a confusion matrix: the figures of the paper's Table 3.

Undefined figures are NaN, and none spreads: a class without truth slices has no sensitivity; a
class in neither truth nor predictions has no F1, and averages leave it out.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64, Real
from numpy.typing import ArrayLike

from ssm_jax.classes import PAPER

Matrices = Real[np.ndarray, "*n K K"]
IMAGE_CLASSES = PAPER.names  # as in metric names
PAPER_SHARES = (0.45, 0.35, 0.20)  # weights of the classes in the paper's F1


def confusion_matrix(
    labels: ArrayLike,
    predicted: ArrayLike,
    num_classes: int = len(IMAGE_CLASSES),
) -> Int64[np.ndarray, "{num_classes} {num_classes}"]:
    """Counts of (truth, prediction) pairs.

    Args:
      labels: int [N], true classes.
      predicted: int [N], predicted classes.
      num_classes: K.

    Returns:
      The counts; rows are the truth, columns the predictions.

    Raises:
      ValueError: lengths that differ, or a class outside 0..K-1.
    """
    labels, predicted = np.asarray(labels, np.int64), np.asarray(predicted, np.int64)
    if labels.ndim != 1 or labels.shape != predicted.shape:
        raise ValueError(
            f"labels and predictions must both have the shape [N], not {list(labels.shape)} and "
            f"{list(predicted.shape)}"
        )
    for name, classes in (("label", labels), ("prediction", predicted)):
        wrong = classes[(classes < 0) | (classes >= num_classes)]
        if len(wrong):
            raise ValueError(f"{name} {wrong[0]} is none of the classes 0 to {num_classes - 1}")
    matrix = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(matrix, (labels, predicted), 1)
    return matrix


def sensitivity(confusion: Matrices) -> Float64[np.ndarray, "*n K"]:
    """Share of each class's slices that are found (recall).

    Args:
      confusion: rows truth; leading axes hold several matrices.

    Returns:
      A share for each class; NaN for a class without truth slices.
    """
    return _ratio(_diagonal(confusion), confusion.sum(axis=-1))


def f1_scores(confusion: Matrices) -> Float64[np.ndarray, "*n K"]:
    """Harmonic mean of precision and sensitivity of each class: 2 TP / (2 TP + FP + FN).

    Args:
      confusion: rows truth; leading axes hold several matrices.

    Returns:
      A score for each class; NaN for a class in neither truth nor predictions. A class that is in
      only one of them scores 0.
    """
    return _ratio(2 * _diagonal(confusion), confusion.sum(axis=-2) + confusion.sum(axis=-1))


def accuracy(confusion: Matrices) -> Float64[np.ndarray, "*n"]:
    """Share of all slices with the right class.

    Args:
      confusion: rows truth; leading axes hold several matrices.

    Returns:
      The share; NaN without slices.
    """
    return _ratio(_diagonal(confusion).sum(axis=-1), confusion.sum(axis=(-2, -1)))


def weighted_f1(
    confusion: Matrices, shares: Sequence[float] | np.ndarray | None = None
) -> Float64[np.ndarray, "*n"]:
    """F1 averaged over classes.

    The paper's 0.9676 comes out of its confusion matrix with its rounded shares, `PAPER_SHARES`
    (0.96760); with the exact shares of its test split the figure is 0.96748.

    Args:
      confusion: rows truth; leading axes hold several matrices.
      shares: K non-negative weights, which need not add up to 1. None: the share of each class
        in the truth.

    Returns:
      The weighted mean over the classes whose F1 is defined (the weights of the others are spread
      in proportion); NaN where these have no weight.

    Raises:
      ValueError: another number of shares than classes, or a negative one.
    """
    classes = confusion.shape[-1]
    weights = confusion.sum(axis=-1) if shares is None else np.asarray(shares)
    weights = weights.astype(np.float64)
    if weights.shape[-1:] != (classes,) or (weights < 0).any():
        raise ValueError(f"{classes} shares >= 0 are needed, not {weights.tolist()}")
    scores = f1_scores(confusion)
    weights = np.where(np.isnan(scores), 0, weights)
    return _ratio((weights * np.nan_to_num(scores)).sum(axis=-1), weights.sum(axis=-1))


def macro_f1(confusion: Matrices) -> Float64[np.ndarray, "*n"]:
    """Plain mean of the defined F1 scores; NaN without slices."""
    return weighted_f1(confusion, np.ones(confusion.shape[-1]))


def classification_metrics(
    confusion: np.ndarray,
    names: Sequence[str] = IMAGE_CLASSES,
    shares: Sequence[float] | None = None,
) -> dict[str, object]:
    """All figures of a confusion matrix under flat names.

    Args:
      confusion: [K, K], rows truth.
      names: K class names, as they appear in the metric names.
      shares: passed to `weighted_f1` for "f1_weighted".

    Returns:
      "accuracy", "sensitivity_<name>" and "f1_<name>" for each class, "f1_weighted", "f1_macro",
      of the paper's classes also "f1_weighted_paper" (`PAPER_SHARES`), and "confusion" (nested
      lists of int, rows truth). All others are float.

    Raises:
      ValueError: another number of names than classes, or a matrix that is not square.
    """
    confusion = np.asarray(confusion)
    if confusion.shape != (len(names), len(names)):
        raise ValueError(f"{len(names)} class names for a matrix of {list(confusion.shape)}")
    figures = stacked_metrics(confusion, names, shares)
    return {name: float(value) for name, value in figures.items()} | {
        "confusion": confusion.tolist()
    }


def stacked_metrics(
    confusion: Matrices, names: Sequence[str], shares: Sequence[float] | None = None
) -> dict[str, Float64[np.ndarray, "*n"]]:
    """The figures of `classification_metrics` without "confusion", of many matrices at once.

    Args:
      confusion: rows truth; leading axes hold several matrices.
      names: K class names.
      shares: as there.

    Returns:
      Figures by name, of all matrices.
    """
    figures = {"accuracy": accuracy(confusion)}
    for prefix, values in (("sensitivity", sensitivity(confusion)), ("f1", f1_scores(confusion))):
        figures |= {f"{prefix}_{name}": values[..., k] for k, name in enumerate(names)}
    figures["f1_weighted"] = weighted_f1(confusion, shares)
    if tuple(names) == PAPER.names:
        figures["f1_weighted_paper"] = weighted_f1(confusion, PAPER_SHARES)
    figures["f1_macro"] = macro_f1(confusion)
    return figures


def _diagonal(confusion: Matrices) -> Real[np.ndarray, "*n K"]:
    return np.diagonal(confusion, axis1=-2, axis2=-1)


def _ratio(numerator: ArrayLike, denominator: ArrayLike) -> Float64[np.ndarray, "..."]:
    """numerator / denominator, NaN (without a warning) where the denominator is 0."""
    numerator, denominator = np.asarray(numerator, float), np.asarray(denominator, float)
    return np.divide(
        numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0
    )
