"""Files of named arrays that other programs made."""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from ssm_jax.interop import torch_file, torch_tar
from ssm_jax.interop.torch_pickle import AGAIN, Dict, Record, Refused, first_line, shown

SUFFIXES = (".npz", ".pth", ".pt")
MAX_NAME = 200  # characters; names are shown
MAX_ANCHORS = 10_000  # of a cell


@dataclasses.dataclass(frozen=True)
class Weights:
    """A state dict, and what else its file says about the model.

    Attributes:
      arrays: by name.
      anchor_sizes: square roots of the anchors' areas, pixels; None if the file does not tell.
      anchor_ratios: height / width; None if the file does not tell.
      cell_anchors: float32 [A, 4], the anchors of a cell that its model had; None if not told.
    """

    arrays: dict[str, np.ndarray]
    anchor_sizes: tuple[float, ...] | None = None
    anchor_ratios: tuple[float, ...] | None = None
    cell_anchors: np.ndarray | None = None


def read_weights(path: str | os.PathLike, max_bytes: int = torch_file.MAX_BYTES) -> Weights:
    """Reads a state dict and the anchors that its file names.

    Args:
      path: an `.npz` file of arrays; or a `.pth` or `.pt` file with a state dict, or with a dict
        that has one as `model_weights`, as the reference's training script writes it, and perhaps
        `anchor_generator`. Nothing that such a file names is run or imported.
      max_bytes: a file that is larger or unpacks to more is refused.

    Raises:
      ValueError: another suffix, not there, damaged, too large, or without a state dict.
    """
    suffix = pathlib.Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(
            f"{path}: only {', '.join(SUFFIXES)} files can be read. Where PyTorch is installed, "
            "torch.save(model.state_dict(), 'weights.pth') makes one"
        )
    loaded = _read_npz(path, max_bytes) if suffix == ".npz" else torch_file.read(path, max_bytes)
    try:
        return _weights(loaded)
    except ValueError as error:
        raise ValueError(f"{path} is no checkpoint with model weights: {error}") from error


def _read_npz(path: str | os.PathLike, max_bytes: int) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(path) as archive:
            torch_file.check_archive(archive, max_bytes)
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    # A damaged archive makes zipfile and NumPy raise almost anything.
    except Exception as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        remedy = "" if isinstance(error, Refused | OSError) else f"; {AGAIN}"
        raise ValueError(
            f"{path} cannot be read as an .npz file of arrays: {reason}{remedy}"
        ) from error


def _weights(loaded: Any) -> Weights:
    if not isinstance(loaded, Mapping):
        raise ValueError(f"it holds a {_kind(loaded)}; save model.state_dict()")
    arrays = _state_dict(loaded.get("model_weights", loaded))
    generator = loaded.get("anchor_generator") if "model_weights" in loaded else None
    if generator is None:
        return Weights(arrays)
    attributes = generator.state if isinstance(generator, Record | Dict) else None
    if not isinstance(attributes, dict) or not {"sizes", "aspect_ratios"} <= attributes.keys():
        raise ValueError("its anchor_generator does not tell sizes and aspect_ratios")
    cell = None
    match attributes.get("cell_anchors"):
        case [np.ndarray() as found] if found.size <= 4 * MAX_ANCHORS:
            cell = np.asarray(found, np.float32)
    return Weights(
        arrays,
        anchor_sizes=_one_level(attributes["sizes"], "sizes"),
        anchor_ratios=_one_level(attributes["aspect_ratios"], "aspect_ratios"),
        cell_anchors=cell,
    )


def _state_dict(value: Any) -> dict[str, np.ndarray]:
    if not isinstance(value, Mapping):
        raise ValueError(f"its weights are a {_kind(value)}; save model.state_dict()")
    if not value:
        raise ValueError("it holds no weights")
    arrays = {name: torch_tar.tensor_of(array) for name, array in value.items()}
    for name, array in arrays.items():
        if not isinstance(name, str) or not name.isprintable() or len(name) > MAX_NAME:
            raise ValueError(f"{shown(name)} is no name of a tensor")
        if not isinstance(array, np.ndarray):
            raise ValueError(
                f"its entry {shown(name)} is a {_kind(array)} and no tensor; a state dict holds "
                "tensors by name, alone or as model_weights"
            )
    return arrays


def _kind(value: Any) -> str:
    return shown(value.name) if isinstance(value, Record) else type(value).__name__


def _one_level(levels: Any, name: str) -> tuple[float, ...]:
    """The numbers of the only level of a feature pyramid."""
    if not isinstance(levels, tuple | list) or len(levels) != 1:
        count = len(levels) if isinstance(levels, tuple | list) else "no"
        raise ValueError(f"its anchors have {name} for {count} feature maps; the model has one")
    match levels[0]:
        case [_, *_] as numbers if all(map(_is_positive, numbers)):
            return tuple(numbers)
    raise ValueError(f"{name} of its anchors are not positive numbers")


def _is_positive(number: Any) -> bool:
    return type(number) in (int, float) and 0 < number < math.inf
