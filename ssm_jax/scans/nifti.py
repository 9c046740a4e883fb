"""NIfTI volumes, brought to axial slices as a radiologist sees them."""

from __future__ import annotations

import dataclasses
import functools
import pathlib

import numpy as np

from ssm_jax.scans.options import InputOptions, ScanError, medical_library
from ssm_jax.scans.source import Scan, Slice, Turn, values_for_people
from ssm_jax.scans.window import Stored, decide

_MIB = 1 << 20
_SAMPLES = (0.25, 0.5, 0.75)  # of the way through the volume


@dataclasses.dataclass
class NiftiVolume:
    """A volume whose voxels load when they are asked for.

    Attributes:
      path: of the file.
      shape: [3] voxels along the stored axes.
      affine: [4, 4] from voxel indices to RAS millimeters.
      axis: the stored axis that runs along the slices.
      header: nibabel's.
    """

    path: str
    shape: tuple[int, int, int]
    affine: np.ndarray
    axis: int
    header: object
    _voxels: np.ndarray | None = None

    def voxels(self) -> np.ndarray:
        """[shape] as stored, without slope and intercept; uncompressed files stay on disk.

        Raises:
          ScanError: damaged.
        """
        if self._voxels is None:
            nibabel = medical_library("nibabel")
            try:
                voxels = np.asanyarray(nibabel.load(self.path).dataobj.get_unscaled())
            # A damaged file makes nibabel and gzip raise almost anything.
            except Exception as error:
                raise ScanError(f"{self.path} cannot be read: {error}") from error
            self._voxels = voxels.reshape(*self.shape, -1)[..., 0] if voxels.ndim > 3 else voxels
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
    try:
        image = nibabel.load(path)
        header, affine = image.header, np.asarray(image.affine, float)
    except Exception as error:
        raise ScanError(f"cannot be read as NIfTI: {error}") from error
    warnings = []
    shape = (*image.shape, 1, 1)[:3] if len(image.shape) == 2 else image.shape[:3]
    if len(shape) != 3 or not np.prod(image.shape):
        raise ScanError(f"holds no volume, its shape is {list(image.shape)}")
    if image.get_data_dtype().kind not in "iuf":
        raise ScanError(f"holds {image.get_data_dtype()} voxels, not numbers")
    if np.prod(image.shape[3:], dtype=float) > 1:
        warnings.append(f"of {int(np.prod(image.shape[3:]))} volumes only the first was taken")
    size = np.prod(np.array(image.shape, float)) * image.get_data_dtype().itemsize
    if size > options.max_file_mib * _MIB:
        raise ScanError(f"its volume takes {size / _MIB:.0f} MiB, more than {options.max_file_mib}")
    if _get(header, "qform_code") == 0 and _get(header, "sform_code") == 0:
        warnings.append("the header does not tell the orientation; axes taken as nibabel does")
    axes = nibabel.io_orientation(affine)  # [3, 2] world axis and direction of each stored axis
    if np.isnan(axes).any():
        raise ScanError("the header's affine is singular; the orientation is unknown")
    axis = int(np.flatnonzero(axes[:, 0] == 2)[0])
    volume = NiftiVolume(path, tuple(map(int, shape)), affine, axis, header)
    first, second = (k for k in range(3) if k != axis)  # rows and columns as stored
    if shape[first] * shape[second] > options.max_pixels:
        raise ScanError(f"slices of {shape[first]}x{shape[second]} pixels are beyond the limit")
    along = {int(world): direction for world, direction in axes}
    turn = Turn(bool(axes[first, 0] == 0), bool(along[1] > 0), bool(along[0] > 0))
    stored, slope = _stored(volume, header)
    samples = [volume.plane(int(p * shape[axis])) for p in _SAMPLES]
    reading, assumed = decide(samples, stored, True, options)
    spacing = nibabel.affines.voxel_sizes(affine)
    rows, columns = (second, first) if turn.transpose else (first, second)
    order = range(shape[axis]) if along[2] > 0 else range(shape[axis] - 1, -1, -1)
    slices = []
    for index in order:
        read = functools.partial(_read, volume, index, turn, reading, stored, options)
        place = _slice_affine(volume, index, (first, second), turn)
        normal = np.cross(place[:3, 0], place[:3, 1])
        position = float(place[:3, 3] @ normal / np.linalg.norm(normal))
        # Columns run left and rows back, so the normal of RAS axes points up.
        slices.append(Slice(f"{path} slice {index}", read, position, index, turn, place))
    facts = {
        "Source": f"NIfTI, {' x '.join(map(str, shape))} voxels",
        "Orientation": "".join(nibabel.aff2axcodes(affine)),
        "Slices": str(len(slices)),
        "Spacing": " x ".join(f"{spacing[k]:.3g}" for k in (axis, rows, columns)) + " mm",
        "Rescale": slope,
        "Values": values_for_people(reading.hu, options),
    }
    volume.release()
    return Scan(
        path,
        "nifti",
        facts,
        warnings + assumed,
        slices,
        tuple(float(spacing[k]) for k in (axis, rows, columns)),
        volume,
        volume.release,
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
    image = nibabel.Nifti1Image(labels, affine)
    codes = (1, 1)
    if header is not None and _get(header, "qform_code") is not None:
        codes = tuple(int(_get(header, f"{form}_code")) for form in ("qform", "sform"))
    image.set_qform(affine, codes[0] or 1)
    image.set_sform(affine, codes[1] or 1)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b"ssm_jax lesion labels"
    nibabel.save(image, path)


def _get(header, name: str):
    """A field of a NIfTI header; None in formats without it."""
    return header.get(name, None)


def _stored(volume: NiftiVolume, header) -> tuple[Stored, str]:
    """The range of values, and the rescale for people."""
    voxels = volume.voxels()
    low, high = float(np.nanmin(voxels)), float(np.nanmax(voxels))
    if low >= 0:
        low = 0.0
        high = next((top for top in (1.0, 255.0, 4095.0, 65535.0) if high <= top), high)
    slope, intercept = header.get_slope_inter()
    rescaled = slope is not None and (slope, intercept or 0.0) != (1.0, 0.0)
    slope, intercept = float(slope if slope is not None else 1), float(intercept or 0)
    text = f"slope {slope:g}, intercept {intercept:g}"
    return Stored(low, high, slope, intercept, rescaled), text


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
