"""A scan that can be read: slices that load when asked, and where they lie in the patient."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ssm_jax.scans.options import InputOptions, ScanError, visible

_NAMED = 3  # files that a warning names
_SQUARE = 0.01  # of its length by which sides of a square may differ
_TISSUE = -300  # Hounsfield units above which there is no air or lung


@dataclasses.dataclass(frozen=True)
class Turn:
    """How a stored slice is turned to the radiological view; steps in the order of the fields.

    Attributes:
      transpose: whether rows become columns.
      flip_rows: whether the order of rows is then reversed.
      flip_columns: whether the order of columns is then reversed.
    """

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    def apply(self, stored: np.ndarray) -> np.ndarray:
        """[h, w] as stored -> [H, W] as shown."""
        shown = stored.T if self.transpose else stored
        return np.ascontiguousarray(shown[self._flips()])

    def undo(self, shown: np.ndarray) -> np.ndarray:
        """[H, W] as shown -> [h, w] as stored."""
        stored = shown[self._flips()]
        return np.ascontiguousarray(stored.T if self.transpose else stored)

    def matrix(self, height: int, width: int) -> np.ndarray:
        """[4, 4] that takes (column, row, 0, 1) as shown to (column, row, 0, 1) as stored.

        Args:
          height: of the slice as stored.
          width: of the slice as stored.
        """
        rows, columns = (width, height) if self.transpose else (height, width)
        flip = np.eye(4)
        if self.flip_columns:
            flip[0, 0], flip[0, 3] = -1, columns - 1
        if self.flip_rows:
            flip[1, 1], flip[1, 3] = -1, rows - 1
        return np.eye(4)[[1, 0, 2, 3]] @ flip if self.transpose else flip

    def _flips(self) -> tuple[slice, slice]:
        steps = (-1 if flip else 1 for flip in (self.flip_rows, self.flip_columns))
        rows, columns = (slice(None, None, step) for step in steps)
        return rows, columns


@dataclasses.dataclass(frozen=True)
class Slice:
    """A slice that can be read.

    Attributes:
      name: what the user knows it by.
      read: gives uint8 [H, W] or [H, W, 3] as the model is shown it; raises almost anything for a
        damaged file.
      position: millimeters along the slice normal; None where unknown.
      index: in the source: the voxel index along its slice axis, or the number of the instance in
        the series; None where there is no such thing.
      turn: from stored to shown.
      affine: [4, 4] from (column, row, 0, 1) as shown to RAS millimeters; None where unknown.
      aspect: height of a pixel as shown over its width; 1 where they are alike or unknown.
    """

    name: str
    read: Callable[[], np.ndarray]
    position: float | None = None
    index: int | None = None
    turn: Turn = Turn()
    affine: np.ndarray | None = None
    aspect: float = 1.0


@dataclasses.dataclass
class Scan:
    """A scan that can be read.

    Attributes:
      name: what the user knows it by: a path, or a path and a series.
      kind: "pictures", "dicom" or "nifti".
      facts: what is known of the source: label and value, both for people.
      warnings: what was assumed or left out, a line each.
      slices: in order.
      spacing: millimeters between slices, rows and columns as shown; None where unknown.
      origin: what the kind's masks need of the source.
      tissue: gray level of a slice as shown from which a pixel is tissue and no air or lung; None
        where unknown.
      release: frees what reading holds; slices can be read again afterwards.
      error: why nothing can be read; None otherwise.
    """

    name: str
    kind: str
    facts: dict[str, str] = dataclasses.field(default_factory=dict)
    warnings: list[str] = dataclasses.field(default_factory=list)
    slices: list[Slice] = dataclasses.field(default_factory=list)
    spacing: tuple[float, float, float] | None = None
    origin: Any = None
    tissue: float | None = None
    release: Callable[[], None] = lambda: None
    error: str | None = None


def values_for_people(hu: bool, options: InputOptions) -> str:
    """The treatment of stored values: windowed Hounsfield units, or their range spread."""
    if not hu:
        return "range spread over 8 bits"
    center, width = options.window
    return f"Hounsfield units, window center {center:g}, width {width:g}"


def aspect_of(height: float, width: float) -> float:
    """Height of a pixel over its width; exactly 1 where they differ by rounding alone."""
    return 1.0 if abs(height / width - 1) < _SQUARE else height / width


def tissue_level(hu: bool, options: InputOptions) -> float | None:
    """Gray level from which a pixel is tissue; None of values that are no Hounsfield units."""
    center, width = options.window
    level = (_TISSUE - (center - width / 2)) / width * 255
    return level if hu and 0 < level < 255 else None


def few(names: Sequence[str]) -> str:
    """Some of many names of files, for people."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(map(visible, names[:_NAMED])) + more


def refuse(why: str) -> np.ndarray:
    """Reads a slice that cannot be read.

    Raises:
      ScanError: with that message, always.
    """
    raise ScanError(why)
