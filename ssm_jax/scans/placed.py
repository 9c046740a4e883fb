"""NIfTI volumes of labels, read where the slices of a scan lie in the patient."""

from __future__ import annotations

import dataclasses

import numpy as np

from ssm_jax.scans.options import ScanError, guarded, medical_library
from ssm_jax.scans.source import Slice


@dataclasses.dataclass(frozen=True)
class PlacedVolume:
    """Labels in patient coordinates.

    Attributes:
      voxels: [X, Y, Z], 0 where there is nothing.
      to_voxel: [4, 4] from RAS millimeters to voxel indices.
    """

    voxels: np.ndarray
    to_voxel: np.ndarray

    @classmethod
    def load(cls, path: str, what: str) -> PlacedVolume:
        """Reads a NIfTI volume, its values after slope and intercept.

        Args:
          path: of the file.
          what: it is, for messages.

        Raises:
          ScanError: nibabel is missing, or this is no volume with a place.
        """
        nibabel = medical_library("nibabel")
        with guarded(f"{what} {path} cannot be read"):
            image = nibabel.load(path)
            voxels = np.asanyarray(image.dataobj)
            to_voxel = np.linalg.inv(image.affine)
        if not np.isfinite(to_voxel).all():
            raise ScanError(f"{what} {path} does not tell where it lies")
        return cls(voxels, to_voxel)

    def of_slice(self, slice_: Slice, height: int, width: int) -> np.ndarray:
        """[height, width] of a slice as shown: the nearest voxel of each pixel; 0 outside."""
        places = self._places(slice_, height, width)
        inside = np.ones((height, width), bool)
        indices = []
        for place, length in zip(places, self.voxels.shape, strict=True):
            index = np.rint(place).astype(int)
            inside &= (index >= 0) & (index < length)
            indices.append(np.clip(index, 0, length - 1))
        found = self.voxels[tuple(indices)]
        return np.where(inside, found, np.zeros_like(found))

    def off_grid(self, slice_: Slice, height: int, width: int) -> float:
        """How far a slice lies from the voxels: the most that a pixel lacks to one, in voxels.

        Args:
          slice_: whose place is known.
          height: of the slice as shown.
          width: of the slice as shown.
        """
        away = []
        for place, length in zip(
            self._places(slice_, height, width), self.voxels.shape, strict=True
        ):
            nearest = np.clip(np.rint(place), 0, length - 1)
            away.append(float(np.abs(place - nearest).max()))
        return max(away)

    def _places(self, slice_: Slice, height: int, width: int) -> list[np.ndarray]:
        """[height, width] voxel index of each pixel along each axis, not rounded."""
        if slice_.affine is None:
            raise ScanError(f"{slice_.name} does not tell where it lies")
        matrix = self.to_voxel @ slice_.affine
        rows, columns = np.arange(height)[:, None], np.arange(width)[None]
        return [
            matrix[axis, 0] * columns + matrix[axis, 1] * rows + matrix[axis, 3]
            for axis in range(3)
        ]
