"""DICOM files as frames: where each lies in the patient, what its numbers are, and its pixels."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ssm_jax.scans.find import Blob
from ssm_jax.scans.options import InputOptions, ScanError, medical_library
from ssm_jax.scans.source import Turn
from ssm_jax.scans.window import Stored

# What a series can hold beside images, by modality.
NO_IMAGES = ("SR", "PR", "KO", "SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "REG", "DOC")
_TO_RAS = np.diag([-1.0, -1.0, 1.0])


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
        stored = np.eye(4)
        stored[:3, 0] = _TO_RAS @ self.along_row * self.spacing[1]
        stored[:3, 1] = _TO_RAS @ self.along_column * self.spacing[0]
        stored[:3, 2] = _TO_RAS @ self.normal
        stored[:3, 3] = _TO_RAS @ self.origin
        return stored @ self.turn.matrix(height, width)


@dataclasses.dataclass(frozen=True)
class Frame:
    """One image of a DICOM file.

    Attributes:
      blob: the file.
      header: pydicom's Dataset without pixels.
      number: of the frame, from 0; None in a file of one frame.
      stored: range and rescale of its values.
      plane: None where the header does not tell.
    """

    blob: Blob
    header: Any
    number: int | None
    stored: Stored
    plane: Plane | None

    @property
    def name(self) -> str:
        """For people."""
        return (
            self.blob.name if self.number is None else f"{self.blob.name} frame {self.number + 1}"
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns as stored."""
        return int(self.header.Rows), int(self.header.Columns)


def read_header(blob: Blob) -> Any:
    """A file's Dataset without its pixels.

    Raises:
      ScanError: pydicom is missing; damaged, or no DICOM.
    """
    pydicom = medical_library("pydicom")
    try:
        with blob.seekable() as stream:
            header = pydicom.dcmread(stream, stop_before_pixels=True, force=True)
        if "SOPClassUID" not in header and "Rows" not in header:
            raise ValueError("there is no DICOM header")
        return header
    except ScanError:
        raise
    # A damaged file makes pydicom raise almost anything.
    except Exception as error:
        raise ScanError(f"cannot be read as DICOM: {_line(error)}") from error


def frames_of(blob: Blob, header: Any) -> list[Frame]:
    """The frames of a file; none if it holds no image.

    Raises:
      ScanError: the header contradicts itself.
    """
    if header.get("Modality") in NO_IMAGES:
        return []
    if not header.get("Rows") or not header.get("Columns"):
        if str(getattr(header.get("SOPClassUID"), "name", "")).endswith("Image Storage"):
            raise ScanError("cannot be read: its header ends before it tells the size")
        return []
    try:
        count = int(header.get("NumberOfFrames") or 1)
        numbers = [None] if count == 1 else range(count)
        return [
            Frame(blob, header, n, _stored(header, n or 0), _plane(header, n or 0, count))
            for n in numbers
        ]
    except (ValueError, TypeError, IndexError, AttributeError, OverflowError) as error:
        raise ScanError(f"has a header that cannot be understood: {_line(error)}") from error


class Pixels:
    """The pixels of a file; those of many frames stay in memory until they are released."""

    def __init__(self, blob: Blob, many: bool):
        """Takes a file, and whether it has several frames."""
        self._blob, self._many = blob, many
        self._dataset = None

    def frame(self, number: int, options: InputOptions) -> np.ndarray:
        """Stored values of a frame: [rows, columns], or [rows, columns, 3] of a color image.

        Raises:
          ScanError: damaged, too large, or compressed in a way that no plugin reads.
        """
        pydicom = medical_library("pydicom")
        medical_library("pydicom.pixels")
        try:
            dataset = self._dataset or self._read(pydicom)
            if int(dataset.Rows) * int(dataset.Columns) > options.max_pixels:
                raise ScanError(f"{dataset.Rows}x{dataset.Columns} pixels are more than the limit")
            if str(dataset.get("PhotometricInterpretation", "")).startswith("PALETTE"):
                raise ScanError("has palette colors, which no CT slice has")
            return pydicom.pixels.pixel_array(dataset, index=number)
        except ScanError:
            raise
        except Exception as error:
            raise ScanError(f"its pixels cannot be read: {_line(error)}") from error

    def _read(self, pydicom) -> Any:
        with self._blob.seekable() as stream:
            dataset = pydicom.dcmread(stream, force=True)
        if "TransferSyntaxUID" not in dataset.file_meta:
            dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
        if self._many:
            self._dataset = dataset
        return dataset

    def release(self) -> None:
        """Frees the memory; pixels can be read again."""
        self._dataset = None


def _field(header: Any, number: int, sequence: str, keyword: str) -> Any:
    """A value of a frame: from its functional groups, from the shared ones, or from the header."""
    frames = header.get("PerFrameFunctionalGroupsSequence") or []
    shared = header.get("SharedFunctionalGroupsSequence") or []
    for group in (*frames[number : number + 1], *shared[:1]):
        items = group.get(sequence)
        if items and items[0].get(keyword) is not None:
            return items[0].get(keyword)
    return header.get(keyword)


def _stored(header: Any, number: int) -> Stored:
    bits = int(header.get("BitsStored") or header.get("BitsAllocated") or 16)
    signed = int(header.get("PixelRepresentation") or 0) == 1
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    values = "PixelValueTransformationSequence"
    slope = _field(header, number, values, "RescaleSlope")
    intercept = _field(header, number, values, "RescaleIntercept")
    inverted = header.get("PhotometricInterpretation") == "MONOCHROME1"
    rescaled = slope is not None
    slope = float(slope) if slope is not None else 1.0
    intercept = float(intercept) if intercept is not None else 0.0
    if not (np.isfinite([slope, intercept]).all() and slope):
        slope, intercept, rescaled = 1.0, 0.0, False
    return Stored(float(low), float(high), slope, intercept, rescaled, inverted)


def _plane(header: Any, number: int, count: int) -> Plane | None:
    """Where a frame lies; None where that is not said, or makes no sense."""
    orientation = _field(header, number, "PlaneOrientationSequence", "ImageOrientationPatient")
    spacing = _field(header, number, "PixelMeasuresSequence", "PixelSpacing")
    origin = _field(header, number, "PlanePositionSequence", "ImagePositionPatient")
    if count > 1 and "PerFrameFunctionalGroupsSequence" not in header:
        return None  # one position cannot be that of all frames
    if any(value is None for value in (orientation, spacing, origin)):
        return None
    numbers = [np.array([float(v) for v in value]) for value in (orientation, spacing, origin)]
    orientation, spacing, origin = numbers
    if (len(orientation), len(spacing), len(origin)) != (6, 2, 3) or spacing.min() <= 0:
        return None
    along_row, along_column = orientation[:3], orientation[3:]
    lengths = np.linalg.norm(along_row), np.linalg.norm(along_column)
    if not np.isfinite(np.concatenate(numbers)).all() or min(lengths) < 0.5:
        return None
    along_row, along_column = along_row / lengths[0], along_column / lengths[1]
    if abs(along_row @ along_column) > 0.1:
        return None
    return Plane(origin, along_row, along_column, (float(spacing[0]), float(spacing[1])))


def _line(error: Exception) -> str:
    """What an exception says, in one line of bounded length."""
    return " ".join(str(error).split())[:300] or type(error).__name__
