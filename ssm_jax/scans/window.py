"""From stored values to the 8 bits that training saw."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ssm_jax.scans.options import InputOptions

AIR, TISSUE, BONE = -500, (-300, 400), 2000  # Hounsfield units


def apply_window(hu: np.ndarray, center: float, width: float) -> np.ndarray:
    """A CT window: center - width / 2 and below is black, center + width / 2 and above white.

    Args:
      hu: [...] Hounsfield units; what is not a number counts as air.
      center: Hounsfield units.
      width: Hounsfield units, positive.

    Returns:
      [...] uint8, rounded to the nearest grey level.
    """
    return spread(hu, center - width / 2, center + width / 2)


def spread(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Maps [low, high] linearly to 0 to 255 (uint8), rounded; what lies beyond is clipped."""
    share = (np.nan_to_num(np.asarray(values, np.float64), nan=low) - low) / (high - low)
    return np.round(np.clip(share, 0, 1) * 255).astype(np.uint8)


def plausible_hu(values: np.ndarray) -> bool:
    """Whether values can be the Hounsfield units of a chest slice.

    There must be air or lung (2% of pixels at -500 or less), soft tissue (2% between -300 and
    400), and hardly anything as dense as metal (less than 2% above 2000).

    Args:
      values: numbers of one or more slices, any shape.
    """
    values = np.asarray(values)
    values = values[np.isfinite(values)]
    if not values.size:
        return False
    soft = (values >= TISSUE[0]) & (values <= TISSUE[1])
    air, metal = values <= AIR, values > BONE
    return bool(air.mean() >= 0.02 and soft.mean() >= 0.02 and metal.mean() < 0.02)


@dataclasses.dataclass(frozen=True)
class Stored:
    """What a header says of stored values.

    Attributes:
      low: smallest value that can be stored.
      high: largest.
      slope: of the rescale.
      intercept: of the rescale.
      rescaled: whether the header has a rescale at all.
      inverted: whether small values are meant to be shown bright (MONOCHROME1).
    """

    low: float
    high: float
    slope: float = 1.0
    intercept: float = 0.0
    rescaled: bool = True
    inverted: bool = False


@dataclasses.dataclass(frozen=True)
class Reading:
    """What is made of stored values; see `decide`.

    Attributes:
      hu: whether they become Hounsfield units, to be windowed; otherwise their range is spread.
      invert: whether low + high - value is taken first.
      rescale: (slope, intercept) in place of each slice's own; None: its own.
    """

    hu: bool
    invert: bool
    rescale: tuple[float, float] | None = None

    def to_hu(self, stored: np.ndarray, header: Stored) -> np.ndarray:
        """Rescaled values, float64 of the same shape."""
        values = np.asarray(stored, np.float64)
        if self.invert:
            values = header.low + header.high - values
        slope, intercept = self.rescale or (header.slope, header.intercept)
        return values * slope + intercept

    def to_uint8(self, stored: np.ndarray, header: Stored, options: InputOptions) -> np.ndarray:
        """What the model is shown, uint8 of the same shape."""
        if self.hu:
            hu = self.to_hu(stored, header)
            return apply_window(hu, options.window_center, options.window_width)
        values = np.asarray(stored, np.float64)
        if self.invert:
            values = header.low + header.high - values
        return spread(values, header.low, max(header.high, header.low + 1))


def decide(
    samples: Sequence[np.ndarray],
    header: Stored,
    declared_ct: bool,
    options: InputOptions,
    other_modality: bool = False,
) -> tuple[Reading, list[str]]:
    """Says what stored values mean, and what had to be assumed for it.

    Tried in this order, until the values are plausible as Hounsfield units: the header's rescale
    (of MONOCHROME1 on inverted values, then on values as they are), and where it has none or does
    nothing, an intercept of -1024. If none fits, a CT that was rescaled is believed, and of
    anything else the range is spread.

    Args:
      samples: stored values of some slices.
      header: what the header says of them.
      declared_ct: whether the header says that this is CT.
      options: may force the answer.
      other_modality: whether the header says that this is something else; then no intercept is
        assumed.

    Returns:
      the reading, and warnings, a line each.
    """
    if options.rescale is not None:
        return Reading(True, header.inverted, options.rescale), []
    if options.values != "auto":
        return Reading(options.values == "hu", header.inverted), []
    values = np.concatenate([np.ravel(sample) for sample in samples]) if samples else np.zeros(0)
    polarities = (True, False) if header.inverted else (False,)
    readings = [Reading(True, invert) for invert in polarities]
    if (header.slope, header.intercept) == (1, 0) and not other_modality:
        readings += [Reading(True, invert, (1.0, -1024.0)) for invert in polarities]
    found = next((r for r in readings if plausible_hu(r.to_hu(values, header))), None)
    if found is not None:
        return found, _assumed(found, header, declared_ct)
    shown = f"{values.min():g} to {values.max():g}" if values.size else "unread"
    if declared_ct and header.rescaled and (header.slope, header.intercept) != (1, 0):
        return readings[0], [
            f"the values ({shown} as stored) are implausible for a chest CT; taken as Hounsfield "
            "units because the header says so; --values=range spreads them instead"
        ]
    return Reading(False, header.inverted), [
        f"the values ({shown} as stored) are not Hounsfield units; taken as already windowed, "
        f"{header.low:g} black and {header.high:g} white; --values=hu or --rescale force a window"
    ]


def _assumed(reading: Reading, header: Stored, declared_ct: bool) -> list[str]:
    """Warnings about a reading that made the values plausible."""
    warnings = []
    if not declared_ct:
        warnings.append("not said to be CT; the values are those of a chest CT, and taken for one")
    if reading.rescale is not None:
        warnings.append(
            "no rescale to Hounsfield units in the header; an intercept of -1024 makes the values "
            "plausible and was assumed; --rescale sets another"
        )
    if header.inverted and not reading.invert:
        warnings.append(
            "MONOCHROME1, but the values are Hounsfield units as they are: not inverted"
        )
    return warnings
