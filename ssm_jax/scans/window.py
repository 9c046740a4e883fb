"""From stored values to the 8 bits that training saw."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ssm_jax.scans.options import InputOptions

AIR, TISSUE, BONE = -500, (-300, 400), 2000  # Hounsfield units
_SATURATED = 0.99  # share of pixels black or white from which a slice shows nothing
_EXTREMES = (0.5, 99.5)  # percentiles that are black and white where nothing else is known


def apply_window(hu: np.ndarray, center: float, width: float) -> np.ndarray:
    """A CT window: center - width / 2 and below is black, center + width / 2 and above white.

    Args:
      hu: [...] Hounsfield units; what is not a number counts as air.
      center: Hounsfield units.
      width: Hounsfield units, positive.

    Returns:
      [...] uint8, rounded to the nearest gray level.
    """
    return spread(hu, center - width / 2, center + width / 2)


def spread(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Maps [low, high] linearly to 0 to 255 (uint8), rounded; what lies beyond is clipped."""
    finite = np.nan_to_num(np.asarray(values, np.float64), nan=low, posinf=high, neginf=low)
    share = (finite - low) / (high - low)
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
    """Statements of a header about stored values.

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
    """The meaning of stored values.

    Attributes:
      hu: whether they become Hounsfield units, to be windowed; otherwise a range is spread.
      invert: whether low + high - value is taken first.
      rescale: (slope, intercept) in place of each slice's own; None: its own.
      span: of values after the rescale that are not Hounsfield units, which of them are black and
        white (inverted: white and black); None: all that can be stored is spread.
    """

    hu: bool
    invert: bool
    rescale: tuple[float, float] | None = None
    span: tuple[float, float] | None = None

    def to_hu(self, stored: np.ndarray, header: Stored) -> np.ndarray:
        """Rescaled values, float64 of the same shape."""
        slope, intercept = self.rescale or (header.slope, header.intercept)
        return self._upright(stored, header) * slope + intercept

    def to_uint8(self, stored: np.ndarray, header: Stored, options: InputOptions) -> np.ndarray:
        """The picture that the model sees, uint8 of the same shape."""
        if self.hu:
            return apply_window(self.to_hu(stored, header), *options.window)
        if self.span is not None:
            shown = spread(
                dataclasses.replace(self, invert=False).to_hu(stored, header), *self.span
            )
            return 255 - shown if self.invert else shown
        return spread(self._upright(stored, header), header.low, max(header.high, header.low + 1))

    def _upright(self, stored: np.ndarray, header: Stored) -> np.ndarray:
        values = np.asarray(stored, np.float64)
        return header.low + header.high - values if self.invert else values


@dataclasses.dataclass(frozen=True)
class Source:
    """Where values come from, as far as it says what they can be.

    Attributes:
      kind: "ct": the header says so; "unknown": it does not say; "other": it says something else;
        "volume": NIfTI, whose header has all of the rescale and never says; "projection": a
        localizer, which is no slice.
      window: (center, width) that its maker chose to show it with; None where unknown.
    """

    kind: str = "unknown"
    window: tuple[float, float] | None = None


def decide(
    samples: Sequence[tuple[np.ndarray, Stored]],
    header: Stored,
    source: Source,
    options: InputOptions,
) -> tuple[Reading, list[str]]:
    """Says what stored values mean, and what had to be assumed for it.

    Tried in this order, until the values are plausible as Hounsfield units: the header's rescale
    (of MONOCHROME1 on inverted values, then on values as they are), and where it has none or does
    nothing, an intercept of -1024 (of CT and the unknown). If none fits, a CT that was rescaled is
    believed where the window then shows anything, and anything else is shown by its own window.

    Args:
      samples: some slices: stored values, and what their own header says of them.
      header: what the headers of most slices say.
      source: what the values come from.
      options: may force the answer.

    Returns:
      the reading, and warnings, a line each.
    """
    if options.rescale is not None:
        return Reading(True, header.inverted, options.rescale), []
    if options.values != "auto":
        return Reading(options.values == "hu", header.inverted), []
    if source.kind == "projection":
        own = _own_window(samples, header, source)
        return own, ["a localizer, which is no slice; shown by its own window"]
    polarities = (True, False) if header.inverted else (False,)
    readings = [Reading(True, invert) for invert in polarities]
    if (header.slope, header.intercept) == (1, 0) and source.kind in ("ct", "unknown"):
        readings += [Reading(True, invert, (1.0, -1024.0)) for invert in polarities]
    found = next((r for r in readings if _fits(r, samples)), None)
    if found is not None:
        return found, _assumed(found, header, source.kind in ("ct", "volume"))
    values = _together([values for values, _ in samples])
    shown = f"{values.min():g} to {values.max():g}" if values.size else "unread"
    said = source.kind == "ct" and header.rescaled and (header.slope, header.intercept) != (1, 0)
    if said and _shows(readings[0], samples, options):
        return readings[0], [
            f"the values ({shown} as stored) are implausible for a chest CT; taken as Hounsfield "
            "units because the header says so; --values=range spreads them instead"
        ]
    own = _own_window(samples, header, source)
    low, high = own.span or (header.low, header.high)
    return own, [
        f"the values ({shown} as stored) are not Hounsfield units; taken as already windowed, "
        f"{low:g} black and {high:g} white; --values=hu or --rescale force a window"
    ]


def _fits(reading: Reading, samples: Sequence[tuple[np.ndarray, Stored]]) -> bool:
    """Whether values are plausible together, or at least in most slices: one may be damaged."""
    values = [reading.to_hu(stored, header) for stored, header in samples]
    if plausible_hu(_together(values)):
        return True
    return 2 * sum(map(plausible_hu, values)) > len(values)


def _together(values: Sequence[np.ndarray]) -> np.ndarray:
    """All finite values, in one row."""
    joined = np.concatenate([np.ravel(part) for part in values]) if values else np.zeros(0)
    return joined[np.isfinite(joined)]


def _shows(reading: Reading, samples, options: InputOptions) -> bool:
    """Whether more than a few pixels are neither black nor white."""
    shown = [reading.to_uint8(stored, header, options) for stored, header in samples]
    return any(np.isin(gray, (0, 255)).mean() < _SATURATED for gray in shown)


def _own_window(samples, header: Stored, source: Source) -> Reading:
    """Values as their maker shows them, or else spread; of more than 8 bits as far as they go."""
    upright = Reading(False, header.inverted)
    if source.window is not None:
        center, width = source.window
        return dataclasses.replace(upright, span=(center - width / 2, center + width / 2))
    values = _together([Reading(False, False).to_hu(stored, own) for stored, own in samples])
    if header.high - header.low <= 255 or not values.size:
        return upright
    low, high = (float(value) for value in np.percentile(values, _EXTREMES))
    return dataclasses.replace(upright, span=(low, max(high, low + 1)))


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
