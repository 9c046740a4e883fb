"""The score threshold that finds most, chosen on slices that are not those of the evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64, Int64

from ssm_jax.data.patients import clusters, segmentation_patient
from ssm_jax.evaluation import infection, per_image_ap
from ssm_jax.evaluation.predicted_slices import Loading, plain, slice_batches
from ssm_jax.ops import rle as rle_lib

if TYPE_CHECKING:
    from ssm_jax.data.sources import SegmentationExample
    from ssm_jax.predictor import Prediction, Predictor

GRID = tuple(percent / 100 for percent in range(5, 100))  # thresholds that are tried


@dataclasses.dataclass(frozen=True)
class Chosen:
    """A score threshold, and why it was chosen.

    Attributes:
      score_threshold: of `GRID`.
      criterion: the figure that is largest there.
      value: of this figure, on the slices it was chosen on.
      slices: how many these are.
    """

    score_threshold: float
    criterion: str
    value: float
    slices: int

    def __str__(self) -> str:
        return (
            f"score threshold {self.score_threshold:g}: the largest {self.criterion}, "
            f"{self.value:.3f}, of {self.slices} training slices"
        )


def choose_threshold(
    source: Sequence, predictor: Predictor, criterion: str, loading: Loading, stop: object = None
) -> Chosen:
    """Predicts segmentation slices once, and finds the best threshold of `GRID` on them.

    Detections above a threshold are those above a lower one without the lower-scored: non-maximum
    suppression lets no detection drop a better one. So one prediction serves all thresholds.

    Args:
      source: a split with masks, of training slices.
      predictor: with masks; its score threshold is `GRID`'s first.
      criterion: of `possible.THRESHOLD_RULES`, but not "none".
      loading: how slices are read, and how many.
      stop: looked at between batches: true to stop.

    Returns:
      The choice; of thresholds that are equally good the middle one.

    Raises:
      Stopped: the stop was requested.
      ValueError: another score threshold of the predictor.
    """
    if predictor.score_threshold != GRID[0]:
        raise ValueError(f"the predictor's score threshold has to be {GRID[0]}")
    pixels, ap50, files = [], [], []
    for batch in slice_batches(source, loading, stop, "slices for the score threshold"):
        found = predictor.predict_batch([plain(example.image) for example in batch])
        for example, prediction in zip(batch, found, strict=True):
            counts, figures = at_thresholds(example, prediction)
            pixels.append(counts)
            ap50.append(figures)
            files.append(example.file)
    patients, _ = clusters([segmentation_patient(file) for file in files])
    if criterion == "ap50":
        values = np.mean(ap50, axis=0)
    else:
        values = infection.mean_figures(np.stack(pixels, axis=1), patients)[criterion]
    best = np.flatnonzero(values == values.max())
    middle = best[len(best) // 2]
    return Chosen(GRID[middle], criterion, float(values[middle]), len(files))


def at_thresholds(
    example: SegmentationExample, prediction: Prediction
) -> tuple[Int64[np.ndarray, "T 3"], Float64[np.ndarray, "T"]]:
    """Figures of one slice with the detections above each threshold of `GRID`.

    Args:
      example: the truth.
      prediction: with masks, and scores down to the first threshold.

    Returns:
      What `infection.cumulative_counts` gives, and AP at IoU 0.5, at each threshold.
    """
    masks = prediction.masks or []
    counts = infection.cumulative_counts(masks, rle_lib.encode(example.lesion))
    objects = rle_lib.encode_instances(example.instances, len(example.boxes))
    iou = rle_lib.pairwise_iou(masks, objects)
    # Scores are float32, as thresholds are where detections are made.
    above = (prediction.scores[:, None] > np.array(GRID, np.float32)).sum(axis=0)
    ap50 = {
        k: per_image_ap.average_precisions(
            iou[:k], prediction.scores[:k], prediction.labels[:k], example.labels, (0.5,)
        )[0]
        for k in set(above.tolist())
    }
    return counts[above], np.array([ap50[k] for k in above.tolist()])
