"""Checkpoints on disk (orbax): saved while training goes on, and read back by anybody.

A run keeps its checkpoints in `<workdir>/checkpoints/<step>`. Each holds these items:

    model     {"params", "batch_stats"}: what inference needs
    training  the rest of the training state: optimiser, step, best loss, key, and the running BN
              statistics as training left them (those in `model` may have been re-estimated)
    config    JSON: the model's configuration, and the run's
    loop      JSON: position of the data loader, and the sums behind the next line of metrics
    metrics   JSON: the evaluation at this step, if there was one

Imported weights are a checkpoint at step 0 with `model` and `config` only. A checkpoint becomes
visible by a rename when all of it is written: a process killed in the middle leaves none behind.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from ssm_jax.config import ModelConfig
from ssm_jax.models.ssm import init_variables

FOLDER = "checkpoints"
METRICS_ITEM = "metrics"  # orbax's name for the item and its file
FORMAT = "ssm_jax"
VERSION = 1


class CheckpointError(ValueError):
    """A checkpoint that is not there, not ours, or damaged."""


@dataclasses.dataclass(frozen=True)
class CheckpointInfo:
    """Where a model came from.

    Attributes:
      path: the folder of this step.
      step: iterations done.
      metrics: the evaluation at this step; None if there was none.
      config: the configuration of the run as nested dicts; None for imported weights.
    """

    path: pathlib.Path
    step: int
    metrics: dict[str, Any] | None
    config: dict[str, Any] | None


def saved_steps(workdir: str | os.PathLike) -> list[int]:
    """Steps of the checkpoints of a run, increasing; none where it never saved."""
    return [int(step.name) for step in _steps_in(pathlib.Path(workdir) / FOLDER)]


def save_model(
    path: str | os.PathLike, model_config: ModelConfig, variables: Mapping[str, Any]
) -> pathlib.Path:
    """Writes weights alone as a checkpoint that `load_model` reads.

    Args:
      path: a folder that holds no checkpoint; created.
      model_config: the model.
      variables: {"params": ..., "batch_stats": ...}.

    Returns:
      The folder of the checkpoint, `<path>/checkpoints/0`.

    Raises:
      CheckpointError: the folder holds a checkpoint already, or cannot be written.
    """
    folder = pathlib.Path(path).absolute() / FOLDER
    if folder.is_dir() and any(folder.iterdir()):
        raise CheckpointError(f"{folder} exists and is not empty; choose another folder")
    try:
        manager = open_manager(folder, keep_last=1, best_metric="")
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be created: {error}") from error
    arrays = {name: jax.tree.map(np.array, variables[name]) for name in ("params", "batch_stats")}
    manager.save(
        0,
        args=ocp.args.Composite(
            model=ocp.args.StandardSave(arrays),
            config=ocp.args.JsonSave(config_item(dataclasses.asdict(model_config), None)),
        ),
    )
    manager.close()
    return folder / "0"


def load_model(path: str | os.PathLike) -> tuple[ModelConfig, dict[str, Any], CheckpointInfo]:
    """Reads a model for inference, on any number of devices and without the optimiser's state.

    Args:
      path: a working directory, its folder of checkpoints, or the folder of one step. Of several
        checkpoints the best is taken (by the metric that the run's configuration names, the later
        one of equals), and the latest where none was evaluated.

    Returns:
      The model's configuration, its variables on the first device, and where they came from.

    Raises:
      CheckpointError: no checkpoint there, not ours, or damaged.
    """
    step_folder = _find_step(pathlib.Path(path).expanduser().absolute())
    described = _described(step_folder)
    try:
        model_config = ModelConfig.from_mapping(described["model"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{step_folder}: unusable configuration: {error}") from error
    shapes = jax.eval_shape(lambda key: init_variables(model_config, key), jax.random.key(0))
    items = read_items(step_folder, model=arrays_like(shapes))
    run_config = described["run"]
    info = CheckpointInfo(step_folder, int(step_folder.name), _metrics_of(step_folder), run_config)
    return model_config, jax.device_put(dict(items.model), jax.local_devices()[0]), info


def open_manager(
    folder: pathlib.Path, keep_last: int, best_metric: str
) -> checkpoint_managers.CheckpointManager:
    """The orbax manager of a folder of checkpoints; see `RunCheckpoints` for the arguments."""

    def value(metrics):
        return metric_value(metrics, best_metric)

    best = checkpoint_managers.BestN(
        get_metric_fn=value, n=1, keep_checkpoints_without_metrics=False
    )
    latest = checkpoint_managers.LatestN(max(keep_last, 1))
    options = checkpoint_managers.CheckpointManagerOptions(
        preservation_policy=checkpoint_managers.AnyPreservationPolicy([latest, best]),
        best_fn=value,  # metrics are written only if this is set
        cleanup_tmp_directories=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    return checkpoint_managers.CheckpointManager(folder, options=options)


def metric_value(metrics: Mapping[str, Any] | None, name: str) -> float:
    """A metric as a number to rank by: -inf where it is missing, null or not finite."""
    value = (metrics or {}).get(name)
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return -math.inf


def config_item(model: Mapping[str, Any], run: Mapping[str, Any] | None) -> dict[str, Any]:
    """The item `config` of a checkpoint, of a model's configuration and that of its run."""
    return {"format": FORMAT, "version": VERSION, "model": dict(model), "run": run}


def arrays_like(tree: Any) -> ocp.args.PyTreeRestore:
    """Reads a tree of these shapes as NumPy arrays, whatever devices it was saved from."""
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    return ocp.args.PyTreeRestore(shapes, restore_args=as_numpy)


def _check_shapes(wanted: Any, found: Any) -> None:
    """Raises ValueError for the first array of another shape or type than wanted."""

    def check(path, x, y):
        if np.shape(y) != x.shape or np.asarray(y).dtype != x.dtype:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(f"{name} is {np.asarray(y).dtype}{list(np.shape(y))}, not {x}")

    jax.tree_util.tree_map_with_path(check, wanted, found)


def read_items(step_folder: pathlib.Path, **items: Any) -> Any:
    """Restores the named items of one checkpoint."""
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            restored = checkpointer.restore(step_folder, args=ocp.args.Composite(**items))
        for name, args in items.items():
            if isinstance(args, ocp.args.PyTreeRestore):
                _check_shapes(args.item, restored[name])
    # Damaged files make orbax and tensorstore raise anything, plain Exception included.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise CheckpointError(
            f"{step_folder} cannot be restored, it is damaged or of another model: {reason}"
        ) from error
    missing = [name for name in items if restored.get(name) is None]
    if missing:
        raise CheckpointError(
            f"{step_folder} lacks {', '.join(missing)}: it is damaged or not ours"
        )
    return restored


def _described(step_folder: pathlib.Path) -> dict[str, Any]:
    """The `config` item of a checkpoint, if it is one of ours."""
    if not (step_folder / "config").is_dir():
        raise CheckpointError(
            f"{step_folder} is not a checkpoint of this project: it has no config"
        )
    described = read_items(step_folder, config=ocp.args.JsonRestore()).config
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        raise CheckpointError(f"{step_folder} is not a checkpoint of this project")
    if described.get("version") != VERSION:
        raise CheckpointError(
            f"{step_folder} has format version {described.get('version')}; this program reads "
            f"version {VERSION}"
        )
    return described


def _metrics_of(step_folder: pathlib.Path) -> dict[str, Any] | None:
    path = step_folder / METRICS_ITEM
    if not path.is_dir():
        return None
    try:
        return ocp.JsonCheckpointHandler(filename=METRICS_ITEM).restore(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error


def _steps_in(folder: pathlib.Path) -> list[pathlib.Path]:
    """Folders of complete checkpoints, by increasing step."""
    if not folder.is_dir():
        return []
    steps = [child for child in folder.iterdir() if child.name.isdecimal() and child.is_dir()]
    return sorted(steps, key=lambda child: int(child.name))


def _find_step(path: pathlib.Path) -> pathlib.Path:
    """The checkpoint that `load_model` means by a path."""
    if not path.exists():
        raise CheckpointError(f"there is no checkpoint at {path}: no such folder")
    if path.name.isdecimal() and ((path / "model").is_dir() or (path / "config").is_dir()):
        return path
    steps = _steps_in(path / FOLDER) or _steps_in(path)
    if not steps:
        raise CheckpointError(
            f"there is no checkpoint at {path}: expected a working directory, its folder "
            f"{FOLDER!r}, or the folder of one step"
        )
    run = _described(steps[-1])["run"] or {}
    name = run.get("checkpoint", {}).get("best_metric", "")
    # The latest is last, so that it wins where values are equal or none was evaluated.
    values = [metric_value(_metrics_of(step), name) for step in steps]
    best = max(range(len(steps)), key=lambda index: (values[index], index))
    return steps[best]
