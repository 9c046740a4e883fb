"""Reads PyTorch checkpoints without PyTorch, and without running what they name.

All formats of `torch.save`: the zip archive of version 1.6 and later, the sequence of pickles and
raw storages before that, and the tar archive before version 0.1.10 (see `torch_tar`). What
becomes of objects that are no tensors is told in `torch_pickle`.
"""

from __future__ import annotations

import collections
import io
import os
import struct
import sys
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from ssm_jax.interop import torch_pickle, torch_tar
from ssm_jax.interop.torch_pickle import AGAIN, Refused, first_line, is_name, shown
from ssm_jax.interop.torch_tensors import (
    Tensors,
    dtype_of,
    in_gib,
    is_count,
    part_of,
    too_large,
)

MAX_BYTES = 2 * 2**30
MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001
HEAD = 1000  # bytes at most of each pickle before that of the object
ZIP_START = b"PK\x03\x04"


def read(path: str | os.PathLike, max_bytes: int = MAX_BYTES) -> Any:
    """Reads what was given to `torch.save`.

    Args:
      path: the file.
      max_bytes: a file that is larger, unpacks to more, or holds more numbers is refused.

    Returns:
      The object: tensors and parameters as read-only arrays of their dtype (views of one array
      where tensors shared memory; strides are kept), an OrderedDict as `torch_pickle.Dict`, a
      torch.Size as a tuple, plain values and containers as themselves, all else as
      `torch_pickle.Record` (parameters of the tar format too, see `torch_tar.tensor_of`).

    Raises:
      ValueError: not there, not such a file, damaged, or too large. One line.
    """
    try:
        with open(path, "rb") as file:
            return _read(file, max_bytes)
    except (OSError, ValueError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise Refused(f"{path} cannot be read as a PyTorch checkpoint: {reason}") from error


def _read(file: io.BufferedReader, max_bytes: int) -> Any:
    size = os.fstat(file.fileno()).st_size
    if size > max_bytes:
        raise too_large(f"it is {in_gib(size)}", max_bytes)
    if not size:
        raise Refused(f"it is empty; {AGAIN}")
    start = file.read(torch_tar.START_SIZE)
    file.seek(0)
    try:
        if start.startswith(ZIP_START):
            with zipfile.ZipFile(file) as archive:
                check_archive(archive, max_bytes)
                return _read_archive(archive, max_bytes)
        if torch_tar.is_start(start):
            return torch_tar.read(file, size, max_bytes)
        return _read_pickles(file, size, max_bytes)
    except (Refused, MemoryError):
        raise
    # A damaged archive makes the readers of zip and tar raise almost anything.
    except Exception as error:
        raise Refused(f"it is damaged or cut off ({first_line(error)}); {AGAIN}") from error


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
        raise too_large(f"it unpacks to {in_gib(total)}", max_bytes)
    for name, count in collections.Counter(archive.namelist()).most_common(1):
        if count > 1:
            raise Refused(f"{count} of its entries are named {shown(name)}; {AGAIN}")
    for entry in entries:
        packed = entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        if packed or entry.flag_bits & 1:
            raise Refused(
                f"entry {shown(entry.filename)} is encrypted or packed unusually; {AGAIN}"
            )


def _read_archive(archive: zipfile.ZipFile, max_bytes: int) -> Any:
    entries = {entry.filename: entry for entry in archive.infolist()}
    roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")]
    roots = [root for root in roots if root.count("/") == 1]
    if len(roots) != 1:
        raise Refused(
            f"it is a zip archive, but not one that torch.save wrote (no data.pkl); {AGAIN}"
        )
    root = roots[0]
    if f"{root}constants.pkl" in entries:
        raise Refused("it is a TorchScript program; save the model's state_dict() instead")

    def content(name: str, limit: int) -> bytes:
        entry = entries.get(root + name)
        if entry is None or entry.file_size > limit:
            what = "is missing" if entry is None else f"is larger than {in_gib(limit)}"
            raise Refused(f"entry {shown(root + name)} of the archive {what}; {AGAIN}")
        with archive.open(entry) as stream:
            found = stream.read(limit + 1)
        if len(found) != entry.file_size:
            raise Refused(f"entry {shown(root + name)} has not the size that it should; {AGAIN}")
        return found

    order = content("byteorder", 100).strip() if f"{root}byteorder" in entries else b"little"
    if order not in (b"little", b"big"):
        raise Refused(f"its byte order is neither little nor big; {AGAIN}")

    def make_storage(key: str, dtype: np.dtype, count: int) -> np.ndarray:
        numbers = content(f"data/{key}", max_bytes)
        if len(numbers) != count * dtype.itemsize:
            raise Refused(
                f"storage {shown(key)} should hold {count} numbers of {dtype.itemsize} bytes, and "
                f"has {len(numbers)} bytes; {AGAIN}"
            )
        array = np.frombuffer(numbers, dtype)
        return array if order == sys.byteorder.encode() else array.byteswap()

    stream = io.BytesIO(content("data.pkl", torch_pickle.MAX_BYTES))
    return _load(stream, Tensors(max_bytes), make_storage)


def _load(
    stream: BinaryIO, tensors: Tensors, make_storage: Callable[[str, np.dtype, int], np.ndarray]
) -> Any:
    """Reads the pickle of an object whose storages lie elsewhere in the file.

    Args:
      stream: where the pickle starts; afterwards where it ended.
      tensors: of the file.
      make_storage: makes the numbers [count] of a storage from its key, dtype and count.
    """
    storages: dict[str, np.ndarray] = {}

    def persistent(identifier: Any) -> Any:
        match identifier:
            case ("module", module, _, _) if is_name(module):
                return module  # a class, with its source for a warning if that has changed
            case ("storage", kind, str() as key, _, count, *views) if is_count(count):
                dtype = dtype_of(kind)
            case _:
                raise Refused(f"it refers to an unknown kind of object; {AGAIN}")
        if key not in storages:
            storages[key] = make_storage(key, dtype, count)[:]
            storages[key].flags.writeable = False  # by the pickle
        storage = storages[key]
        if storage.dtype != dtype or storage.size != count:
            raise Refused(f"storage {shown(key)} is of two types or sizes; {AGAIN}")
        match views:
            case [] | [None]:
                return storage
            case [(_, offset, length)]:
                return part_of(storage, offset, length)
        raise Refused(f"a part of storage {shown(key)} lies outside of it; {AGAIN}")

    return tensors.load(stream, persistent)


def _read_pickles(file: io.BufferedReader, size: int, max_bytes: int) -> Any:
    """Pickles: a magic number, a version, the system, the object, the storages' keys; storages."""
    tensors = Tensors(max_bytes)
    load = tensors.reader.load
    try:
        magic = load(file, limit=HEAD)
    except Refused:
        magic = None
    if magic != MAGIC_NUMBER or type(magic) is not int:
        raise Refused(f"it was not written by torch.save, or its start is damaged; {AGAIN}")
    version, system = load(file, limit=HEAD), load(file, limit=HEAD)
    if version != PROTOCOL_VERSION or not isinstance(system, dict):
        raise Refused(f"its format is not the one of version {PROTOCOL_VERSION}; {AGAIN}")
    arrays: dict[str, np.ndarray] = {}

    def make_storage(key: str, dtype: np.dtype, count: int) -> np.ndarray:
        reserved = sum(array.nbytes for array in arrays.values()) + count * dtype.itemsize
        if reserved > size:
            raise Refused(f"its storages are larger than the file, it is cut off; {AGAIN}")
        arrays[key] = np.empty(count, dtype)  # filled below: the numbers come after the pickles
        return arrays[key]

    value = _load(file, tensors, make_storage)
    keys = load(file)
    if not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
        raise Refused(f"the list of its storages is damaged; {AGAIN}")
    if sorted(keys) != sorted(arrays):
        raise Refused(f"the list of its storages does not fit its tensors; {AGAIN}")
    for key in keys:
        _fill(file, key, arrays[key])
    return value


def _fill(file: io.BufferedReader, key: str, array: np.ndarray) -> None:
    """Reads a storage: its count of numbers, int64, and these; little-endian on any machine."""
    (count,) = struct.unpack("<q", file.read(8))
    if count != array.size:
        raise Refused(
            f"storage {shown(key)} should hold {array.size} numbers, and has {count}; {AGAIN}"
        )
    if file.readinto(array.view(np.uint8).data) < array.nbytes:
        raise Refused(f"it ends within storage {shown(key)}; {AGAIN}")
    if sys.byteorder == "big":
        array.byteswap(inplace=True)
