"""Weights that a run starts from in place of random ones."""

from __future__ import annotations

import dataclasses
import logging
import shlex
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import traverse_util

from ssm_jax import box
from ssm_jax.checkpoints import CheckpointError
from ssm_jax.classes import MASK_TYPES
from ssm_jax.config import ModelConfig, class_set, paper_config, variant_of
from ssm_jax.interop import reference_names, weight_files
from ssm_jax.models.ssm import variable_shapes
from ssm_jax.training.state import TrainState
from ssm_jax.training.workdir import flatten

IN_THE_BOX = "box"  # value of `init_from` that names the model that comes with the package
# What a checkpoint hands on: all that segmentation pretraining trains.
TAKEN = ("backbone", "fpn", "rpn", "segmentation_branch", "mask_head")
# Fields of the model that decide what these parts are.
SHARED_FIELDS = ("backbone", "blocks", "num_classes", "anchor_sizes", "anchor_ratios")
# Fields that pretraining has no use for, or that its configuration sets.
_NOT_PRETRAINED = ("model.backbone", "model.blocks", "model.branches", "model.image_classes")
_CLASSIFICATION_DATA = ("data.cls_dir", "data.phantom.cls_train", "data.phantom.cls_test")

logger = logging.getLogger(__name__)


def require_pretrained(config: ml_collections.ConfigDict) -> None:
    """Checks that a method that needs pretrained weights is given a checkpoint.

    Raises:
      ValueError: it is not; the message says how to make one.
    """
    if config.train.pretrained and not config.init_from:
        raise ValueError(
            "this configuration starts from segmentation pretraining (stage I); "
            + _how_to_make(config)
        )


def initial_weights(
    config: ml_collections.ConfigDict, model: ModelConfig
) -> tuple[dict[str, Any], float | None]:
    """Reads the weights that the configuration names.

    A checkpoint (`init_from`; "box" is the model that comes with the package) gives all arrays
    whose names and shapes the model has, whatever its classes are. For the second stage of the
    paper's method (`train.pretrained`) it gives backbone, FPN, RPN, segmentation branch, mask head
    and BN statistics; the classification branch, where there is one, becomes a copy of the
    segmentation branch (paper, section 3.2). A state dict (`backbone.init`) gives the backbone.

    Args:
      config: of the run.
      model: its model.

    Returns:
      {"params": ..., "batch_stats": ...}, NumPy arrays of the parts that are given, without a
      section where nothing is; and the seconds that they were trained for, None where unknown.

    Raises:
      ValueError: files that cannot be read, or that belong to another model.
    """
    if config.init_from:
        return _from_checkpoint(config, model)
    path = config.backbone.init
    if path == "random":
        return {}, 0.0
    try:
        weights = reference_names.to_backbone(weight_files.read_weights(path).arrays, model)
    except ValueError as error:
        raise ValueError(f"config.backbone.init={path}: {error}") from error
    logger.info("backbone: from %s", path)
    return weights, 0.0


def take_over(state: TrainState, weights: Mapping[str, Any]) -> TrainState:
    """A state whose parameters and BN statistics are replaced where there are weights for them.

    Args:
      state: at step 0.
      weights: from `initial_weights`.

    Returns:
      The state; its optimizer state stays fresh.
    """

    def replaced(old: Any, given: Any) -> Any:
        flat = traverse_util.flatten_dict(old)
        # Copies: the state is donated to the steps, and the arrays belong to the caller.
        flat |= jax.tree.map(lambda x: jnp.array(x, copy=True), traverse_util.flatten_dict(given))
        return traverse_util.unflatten_dict(flat)

    return state.replace(
        **{name: replaced(getattr(state, name), given) for name, given in weights.items()}
    )


def pretraining_command(config: ml_collections.ConfigDict) -> str:
    """The command of the segmentation pretraining that fits a run: same backbone, same data.

    Args:
      config: of the run.
    """
    variant = variant_of(config.model)
    flat, usual = flatten(config.to_dict()), flatten(paper_config(variant).to_dict())
    left_out = (*_NOT_PRETRAINED, *_CLASSIFICATION_DATA)
    changed = [
        f"--config.{name}={value}"
        for name, value in flat.items()
        if name.startswith(("model.", "data."))
        and name not in left_out
        and value != usual.get(name)
    ]
    if config.classes.lesion and class_set(config).lesion != MASK_TYPES[config.data.mask_type][0]:
        names = ("lesion", "background")
        changed += [f"--config.classes.{name}={config.classes[name]}" for name in names]
    return shlex.join(["ssm-jax", "train", f"--config=pretrain:{variant}", *changed])


def _how_to_make(config: ml_collections.ConfigDict) -> str:
    folder = f"runs/pretrain_{variant_of(config.model)}"
    return (
        f"make its checkpoint with\n  {pretraining_command(config)}\n"
        f"and start again with --config.init_from={folder}"
    )


def _path(init_from: str) -> str | None:
    """Of the checkpoint to start from; None: the model in the box."""
    return None if init_from == IN_THE_BOX else init_from


def _from_checkpoint(
    config: ml_collections.ConfigDict, model: ModelConfig
) -> tuple[dict[str, Any], float | None]:
    where = f"config.init_from={config.init_from}"
    try:
        found, variables, info = box.open_model(_path(config.init_from))
    except CheckpointError as error:
        raise ValueError(f"{where}: {error}; {_how_to_make(config)}") from error
    ours, theirs = dataclasses.asdict(model), dataclasses.asdict(found)
    # The paper's second stage needs the model of its first; elsewhere all that fits is of use.
    compared = SHARED_FIELDS if config.train.pretrained else ("backbone",)
    other = [
        f"model.{name} is {theirs[name]!r} there and {ours[name]!r} here"
        for name in compared
        if theirs[name] != ours[name]
    ]
    if other:
        raise ValueError(f"{where} is of another model: {'; '.join(other)}; {_how_to_make(config)}")
    host = jax.tree.map(np.asarray, variables)
    if config.train.pretrained:
        params = {name: host["params"][name] for name in TAKEN}
        if model.branches == 2:
            params["classification_branch"] = params["segmentation_branch"]
        logger.info("%s and BN statistics: from %s", ", ".join(TAKEN), info.path)
        return {"params": params, "batch_stats": host["batch_stats"]}, info.seconds
    logger.info("from %s (%s):", info.path, ", ".join(info.classes.titles) or "lesions alone")
    return _all_that_fits(host, variable_shapes(model)), info.seconds


def _all_that_fits(given: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of a model that another one has under the same name in the same shape.

    Args:
      given: {"params": ..., "batch_stats": ...}; where it has one RoI branch, this stands for both.
      wanted: shapes of the model to start.

    Returns:
      A tree like `given`, of what fits. The log says what that is.
    """
    given = {**given, "params": {**given["params"]}}
    given["params"].setdefault("classification_branch", given["params"]["segmentation_branch"])
    taken: dict[str, Any] = {}
    for section, arrays in wanted.items():
        there = traverse_util.flatten_dict(given[section], sep="/")
        shapes = traverse_util.flatten_dict(arrays, sep="/")
        fits = {p: there[p] for p, x in shapes.items() if p in there and there[p].shape == x.shape}
        taken[section] = traverse_util.unflatten_dict(fits, sep="/")
        if section == "params":
            for line in _told(shapes, there, fits):
                logger.info("  %s", line)
    return taken


def _told(wanted: Collection[str], there: Collection[str], fits: Collection[str]) -> list[str]:
    """Lines on what is taken and what starts fresh, whole parts of the model by their names."""
    parts: dict[str, list[str]] = {}
    for path in wanted:
        parts.setdefault(path.split("/")[0], []).append(path)
    whole = [part for part, paths in parts.items() if all(path in fits for path in paths)]
    lines = [f"taken: {', '.join(whole) or 'nothing whole'}"]
    for reason, known in (("not there", False), ("of another shape there", True)):
        names = []
        for part, paths in parts.items():
            missing = [path for path in paths if path not in fits and (path in there) == known]
            layers = dict.fromkeys(path.rpartition("/")[0] for path in missing)
            names += [part] if len(missing) == len(paths) else list(layers)
        if names:
            lines.append(f"fresh, {reason}: {', '.join(names)}")
    return lines
