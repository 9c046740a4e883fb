"""NIfTI volumes, brought to axial slices as a radiologist sees them."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib

import numpy as np

from ssm_jax.scans.options import (
    MIB,
    InputOptions,
    ScanError,
    check_unpacked,
    guarded,
    medical_library,
)
from ssm_jax.scans.source import (
    Scan,
    Slice,
    Turn,
    aspect_of,
    tissue_level,
    values_for_people,
)
from ssm_jax.scans.window import Source, Stored, decide

_SAMPLES = (0.25, 0.5, 0.75)  # of the way through the volume
_MOST_MM, _LEAST_MM = 1e5, 1e-6  # from the origin, and between voxels
_FLAT = 1e-6  # of the volume of a box of its sides, below which a voxel is none
_MOST_SIDE = 32_767  # voxels of an axis that NIfTI-1 can tell


@dataclasses.dataclass
class NiftiVolume:
    """A volume whose voxels load when they are asked for.

    Attributes:
      path: of the file.
      shape: [3] voxels along the stored axes.
      affine: [4, 4] from voxel indices to RAS millimeters.
      axis: the stored axis that runs along the slices.
      header: nibabel's.
      slope: of the rescale.
      intercept: of the rescale.
    """

    path: str
    shape: tuple[int, int, int]
    affine: np.ndarray
    axis: int
    header: object
    slope: float
    intercept: float
    _voxels: np.ndarray | None = None

    def voxels(self) -> np.ndarray:
        """[shape] as stored, without slope and intercept; uncompressed files stay on disk.

        Raises:
          ScanError: damaged.
        """
        if self._voxels is None:
            nibabel = medical_library("nibabel")
            with guarded("cannot be read as NIfTI"):
                voxels = np.asanyarray(nibabel.load(self.path).dataobj.get_unscaled())
                self._voxels = voxels.reshape(*self.shape, -1)[..., 0]
        return self._voxels

    def plane(self, index: int) -> np.ndarray:
        """The voxels of one slice, as stored: a view, whatever their order in memory."""
        return np.moveaxis(self.voxels(), self.axis, 0)[index]

    def release(self) -> None:
        """Frees the voxels."""
        self._voxels = None


def open_nifti(path: str, options: InputOptions) -> Scan:
    """Opens a `.nii` or `.nii.gz` file, whatever its axis order.

    Slices are ordered from the feet up, rows run to the back and columns to the patient's left.

    Raises:
      ScanError: nibabel is missing; damaged; not a volume of numbers; larger than the limit.
    """
    nibabel = medical_library("nibabel")
    with guarded("cannot be read as NIfTI"):
        volume, warnings = _volume(nibabel, path, options)
        return _scan(nibabel, volume, warnings, options)


def _volume(nibabel, path: str, options: InputOptions) -> tuple[NiftiVolume, list[str]]:
    """The volume of a file, checked against its header, and what is to be said of it."""
    image = nibabel.load(path)
    header, affine, kind = (
        image.header,
        np.asarray(image.affine, float),
        image.get_data_dtype().kind,
    )
    warnings = []
    shape = (*image.shape, 1)[:3] if len(image.shape) == 2 else image.shape[:3]
    if len(shape) != 3 or not np.prod(image.shape, dtype=float):
        raise ScanError(f"holds no volume, its shape is {list(image.shape)}")
    if kind not in "iuf":
        raise ScanError(f"holds {image.get_data_dtype()} voxels, not numbers")
    if np.prod(image.shape[3:], dtype=float) > 1:
        warnings.append(f"of {int(np.prod(image.shape[3:]))} volumes only the first was taken")
    _check_size(image, path, options)
    if not (np.abs(affine) < _MOST_MM).all():
        raise ScanError("the header's affine is not of numbers in millimeters")
    sides = nibabel.affines.voxel_sizes(affine)
    flat = abs(np.linalg.det(affine[:3, :3])) < _FLAT * np.prod(sides)
    if flat or (sides < _LEAST_MM).any():
        raise ScanError("the header's affine is singular; where its slices lie is unknown")
    if _get(header, "qform_code") == 0 and _get(header, "sform_code") == 0:
        warnings.append("the header does not tell the orientation; axes taken as nibabel does")
    axes = nibabel.io_orientation(affine)
    axis = int(np.flatnonzero(axes[:, 0] == 2)[0])
    # Only what holds the voxels knows the rescale: nibabel's header has none once it is loaded.
    slope, intercept = (float(getattr(image.dataobj, name)) for name in ("slope", "inter"))
    if not np.isfinite([slope, intercept]).all():
        raise ScanError(f"its rescale makes no sense: slope {slope:g}, intercept {intercept:g}")
    shape = tuple(map(int, shape))
    return NiftiVolume(path, shape, affine, axis, header, slope, intercept), warnings


def _check_size(image, path: str, options: InputOptions) -> None:
    """Refuses volumes that the file cannot hold, or that are larger than the limit."""
    size = np.prod(np.array(image.shape, float)) * image.get_data_dtype().itemsize
    if size > options.max_file_mib * MIB:
        raise ScanError(f"its volume takes {size / MIB:.0f} MiB, more than {options.max_file_mib}")
    stored = image.file_map["image"].filename or path
    held = os.path.getsize(stored)
    if stored.endswith((".gz", ".bz2", ".zst")):
        check_unpacked(size, held, "gzip")
    elif size > held:
        raise ScanError(f"its volume takes {size:.0f} bytes, but the file has {held}")


def _scan(nibabel, volume: NiftiVolume, warnings: list[str], options: InputOptions) -> Scan:
    """The scan of a volume."""
    axis, shape, affine = volume.axis, volume.shape, volume.affine
    first, second = (k for k in range(3) if k != axis)  # rows and columns as stored
    if shape[first] * shape[second] > options.max_pixels:
        raise ScanError(f"slices of {shape[first]}x{shape[second]} pixels are beyond the limit")
    axes = nibabel.io_orientation(affine)  # [3, 2] world axis and direction of each stored axis
    along = {int(world): direction for world, direction in axes}
    turn = Turn(bool(axes[first, 0] == 0), bool(along[1] > 0), bool(along[0] > 0))
    stored, undefined = _stored(volume)
    if undefined == 1:
        raise ScanError("none of its voxels is a number")
    if undefined:
        warnings.append(f"{undefined:.2g} of all voxels are no numbers, and taken for air")
    samples = [(volume.plane(int(share * shape[axis])), stored) for share in _SAMPLES]
    reading, assumed = decide(samples, stored, Source("volume"), options)
    lengths = nibabel.affines.voxel_sizes(affine)
    rows, columns = (second, first) if turn.transpose else (first, second)
    # The distance of slices is along their normal, however the third axis is sheared.
    apart = abs(np.linalg.det(affine[:3, :3])) / np.linalg.norm(
        np.cross(affine[:3, first], affine[:3, second])
    )
    spacing = (float(apart), float(lengths[rows]), float(lengths[columns]))
    order = range(shape[axis]) if along[2] > 0 else range(shape[axis] - 1, -1, -1)
    slices = []
    for index in order:
        read = functools.partial(_read, volume, index, turn, reading, stored, options)
        place = _slice_affine(volume, index, (first, second), turn)
        normal = np.cross(place[:3, 0], place[:3, 1])
        position = float(place[:3, 3] @ normal / np.linalg.norm(normal))
        # Columns run left and rows back, so the normal of RAS axes points up.
        name, aspect = f"{volume.path} slice {index}", aspect_of(*spacing[1:])
        slices.append(Slice(name, read, position, index, turn, place, aspect))
    facts = {
        "Source": f"NIfTI, {' x '.join(map(str, shape))} voxels",
        "Orientation": "".join(nibabel.aff2axcodes(affine)),
        "Slices": str(len(slices)),
        "Spacing": " x ".join(f"{length:.3g}" for length in spacing) + " mm",
        "Rescale": f"slope {volume.slope:g}, intercept {volume.intercept:g}",
        "Values": values_for_people(reading.hu, options),
    }
    volume.release()
    return Scan(
        volume.path,
        "nifti",
        facts,
        warnings + assumed,
        slices,
        spacing,
        origin=volume,
        tissue=tissue_level(reading.hu, options),
        release=volume.release,
    )


def nifti_in_place(path: pathlib.Path, labels: np.ndarray, affine: np.ndarray, header=None) -> None:
    """Writes a label volume.

    Args:
      path: of the file to write.
      labels: [X, Y, Z] uint8.
      affine: [4, 4] from voxel indices to RAS millimeters.
      header: of the source, whose units and codes are kept; or None.
    """
    nibabel = medical_library("nibabel")
    small = max(labels.shape) <= _MOST_SIDE
    image = (nibabel.Nifti1Image if small else nibabel.Nifti2Image)(labels, affine)
    qform, sform = (_code(header, f"{form}_code") for form in ("qform", "sform"))
    image.set_sform(affine, sform)
    image.set_qform(affine, qform)
    # A qform has no shear, which a source may have; where it is off it must not count.
    if not np.allclose(image.get_qform(), affine, atol=1e-3):
        image.header["qform_code"] = 0
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b"ssm_jax lesion labels"
    nibabel.save(image, path)


def _get(header, name: str):
    """A field of a NIfTI header; None in formats without it."""
    return header.get(name, None)


def _code(header, name: str) -> int:
    """The code of a form's coordinates, as in the source; 1 (a scanner's) if untold."""
    code = _get(header, name) if header is not None else None
    return int(code) if code is not None and code in range(1, 6) else 1


def _stored(volume: NiftiVolume) -> tuple[Stored, float]:
    """The range of values, and the share of voxels that are no numbers."""
    lows, highs, undefined = [], [], 0
    for index in range(volume.shape[volume.axis]):
        plane = volume.plane(index)
        if plane.dtype.kind == "f":
            finite = np.isfinite(plane)
            undefined += plane.size - int(np.count_nonzero(finite))
            plane = plane[finite]
        if plane.size:
            lows.append(float(plane.min()))
            highs.append(float(plane.max()))
    low, high = min(lows, default=0.0), max(highs, default=0.0)
    if low >= 0:
        low = 0.0
        high = next((top for top in (1.0, 255.0, 4095.0, 65535.0) if high <= top), high)
    rescaled = (volume.slope, volume.intercept) != (1.0, 0.0)
    stored = Stored(low, high, volume.slope, volume.intercept, rescaled)
    return stored, undefined / np.prod(volume.shape)


def _slice_affine(
    volume: NiftiVolume, index: int, stored_axes: tuple[int, int], turn: Turn
) -> np.ndarray:
    """[4, 4] from (column, row, 0, 1) as shown to RAS millimeters."""
    first, second = stored_axes
    to_voxel = np.zeros((4, 4))
    to_voxel[first, 1] = to_voxel[second, 0] = to_voxel[volume.axis, 2] = to_voxel[3, 3] = 1
    to_voxel[volume.axis, 3] = index
    return volume.affine @ to_voxel @ turn.matrix(volume.shape[first], volume.shape[second])


def _read(volume, index, turn, reading, stored, options) -> np.ndarray:
    """uint8 [H, W] of a slice."""
    return turn.apply(reading.to_uint8(volume.plane(index), stored, options))
