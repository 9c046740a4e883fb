"""Intervals of everything that an `Evaluator` holds."""

import dataclasses

import numpy as np
from jaxtyping import Float64, Integer

from ssm_jax.data.patients import PATIENT_OF, clusters, segmentation_patient
from ssm_jax.evaluation import (
    bootstrap,
    classification,
    coco,
    coco_resampling,
    infection,
    per_image_ap,
    roc,
)
from ssm_jax.evaluation.evaluator import Evaluator

UNITS = ("patients", "slices")


@dataclasses.dataclass(frozen=True)
class Intervals:
    """Bootstrap intervals, and what they were drawn from.

    Attributes:
      figures: name of a metric -> (low, high); NaN where undefined.
      level: share of the samples between both ends.
      samples: how many were drawn.
      seed: of the drawing.
      units: part ("seg", "cls") -> {"kind": "patients" or "slices", "count": how many}.
    """

    figures: dict[str, tuple[float, float]]
    level: float
    samples: int
    seed: int
    units: dict[str, dict[str, object]]


def intervals(
    evaluator: Evaluator,
    samples: int = bootstrap.SAMPLES,
    seed: int = 0,
    unit: str = "patients",
) -> Intervals:
    """Percentile intervals of both APs and of the classification figures.

    Patients follow from the file names (`patients`). With a single unit there is no spread to
    measure, and intervals are undefined.

    Args:
      evaluator: holds the slices.
      samples: number of bootstrap samples.
      seed: of the drawing.
      unit: what is drawn; with "patients", slices where patients are not known.

    Returns:
      Intervals of "ap50", "ap75", "ap", "coco_<kind>_AP", "coco_<kind>_AP50",
      "coco_<kind>_AP75", `infection.FIGURES` (unless slices are drawn of known patients, whose
      figures these are), and the figures of `classification.stacked_metrics` and
      `roc.class_aucs`.

    Raises:
      ValueError: an unknown unit.
    """
    if unit not in UNITS:
        raise ValueError(f"unit={unit!r} is not possible; choose from {UNITS}")
    resampled: dict[str, Float64[np.ndarray, "R"]] = {}
    units: dict[str, dict[str, object]] = {}
    parts = {
        "seg": (evaluator.seg_files, _segmentation),
        "cls": (evaluator.cls_files, _classification),
    }
    for part, (files, figures) in parts.items():
        if not files:
            continue
        patient_of = PATIENT_OF[part]
        named = [patient_of(file) if unit == "patients" else None for file in files]
        numbers, known = clusters(named)
        count = int(numbers.max()) + 1
        units[part] = {"kind": "patients" if known else "slices", "count": count}
        found = figures(evaluator, numbers, bootstrap.draw(count, samples, seed))
        undefined = np.full(samples, np.nan)
        resampled |= {name: v if count > 1 else undefined for name, v in found.items()}
    return Intervals(
        {name: bootstrap.interval(values) for name, values in resampled.items()},
        bootstrap.LEVEL,
        samples,
        seed,
        units,
    )


def _segmentation(
    evaluator: Evaluator, units: Integer[np.ndarray, "N"], drawn: bootstrap.Drawn
) -> dict[str, Float64[np.ndarray, "R"]]:
    """Figures of every sample."""
    thresholds = list(per_image_ap.IOU_THRESHOLDS)
    means = bootstrap.resampled_means(np.stack(evaluator.per_image), units, drawn)
    found = {
        "ap50": means[:, thresholds.index(0.5)],
        "ap75": means[:, thresholds.index(0.75)],
        "ap": means.mean(axis=1),
    }
    patients, known = clusters([segmentation_patient(file) for file in evaluator.seg_files])
    if not known or np.array_equal(patients, units):
        found |= infection.mean_figures(np.stack(evaluator.pixels), units, drawn)
    for kind in coco.KINDS:
        # A slice is in a sample as often as its patient.
        figures = coco_resampling.resampled_figures(evaluator.coco_run(kind), drawn[:, units])
        found |= {f"coco_{kind}_{name}": values for name, values in figures.items()}
    return found


def _classification(
    evaluator: Evaluator, units: Integer[np.ndarray, "N"], drawn: bootstrap.Drawn
) -> dict[str, Float64[np.ndarray, "R"]]:
    """Figures of every sample."""
    names = evaluator.image_classes
    labels, predicted = np.asarray(evaluator.labels), np.asarray(evaluator.predicted)
    confusions = bootstrap.resampled_confusions(labels, predicted, len(names), units, drawn)
    found = classification.stacked_metrics(confusions, names, evaluator.class_shares)
    probabilities = evaluator.all_probabilities()
    if probabilities is not None:
        found |= roc.class_aucs(probabilities, labels, names, drawn[:, units])
    return found
