"""Files of named arrays that other programs made."""

from __future__ import annotations

import os
import pathlib
import zipfile

import numpy as np


def read_npz(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads all arrays of an `.npz` file.

    Raises:
      ValueError: not there, or not such a file.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as an .npz file of arrays: {error}") from error


READERS = {".npz": read_npz}  # by suffix: path -> arrays by name


def read_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads a state dict: arrays by name.

    Args:
      path: a file with one of the suffixes of `READERS`.

    Raises:
      ValueError: another suffix, not there, or damaged.
    """
    reader = READERS.get(pathlib.Path(path).suffix.lower())
    if reader is None:
        raise ValueError(
            f"{path}: only {', '.join(READERS)} files can be read. Where PyTorch is installed, "
            "numpy.savez(path, **{name: tensor.numpy() for name, tensor in state_dict.items()}) "
            "makes one"
        )
    return reader(path)
