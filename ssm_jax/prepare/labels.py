"""Labels of volumes: NIfTI volumes and DICOM segmentations, turned as their image is shown."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ssm_jax.data.errors import DataError, name_files
from ssm_jax.prepare.drafts import Truth
from ssm_jax.prepare.options import ReadOptions
from ssm_jax.scans.find import find, kind_of
from ssm_jax.scans.options import InputOptions, ScanError, guarded, medical_library
from ssm_jax.scans.placed import PlacedVolume
from ssm_jax.scans.source import Scan

BACKGROUND = "background"  # a label that is no lesion
_OFF = 0.1  # voxels that a slice may lie beside those of its labels
_WHOLE = 1e-3  # of a label, which a rescale may make a number with a fraction


@dataclasses.dataclass
class VolumeLabels:
    """Labels of the slices of a scan.

    Attributes:
      names: value -> name, of formats that name them themselves; None where they do not.
      of_slice: gives int [height, width] of a slice, by its index, as shown; raises ScanError where
        labels and slices do not meet, or labels are none.
      release: frees what they hold.
    """

    names: Mapping[int, str] | None
    of_slice: Callable[[int, int, int], np.ndarray]
    release: Callable[[], None]


@dataclasses.dataclass(frozen=True)
class LabelValues:
    """Meaning of the values of labels.

    Attributes:
      named: name -> values.
      taken: names of the lesion classes, in order; no two may share a value.
      ignored: value of pixels that nobody judged; None: there is none.

    Raises:
      DataError: labels that share a value are taken together.
    """

    named: Mapping[str, tuple[int, ...]]
    taken: Sequence[str]
    ignored: int | None = None

    def __post_init__(self):
        owners: dict[int, str] = {}
        for name in self.taken:
            for value in self.named.get(name, ()):
                other = owners.setdefault(value, name)
                if other != name:
                    raise DataError(
                        f"the labels {other} and {name} overlap: both have the value {value}; "
                        "choose labels that do not with --lesion"
                    )

    def truth(self, labels: np.ndarray) -> Truth:
        """The objects of a slice or picture, components of its lesion classes.

        Args:
          labels: integer [H, W].

        Raises:
          ScanError: a value without a name.
        """
        known = {0, self.ignored} | {value for own in self.named.values() for value in own}
        unknown = [value for value in np.unique(labels).tolist() if value not in known]
        if unknown:
            shown = ", ".join(map(str, unknown[:5]))
            raise ScanError(f"has the label values {shown}, which have no name")
        mask = np.zeros(labels.shape, np.uint8)
        for number, name in enumerate(self.taken, 1):
            mask[np.isin(labels, self.named.get(name, ()))] = number
        unjudged = self.ignored is not None and bool((labels == self.ignored).any())
        return Truth(mask, skip="unjudged" if unjudged else "")


def taken_of(known: Sequence[str], options: ReadOptions) -> tuple[str, ...]:
    """Names of the lesion classes, in order: those asked for, or all labels but the background.

    Raises:
      DataError: one that is asked for is no label.
    """
    for name in options.lesion:
        if name not in known:
            raise DataError(f"--lesion={name} is no label; there are {name_files(known)}")
    return options.lesion or tuple(dict.fromkeys(name for name in known if name != BACKGROUND))


def open_labels(path: pathlib.Path, scan: Scan, options: InputOptions) -> VolumeLabels:
    """Opens the labels of a scan; they are read with the first slice that is asked for.

    Args:
      path: a NIfTI volume; a DICOM segmentation, or a folder that holds one.
      scan: that they are of.
      options: limits.

    Raises:
      ScanError: neither, or not of this scan.
    """
    if path.is_dir():
        return _segmentation(_only_file(path, options), scan)
    with guarded("cannot be read"):
        head = path.open("rb").read(352)
    kind = kind_of(str(path), head)
    if kind == "nifti":
        return _volume(path, scan)
    if kind == "dicom":
        return _segmentation(path, scan)
    raise ScanError("is neither a NIfTI volume nor a DICOM segmentation")


def _only_file(folder: pathlib.Path, options: InputOptions) -> pathlib.Path:
    found = find(str(folder), options)
    if len(found.dicom) != 1:
        raise ScanError(f"holds {len(found.dicom)} DICOM files; leave the segmentation alone in it")
    return pathlib.Path(found.dicom[0].path)


def _volume(path: pathlib.Path, scan: Scan) -> VolumeLabels:
    held: list[PlacedVolume] = []

    def of_slice(index: int, height: int, width: int) -> np.ndarray:
        if not held:
            held.append(_whole_numbers(PlacedVolume.load(str(path), "the label volume")))
        slice_ = scan.slices[index]
        if held[0].off_grid(slice_, height, width) > _OFF:
            raise ScanError(
                "the label volume lies on other voxels than the image; resample it to the image"
            )
        return held[0].of_slice(slice_, height, width)

    return VolumeLabels(None, of_slice, held.clear)


def _whole_numbers(volume: PlacedVolume) -> PlacedVolume:
    """The volume as integers.

    Raises:
      ScanError: it is none, or has values that are no labels.
    """
    voxels = volume.voxels.reshape(volume.voxels.shape[:3]) if volume.voxels.size else None
    if voxels is None or voxels.ndim != 3:
        raise ScanError(f"labels have the shape {list(volume.voxels.shape)}, not one of volumes")
    if voxels.dtype.kind in "bu" or voxels.dtype.kind == "i":
        return dataclasses.replace(volume, voxels=voxels)
    whole = np.rint(voxels)
    if not (np.isfinite(voxels).all() and (np.abs(voxels - whole) < _WHOLE).all()):
        raise ScanError("the label volume has values that are no whole numbers")
    return dataclasses.replace(volume, voxels=whole.astype(np.int32))


def _segmentation(path: pathlib.Path, scan: Scan) -> VolumeLabels:
    """Segments of a DICOM segmentation by the instances or frames of the series they were made of.

    Raises:
      ScanError: no such segmentation, or of another series.
    """
    if scan.kind != "dicom":
        raise ScanError("is a DICOM segmentation, which belongs to a DICOM series")
    with guarded("cannot be read as a DICOM segmentation"):
        segmentation = _read_segmentation(path)
        names = {
            number: str(segmentation.get_segment_description(number).segment_label)
            for number in segmentation.segment_numbers
        }
        known = {str(uid) for _, _, uid in segmentation.get_source_image_uids()}
    if not known & {frame.about.instance for frame in scan.origin.frames if frame is not None}:
        raise ScanError("is a segmentation of another series: it refers to none of its files")
    held: list[Any] = []

    def of_slice(index: int, height: int, width: int) -> np.ndarray:
        with guarded("its segments cannot be read"):
            if not held:
                held.append(_read_segmentation(path))
            stored = _stored(held[0], scan.origin.frames[index])
        shown = scan.slices[index].turn.apply(stored)
        if shown.shape != (height, width):
            raise ScanError(f"its frames have another size than the image: {list(shown.shape)}")
        return shown

    return VolumeLabels(names, of_slice, held.clear)


def _read_segmentation(path: pathlib.Path) -> Any:
    medical_library("highdicom")
    return medical_library("highdicom.seg").segread(str(path))


def _stored(segmentation: Any, frame: Any) -> np.ndarray:
    """[rows, columns] segment numbers of a frame as stored; 0 where there is no segment."""
    asked = {"combine_segments": True, "assert_missing_frames_are_empty": True}
    if frame.number is None:
        return segmentation.get_pixels_by_source_instance([frame.about.instance], **asked)[0]
    return segmentation.get_pixels_by_source_frame(
        frame.about.instance, [frame.number + 1], **asked
    )[0]
