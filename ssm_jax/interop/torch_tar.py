"""The format of `torch.save` before PyTorch 0.1.10, in which torchvision's oldest files are.

A tar archive of four entries, each a sequence of pickles and numbers (int64 if not said otherwise):

* sys_info: a dict with the version and the byte order.
* storages: how many there are, pickled; for each a pickled (key, location, class), the count of its
  numbers and the numbers; at last, pickled, the storages that are parts of others: a list of
  (key, key of the whole, offset, count).
* tensors: how many there are, pickled; for each a pickled (key, key of its storage, class), the
  count of its axes as int32, four bytes of anything, its lengths, its strides and its offset.
* pickle: the object. It refers to tensors and storages by their keys, as text.

Source: `_legacy_load` in torch/serialization.py of PyTorch.
"""

from __future__ import annotations

import io
import struct
import sys
import tarfile
from typing import Any, BinaryIO

import numpy as np

from ssm_jax.interop.torch_pickle import AGAIN, MAX_BYTES, Record, Refused, is_name, shown
from ssm_jax.interop.torch_tensors import (
    MAX_DIMENSIONS,
    Tensors,
    dtype_of,
    is_count,
    part_of,
)

START_SIZE = 262  # bytes of a file that tell the format
MAX_ENTRIES = 100
HEAD = 1000  # bytes at most of a pickle before a storage or tensor
VARIABLES = ("torch.nn.parameter.Parameter", "torch.autograd.variable.Variable")


def is_start(start: bytes) -> bool:
    """Whether the first `START_SIZE` bytes of a file are those of a tar archive."""
    return start[257:START_SIZE] == b"ustar"


def tensor_of(value: Any) -> Any:
    """The array of a parameter as old files hold it; any other value itself.

    Such a parameter is an object of a class. Its tensor is the first of its arguments or, before
    that, of its state.
    """
    if isinstance(value, Record) and value.name in VARIABLES:
        state = value.state if isinstance(value.state, tuple) else ()
        for part in (*value.args[:1], *state[:1]):
            if isinstance(part, np.ndarray):
                return part
    return value


def read(file: BinaryIO, size: int, max_bytes: int) -> Any:
    """Reads what was given to `torch.save`; nothing is unpacked to the disk.

    Args:
      file: the archive.
      size: of the file, bytes.
      max_bytes: a file whose tensors hold more numbers is refused.

    Returns:
      See `torch_file.read`; parameters are records, see `tensor_of`.

    Raises:
      Exception: damaged, or another kind of archive; `Refused` where it is known what is wrong.
    """
    entries = _entries(file, size)
    for name in ("sys_info", "storages", "tensors", "pickle"):
        if name not in entries:
            raise Refused(f"it is a tar archive, but not one of torch.save (no {name}); {AGAIN}")

    def content(name: str) -> io.BytesIO:
        if len(entries[name]) > MAX_BYTES:
            raise Refused(f"entry {name} of the archive is too large; {AGAIN}")
        file.seek(entries[name].start)
        return io.BytesIO(file.read(len(entries[name])))

    tensors = Tensors(max_bytes)
    load = tensors.reader.load
    objects: dict[str, np.ndarray] = {}  # storages and tensors by their keys

    def add(key: Any, array: np.ndarray) -> None:
        if not is_count(key) or str(key) in objects:
            raise Refused(f"a storage or tensor has no key of its own; {AGAIN}")
        objects[str(key)] = array

    def find(identifier: Any) -> Any:
        match identifier:
            case (module, _, _) if is_name(module):
                return module  # a class, with its source for a warning if that has changed
            case str() | int():
                return objects[str(identifier)]
        raise Refused(f"it refers to an unknown kind of object; {AGAIN}")

    match load(content("sys_info")):
        case {"protocol_version": 1000, "little_endian": True}:
            pass
        case _:
            raise Refused(f"its format is not version 1000 of a little-endian machine; {AGAIN}")
    file.seek(entries["storages"].start)
    for _ in range(load(file, limit=HEAD)):
        key, _, storage_class = load(file, limit=HEAD)
        add(key, _read_storage(file, dtype_of(storage_class), entries["storages"].stop))
    for key, root, offset, count in load(file):
        add(key, part_of(find(root), offset, count))
    stream = content("tensors")
    for _ in range(load(stream, limit=HEAD)):
        key, root, _ = load(stream, limit=HEAD)
        (axes,) = _integers(stream, "<i4x")
        if axes > MAX_DIMENSIONS:
            raise Refused(f"a tensor has {axes} axes; {AGAIN}")
        lengths, strides = _integers(stream, f"<{axes}q"), _integers(stream, f"<{axes}q")
        add(key, tensors.tensor(find(root), *_integers(stream, "<q"), lengths, strides))
    return tensors.load(content("pickle"), find)


def _entries(file: BinaryIO, size: int) -> dict[str, range]:
    """Where the files of an archive lie, by name; bytes.

    Other kinds of entries are passed over. Those of PyTorch are headers with times of the files.
    """
    entries: dict[str, range] = {}
    start = 0
    for _ in range(MAX_ENTRIES):
        file.seek(start)
        header = file.read(tarfile.BLOCKSIZE)
        if not header.strip(b"\0"):
            return entries
        entry = tarfile.TarInfo.frombuf(header, "ascii", "surrogateescape")
        start += tarfile.BLOCKSIZE
        if not 0 <= entry.size <= size - start:
            raise Refused(f"the archive is cut off in entry {shown(entry.name)}; {AGAIN}")
        if entry.type == tarfile.REGTYPE:
            if entry.name in entries:
                raise Refused(f"two entries of the archive are named {shown(entry.name)}; {AGAIN}")
            entries[entry.name] = range(start, start + entry.size)
        start += -(-entry.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    raise Refused(f"the archive has more than {MAX_ENTRIES} entries; {AGAIN}")


def _integers(file: BinaryIO, form: str) -> tuple[int, ...]:
    """The integers of a `struct` format that follow in a file."""
    return struct.unpack(form, file.read(struct.calcsize(form)))


def _read_storage(file: BinaryIO, dtype: np.dtype, stop: int) -> np.ndarray:
    """The count of numbers that follows in a file, and these; they end at `stop` or before."""
    (count,) = _integers(file, "<q")
    size = count * dtype.itemsize
    if not 0 <= size <= stop - file.tell():
        raise Refused(f"a storage of {size} bytes reaches beyond its entry; {AGAIN}")
    numbers = np.frombuffer(file.read(size), dtype)
    return numbers if sys.byteorder == "little" else numbers.byteswap()
