"""Adam by parameter groups.

The segmentation and the classification step update different, overlapping sets of parameters, and
Adam's moments and step counts belong to the parameter. Each group is a set that is always stepped
together and has an optimizer state of its own; a step touches the groups it names and no other.
"""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
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


def stepped(
    params: Mapping[str, Any], groups: Sequence[str], frozen: Collection[str] = ()
) -> dict[str, Flat]:
    """The parameters of the named groups that are not frozen: {group: {path: array}}."""
    parts = split(params)
    return {
        group: {path: array for path, array in parts[group].items() if path not in frozen}
        for group in groups
    }


def stepped_count(
    params: Mapping[str, Any], groups: Sequence[str], frozen: Collection[str] = ()
) -> int:
    """How many numbers of the named groups are not frozen."""
    parts = stepped(params, groups, frozen)
    return sum(array.size for part in parts.values() for array in part.values())


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
    factors: Mapping[str, float] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Steps what has gradients; the rest keeps parameters, moments and counts.

    Args:
      params: nested dict of arrays.
      opt_state: {group: state}.
      gradients: {group: {path: array}}, of all or some parameters of a group.
      learning_rates: {group: scalar}.
      weight_decay: L2 coefficient.
      factors: {path: of its learning rate}, 1 where a path is missing.

    Returns:
      Updated params and opt_state.
    """
    transformation = make_transformation(weight_decay)
    parts, opt_state = split(params), dict(opt_state)
    factors = factors or {}
    for group, gradient in gradients.items():
        if not gradient:
            continue
        part, rate = {path: parts[group][path] for path in gradient}, learning_rates[group]
        moments = _of_dicts(functools.partial(_chosen, part), opt_state[group])
        updates, moments = transformation.update(gradient, moments, part)
        opt_state[group] = _of_dicts(lambda old, new: old | new, opt_state[group], moments)
        updates = {
            path: -(rate * factors[path] if path in factors else rate) * update
            for path, update in updates.items()
        }
        parts[group] = parts[group] | optax.apply_updates(part, updates)
    return merge(parts), opt_state


def _chosen(part: Flat, whole: Flat) -> Flat:
    """The entries of `whole` whose paths are in `part`."""
    return {path: whole[path] for path in part}


def _of_dicts(function: Callable, *states: Any) -> Any:
    """A state like others with `function` of the dicts in them; counts are those of the last."""

    def of_leaf(*leaves: Any) -> Any:
        return function(*leaves) if isinstance(leaves[0], dict) else leaves[-1]

    return jax.tree.map(of_leaf, *states, is_leaf=lambda leaf: isinstance(leaf, dict))


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
