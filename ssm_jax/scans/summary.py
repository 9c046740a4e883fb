"""A scan's class, lesion volume and most telling slices, from what is said of its slices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ssm_jax.predictor import Prediction
from ssm_jax.scans.options import RULES
from ssm_jax.scans.result import ScanSummary

_TELLING = 5


def summarize(
    predictions: Sequence[Prediction | None],
    areas: Sequence[float],
    rule: str = "mean",
    voxel_ml: Sequence[float] | np.ndarray | None = None,
    in_lung: tuple[float, float] | None = None,
    in_body: Sequence[float] | None = None,
) -> ScanSummary | None:
    """Takes slices together.

    Args:
      predictions: of each slice; None where it could not be read.
      areas: of each slice, pixels in any lesion mask (0 where unread or without masks).
      rule: one of `RULES`.
      voxel_ml: of each slice, volume of a pixel's voxel, milliliters; None if unknown.
      in_lung: lesion volume within the lung, and volume of the lung; None without a lung mask.
      in_body: of each slice, pixels in any lesion mask inside of the body; None if unknown.

    Returns:
      The summary; None if no slice was read.

    Raises:
      ValueError: an unknown rule.
    """
    if rule not in RULES:
        raise ValueError(f"the rule must be one of {', '.join(RULES)}, not {rule!r}")
    read = {k: prediction for k, prediction in enumerate(predictions) if prediction is not None}
    if not read:
        return None
    shares = np.stack([prediction.class_probabilities for prediction in read.values()])  # [n, K]
    classes = shares.shape[1]
    telling = _telling(read, shares, areas)
    own = shares.argmax(axis=1) if classes else np.zeros(0, int)
    per_class = np.bincount(own, minlength=classes)[:classes]
    if rule == "vote":
        together = per_class / len(read)
    elif rule == "telling":
        together = np.mean([read[k].class_probabilities for k in telling], axis=0)
    else:
        together = shares.mean(axis=0, dtype=np.float64)
    has_masks = any(prediction.masks is not None for prediction in read.values())
    lesion_ml = None
    if voxel_ml is not None and has_masks:
        lesion_ml = float(np.dot(areas, voxel_ml))
    weights = np.ones(len(areas)) if voxel_ml is None else np.asarray(voxel_ml)
    body_share = None
    if in_body is not None and (whole := float(np.dot(areas, weights))):
        body_share = float(np.dot(in_body, weights)) / whole
    lung_share = None
    if in_lung is not None and has_masks and in_lung[1] > 0:
        lung_share = in_lung[0] / in_lung[1]
    return ScanSummary(
        rule=rule,
        class_probabilities=together.astype(np.float32),
        predicted_class=int(together.argmax()) if classes else None,
        slices_per_class=per_class,
        lesion_ml=lesion_ml,
        lung_share=lung_share,
        telling=telling,
        body_share=body_share,
    )


def thicknesses(positions: Sequence[float | None], usual: float) -> np.ndarray:
    """How far each slice reaches: half way to its neighbors, and as far beyond the first and last.

    Args:
      positions: along the slice normal, millimeters, increasing; None where unknown.
      usual: millimeters, for a slice without neighbors.

    Returns:
      [N] millimeters; 0 where the position is unknown.
    """
    known = [k for k, position in enumerate(positions) if position is not None]
    found = np.zeros(len(positions))
    if len(known) < 2:
        found[known] = usual
        return found
    distances = np.diff([positions[k] for k in known])
    found[known] = (np.append(distances, distances[-1]) + np.append(distances[0], distances)) / 2
    return found


def _telling(read, shares, areas) -> list[int]:
    """Slices with the least probability of the first class, then the most lesion, then in order.

    A model that only segments has no classes: the scores of detections decide.
    """
    if shares.shape[1]:
        first = shares[:, 0]
    else:
        first = [-float(prediction.scores.sum()) for prediction in read.values()]
    ranked = sorted(zip(first, [-areas[k] for k in read], read, strict=True))
    return [k for _, _, k in ranked[:_TELLING]]
