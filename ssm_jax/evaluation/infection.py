"""Infection: how much of a patient's diseased lung is found, whatever the single lesions.

The measures that papers on CT of infected lungs report (Ma et al. 2021, Medical Physics 48): the
union of all predicted lesion masks of a slice against the union of all true ones, pixels added up
over the slices of a patient, the figures then averaged over patients. Slices of a patient count as
equally thick and their pixels as equally large.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64, Integer, Real

from ssm_jax.ops import rle as rle_lib

FIGURES = ("infection_dice", "infection_sensitivity", "infection_volume_error")


def cumulative_counts(
    masks: Sequence[rle_lib.Rle], truth: rle_lib.Rle
) -> Int64[np.ndarray, "{len(masks)+1} 3"]:
    """Pixels of a slice that are predicted and true, with the first 0, 1, ..., P masks.

    Args:
      masks: P encodings, by decreasing score.
      truth: the true lesions, all in one encoding.

    Returns:
      Pixels in both unions, in the predicted one, and in the true one.
    """
    rows, union = [(0, 0, rle_lib.area(truth))], None
    for mask in masks:
        union = mask if union is None else rle_lib.union([union, mask])
        shared = rle_lib.area(rle_lib.intersection([union, truth]))
        rows.append((shared, rle_lib.area(union), rows[0][2]))
    return np.array(rows, np.int64)


def pixel_counts(masks: Sequence[rle_lib.Rle], truth: rle_lib.Rle) -> Int64[np.ndarray, "3"]:
    """The last row of `cumulative_counts`, of all masks in any order."""
    return cumulative_counts([rle_lib.union(masks)] if masks else [], truth)[-1]


def patient_figures(counts: Real[np.ndarray, "*n 3"]) -> Float64[np.ndarray, "*n 3"]:
    """Figures of patients.

    Args:
      counts: pixels of a patient in both unions, in the predicted one, in the true one.

    Returns:
      Figures in the order of `FIGURES`. Dice: 2 both / (predicted + true), 1 where nothing
      is there and nothing is predicted. Sensitivity: both / true, and volume error:
      |predicted - true| / true (0 is best, no upper bound); NaN for a patient without lesions.
    """
    both, predicted, true = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
    pixels, ill = predicted + true, true > 0
    dice = np.divide(2 * both, pixels, out=np.ones_like(pixels), where=pixels > 0)
    found, error = (
        np.divide(part, true, out=np.full_like(true, np.nan), where=ill)
        for part in (both, np.abs(predicted - true))
    )
    return np.stack([dice, found, error], axis=-1)


def mean_figures(
    counts: Integer[np.ndarray, "*n N 3"],
    patients: Integer[np.ndarray, "N"],
    drawn: Integer[np.ndarray, "R P"] | None = None,
) -> dict[str, Float64[np.ndarray, "..."]]:
    """Means over patients, of the set itself or of bootstrap samples of the patients.

    Args:
      counts: of N slices, see `cumulative_counts`.
      patients: the patient of each slice, from 0 without gaps, P in all.
      drawn: how often each patient is in each sample; None: the set itself.

    Returns:
      `FIGURES` -> [*n], or [*n, R] of samples; NaN where no patient defines the figure.
    """
    counts = np.moveaxis(np.asarray(counts), -2, 0)  # [N, ..., 3]
    sums = np.zeros((int(patients.max(initial=-1)) + 1, *counts.shape[1:]))
    np.add.at(sums, patients, counts)
    figures = np.moveaxis(patient_figures(sums), 0, -2)  # [..., P, 3]
    known = ~np.isnan(figures)
    weights = np.ones((1, len(sums))) if drawn is None else drawn
    totals, number = weights @ np.nan_to_num(figures), weights @ known  # [..., R, 3]
    means = np.divide(totals, number, out=np.full(totals.shape, np.nan), where=number > 0)
    means = means[..., 0, :] if drawn is None else means
    return {name: means[..., k] for k, name in enumerate(FIGURES)}
