"""Bootstrap intervals over patients.

Slices of one patient resemble each other, so that treating them as independent gives intervals
that are too narrow. Here whole patients are drawn with replacement, as many as there are, a
thousand times; each figure is computed anew on every such sample (a patient drawn twice counts
twice), and the interval runs from the 2.5th to the 97.5th percentile of these figures.

Everything works on weights: a sample is the number of times that each unit (patient, or slice
where patients are not known) was drawn, and figures are computed for all samples at once.
"""

import numpy as np
from jaxtyping import Float, Float64, Int64, Integer
from numpy.typing import ArrayLike

Drawn = Integer[np.ndarray, "R P"]  # how often each of P units is in each of R samples
SAMPLES = 1000
LEVEL = 0.95


def draw(
    units: int, samples: int = SAMPLES, seed: int = 0
) -> Int64[np.ndarray, "{samples} {units}"]:
    """How often each unit is drawn in each sample.

    Args:
      units: at least 1.
      samples: how many are drawn.
      seed: the same seed gives the same samples.

    Returns:
      Counts of the units, which add up to their number in each sample.

    Raises:
      ValueError: no unit.
    """
    if units < 1:
        raise ValueError("there is nothing to draw samples from")
    return np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), size=samples)


def interval(values: ArrayLike, level: float = LEVEL) -> tuple[float, float]:
    """Percentile interval.

    Args:
      values: float [R], a figure on R samples; NaN where the sample does not define it.
      level: share of the values between the two ends.

    Returns:
      Both ends; linear between values. NaN where no sample defines the figure.
    """
    figures = np.asarray(values, np.float64)
    figures = figures[~np.isnan(figures)]
    if not len(figures):
        return float("nan"), float("nan")
    tail = (1 - level) / 2
    low, high = np.quantile(figures, [tail, 1 - tail])
    return float(low), float(high)


def resampled_means(
    values: Float[np.ndarray, "N F"], units: Integer[np.ndarray, "N"], drawn: Drawn
) -> Float64[np.ndarray, "R F"]:
    """Means over the slices of every sample.

    Args:
      values: F figures of N slices.
      units: the unit that each slice belongs to, below P.
      drawn: from `draw`.
    """
    sums = np.zeros((drawn.shape[1], values.shape[1]))
    np.add.at(sums, units, values)
    slices = np.bincount(units, minlength=drawn.shape[1])
    return (drawn @ sums) / (drawn @ slices)[:, None]


def resampled_confusions(
    labels: Integer[np.ndarray, "N"],
    predicted: Integer[np.ndarray, "N"],
    classes: int,
    units: Integer[np.ndarray, "N"],
    drawn: Drawn,
) -> Int64[np.ndarray, "R {classes} {classes}"]:
    """Confusion matrices of every sample.

    Args:
      labels: true classes, below `classes`.
      predicted: classes.
      classes: how many there are.
      units: the unit that each slice belongs to, below P.
      drawn: from `draw`.

    Returns:
      A matrix for each sample, rows truth.
    """
    by_unit = np.zeros((drawn.shape[1], classes, classes), np.int64)
    np.add.at(by_unit, (units, labels, predicted), 1)
    flat = drawn @ by_unit.reshape(len(by_unit), -1)
    return flat.reshape(-1, classes, classes)
