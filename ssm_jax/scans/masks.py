"""Lesion masks as files: NIfTI and DICOM SEG in the source's geometry, or PNG."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ssm_jax.files import naming
from ssm_jax.ops import rle
from ssm_jax.scans.dicom_seg import dicom_seg
from ssm_jax.scans.nifti import NiftiVolume, nifti_in_place
from ssm_jax.scans.options import ScanError
from ssm_jax.scans.result import ScanResult
from ssm_jax.scans.source import Scan
from ssm_jax.scans.upright import MOST_VOXELS, upright

if TYPE_CHECKING:  # reading an upload takes no JAX
    from ssm_jax.predictor import Prediction

KINDS = ("nifti", "dicom-seg", "png")
_MOST_SLICES = 4096  # of a grid
_MOST_BYTES = 200  # of a name, of which file systems take 255
_OFF_GRID = 0.05  # of a step that a slice may lie beside the grid


def label_map(prediction: Prediction) -> np.ndarray:
    """The lesion class of each pixel, uint8 [H, W]; where masks overlap that of the higher score.

    Without masks it is all 0.
    """
    labels = np.zeros((prediction.height, prediction.width), np.uint8)
    masks = prediction.masks or []
    for mask, label in list(zip(masks, prediction.labels, strict=bool(masks)))[::-1]:
        labels[rle.decode(mask)] = label
    return labels


def file_name(index: int, name: str) -> str:
    """A name for the picture of a slice: its place in the scan, and what is safe of its name."""
    stem = re.sub(r"[^\w.-]+", "_", pathlib.PurePath(name).stem)
    return f"{index:05d}_{stem.encode()[-_MOST_BYTES:].decode(errors='ignore')}.png"


def write_masks(
    result: ScanResult, scan: Scan, kind: str, folder: pathlib.Path
) -> list[pathlib.Path]:
    """Writes the lesion masks of a scan: 0 background, and the lesion classes from 1 on.

    Args:
      result: of the scan.
      scan: that it is of.
      kind: "nifti": one volume on the voxels of the source; "dicom-seg": a DICOM segmentation that
        refers to the source's files; "png": one picture a slice, as it was shown to the model.
      folder: that exists; names of files come from this program.

    Returns:
      The files written.

    Raises:
      ScanError: the source has no geometry for this kind, or a library is missing.
    """
    if kind == "png":
        return _write_pictures(result, folder)
    if kind == "nifti":
        path = folder / "lesions.nii.gz"
        with naming(path):
            if scan.kind == "nifti":
                _write_on_volume(result, scan, path)
            elif scan.kind == "dicom" and scan.origin.planar:
                _write_on_grid(result, scan, path)
            else:
                raise ScanError(f"{scan.name} does not tell where its slices lie; use --masks=png")
        return [path]
    if kind == "dicom-seg":
        if scan.kind != "dicom":
            raise ScanError(
                f"{scan.name} is not DICOM, which DICOM SEG refers to; use another kind"
            )
        if not any(slice_.prediction for slice_ in result.slices):
            raise ScanError(f"{scan.name}: no slice was predicted, so there is nothing to segment")
        path = folder / "lesions.dcm"
        dicom_seg(path, scan, dict(_stored_labels(result, scan)), result.classes)
        return [path]
    raise ScanError(f"masks are written as {', '.join(KINDS)}, not {kind!r}")


def _write_pictures(result: ScanResult, folder: pathlib.Path) -> list[pathlib.Path]:
    paths = []
    for index, slice_ in enumerate(result.slices):
        if slice_.prediction is not None:
            paths.append(folder / file_name(index, slice_.name))
            Image.fromarray(label_map(slice_.prediction)).save(paths[-1])
    return paths


def _stored_labels(result: ScanResult, scan: Scan):
    """Yields (index, [h, w] labels as stored) of each slice that was read."""
    for index, (slice_, source) in enumerate(zip(result.slices, scan.slices, strict=True)):
        if slice_.prediction is not None:
            yield index, source.turn.undo(label_map(slice_.prediction))


def _write_on_volume(result: ScanResult, scan: Scan, path: pathlib.Path) -> None:
    volume: NiftiVolume = scan.origin
    labels = np.zeros(volume.shape, np.uint8)
    for index, stored in _stored_labels(result, scan):
        place = [slice(None)] * 3
        place[volume.axis] = scan.slices[index].index
        labels[tuple(place)] = stored
    nifti_in_place(path, labels, volume.affine, volume.header)


def _write_on_grid(result: ScanResult, scan: Scan, path: pathlib.Path) -> None:
    """A volume of columns, rows and slices as stored; places without a slice stay empty."""
    frames = scan.origin.frames
    known = [k for k, frame in enumerate(frames) if frame is not None]
    planes = [frames[k].plane for k in known]
    positions = np.array([plane.position for plane in planes])
    step, places = grid(positions, scan.spacing[0] if scan.spacing else 1.0)
    stand = upright(planes, frames[known[0]].shape)
    shape = (*stand.shape[::-1], int(places[-1]) + 1)
    if math.prod(shape) > MOST_VOXELS:
        raise ScanError("its slices lie too far apart for one NIfTI volume; use --masks=dicom-seg")
    labels = np.zeros(shape, np.uint8)
    order = {index: number for number, index in enumerate(known)}
    for index, stored in _stored_labels(result, scan):
        number = order[index]
        labels[:, :, places[number]] = stand.place(number, stored).T
    affine = dataclasses.replace(planes[0], origin=stand.origins[0]).stored_affine()
    affine[:3, 2] *= step
    nifti_in_place(path, labels, affine)


def grid(positions: np.ndarray, usual: float) -> tuple[float, np.ndarray]:
    """The even grid that slices lie on, some of its places perhaps empty.

    Args:
      positions: [N] increasing, millimeters.
      usual: distance to assume of a single slice.

    Returns:
      the grid's step in millimeters, and the [N] int place of each slice, the first at 0.

    Raises:
      ScanError: there is no such grid.
    """
    if len(positions) == 1:
        return usual, np.zeros(1, int)
    away = positions - positions[0]
    smallest = np.diff(positions).min()
    for parts in range(1, 11):
        step = smallest / parts
        # The smallest distance is rounded like any other; over the whole way that averages out.
        count = round(away[-1] / step)
        step = away[-1] / count
        places = np.rint(away / step).astype(int)
        off = np.abs(away / step - places).max()
        if off <= _OFF_GRID and len(np.unique(places)) == len(places) and count < _MOST_SLICES:
            return float(step), places
    raise ScanError(
        "its slices lie at uneven distances, which a NIfTI volume cannot tell; use "
        "--masks=dicom-seg or --masks=png"
    )
