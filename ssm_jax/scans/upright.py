"""Slices of a tilted gantry on a grid with axes at right angles, which every reader can place."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ssm_jax.scans.dicom_frames import Plane
from ssm_jax.scans.options import ScanError

MOST_VOXELS = 1 << 29  # of a volume


@dataclasses.dataclass(frozen=True)
class Upright:
    """A grid on the planes and the pixels of slices that lie shifted against each other.

    Each slice moves in its own plane by whole pixels, so that a pixel lies within half a pixel of
    its place.

    Attributes:
      corners: [N, 2] int, column and row of the grid at which each slice begins, as stored.
      shape: rows and columns of the grid.
      origins: [N, 3] center of the grid's first pixel in the plane of each slice, LPS millimeters.
    """

    corners: np.ndarray
    shape: tuple[int, int]
    origins: np.ndarray

    @property
    def straight(self) -> bool:
        """Whether no slice moves."""
        return not self.corners.any()

    def place(self, index: int, labels: np.ndarray) -> np.ndarray:
        """The [rows, columns] labels of a slice as stored on the grid, 0 around them."""
        placed = np.zeros(self.shape, labels.dtype)
        (column, row), (height, width) = self.corners[index], labels.shape
        placed[row : row + height, column : column + width] = labels
        return placed


def upright(planes: Sequence[Plane], shape: tuple[int, int]) -> Upright:
    """The smallest upright grid that holds all slices of a stack.

    Args:
      planes: of the slices, whose directions are the same but for rounding.
      shape: rows and columns of each, as stored.

    Raises:
      ScanError: the slices lie so far apart that the grid would be giant.
    """
    first = planes[0]
    axes = np.transpose(
        [
            first.along_row * first.spacing[1],
            first.along_column * first.spacing[0],
            first.normal,
        ]
    )
    away = np.linalg.solve(axes, np.transpose([plane.origin - first.origin for plane in planes])).T
    shifts = np.rint(away[:, :2]).astype(int)
    corners = shifts - shifts.min(axis=0)
    columns, rows = corners.max(axis=0)
    size = (shape[0] + int(rows), shape[1] + int(columns))
    if len(planes) * size[0] * size[1] > MOST_VOXELS and corners.any():
        raise ScanError("the slices lie too far apart for one volume")
    start = first.origin - axes[:, :2] @ corners[0]
    origins = start + np.outer(away[:, 2], first.normal)
    return Upright(corners, size, origins)
