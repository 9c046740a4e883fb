"""Writes files that `torch.load` reads, without PyTorch."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from typing import Any

import numpy as np

from ssm_jax import files
from ssm_jax.interop.torch_pickle import Dict
from ssm_jax.interop.torch_tensors import STORAGES
from ssm_jax.interop.torch_pickle import Dict
from ssm_jax.interop.torch_tensors import STORAGES

ROOT = "archive"  # the folder that everything in the archive lies in
ALIGNMENT = 64  # bytes; of the numbers of a tensor within the file, so that they can be mapped
_LOCAL_HEADER = 30  # bytes in front of the name of an entry of a zip

_STORAGE_NAMES = {
    dtype: name.split(".") for name, dtype in STORAGES.items() if name.count(".") == 1
}


def write(path: str | os.PathLike, value: Any) -> None:
    """Writes a file in the zip format of `torch.save`; `torch.load(weights_only=True)` reads it.

    The same value always makes the same bytes. An existing file is replaced at once.

    Args:
      path: the file; its folder exists.
      value: None, bool, int, float, str, arrays (they become tensors), and lists, tuples, dicts and
        `torch_pickle.Dict` of these. A `Dict` becomes an OrderedDict with `state` as attributes.

    Raises:
      TypeError: holds something else, or arrays of a dtype that has no tensors.
    """
    pickler = _Pickler()
    pickler.add(value)
    with (
        files.replacing(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
    ):
        _add(archive, "data.pkl", pickle.PROTO + b"\x02" + bytes(pickler.code) + pickle.STOP)
        _add(archive, "byteorder", b"little")
        for key, array in enumerate(pickler.arrays):
            _add(archive, f"data/{key}", array.astype(array.dtype.newbyteorder("<")).tobytes())
        _add(archive, "version", b"3\n")


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(f"{ROOT}/{name}")  # of a fixed date
    header = archive.start_dir + _LOCAL_HEADER + len(entry.filename)
    padding = -(header + 4) % ALIGNMENT
    entry.extra = struct.pack("<2sH", b"FB", padding) + bytes(padding)
    archive.writestr(entry, content)


class _Pickler:
    """Opcodes for a value, those of protocol 2 that a restricted unpickler knows."""

    def __init__(self):
        self.code = bytearray()
        self.arrays: list[np.ndarray] = []

    def add(self, value: Any) -> None:
        """Appends the opcodes that put a value on the stack."""
        if value is None or isinstance(value, bool):
            self.code += {None: pickle.NONE, True: pickle.NEWTRUE, False: pickle.NEWFALSE}[value]
        elif isinstance(value, int):
            self._integer(value)
        elif isinstance(value, float):
            self.code += pickle.BINFLOAT + struct.pack(">d", value)
        elif isinstance(value, str):
            text = value.encode("utf-8")
            self.code += pickle.BINUNICODE + struct.pack("<I", len(text)) + text
        elif isinstance(value, tuple):
            self._marked(value, pickle.TUPLE)
        elif isinstance(value, list):
            self.code += pickle.EMPTY_LIST
            self._marked(value, pickle.APPENDS)
        elif isinstance(value, dict):
            self._dict(value)
        elif isinstance(value, np.ndarray):
            self._tensor(value)
        else:
            raise TypeError(f"{type(value).__name__} cannot be written for PyTorch")

    def _integer(self, value: int) -> None:
        if -(2**31) <= value < 2**31:
            self.code += pickle.BININT + struct.pack("<i", value)
        else:
            digits = pickle.encode_long(value)
            self.code += pickle.LONG1 + struct.pack("<B", len(digits)) + digits

    def _marked(self, values: Any, end: bytes) -> None:
        self.code += pickle.MARK
        for value in values:
            self.add(value)
        self.code += end

    def _global(self, module: str, name: str) -> None:
        self.code += pickle.GLOBAL + f"{module}\n{name}\n".encode("ascii")

    def _ordered_dict(self) -> None:
        self._global("collections", "OrderedDict")
        self.code += pickle.EMPTY_TUPLE + pickle.REDUCE

    def _dict(self, value: dict) -> None:
        if isinstance(value, Dict):
            self._ordered_dict()
        else:
            self.code += pickle.EMPTY_DICT
        self._marked((x for pair in value.items() for x in pair), pickle.SETITEMS)
        if isinstance(value, Dict) and value.state is not None:
            self.add(value.state)
            self.code += pickle.BUILD

    def _tensor(self, array: np.ndarray) -> None:
        dtype = array.dtype.newbyteorder("=")
        if dtype not in _STORAGE_NAMES:
            raise TypeError(f"an array of {array.dtype} cannot be written for PyTorch")
        key = str(len(self.arrays))
        self.arrays.append(array)
        strides, count = [], 1
        for length in reversed(array.shape):
            strides.append(count)
            count *= length
        self._global("torch._utils", "_rebuild_tensor_v2")
        self.code += pickle.MARK
        self.code += pickle.MARK
        self.add("storage")
        self._global(*_STORAGE_NAMES[dtype])
        for part in (key, "cpu", array.size):
            self.add(part)
        self.code += pickle.TUPLE + pickle.BINPERSID
        for value in (0, array.shape, tuple(reversed(strides)), False):
            self.add(value)
        self._ordered_dict()  # hooks: none
        self.code += pickle.TUPLE + pickle.REDUCE
