"""Writes files that `torch.load` reads, without PyTorch."""

from __future__ import annotations

import os
import pickle
import pickletools
import struct
import zipfile
from typing import Any

import numpy as np

from ssm_jax import files
from ssm_jax.interop.torch_pickle import Dict
from ssm_jax.interop.torch_tensors import DTYPES

ROOT = "archive"  # the folder that everything in the archive lies in
ALIGNMENT = 64  # bytes; of the numbers of a tensor within the file, so that they can be mapped
ZIP_HEADER = 30  # bytes before the name of an entry

_STORAGES = {dtype: f"{name}Storage" for name, dtype in DTYPES.items()}


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
    arrays: list[np.ndarray] = []
    code = pickle.PROTO + b"\x02" + _code(value, arrays) + pickle.STOP
    with (
        files.replacing(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
    ):
        _add(archive, "data.pkl", pickletools.optimize(code))  # without unused memos
        _add(archive, "byteorder", b"little")
        for key, array in enumerate(arrays):
            numbers = array.astype(array.dtype.newbyteorder("<")).tobytes()
            _add(archive, f"data/{key}", numbers)
        _add(archive, "version", b"3\n")


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(f"{ROOT}/{name}")  # of a fixed date
    padding = -(archive.start_dir + ZIP_HEADER + len(entry.filename) + 4) % ALIGNMENT
    entry.extra = struct.pack("<2sH", b"FB", padding) + bytes(padding)
    archive.writestr(entry, content)


def _code(value: Any, arrays: list[np.ndarray]) -> bytes:
    """The opcodes that put a value on the stack, those of protocol 2 that PyTorch accepts.

    Python's pickler would have to import the functions of PyTorch that the opcodes name.

    Args:
      value: as for `write`.
      arrays: the arrays so far, whose places are their keys; those of `value` are added.
    """
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return pickle.dumps(kind(value), 2)[2:-1]  # without the version and the end
    if value is None:
        return pickle.NONE
    if isinstance(value, np.ndarray):
        return _tensor_code(value, arrays)
    if isinstance(value, tuple):
        return pickle.MARK + _codes(value, arrays) + pickle.TUPLE
    if isinstance(value, list):
        return pickle.EMPTY_LIST + pickle.MARK + _codes(value, arrays) + pickle.APPENDS
    if not isinstance(value, dict):
        raise TypeError(f"{type(value).__name__} cannot be written for PyTorch")
    code = _ORDERED_DICT if isinstance(value, Dict) else pickle.EMPTY_DICT
    pairs = [part for pair in value.items() for part in pair]
    code += pickle.MARK + _codes(pairs, arrays) + pickle.SETITEMS
    if isinstance(value, Dict) and value.state is not None:
        code += _code(value.state, arrays) + pickle.BUILD
    return code


def _codes(values: list | tuple, arrays: list[np.ndarray]) -> bytes:
    return b"".join([_code(value, arrays) for value in values])


def _name_code(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode("ascii")


_ORDERED_DICT = _name_code("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE


def _tensor_code(array: np.ndarray, arrays: list[np.ndarray]) -> bytes:
    dtype = array.dtype.newbyteorder("=")
    if dtype not in _STORAGES:
        raise TypeError(f"an array of {array.dtype} cannot be written for PyTorch")
    key = str(len(arrays))
    arrays.append(array)
    strides = np.cumprod((1, *array.shape[:0:-1]))[::-1].tolist() if array.ndim else []
    storage = _code("storage", arrays) + _name_code("torch", _STORAGES[dtype])
    storage += _codes([key, "cpu", array.size], arrays)
    view = _codes([0, array.shape, tuple(strides), False], arrays) + _ORDERED_DICT  # no hooks
    return (
        _name_code("torch._utils", "_rebuild_tensor_v2")
        + pickle.MARK
        + (pickle.MARK + storage + pickle.TUPLE + pickle.BINPERSID)
        + (view + pickle.TUPLE + pickle.REDUCE)
    )
