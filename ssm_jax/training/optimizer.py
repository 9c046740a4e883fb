"""Adam by parameter groups.

The segmentation and the classification step update different, overlapping sets of parameters, and
Adam's moments and step counts belong to the parameter. Each group is a set that is always stepped
together and has an optimizer state of its own; a step touches the groups it names and no other.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import optax
from flax import traverse_util
from jax import Array

BACKBONE = "backbone"  # backbone convolutions and FPN
BACKBONE_BN = "backbone_bn"  # scale and shift of the backbone's BN layers
SEGMENTATION = "segmentation"  # RPN, segmentation branch, mask head
MODULE_S = "module_s"
COPIED = "copied"  # the classification branch: copied, never stepped

SEGMENTATION_STEP = (BACKBONE, BACKBONE_BN, SEGMENTATION)
# The classification step by update rule (paper, section 4).
CLASSIFICATION_STEP = {
    1: (MODULE_S,),
    2: (MODULE_S, BACKBONE, BACKBONE_BN),
    3: (MODULE_S, BACKBONE_BN),
}

Flat = dict[str, Array]


def group_of(path: str) -> str:
    """The group of a parameter, by its path such as "backbone/bn1/scale"."""
    top = path.split("/")[0]
    if top == "backbone":
        return BACKBONE_BN if "bn" in path.split("/")[-2] else BACKBONE
    groups = {"fpn": BACKBONE, "module_s": MODULE_S, "classification_branch": COPIED}
    return groups.get(top, SEGMENTATION)


def split(params: Mapping[str, Any]) -> dict[str, Flat]:
    """Parameters by group, each a flat dict by path.

    Args:
      params: nested dict of arrays.

    Returns:
      {group: {path: array}}.
    """
    groups: dict[str, Flat] = {}
    for path, array in traverse_util.flatten_dict(params, sep="/").items():
        groups.setdefault(group_of(path), {})[path] = array
    return groups


def merge(groups: Mapping[str, Flat]) -> dict[str, Any]:
    """The nested dict that `split` took apart."""
    flat = {path: array for group in groups.values() for path, array in group.items()}
    return traverse_util.unflatten_dict(flat, sep="/")


def stepped_count(params: Mapping[str, Any], groups: Sequence[str]) -> int:
    """How many numbers the named groups hold."""
    parts = split(params)
    return sum(array.size for group in groups for array in parts[group].values())


def make_transformation(weight_decay: float) -> optax.GradientTransformation:
    """Adam's direction, with L2 decay added to the gradient (not decoupled)."""
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.scale_by_adam())


def init(params: Mapping[str, Any]) -> dict[str, Any]:
    """Fresh optimizer state of every group that is ever stepped: {group: state}."""
    transformation = make_transformation(weight_decay=0.0)  # states do not depend on it
    parts = split(params)
    return {g: transformation.init(part) for g, part in parts.items() if g != COPIED}


def apply_gradients(
    params: Mapping[str, Any],
    opt_state: Mapping[str, Any],
    gradients: Mapping[str, Flat],
    learning_rates: Mapping[str, Array],
    weight_decay: float,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Steps the groups that have gradients; the rest keeps parameters, moments and counts.

    Args:
      params: nested dict of arrays.
      opt_state: {group: state}.
      gradients: {group: {path: array}}.
      learning_rates: {group: scalar}.
      weight_decay: L2 coefficient.

    Returns:
      Updated params and opt_state.
    """
    transformation = make_transformation(weight_decay)
    parts, opt_state = split(params), dict(opt_state)
    for group, gradient in gradients.items():
        updates, opt_state[group] = transformation.update(gradient, opt_state[group], parts[group])
        updates = jax.tree.map(lambda u, rate=learning_rates[group]: -rate * u, updates)
        parts[group] = optax.apply_updates(parts[group], updates)
    return merge(parts), opt_state


def make_schedules(train: ml_collections.ConfigDict, total_steps: int) -> dict[str, optax.Schedule]:
    """Learning rate by group and iteration: linear warm-up, then constant or a cosine.

    Where segmentation runs alone first (`train.classification_from`), the cosine of all but
    module S ends with that phase; module S starts its own there, to zero at the end of the run.

    Args:
      train: section of the configuration.
      total_steps: iterations of the run, which a cosine needs.

    Returns:
      {group: schedule} of every group that is ever stepped.
    """
    start = train.classification_from
    rate = train.module_s_learning_rate or train.learning_rate
    module_s = optax.join_schedules(
        [optax.constant_schedule(0.0), _schedule(train, rate, 0.0, total_steps - start)], [start]
    )
    rest = _schedule(train, train.learning_rate, train.end_learning_rate, start or total_steps)
    groups = (BACKBONE, BACKBONE_BN, SEGMENTATION)
    return dict.fromkeys(groups, rest) | {MODULE_S: module_s}


def _schedule(
    train: ml_collections.ConfigDict, rate: float, end: float, steps: int
) -> optax.Schedule:
    if train.schedule == "cosine":
        decay = optax.cosine_decay_schedule(rate, max(steps - train.warmup_steps, 1), end / rate)
    else:
        decay = optax.constant_schedule(rate)
    warmup = optax.linear_schedule(0.0, rate, max(train.warmup_steps, 1))
    return optax.join_schedules([warmup, decay], [train.warmup_steps])
