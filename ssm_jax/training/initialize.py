"""Weights that a run starts from in place of random ones."""

from __future__ import annotations

import dataclasses
import logging
import shlex
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import traverse_util

from ssm_jax.checkpoints import CheckpointError, load_model
from ssm_jax.config import ModelConfig, paper_config, variant_of
from ssm_jax.interop import reference_names, weight_files
from ssm_jax.training.state import TrainState
from ssm_jax.training.workdir import flatten

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

    A checkpoint (`init_from`) gives backbone, FPN, RPN, segmentation branch, mask head and BN
    statistics; the classification branch, where there is one, becomes a copy of the segmentation
    branch (paper, section 3.2). A state dict (`backbone.init`) gives the backbone.

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
    return shlex.join(["ssm-jax", "train", f"--config=pretrain:{variant}", *changed])


def _how_to_make(config: ml_collections.ConfigDict) -> str:
    folder = f"runs/pretrain_{variant_of(config.model)}"
    return (
        f"make its checkpoint with\n  {pretraining_command(config)}\n"
        f"and start again with --config.init_from={folder}"
    )


def _from_checkpoint(
    config: ml_collections.ConfigDict, model: ModelConfig
) -> tuple[dict[str, Any], float | None]:
    where = f"config.init_from={config.init_from}"
    try:
        found, variables, info = load_model(config.init_from)
    except CheckpointError as error:
        raise ValueError(f"{where}: {error}; {_how_to_make(config)}") from error
    ours, theirs = dataclasses.asdict(model), dataclasses.asdict(found)
    other = [
        f"model.{name} is {theirs[name]!r} there and {ours[name]!r} here"
        for name in SHARED_FIELDS
        if theirs[name] != ours[name]
    ]
    if other:
        raise ValueError(f"{where} is of another model: {'; '.join(other)}; {_how_to_make(config)}")
    host = jax.tree.map(np.asarray, variables)
    params = {name: host["params"][name] for name in TAKEN}
    if model.branches == 2:
        params["classification_branch"] = params["segmentation_branch"]
    logger.info("%s and BN statistics: from %s", ", ".join(TAKEN), info.path)
    return {"params": params, "batch_stats": host["batch_stats"]}, info.seconds
