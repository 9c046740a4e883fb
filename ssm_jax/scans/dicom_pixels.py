"""Pixels of DICOM files, checked against their header before anything is decoded."""

from __future__ import annotations

import io
import re
import struct
from typing import Any

import numpy as np

from ssm_jax.scans.dicom_header import has_table, read_dataset, whole
from ssm_jax.scans.find import Blob
from ssm_jax.scans.options import InputOptions, ScanError, guarded, medical_library

_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
# Markers of JPEG and JPEG-LS that are followed by precision, lines, samples a line, components.
_FRAME_MARKERS = bytes({*range(0xC0, 0xD0), 0xDE, 0xF7} - {0xC4, 0xC8, 0xCC})
_FRAME = re.compile(b"\xff[" + re.escape(_FRAME_MARKERS) + b"]...(..)(..)(.)", re.DOTALL)
_J2K = b"\xff\x4f\xff\x51"  # start of a code stream, and the marker of its size
_MOST_TILES = 65_535  # by the standard
_SPARE = 65_536  # bytes of a frame's headers


class Pixels:
    """The pixels of a file; those of many frames stay in memory until they are released."""

    def __init__(self, blob: Blob, many: bool):
        """Takes a file, and whether it has several frames."""
        self._blob, self._many = blob, many
        self._dataset = None

    def frame(self, number: int, options: InputOptions) -> np.ndarray:
        """Stored values of a frame: [rows, columns], or [rows, columns, 3] of a color image.

        A table of values in the header (Modality LUT) is applied.

        Raises:
          ScanError: damaged, too large, not of the size that the header says, or compressed in a
            way that no plugin reads.
        """
        processing = medical_library("pydicom.pixels")
        with guarded("its pixels cannot be read"):
            dataset = self._dataset or self._read()
            _check(dataset, number, options)
            values = processing.pixel_array(dataset, index=number)
            if has_table(dataset):
                values = processing.apply_modality_lut(values, dataset)
            return values

    def _read(self) -> Any:
        dataset = read_dataset(self._blob, pixels=True)
        if "TransferSyntaxUID" not in dataset.file_meta:
            uid = medical_library("pydicom.uid")
            dataset.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian
        if self._many:
            self._dataset = dataset
        return dataset

    def release(self) -> None:
        """Frees the memory; pixels can be read again."""
        self._dataset = None


def _check(dataset: Any, number: int, options: InputOptions) -> None:
    """Refuses pixels that are not as the header says; nothing is decoded for that."""
    rows, columns = whole(dataset, "Rows", 0), whole(dataset, "Columns", 0)
    if rows * columns > options.max_pixels:
        raise ScanError(f"{rows}x{columns} pixels are more than the limit")
    if str(dataset.get("PhotometricInterpretation", "")).startswith("PALETTE"):
        raise ScanError("has palette colors, which no CT slice has")
    samples = whole(dataset, "SamplesPerPixel", 1)
    if samples not in (1, 3):
        raise ScanError(f"has {samples} samples a pixel; slices are gray or of three colors")
    (values,) = [dataset.get(name) for name in _PIXELS if name in dataset] or [None]
    if not values:
        raise ScanError("its pixels cannot be read: there are none")
    if dataset.file_meta.TransferSyntaxUID.is_compressed:
        return _check_compressed(dataset, values, number, (rows, columns, samples))
    utils = medical_library("pydicom.pixels.utils")
    told, held = utils.get_expected_length(dataset), len(values)
    if held > told + told % 2:
        raise ScanError(
            f"its pixels take {held} bytes, but {told} by rows, columns and frames of the header"
        )
    return None


def _check_compressed(dataset: Any, values: bytes, number: int, told: tuple[int, int, int]) -> None:
    """Refuses a compressed frame that unpacks to another size than rows, columns, samples."""
    uid = dataset.file_meta.TransferSyntaxUID
    uids, encaps = medical_library("pydicom.uid"), medical_library("pydicom.encaps")
    offsets = [dataset.get(f"ExtendedOffsetTable{part}") for part in ("", "Lengths")]
    frame = encaps.get_frame(
        io.BytesIO(values),
        number,
        extended_offsets=tuple(offsets) if all(offsets) else None,
        number_of_frames=whole(dataset, "NumberOfFrames", 1),
    )
    if len(frame) > 2 * told[0] * told[1] * told[2] * 8 + _SPARE:
        raise ScanError("its compressed pixels are larger than pixels of its size can be")
    if uid in uids.JPEG2000TransferSyntaxes:
        sizes = _j2k_sizes(frame)
    elif uid in (*uids.JPEGTransferSyntaxes, *uids.JPEGLSTransferSyntaxes):
        sizes = _jpeg_sizes(frame)
    else:  # run lengths, which the length of the frame bounds, and what no plugin reads
        return
    if not sizes:
        raise ScanError("its compressed pixels do not tell their size")
    if other := sizes - {told}:
        shown = " and ".join("x".join(map(str, size)) for size in sorted(other))
        expected = "x".join(map(str, told))
        raise ScanError(f"its compressed pixels are {shown}, but {expected} by its header")


def _jpeg_sizes(data: bytes) -> set[tuple[int, int, int]]:
    """Rows, columns and components that a JPEG or JPEG-LS stream names."""
    found, at = set(), max(data.find(b"\xff\xd8"), 0)
    while (at := data.find(b"\xff", at)) >= 0 and at + 4 <= len(data):
        marker = data[at + 1]
        if marker == 0xDA:  # the scan: what looks like a marker in it is one
            found |= {_named(match) for match in _FRAME.finditer(data, at)}
            break
        if marker in _FRAME_MARKERS and (match := _FRAME.match(data, at)):
            found.add(_named(match))
        alone = marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD9
        length = 0 if alone else struct.unpack_from(">H", data, at + 2)[0]
        at += 1 if marker == 0xFF else 2 + length
    return found


def _named(match: re.Match) -> tuple[int, int, int]:
    rows, columns, components = (int.from_bytes(part) for part in match.groups())
    return rows, columns, components


def _j2k_sizes(data: bytes) -> set[tuple[int, int, int]]:
    """Rows, columns and components of a JPEG 2000 stream, with or without a JP2 box around it."""
    at = data.find(_J2K)
    if at < 0:
        return set()
    numbers = struct.unpack_from(">8I", data, at + 8)
    width, height, left, top, tile_width, tile_height, tile_left, tile_top = numbers
    across = -(-(width - tile_left) // max(tile_width, 1))
    down = -(-(height - tile_top) // max(tile_height, 1))
    if across * down > _MOST_TILES:
        raise ScanError(f"its compressed pixels have {across}x{down} tiles, beyond the standard")
    (components,) = struct.unpack_from(">H", data, at + 40)
    return {(height - top, width - left, components)}
