"""Checkpoints on disk (orbax): written whole or not at all, checked when they are read.

A run keeps its checkpoints in `<workdir>/checkpoints/<step>`. Each holds these items:

    model     {"params", "batch_stats"}: what inference needs
    training  the rest of the training state: optimizer, step, best loss, key, and the running BN
              statistics as training left them (those in `model` may have been re-estimated)
    config    JSON: the model's configuration, and the run's, or the classes where there is no run
    loop      JSON: position of the data loader, and the sums behind the next line of metrics
    metrics   JSON: the evaluation at this step, if there was one
    time      JSON: seconds of training so far

and `digests.json`, a digest of every file of these items. Imported weights are a checkpoint at step
0 with `model` and `config` only.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import pathlib
import shutil
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from ssm_jax.class_set import ClassSet
from ssm_jax.classes import of_checkpoint
from ssm_jax.config import ModelConfig
from ssm_jax.files import digests, write_json
from ssm_jax.models.ssm import variable_shapes

FOLDER = "checkpoints"
DIGESTS_FILE = "digests.json"
FORMAT = "ssm_jax"
VERSION = 2
WITHOUT_DIGESTS = 1  # a version that can be read too

logger = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint that is not there, not ours, damaged, or that cannot be written."""


@dataclasses.dataclass(frozen=True)
class CheckpointInfo:
    """Where a model came from.

    Attributes:
      path: the folder of this step.
      step: iterations done.
      metrics: the evaluation at this step; None if there was none.
      config: the configuration of the run as nested dicts; None for imported weights.
      classes: of the model.
      seconds: of training, with those of the run that it started from; None where unknown.
    """

    path: pathlib.Path
    step: int
    metrics: dict[str, Any] | None
    config: dict[str, Any] | None
    classes: ClassSet
    seconds: float | None = None


def save_model(
    path: str | os.PathLike,
    model_config: ModelConfig,
    variables: Mapping[str, Any],
    classes: ClassSet | None = None,
) -> pathlib.Path:
    """Writes weights alone as a checkpoint that `load_model` reads.

    Args:
      path: a folder that holds no checkpoint; created.
      model_config: the model.
      variables: {"params": ..., "batch_stats": ...}.
      classes: of the model, as many as it has; None: see `classes.unnamed`.

    Returns:
      The folder of the checkpoint, `<path>/checkpoints/0`.

    Raises:
      CheckpointError: the folder holds a checkpoint already, or cannot be written.
    """
    folder = pathlib.Path(path).absolute() / FOLDER
    if folder.is_dir() and any(folder.iterdir()):
        raise CheckpointError(f"{folder} exists and is not empty; choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be created: {error}") from error
    arrays = {name: jax.tree.map(np.array, variables[name]) for name in ("params", "batch_stats")}
    config = config_item(dataclasses.asdict(model_config), None, classes)
    return write_step(folder, 0, {"model": arrays}, {"config": config})


def load_model(path: str | os.PathLike) -> tuple[ModelConfig, dict[str, Any], CheckpointInfo]:
    """Reads a model for inference, on any number of devices and without the optimizer's state.

    Args:
      path: a working directory, its folder of checkpoints, or the folder of one step. Of several
        checkpoints the best is taken (by the metric that the run's configuration names, the later
        one of equals), and the latest where none was evaluated. Damaged ones are passed over, and
        the log says so.

    Returns:
      The model's configuration, its variables on the first device, and where they came from.

    Raises:
      CheckpointError: no checkpoint there, not ours, or damaged.
    """
    passed_over: list[CheckpointError] = []
    for step_folder in _candidates(pathlib.Path(path).expanduser().absolute()):
        try:
            model_config = _model_config(step_folder)
            variables = read_items(step_folder, {"model": variable_shapes(model_config)})["model"]
            info = read_info(step_folder)
        except CheckpointError as error:
            passed_over.append(error)
            continue
        for damaged in passed_over:
            logger.warning("passed over: %s", damaged)
        return model_config, jax.device_put(variables, jax.local_devices()[0]), info
    raise passed_over[0]


def read_info(step_folder: pathlib.Path) -> CheckpointInfo:
    """Where a model came from, by the folder of its step.

    Raises:
      CheckpointError: the checkpoint is not ours, or damaged.
    """
    items = read_items(step_folder, documents=["config"], optional=["metrics", "time"])
    try:
        classes = of_checkpoint(items["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{step_folder}: unusable classes: {error}") from error
    return CheckpointInfo(
        path=step_folder,
        step=int(step_folder.name),
        metrics=items["metrics"],
        config=items["config"]["run"],
        classes=classes,
        seconds=(items["time"] or {}).get("seconds"),
    )


def _model_config(step_folder: pathlib.Path) -> ModelConfig:
    try:
        return ModelConfig.from_mapping(describe(step_folder)["model"])
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{step_folder}: unusable configuration: {error}") from error


def metric_value(metrics: Mapping[str, Any] | None, name: str) -> float:
    """A metric as a number to rank by: -inf where it is missing, null or not finite."""
    value = (metrics or {}).get(name)
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return -math.inf


def step_folders(folder: pathlib.Path) -> list[pathlib.Path]:
    """Folders of checkpoints, by increasing step; none where the folder does not exist."""
    if not folder.is_dir():
        return []
    steps = [child for child in folder.iterdir() if child.name.isdecimal() and child.is_dir()]
    return sorted(steps, key=lambda child: int(child.name))


def _candidates(path: pathlib.Path) -> list[pathlib.Path]:
    """The checkpoints that `load_model` means by a path, the preferred one first."""
    if not path.exists():
        raise CheckpointError(f"there is no checkpoint at {path}: no such folder")
    if path.name.isdecimal() and ((path / "model").is_dir() or (path / "config").is_dir()):
        return [path]
    steps = step_folders(path / FOLDER) or step_folders(path)
    if not steps:
        raise CheckpointError(
            f"there is no checkpoint at {path}: expected a working directory, its folder "
            f"{FOLDER!r}, or the folder of one step"
        )

    def rank(step_folder: pathlib.Path) -> tuple[float, int]:
        step = int(step_folder.name)
        try:
            info = read_info(step_folder)
        except CheckpointError:
            return math.inf, step  # tried first, so that the log tells what is wrong with it
        best_metric = (info.config or {}).get("checkpoint", {}).get("best_metric", "")
        return metric_value(info.metrics, best_metric), step

    return sorted(steps, key=rank, reverse=True)


# How a checkpoint is written.


def config_item(
    model: Mapping[str, Any], run: Mapping[str, Any] | None, classes: ClassSet | None = None
) -> dict[str, Any]:
    """The item `config` of a checkpoint.

    Args:
      model: its configuration.
      run: configuration of the run that trained it, if there was one; it names the classes.
      classes: without a run, if they are known.
    """
    named = {} if classes is None else {"classes": classes.to_json()}
    return {"format": FORMAT, "version": VERSION, "model": dict(model), "run": run, **named}


def write_step(
    folder: pathlib.Path, step: int, trees: Mapping[str, Any], documents: Mapping[str, Any]
) -> pathlib.Path:
    """Writes a checkpoint; one of the same step stays until the new one can take its place.

    Args:
      folder: of the checkpoints.
      step: iterations done.
      trees: item -> pytree of NumPy arrays.
      documents: item -> what JSON can hold.

    Returns:
      The folder of the checkpoint. All processes have to call; the first writes what is not an
      array.

    Raises:
      CheckpointError: it cannot be written.
    """
    target, new, old = (folder / f"{step}{suffix}" for suffix in ("", ".new", ".old"))
    items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
    try:
        if items:
            with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
                checkpointer.save(new, args=ocp.args.Composite(**items), force=True)
        if jax.process_index() == 0:
            for name, content in documents.items():
                write_json(_json_path(new, name), content, indent=None)
            write_json(new / DIGESTS_FILE, digests(new, (*items, *documents)))
            if target.exists():
                target.rename(old)
            new.rename(target)
            shutil.rmtree(old, ignore_errors=True)
    # Orbax and tensorstore raise anything, plain Exception included.
    except Exception as error:
        raise CheckpointError(f"{target} cannot be written: {_reason(error)}") from error
    return target


def clear_leftovers(folder: pathlib.Path) -> None:
    """Removes what killed processes left in a folder of checkpoints, or finishes their renames."""
    for path in sorted(folder.iterdir()):
        step, _, suffix = path.name.partition(".")
        if not (step.isdecimal() and suffix):
            continue
        whole = suffix == "old" or (suffix == "new" and (path / DIGESTS_FILE).exists())
        if whole and not (folder / step).exists():
            path.rename(folder / step)
        else:
            shutil.rmtree(path, ignore_errors=True)


def remove_step(step_folder: pathlib.Path) -> None:
    """Removes a checkpoint; a process that is killed meanwhile leaves none that is half there."""
    old = step_folder.with_name(f"{step_folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    step_folder.rename(old)
    shutil.rmtree(old, ignore_errors=True)


def describe(step_folder: pathlib.Path) -> dict[str, Any]:
    """The item `config` of a checkpoint.

    Raises:
      CheckpointError: it is damaged, or not ours.
    """
    if not (step_folder / "config").is_dir():
        raise CheckpointError(
            f"{step_folder} is not a checkpoint of this project: it has no config"
        )
    described = _read_json(step_folder, "config")
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        raise CheckpointError(f"{step_folder} is not a checkpoint of this project")
    version = described.get("version")
    if version not in (WITHOUT_DIGESTS, VERSION):
        raise CheckpointError(
            f"{step_folder} has format version {version}; this program reads version {VERSION}"
        )
    if version == VERSION:
        _check_files(step_folder, ("config",))
    return described


def read_items(
    step_folder: pathlib.Path,
    trees: Mapping[str, Any] | None = None,
    documents: Iterable[str] = (),
    optional: Iterable[str] = (),
) -> dict[str, Any]:
    """Reads items of a checkpoint.

    Args:
      step_folder: of the checkpoint.
      trees: item -> pytree of the shapes and types that its arrays have.
      documents: items of JSON.
      optional: the same, of items that need not be there.

    Returns:
      Item -> NumPy arrays, JSON values, or None for an optional item that is not there.

    Raises:
      CheckpointError: an item is missing, damaged, of another model, or holds a number that is not
        finite.
    """
    trees = trees or {}
    there = [name for name in optional if (step_folder / name).is_dir()]
    missing = [name for name in (*trees, *documents) if not (step_folder / name).is_dir()]
    if missing:
        raise CheckpointError(f"{step_folder} lacks {', '.join(missing)}: damaged, or not ours")
    if describe(step_folder)["version"] == VERSION:
        _check_files(step_folder, (*trees, *documents, *there))
    found = {name: _read_arrays(step_folder, name, shapes) for name, shapes in trees.items()}
    found |= {name: _read_json(step_folder, name) for name in (*documents, *there)}
    return dict.fromkeys(optional) | found


def _json_path(step_folder: pathlib.Path, item: str) -> pathlib.Path:
    """The file of a JSON item, as orbax names it."""
    return step_folder / item / ("metrics" if item == "metrics" else "metadata")


def _read_json(step_folder: pathlib.Path, item: str) -> Any:
    try:
        return json.loads(_json_path(step_folder, item).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{step_folder} is damaged: {item}: {error}") from error


def _read_arrays(step_folder: pathlib.Path, item: str, like: Any) -> Any:
    """A tree of these shapes as NumPy arrays, whatever devices it was saved from."""
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), like)
    args = {item: ocp.args.PyTreeRestore(shapes, restore_args=as_numpy)}
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            found = checkpointer.restore(step_folder, args=ocp.args.Composite(**args))[item]
    # Damaged files make orbax and tensorstore raise anything, plain Exception included.
    except Exception as error:
        raise CheckpointError(
            f"{step_folder} cannot be restored, it is damaged or of another model: {_reason(error)}"
        ) from error
    check_arrays(step_folder, shapes, found)
    return found


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def check_arrays(where: pathlib.Path, wanted: Any, found: Any) -> None:
    """Raises CheckpointError for the first array of another shape or type, or not finite."""

    def check(path, x, y):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        y = np.asarray(y)
        if y.shape != x.shape or y.dtype != x.dtype:
            raise CheckpointError(
                f"{where} is of another model: {name} is {y.dtype}{list(y.shape)}, not {x}"
            )
        if not np.issubdtype(y.dtype, np.integer) and not np.isfinite(y).all():
            raise CheckpointError(f"{where} is damaged: {name} is not finite")

    jax.tree_util.tree_map_with_path(check, wanted, found)


def _check_files(step_folder: pathlib.Path, items: Iterable[str]) -> None:
    """Raises CheckpointError for the first file that is not as it was written."""
    try:
        stored = json.loads((step_folder / DIGESTS_FILE).read_text(encoding="utf-8"))
        items = set(items)
        expected = {name: d for name, d in stored.items() if name.split("/")[0] in items}
        found = digests(step_folder, items)
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{step_folder} is damaged: {DIGESTS_FILE}: {error}") from error
    changed = [name for name in sorted(expected | found) if expected.get(name) != found.get(name)]
    if changed:
        raise CheckpointError(f"{step_folder} is damaged: {changed[0]} is not as it was written")
