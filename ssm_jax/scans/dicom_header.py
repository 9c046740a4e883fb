"""Reading DICOM files with bounds: headers, and single elements of them."""

from __future__ import annotations

import io
import zlib
from typing import IO, Any

from ssm_jax.scans.find import Blob
from ssm_jax.scans.options import MIB, ScanError, check_unpacked, guarded, medical_library, visible

# A header reads each of its elements once or twice; that of many frames grows with the file.
_MOST_READS, _BYTES_A_READ = 100_000, 64
# Files that were cut off, or filled up to a block, end in zeros: elements of tag and length 0.
_NO_ELEMENT, _MOST_ZEROS = bytes(8), 16
_INDEX = "1.2.840.10008.1.3.10"  # the class of a DICOMDIR


class _Bounded:
    """A stream for pydicom that reads to the end of the file at most, and only so often.

    Lengths in a header may be any; a file of zeros is millions of elements without a value.
    """

    def __init__(self, stream: IO[bytes]):
        self._stream = stream
        self._size = stream.seek(0, io.SEEK_END)
        self._reads = _MOST_READS + self._size // _BYTES_A_READ
        self.seek, self.tell = stream.seek, stream.tell
        self._zeros = 0
        stream.seek(0)

    def read(self, count: int = -1) -> bytes:
        self._reads -= 1
        if self._reads < 0:
            raise ScanError("cannot be read as DICOM: its header has no end")
        rest = max(self._size - self._stream.tell(), 0)
        data = self._stream.read(rest if count < 0 else min(count, rest))
        if count < 0:  # pydicom asks for all there is only to inflate it
            _check_inflated(data)
        self._zeros = self._zeros + 1 if data == _NO_ELEMENT else 0
        return b"" if self._zeros > _MOST_ZEROS else data


def _check_inflated(packed: bytes) -> None:
    """Refuses a deflated data set that unpacks to more than images do."""
    inflater, size, rest = zlib.decompressobj(-zlib.MAX_WBITS), 0, packed
    while rest and not inflater.eof:
        size += len(inflater.decompress(rest, MIB))
        rest = inflater.unconsumed_tail
        check_unpacked(size, len(packed), "deflate")


def read_dataset(blob: Blob, pixels: bool) -> Any:
    """A file's Dataset; most of its elements are decoded when they are asked for.

    Args:
      blob: the file.
      pixels: whether to read the pixels, too.

    Raises:
      ScanError: pydicom is missing; damaged, or no DICOM.
    """
    pydicom = medical_library("pydicom")
    with guarded("cannot be read as DICOM"), blob.seekable() as stream:
        dataset = pydicom.dcmread(_Bounded(stream), stop_before_pixels=not pixels, force=True)
        if not any(name in dataset for name in ("SOPClassUID", "Rows")) and not is_index(dataset):
            raise ScanError("cannot be read as DICOM: there is no DICOM header")
        return dataset


def is_index(header: Any) -> bool:
    """Whether this is a DICOMDIR, which lists the files of a folder or disk."""
    return header.file_meta.get("MediaStorageSOPClassUID") == _INDEX


def has_table(header: Any) -> bool:
    """Whether the header has a table of values (Modality LUT), and not only a place for one."""
    items = header.get("ModalityLUTSequence")
    return bool(items) and all(items[0].get(f"LUT{part}") for part in ("Descriptor", "Data"))


def text(header: Any, keyword: str) -> str:
    """An element for people, in one line of bounded length; "" where there is none to be read."""
    # Whatever an element is that only people read, the image is as good as without it.
    try:
        value = header.get(keyword)
        return "" if value is None else visible(" ".join(str(value).split()))[:200]
    except Exception:
        return ""


def whole(header: Any, keyword: str, default: int) -> int:
    """An element that is a number; the default where it is missing or empty.

    Raises:
      ScanError: it is anything else.
    """
    with guarded(f"its header has an unusable {keyword}"):
        value = header.get(keyword)
        return default if value in (None, "", b"") else int(value)
