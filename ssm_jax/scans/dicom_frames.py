"""DICOM files as frames: where each lies in the patient, and what its numbers are."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ssm_jax.scans.dicom_header import has_table, is_index, read_dataset, text, whole
from ssm_jax.scans.find import Blob
from ssm_jax.scans.options import ScanError, guarded
from ssm_jax.scans.source import Turn
from ssm_jax.scans.window import Stored

# What a series can hold beside images, by modality.
NO_IMAGES = ("SR", "PR", "KO", "SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "REG", "DOC")
_TO_RAS = np.diag([-1.0, -1.0, 1.0])
_FRAME_BYTES = 32  # that the pixels of a frame take at least, however they are compressed
_MOST_MM = 1e5  # from the origin, and between pixels
# Facts of a series: label, keyword, and whether it may tell who the patient is.
_FACTS = (
    ("Patient", "PatientName", True),
    ("Patient ID", "PatientID", True),
    ("Birth date", "PatientBirthDate", True),
    ("Modality", "Modality", False),
    ("Series", "SeriesDescription", True),
    ("Study date", "StudyDate", True),
    ("Scanner", "ManufacturerModelName", False),
    ("Kernel", "ConvolutionKernel", False),
    ("Series UID", "SeriesInstanceUID", True),
)


@dataclasses.dataclass(frozen=True)
class Plane:
    """Where a frame lies, in DICOM's patient coordinates (LPS, millimeters).

    Attributes:
      origin: [3] center of the first pixel as stored.
      along_row: [3] unit vector in which the column index grows.
      along_column: [3] unit vector in which the row index grows.
      spacing: between rows and between columns as stored.
    """

    origin: np.ndarray
    along_row: np.ndarray
    along_column: np.ndarray
    spacing: tuple[float, float]

    @property
    def orientation(self) -> tuple[float, ...]:
        """Both directions, rounded: equal for frames of one stack."""
        rounded = np.round(np.concatenate([self.along_row, self.along_column]), 2)
        return tuple(float(value) for value in rounded + 0.0)

    @property
    def axial(self) -> bool:
        """Whether the normal runs along the patient more than across."""
        return int(np.abs(np.cross(self.along_row, self.along_column)).argmax()) == 2

    @property
    def turn(self) -> Turn:
        """From stored to shown: columns to the patient's left, rows to the back."""
        if not self.axial:
            return Turn()
        transpose = bool(abs(self.along_row[0]) < abs(self.along_row[1]))
        columns, rows = self.along_row, self.along_column
        if transpose:
            columns, rows = rows, columns
        return Turn(transpose, bool(rows[1] < 0), bool(columns[0] < 0))

    @property
    def normal(self) -> np.ndarray:
        """[3] unit normal; of axial frames it points to the head."""
        normal = np.cross(self.along_row, self.along_column)
        normal /= np.linalg.norm(normal)
        return -normal if self.axial and normal[2] < 0 else normal

    @property
    def position(self) -> float:
        """Millimeters along the normal."""
        return float(self.origin @ self.normal)

    def affine(self, height: int, width: int) -> np.ndarray:
        """[4, 4] from (column, row, 0, 1) as shown to RAS millimeters.

        Args:
          height: of the frame as stored.
          width: of the frame as stored.
        """
        return self.stored_affine() @ self.turn.matrix(height, width)

    def stored_affine(self) -> np.ndarray:
        """[4, 4] from (column, row, millimeters along the normal, 1) as stored to RAS."""
        stored = np.eye(4)
        stored[:3, 0] = _TO_RAS @ self.along_row * self.spacing[1]
        stored[:3, 1] = _TO_RAS @ self.along_column * self.spacing[0]
        stored[:3, 2] = _TO_RAS @ self.normal
        stored[:3, 3] = _TO_RAS @ self.origin
        return stored


@dataclasses.dataclass(frozen=True)
class About:
    """Facts of a whole file.

    Attributes:
      series: SeriesInstanceUID; "" where unknown.
      instance: SOPInstanceUID; "" where unknown.
      number: InstanceNumber; 0 where unknown.
      modality: such as "CT"; "" where unknown.
      projection: whether it is a localizer, which shows no slice.
      shape: rows and columns as stored.
      thickness: of a slice, millimeters; None where unknown.
      window: (center, width) that its maker chose to show it with; None where unknown.
    """

    series: str
    instance: str
    number: int
    modality: str
    projection: bool
    shape: tuple[int, int]
    thickness: float | None
    window: tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class Frame:
    """One image of a DICOM file.

    Attributes:
      blob: the file.
      header: pydicom's Dataset without pixels.
      about: the file.
      number: of the frame, from 0; None in a file of one frame.
      stored: range and rescale of its values.
      plane: None where the header does not tell.
      pixel: height and width of a pixel as stored, in whatever unit; (1, 1) where unknown.
    """

    blob: Blob
    header: Any
    about: About
    number: int | None
    stored: Stored
    plane: Plane | None
    pixel: tuple[float, float]

    @property
    def name(self) -> str:
        """For people."""
        return (
            self.blob.name if self.number is None else f"{self.blob.name} frame {self.number + 1}"
        )

    @property
    def placed(self) -> Plane:
        """The plane, of a frame whose header tells it.

        Raises:
          ValueError: the header does not.
        """
        if self.plane is None:
            raise ValueError(f"{self.name} does not tell where it lies")
        return self.plane

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns as stored."""
        return self.about.shape


def frames_of(blob: Blob) -> list[Frame] | None:
    """The frames of a file; none if it holds no image, None if it lists other files (DICOMDIR).

    Raises:
      ScanError: pydicom is missing; damaged, or no DICOM; the header contradicts itself.
    """
    header = read_dataset(blob, pixels=False)
    with guarded("has a header that cannot be understood"):
        if is_index(header):
            return None
        if text(header, "Modality") in NO_IMAGES:
            return []
        rows, columns = whole(header, "Rows", 0), whole(header, "Columns", 0)
        if not rows or not columns:
            if str(getattr(header.get("SOPClassUID"), "name", "")).endswith("Image Storage"):
                raise ScanError("cannot be read: its header ends before it tells the size")
            return []
        count = _count(blob, header, rows * columns)
        about = _about(header, (rows, columns))
        numbers = [None] if count == 1 else range(count)
        return [_frame(blob, header, about, number, count) for number in numbers]


def _count(blob: Blob, header: Any, pixels: int) -> int:
    """The number of frames, of which the file must hold as many.

    Raises:
      ScanError: it cannot.
    """
    count = whole(header, "NumberOfFrames", 1)
    uid = header.file_meta.get("TransferSyntaxUID")
    frame = _FRAME_BYTES
    if uid is None or not (uid.is_compressed or uid.is_deflated):
        frame = pixels * whole(header, "BitsAllocated", 8) // 8
    if count < 1 or (count > 1 and count * frame > blob.size()):
        raise ScanError(f"its header names {count} frames, which the file does not hold")
    return count


def _frame(blob: Blob, header: Any, about: About, number: int | None, count: int) -> Frame:
    stored = _stored(header, number or 0)
    plane = _plane(header, number or 0, count)
    spacing = plane.spacing if plane else _numbers(header, number or 0, "PixelSpacing")
    # Of files without a spacing some tell the shape of pixels alone.
    pixel = spacing or _numbers(header, 0, "PixelAspectRatio") or (1.0, 1.0)
    return Frame(blob, header, about, number, stored, plane, pixel)


def _about(header: Any, shape: tuple[int, int]) -> About:
    image_type = header.get("ImageType") or ()
    center, width = (_first(header, f"Window{part}") for part in ("Center", "Width"))
    thickness = _field(header, 0, "PixelMeasuresSequence", "SliceThickness")
    number = text(header, "InstanceNumber")
    return About(
        series=text(header, "SeriesInstanceUID"),
        instance=text(header, "SOPInstanceUID"),
        number=int(number) if number.lstrip("-").isdecimal() else 0,
        modality=text(header, "Modality"),
        projection="LOCALIZER" in image_type,
        shape=shape,
        thickness=_positive(thickness),
        window=(center, width) if center is not None and width and width >= 1 else None,
    )


def facts_of(header: Any, identity: bool) -> dict[str, str]:
    """Facts of a series from a header: label and value, both for people.

    Args:
      header: pydicom's Dataset.
      identity: whether what may tell who the patient is belongs to it.
    """
    found = {
        label: text(header, keyword)
        for label, keyword, personal in _FACTS
        if identity or not personal
    }
    return {label: value for label, value in found.items() if value}


def _field(header: Any, number: int, sequence: str, keyword: str) -> Any:
    """A value of a frame: from its functional groups, from the shared ones, or from the header."""
    frames = header.get("PerFrameFunctionalGroupsSequence") or []
    shared = header.get("SharedFunctionalGroupsSequence") or []
    for group in (*frames[number : number + 1], *shared[:1]):
        items = group.get(sequence)
        if items and items[0].get(keyword) is not None:
            return items[0].get(keyword)
    return header.get(keyword)


def _first(header: Any, keyword: str) -> float | None:
    """The first number of an element; None where there is no finite one."""
    value = text(header, keyword).strip("[]").split(",")[0]
    try:
        return float(value) if np.isfinite(float(value)) else None
    except ValueError:
        return None


def _positive(value: Any) -> float | None:
    """A length in millimeters; None where it is none."""
    try:
        return float(value) if 0 < float(value) < _MOST_MM else None
    except (TypeError, ValueError):
        return None


def _numbers(header: Any, number: int, keyword: str) -> tuple[float, float] | None:
    """Two positive numbers of a frame, or None."""
    value = _field(header, number, "PixelMeasuresSequence", keyword)
    first, second, *more = map(_positive, [*np.ravel(value).tolist(), None, None])
    if len(more) > 2:
        return None
    return (first, second) if first and second else None


def _stored(header: Any, number: int) -> Stored:
    bits = whole(header, "BitsStored", 0) or whole(header, "BitsAllocated", 16)
    if not 1 <= bits <= 64:
        raise ScanError(f"has a header that cannot be understood: {bits} bits a pixel")
    signed = whole(header, "PixelRepresentation", 0) == 1
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    inverted = header.get("PhotometricInterpretation") == "MONOCHROME1"
    if has_table(header):  # which reading applies
        bits = int(header.ModalityLUTSequence[0].LUTDescriptor[2])
        return Stored(0.0, 2.0**bits - 1, 1.0, 0.0, True, inverted)
    values = "PixelValueTransformationSequence"
    slope = _field(header, number, values, "RescaleSlope")
    intercept = _field(header, number, values, "RescaleIntercept")
    # One without the other is half a rescale, and none.
    rescaled = slope is not None and intercept is not None
    slope, intercept = (float(slope), float(intercept)) if rescaled else (1.0, 0.0)
    if not (np.isfinite([slope, intercept]).all() and slope):
        slope, intercept, rescaled = 1.0, 0.0, False
    return Stored(float(low), float(high), slope, intercept, rescaled, inverted)


def _plane(header: Any, number: int, count: int) -> Plane | None:
    """Where a frame lies; None where that is not said, or makes no sense."""
    orientation = _field(header, number, "PlaneOrientationSequence", "ImageOrientationPatient")
    origin = _field(header, number, "PlanePositionSequence", "ImagePositionPatient")
    spacing = _numbers(header, number, "PixelSpacing")
    if count > 1 and "PerFrameFunctionalGroupsSequence" not in header:
        return None  # one position cannot be that of all frames
    if orientation is None or origin is None or spacing is None:
        return None
    if (len(orientation), len(origin)) != (6, 3):
        return None
    orientation, origin = (np.array([float(v) for v in value]) for value in (orientation, origin))
    along_row, along_column = orientation[:3], orientation[3:]
    lengths = np.linalg.norm(along_row), np.linalg.norm(along_column)
    if not (np.abs([*orientation, *origin]) < _MOST_MM).all() or min(lengths) < 0.5:
        return None
    along_row, along_column = along_row / lengths[0], along_column / lengths[1]
    if abs(along_row @ along_column) > 0.1:
        return None
    return Plane(origin, along_row, along_column, spacing)
