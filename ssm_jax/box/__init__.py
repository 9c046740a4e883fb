"""The model in the box: weights that come with the package, for who has none.

One file beside this module, `model.npz`: an array for each weight, kernels in float16 and all else
in float32, and what a checkpoint tells of its model, its run and its evaluation, with the limits of
the model, as JSON. `python -m experiments.box` makes it from a checkpoint, and MODEL_CARD.md, which
says what the model was trained on, what for, and under which terms the weights are given.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from ssm_jax import checkpoints
from ssm_jax.checkpoints import CheckpointError, CheckpointInfo
from ssm_jax.classes import of_checkpoint
from ssm_jax.config import ModelConfig
from ssm_jax.files import json_ready, replacing
from ssm_jax.models.ssm import variable_shapes

FILE = pathlib.Path(__file__).with_name("model.npz")
CARD = pathlib.Path(__file__).with_name("MODEL_CARD.md")
LICENSE = "CC BY-NC-SA 4.0"  # of the weights, as of the slices that they were trained on
MAX_BYTES = 20_000_000
FORMAT, VERSION = "ssm_jax box", 1
_FACTS = "facts"  # entry of the file beside the weights
_SEPARATOR = "/"
# Fields of a run that tell folders of the machine that trained it.
_FOLDERS = {
    "": ("init_from",),
    "backbone": ("init",),
    "data": ("seg_dir", "cls_dir", "data_dir"),
}


@dataclasses.dataclass(frozen=True)
class Facts:
    """All that the file tells beside the weights.

    Attributes:
      name: of the model, for people.
      limits: what the model is not good for, a sentence each.
      license: of the weights.
    """

    name: str
    limits: tuple[str, ...]
    license: str


def open_model(
    path: str | os.PathLike | None,
) -> tuple[ModelConfig, dict[str, Any], CheckpointInfo]:
    """The model of a checkpoint, or the one in the box.

    Args:
      path: of a checkpoint, see `checkpoints.load_model`; None: the model in the box.

    Raises:
      CheckpointError: there is none, or it is damaged.
    """
    return load_model() if path is None else checkpoints.load_model(path)


def load_model() -> tuple[ModelConfig, dict[str, Any], CheckpointInfo]:
    """The model in the box as `checkpoints.load_model` gives one.

    Returns:
      The model's configuration, its variables in float32 on the first device, and where they came
      from; the run's configuration names no folders.

    Raises:
      CheckpointError: this installation has none, or the file is damaged.
    """
    arrays, told = _read()
    try:
        model = ModelConfig.from_mapping(told["config"]["model"])
        info = CheckpointInfo(
            path=FILE,
            step=told["step"],
            metrics=told["metrics"],
            config=told["config"]["run"],
            classes=of_checkpoint(told["config"]),
            seconds=told["seconds"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{FILE} is damaged: {error}") from error
    names = {name: array.astype(np.float32) for name, array in arrays.items()}
    variables = traverse_util.unflatten_dict(names, sep=_SEPARATOR)
    wanted = variable_shapes(model)
    if traverse_util.flatten_dict(wanted, sep=_SEPARATOR).keys() != names.keys():
        raise CheckpointError(f"{FILE} is damaged: it holds other weights than its model has")
    variables = jax.tree.map(lambda x, shape: x.astype(shape.dtype), variables, wanted)
    checkpoints.check_arrays(FILE, wanted, variables)
    return model, jax.device_put(variables, jax.local_devices()[0]), info


def facts() -> Facts:
    """All that the file tells beside the weights.

    Raises:
      CheckpointError: this installation has no model in the box, or the file is damaged.
    """
    _, told = _read(weights=False)
    try:
        return Facts(told["name"], tuple(told["limits"]), told["license"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{FILE} is damaged: {error}") from error


def write(
    path: str | os.PathLike,
    model: ModelConfig,
    variables: Mapping[str, Any],
    info: CheckpointInfo,
    name: str,
    limits: Sequence[str],
) -> int:
    """Writes a model as the file of the box, never a part of it.

    Args:
      path: of the file; replaced.
      model: its configuration.
      variables: {"params": ..., "batch_stats": ...}.
      info: of its checkpoint. Folders of the run are left out.
      name: for people.
      limits: what the model is not good for, a sentence each.

    Returns:
      Bytes of the file.

    Raises:
      ValueError: a weight that float16 cannot hold, or a file above `MAX_BYTES`.
    """
    flat = traverse_util.flatten_dict(dict(variables), sep=_SEPARATOR)
    arrays: dict[str, Any] = {key: _small(key, np.asarray(a)) for key, a in flat.items()}
    told = {
        "format": FORMAT,
        "version": VERSION,
        "config": checkpoints.config_item(
            dataclasses.asdict(model),
            without_folders(info.config),
            None if info.config else info.classes,
        ),
        "metrics": info.metrics,
        "step": info.step,
        "seconds": info.seconds,
        "name": name,
        "limits": list(limits),
        "license": LICENSE,
    }
    arrays[_FACTS] = np.array(json.dumps(json_ready(told), allow_nan=False))
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)
        size = temporary.stat().st_size
        if size > MAX_BYTES:
            raise ValueError(
                f"the file has {size / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:.0f}; choose a "
                "smaller backbone"
            )
    return size


def _small(name: str, array: np.ndarray) -> np.ndarray:
    """Kernels as float16; what has one axis stays: it is small, and variances may be large."""
    if array.ndim < 2:
        return array
    with np.errstate(over="ignore"):  # told below, by name
        small = array.astype(np.float16)
    if not np.isfinite(small).all():
        raise ValueError(f"{name} holds a weight that is not finite as float16")
    return small


def without_folders(run: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A run's configuration without the folders of its machine."""
    if run is None:
        return None
    kept = {k: dict(v) if isinstance(v, Mapping) else v for k, v in run.items()}
    for section, names in _FOLDERS.items():
        part = kept[section] if section else kept
        part.update({name: "" for name in names if name in part})
    return kept


def _read(weights: bool = True) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The weights by name, if they are wanted, and what else the file tells."""
    if not FILE.is_file():
        raise CheckpointError(
            f"this installation comes without a model ({FILE} is not there); give a checkpoint, "
            "such as ssm-jax train --config=demo makes"
        )
    try:
        with np.load(FILE, allow_pickle=False) as archive:
            told = json.loads(str(archive[_FACTS]))
            arrays = {name: archive[name] for name in archive if weights and name != _FACTS}
    # Damaged archives make NumPy and zipfile raise all of these.
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{FILE} is damaged: {error}") from error
    if (told.get("format"), told.get("version")) != (FORMAT, VERSION):
        raise CheckpointError(f"{FILE} is not a model file of this version")
    return arrays, told
