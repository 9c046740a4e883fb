"""Reads PyTorch checkpoints without PyTorch, and without running what they name.

Both formats of `torch.save`: the zip archive of version 1.6 and later, and the sequence of pickles
and raw storages before that. See `ssm_jax.interop.torch_pickle` for what becomes of other objects.
"""

from __future__ import annotations

import collections
import dataclasses
import io
import math
import os
import struct
import zipfile
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from ssm_jax.interop import torch_pickle
from ssm_jax.interop.torch_pickle import Global, shown

MAX_BYTES = 2 * 2**30
MAX_PICKLE_BYTES = 2**26  # of the pickles alone, without the numbers of the tensors
MAX_DIMENSIONS = 32
MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001
ZIP_START = b"PK\x03\x04"
AGAIN = "copy or download it again"

DTYPES = {
    "Double": np.dtype(np.float64),
    "Float": np.dtype(np.float32),
    "Half": np.dtype(np.float16),
    "BFloat16": np.dtype(ml_dtypes.bfloat16),
    "Long": np.dtype(np.int64),
    "Int": np.dtype(np.int32),
    "Short": np.dtype(np.int16),
    "Char": np.dtype(np.int8),
    "Byte": np.dtype(np.uint8),
    "Bool": np.dtype(np.bool_),
}
# Tensors on a GPU had classes of their own.
STORAGES = {
    f"{module}.{name}Storage": dtype
    for module in ("torch", "torch.cuda")
    for name, dtype in DTYPES.items()
}


def read(path: str | os.PathLike, max_bytes: int = MAX_BYTES) -> Any:
    """Reads what was given to `torch.save`.

    Args:
      path: the file.
      max_bytes: a file that is larger, unpacks to more, or holds more numbers is refused.

    Returns:
      The object: tensors and parameters as read-only arrays of their dtype (views of one array
      where tensors shared memory; strides are kept), an OrderedDict as `torch_pickle.Dict`, a
      device as text, a torch.Size as a tuple, plain values and containers as themselves, all else
      as `torch_pickle.Record` or `torch_pickle.Global`.

    Raises:
      ValueError: not there, not such a file, damaged, or too large. One line.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > max_bytes:
                raise ValueError(_too_large(f"it is {_gib(size)}", max_bytes))
            if not size:
                raise ValueError(f"it is empty; {AGAIN}")
            start = file.read(len(ZIP_START))
            file.seek(0)
            if start == ZIP_START:
                return _read_zip(file, max_bytes)
            return _read_legacy(file, size, max_bytes)
    except (OSError, ValueError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ValueError(f"{path} cannot be read as a PyTorch checkpoint: {reason}") from error


def check_archive(archive: zipfile.ZipFile, max_bytes: int) -> None:
    """Refuses a zip archive that would unpack to more than it should, or ambiguously.

    Args:
      archive: open for reading.
      max_bytes: for all entries together, unpacked.

    Raises:
      ValueError: too large, entries of one name, encrypted, or packed in an unusual way.
    """
    entries = archive.infolist()
    total = sum(entry.file_size for entry in entries)
    if total > max_bytes:
        raise ValueError(_too_large(f"it unpacks to {_gib(total)}", max_bytes))
    name, count = collections.Counter(archive.namelist()).most_common(1)[0] if entries else ("", 0)
    if count > 1:
        raise ValueError(f"{count} of its entries are named {shown(name)}; {AGAIN}")
    for entry in entries:
        packed = entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        if packed or entry.flag_bits & 1:
            raise ValueError(f"entry {shown(entry.filename)} is encrypted or packed unusually")


def _too_large(what: str, max_bytes: int) -> str:
    return f"{what}, and the limit is {_gib(max_bytes)}; raise the limit if you trust the file"


def _gib(count: int) -> str:
    return f"{count / 2**30:.3g} GiB" if count >= 2**20 else f"{count} bytes"


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


@dataclasses.dataclass(frozen=True, eq=False)
class _Storage:
    """A block of numbers that tensors are views of."""

    dtype: np.dtype
    array: np.ndarray  # [numbers]


class _Objects:
    """Makes tensors from what the pickle of a checkpoint says about them."""

    def __init__(self, make_storage, max_bytes: int):
        """Takes a function (key, dtype, count) -> array [count], and a limit for all tensors."""
        self.make_storage = make_storage
        self.max_bytes = max_bytes
        self.bytes = 0
        self.storages: dict[str, _Storage] = {}

    def load(self, stream: io.BytesIO) -> Any:
        """Reads the pickle."""
        builders = {
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": _parameter,
            "torch._utils._rebuild_parameter_with_state": _parameter,
            "torch.Size": _size,
            "torch.device": _device,
        }
        return torch_pickle.load(stream, builders, self._persistent)

    def _persistent(self, identifier: Any) -> _Storage | Global:
        kind = identifier[0] if isinstance(identifier, tuple) and identifier else None
        kind = kind if isinstance(kind, str) else None
        if kind == "module" and len(identifier) == 4 and isinstance(identifier[1], Global):
            return identifier[1]  # a class, with its source for a warning if that has changed
        if kind != "storage" or len(identifier) not in (5, 6):
            raise ValueError(f"it refers to an unknown kind of object; {AGAIN}")
        _, storage_class, key, _, count, *view = identifier
        if not isinstance(storage_class, Global) or storage_class.name not in STORAGES:
            name = getattr(storage_class, "name", storage_class)
            raise ValueError(f"tensors of type {shown(name)} are not supported; convert to float32")
        if not (isinstance(key, str) and _is_count(count)):
            raise ValueError(f"a storage has no name or size; {AGAIN}")
        dtype = STORAGES[storage_class.name]
        if key not in self.storages:
            self.storages[key] = _Storage(dtype, self.make_storage(key, dtype, count))
        storage = self.storages[key]
        if storage.dtype != dtype or storage.array.size != count:
            raise ValueError(f"storage {shown(key)} is of two types or sizes; {AGAIN}")
        if not view or view[0] is None:
            return storage
        part = view[0][1:] if isinstance(view[0], tuple) and len(view[0]) == 3 else ()
        if len(part) != 2 or not all(map(_is_count, part)) or sum(part) > count:
            raise ValueError(f"a part of storage {shown(key)} lies outside of it; {AGAIN}")
        return _Storage(dtype, storage.array[part[0] : sum(part)])

    def _tensor(self, args: tuple) -> np.ndarray:
        """A view of a storage: storage, offset, shape, strides, and settings of its gradient."""
        if not 4 <= len(args) <= 7 or not isinstance(args[0], _Storage):
            raise ValueError(f"a tensor has no storage; {AGAIN}")
        storage, offset, shape, strides = args[:4]
        counts_only = all(
            isinstance(counts, tuple)
            and len(counts) <= MAX_DIMENSIONS
            and all(map(_is_count, counts))
            for counts in (shape, strides, (offset,))
        )
        if not counts_only or len(shape) != len(strides):
            raise ValueError(f"a tensor has an impossible shape; {AGAIN}")
        array, itemsize = storage.array, storage.dtype.itemsize
        # A stride of zero repeats numbers, so that the shape says nothing about the storage.
        elements = math.prod(n for n in shape if n)
        self.bytes += elements * itemsize
        if self.bytes > self.max_bytes:
            raise ValueError(
                _too_large("its tensors hold more numbers than it does", self.max_bytes)
            )
        if 0 in shape:
            return np.empty(shape, storage.dtype)
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if last >= array.size:
            raise ValueError(
                f"a tensor of shape {shape} reaches to number {last} of a storage of {array.size}; "
                f"{AGAIN}"
            )
        # Strides of axes of length one are never used, and may be anything.
        steps = [s * itemsize if n > 1 else itemsize for n, s in zip(shape, strides, strict=True)]
        return np.lib.stride_tricks.as_strided(array[offset:], shape, steps, writeable=False)


def _parameter(args: tuple) -> np.ndarray:
    if not args or not isinstance(args[0], np.ndarray):
        raise ValueError(f"a parameter has no tensor; {AGAIN}")
    return args[0]


def _size(args: tuple) -> tuple:
    if len(args) != 1 or not isinstance(args[0], tuple):
        raise ValueError(f"a torch.Size has no sizes; {AGAIN}")
    return args[0]


def _device(args: tuple) -> str:
    if not (1 <= len(args) <= 2 and isinstance(args[0], str) and len(args[0]) <= 100):
        raise ValueError(f"a torch.device has no name; {AGAIN}")
    return f"{args[0]}:{args[1]}" if len(args) == 2 and _is_count(args[1]) else args[0]


def _read_zip(file: BinaryIO, max_bytes: int) -> Any:
    try:
        with zipfile.ZipFile(file) as archive:
            check_archive(archive, max_bytes)
            return _read_archive(archive, max_bytes)
    except ValueError:
        raise
    # A damaged archive makes zipfile raise almost anything.
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise ValueError(f"the archive is damaged or cut off ({reason}); {AGAIN}") from error


def _read_archive(archive: zipfile.ZipFile, max_bytes: int) -> Any:
    entries = {entry.filename: entry for entry in archive.infolist()}
    roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")]
    roots = [root for root in roots if root.count("/") == 1]
    if len(roots) != 1:
        raise ValueError("it is a zip archive, but not one that torch.save wrote (no data.pkl)")
    root = roots[0]
    if f"{root}constants.pkl" in entries:
        raise ValueError("it is a TorchScript program; save the model's state_dict() instead")

    def content(name: str, limit: int) -> bytes:
        entry = entries.get(root + name)
        if entry is None or entry.file_size > limit:
            what = "is missing" if entry is None else f"is larger than {_gib(limit)}"
            raise ValueError(f"entry {shown(root + name)} of the archive {what}; {AGAIN}")
        with archive.open(entry) as stream:
            found = stream.read(limit + 1)
        if len(found) != entry.file_size:
            raise ValueError(f"entry {shown(root + name)} has not the size that it should; {AGAIN}")
        return found

    order = content("byteorder", 100).strip() if f"{root}byteorder" in entries else b"little"
    if order not in (b"little", b"big"):
        raise ValueError(f"its byte order is neither little nor big; {AGAIN}")

    def make_storage(key: str, dtype: np.dtype, count: int) -> np.ndarray:
        numbers = content(f"data/{key}", max_bytes)
        if len(numbers) != count * dtype.itemsize:
            raise ValueError(
                f"storage {shown(key)} should hold {count} numbers of {dtype.itemsize} bytes, and "
                f"has {len(numbers)} bytes; {AGAIN}"
            )
        return _from_bytes(numbers, dtype, "<" if order == b"little" else ">")

    stream = io.BytesIO(content("data.pkl", MAX_PICKLE_BYTES))
    return _Objects(make_storage, max_bytes).load(stream)


def _from_bytes(numbers: bytes, dtype: np.dtype, order: str) -> np.ndarray:
    stored = np.dtype(f"{order}u{dtype.itemsize}")
    return np.frombuffer(numbers, stored).astype(stored.newbyteorder("="), copy=False).view(dtype)


def _read_legacy(file: BinaryIO, size: int, max_bytes: int) -> Any:
    """Pickles: a magic number, a version, the system, the object, the storages' keys; storages."""
    stream = io.BytesIO(file.read(MAX_PICKLE_BYTES))
    if b"ustar" in stream.getbuffer()[257:262].tobytes():
        raise ValueError("it is of PyTorch 0.1 (a tar archive); load and save it with a later one")
    try:
        magic = torch_pickle.load(stream)
    except ValueError:
        magic = None
    if magic != MAGIC_NUMBER or type(magic) is not int:
        raise ValueError("it was not written by torch.save, or its start is damaged")
    version, system = torch_pickle.load(stream), torch_pickle.load(stream)
    if version != PROTOCOL_VERSION or not isinstance(system, dict):
        raise ValueError(f"its format is not the one of version {PROTOCOL_VERSION}; {AGAIN}")

    reserved = 0

    def make_storage(key: str, dtype: np.dtype, count: int) -> np.ndarray:
        nonlocal reserved
        reserved += count * dtype.itemsize
        if reserved > size:
            raise ValueError(f"its storages are larger than the file, it is cut off; {AGAIN}")
        return np.empty(count, dtype)  # filled below: the numbers come after the pickles

    objects = _Objects(make_storage, max_bytes)
    value = objects.load(stream)
    keys = torch_pickle.load(stream)
    if not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
        raise ValueError(f"the list of its storages is damaged; {AGAIN}")
    if sorted(keys) != sorted(objects.storages):
        raise ValueError(f"the list of its storages does not fit its tensors; {AGAIN}")
    file.seek(stream.tell())
    for key in keys:
        _fill(file, key, objects.storages[key].array)
    return value


def _fill(file: BinaryIO, key: str, array: np.ndarray) -> None:
    """Reads a storage: its count of numbers, int64, and these; little-endian on any machine."""
    head = file.read(8)
    if len(head) < 8:
        raise ValueError(f"it ends before storage {shown(key)}; {AGAIN}")
    (count,) = struct.unpack("<q", head)
    if count != array.size:
        raise ValueError(
            f"storage {shown(key)} should hold {array.size} numbers, and has {count}; {AGAIN}"
        )
    numbers = file.read(array.nbytes)
    if len(numbers) < array.nbytes:
        raise ValueError(f"it ends within storage {shown(key)}; {AGAIN}")
    array[:] = _from_bytes(numbers, array.dtype, "<")
