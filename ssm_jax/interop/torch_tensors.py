"""Tensors from what the pickles of a PyTorch file say about them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from ssm_jax.interop.torch_pickle import AGAIN, Reader, Refused, is_name, shown

MAX_DIMENSIONS = 32
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


def part_of(storage: np.ndarray, offset: Any, count: Any) -> np.ndarray:
    """The numbers of a storage from an offset on, both as a file says.

    Raises:
      Refused: they lie outside of it.
    """
    if not (is_count(offset) and is_count(count) and offset + count <= storage.size):
        raise Refused(f"a part of a storage lies outside of it; {AGAIN}")
    return storage[offset : offset + count]


def dtype_of(storage_class: Any) -> np.dtype:
    """The dtype of a kind of storage that a pickle names, such as torch.FloatStorage.

    Raises:
      Refused: it names something else.
    """
    name = storage_class.name if is_name(storage_class) else storage_class
    if not isinstance(name, str) or name not in STORAGES:
        raise Refused(f"tensors of type {shown(name)} are not supported; convert to float32")
    return STORAGES[name]


def is_count(value: Any) -> bool:
    """Whether a value from a file can count numbers: an integer of 0 to 2**63 - 1."""
    return type(value) is int and 0 <= value < 2**63


def too_large(what: str, max_bytes: int) -> Refused:
    """The error for a file that holds more than its reader allows."""
    limit = in_gib(max_bytes)
    return Refused(f"{what}, and the limit is {limit}; raise the limit if you trust the file")


def in_gib(count: int) -> str:
    """A count of bytes for an error message."""
    return f"{count / 2**30:.3g} GiB" if count >= 2**20 else f"{count} bytes"


class Tensors:
    """Makes the tensors of a file.

    Attributes:
      reader: of the pickles.
    """

    def __init__(self, max_bytes: int):
        """Takes a limit for the numbers of all tensors together, in bytes."""
        self.reader = Reader()
        self.max_bytes = max_bytes
        self.bytes = 0

    def load(self, stream: BinaryIO, persistent: Callable[[Any], Any]) -> Any:
        """Reads the pickle of an object that holds tensors, see `Reader.load`."""
        functions: dict[str, Callable] = {
            "torch._utils._rebuild_tensor": self.tensor,
            "torch._utils._rebuild_tensor_v2": self.tensor,
            "torch._utils._rebuild_parameter": _parameter,
            "torch._utils._rebuild_parameter_with_state": _parameter,
            "torch.Size": lambda sizes: sizes,
        }
        return self.reader.load(stream, functions, persistent)

    def tensor(
        self, storage: Any, offset: Any, shape: Any, strides: Any, *settings: Any
    ) -> np.ndarray:
        """A view of a storage; the arguments are whatever a file says.

        Args:
          storage: an array [count] of numbers that follow each other in memory.
          offset: of the first number in the storage.
          shape: a tuple of lengths.
          strides: numbers between neighbors along each axis.
          settings: of the gradient; not needed.

        Raises:
          Refused: a shape that is impossible or reaches beyond the storage, or more numbers than
            the limit allows.
        """
        if (
            not isinstance(storage, np.ndarray)
            or storage.ndim != 1
            or not storage.flags.c_contiguous
        ):
            raise Refused(f"a tensor has no storage; {AGAIN}")
        counts_only = all(
            isinstance(counts, tuple)
            and len(counts) <= MAX_DIMENSIONS
            and all(map(is_count, counts))
            for counts in (shape, strides, (offset,))
        )
        if not counts_only or len(shape) != len(strides):
            raise Refused(f"a tensor has an impossible shape; {AGAIN}")
        # A stride of zero repeats numbers, so that the shape says nothing about the storage.
        self.bytes += math.prod(n for n in shape if n) * storage.itemsize
        if self.bytes > self.max_bytes:
            raise too_large("its tensors hold more numbers than it does", self.max_bytes)
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if 0 in shape:
            offset, strides = storage.size, (0,) * len(shape)
        elif last >= storage.size:
            raise Refused(
                f"a tensor of shape {shape} reaches to number {last} of a storage of "
                f"{storage.size}; {AGAIN}"
            )
        # Strides of axes of length one are never used, and may be anything.
        steps = [s * storage.itemsize if n > 1 else 0 for n, s in zip(shape, strides, strict=True)]
        return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False)


def _parameter(tensor: Any, *_: Any) -> np.ndarray:
    if not isinstance(tensor, np.ndarray):
        raise Refused(f"a parameter has no tensor; {AGAIN}")
    return tensor
