"""Weights of the reference implementation: its parameter names and layouts, and ours.

The two trees hold the same numbers. Convolutions go from [out, in, h, w] to [h, w, in, out],
linear weights from [out, in] to [in, out], and the first linear layer of each RoI branch also
changes the order in which it reads a RoI, from (channel, y, x) to (y, x, channel).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from ssm_jax.config import ModelConfig
from ssm_jax.models import fpn
from ssm_jax.models.resnet import DEPTHS
from ssm_jax.models.roi_heads import BOX_BINS

Path = tuple[str, ...]


class Layout(NamedTuple):
    """How an array of the reference becomes ours, and ours becomes the reference's."""

    to_ours: Callable[[np.ndarray], np.ndarray]
    to_theirs: Callable[[np.ndarray], np.ndarray]


def _fc6_to_ours(weight: np.ndarray) -> np.ndarray:
    by_channel = weight.reshape(-1, fpn.CHANNELS, BOX_BINS, BOX_BINS)
    return by_channel.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0])


def _fc6_to_theirs(weight: np.ndarray) -> np.ndarray:
    by_position = weight.reshape(BOX_BINS, BOX_BINS, fpn.CHANNELS, -1)
    return by_position.transpose(3, 2, 0, 1).reshape(weight.shape[1], -1)


CONV = Layout(lambda w: w.transpose(2, 3, 1, 0), lambda w: w.transpose(3, 2, 0, 1))
UPSAMPLE = Layout(lambda w: w.transpose(2, 3, 0, 1), lambda w: w.transpose(2, 3, 0, 1))
DENSE = Layout(lambda w: w.T, lambda w: w.T)
# A 1x1 convolution that is a linear layer here.
POINTWISE = Layout(lambda w: w[:, :, 0, 0].T, lambda w: w.T[:, :, None, None])
FC6 = Layout(_fc6_to_ours, _fc6_to_theirs)
SAME = Layout(lambda array: array, lambda array: array)
BN_STATISTICS = {"running_mean": "mean", "running_var": "var", "num_batches_tracked": "count"}
BODY = "backbone.body"  # of the reference's names; torchvision's follow after a dot


def name_map(config: ModelConfig) -> dict[str, tuple[Path, Layout]]:
    """Every name of the reference's state dict: where it stands here, and how it is converted.

    Args:
      config: the model; which layers exist depends on backbone, blocks and branches.

    Returns:
      {reference name: (path in our variables, layout)}.
    """
    table: dict[str, tuple[Path, Layout]] = {}

    def weight(name: str, path: Path, layout: Layout, bias: bool = True) -> None:
        table[f"{name}.weight"] = ("params", *path, "kernel"), layout
        if bias:
            table[f"{name}.bias"] = ("params", *path, "bias"), SAME

    def norm(name: str, path: Path) -> None:
        table[f"{name}.weight"] = ("params", *path, "scale"), SAME
        table[f"{name}.bias"] = ("params", *path, "bias"), SAME
        for theirs, ours in BN_STATISTICS.items():
            table[f"{name}.{theirs}"] = ("batch_stats", *path, ours), SAME

    weight(f"{BODY}.conv1", ("backbone", "conv1"), CONV, bias=False)
    norm(f"{BODY}.bn1", ("backbone", "bn1"))
    for stage in range(1, config.blocks + 1):
        for index in range(DEPTHS[config.backbone][stage - 1]):
            name, path = f"{BODY}.layer{stage}.{index}", ("backbone", f"layer{stage}_{index}")
            for layer in (1, 2):
                weight(f"{name}.conv{layer}", (*path, f"conv{layer}"), CONV, bias=False)
                norm(f"{name}.bn{layer}", (*path, f"bn{layer}"))
            if stage > 1 and index == 0:
                weight(f"{name}.downsample.0", (*path, "downsample_conv"), CONV, bias=False)
                norm(f"{name}.downsample.1", (*path, "downsample_bn"))

    weight("backbone.fpn.inner_blocks.0", ("fpn", "inner"), CONV)
    weight("backbone.fpn.layer_blocks.0", ("fpn", "layer"), CONV)
    weight("rpn.head.conv", ("rpn", "conv"), CONV)
    weight("rpn.head.cls_logits", ("rpn", "objectness"), CONV)
    weight("rpn.head.bbox_pred", ("rpn", "deltas"), CONV)
    branches = {"": "segmentation_branch", "_s2": "classification_branch"}
    for suffix, branch in list(branches.items())[: config.branches]:
        weight(f"roi_heads.box_head{suffix}.fc6", (branch, "fc6"), FC6)
        weight(f"roi_heads.box_head{suffix}.fc7", (branch, "fc7"), DENSE)
        weight(f"roi_heads.box_predictor{suffix}.cls_score", (branch, "logits"), DENSE)
        weight(f"roi_heads.box_predictor{suffix}.bbox_pred", (branch, "deltas"), DENSE)
    weight("roi_heads.mask_head.mask_fcn1", ("mask_head", "conv"), CONV)
    weight("roi_heads.mask_predictor.conv5_mask", ("mask_head", "upsample"), UPSAMPLE)
    weight("roi_heads.mask_predictor.mask_fcn_logits", ("mask_head", "logits"), POINTWISE)
    if config.image_classes:
        weight("s2new.fc_scores", ("module_s", "fc1"), DENSE)
        weight("s2new.fc_scores_2", ("module_s", "fc2"), DENSE)
        weight("s2new.fc_scores_img", ("module_s", "logits"), DENSE)
    return table


def to_variables(state_dict: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
    """Our variables from a state dict of the reference.

    Args:
      state_dict: arrays by the reference's names (an open `.npz` will do). Update counts of BN
        layers (`num_batches_tracked`) may be missing: old files lack them.
      config: the model that the weights belong to.

    Returns:
      {"params": ..., "batch_stats": ...}, NumPy arrays, float32 (counts int32).

    Raises:
      ValueError: names are missing or unknown, shapes differ, or values are not finite.
    """
    kind = f"{config.backbone}, {config.blocks} blocks, {config.branches} RoI branches"
    table, shapes = name_map(config), reference_shapes(config)
    return _converted(state_dict, table, shapes, f"weights of this model ({kind})")


def to_backbone(state_dict: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
    """The backbone's variables from a state dict of torchvision's ResNet.

    Args:
      state_dict: arrays by torchvision's names (conv1.weight, bn1.*, layer1.0.conv1.weight, ...).
        Stages that the truncated backbone does not have and fc are ignored, and update counts may
        be missing.
      config: the model.

    Returns:
      {"params": {"backbone": ...}, "batch_stats": {"backbone": ...}}, NumPy arrays.

    Raises:
      ValueError: names are missing or unknown (those of a deeper ResNet in a stage that is kept),
        shapes differ, or values are not finite.
    """
    table = _without_prefix(name_map(config))
    shapes = _without_prefix(reference_shapes(config))
    beyond = ("fc.", *(f"layer{stage}." for stage in range(config.blocks + 1, 5)))
    kept = {name: state_dict[name] for name in state_dict if not name.startswith(beyond)}
    kind = f"{config.backbone}, {config.blocks} blocks"
    return _converted(kept, table, shapes, f"weights of this backbone ({kind})")


def _without_prefix(by_name: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of the backbone under torchvision's own names."""
    start = f"{BODY}."
    return {n.removeprefix(start): value for n, value in by_name.items() if n.startswith(start)}


def _converted(
    state_dict: Mapping[str, Any],
    table: Mapping[str, tuple[Path, Layout]],
    shapes: Mapping[str, tuple[int, ...]],
    what: str,
) -> dict[str, Any]:
    """Nested variables from a state dict that has to hold exactly the names of a table.

    Raises:
      ValueError: "these are not" `what`, and why.
    """
    counts = {name for name in table if name.endswith("num_batches_tracked")}
    arrays = dict.fromkeys(counts, np.zeros(()))
    arrays |= {name: np.asarray(state_dict[name]) for name in state_dict}
    problems = [f"missing: {name}" for name in sorted(table.keys() - arrays.keys())]
    problems += [f"unknown: {name}" for name in sorted(arrays.keys() - table.keys())]
    flat = {}
    for name in [name for name in table if name in arrays]:
        path, layout = table[name]
        array = arrays[name]
        if name in counts and array.size == 1:
            array = array.reshape(())
        if array.shape != shapes[name]:
            problems.append(f"shape: {name} is {array.shape}, the model has {shapes[name]}")
        elif not np.isfinite(array.astype(np.float32, copy=False)).all():
            problems.append(f"not finite: {name}")
        else:
            dtype = np.int32 if name in counts else np.float32
            flat[path] = np.asarray(layout.to_ours(array), dtype, order="C")
    if problems:
        shown = problems[:20]
        if len(problems) > 20:
            shown.append(f"... and {len(problems) - 20} more")
        start = " " if len(problems) == 1 else "\n  "
        raise ValueError(f"these are not {what}:{start}" + "\n  ".join(shown))
    return traverse_util.unflatten_dict(flat)


def from_variables(variables: Mapping[str, Any], config: ModelConfig) -> dict[str, np.ndarray]:
    """The reference's state dict from our variables: the exact inverse of `to_variables`.

    Args:
      variables: {"params": ..., "batch_stats": ...}.
      config: the model.

    Returns:
      Arrays by the reference's names, float32 (update counts int64).
    """
    flat = traverse_util.flatten_dict({k: variables[k] for k in ("params", "batch_stats")})
    state_dict = {}
    for name, (path, layout) in name_map(config).items():
        array = np.array(layout.to_theirs(np.asarray(flat[path])), order="C")
        state_dict[name] = array.astype(np.int64) if array.dtype == np.int32 else array
    return state_dict


def reference_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the reference's state dict for a model, by name, without computing anything."""
    import jax

    from ssm_jax.models.ssm import init_variables

    variables = jax.eval_shape(lambda key: init_variables(config, key), jax.random.key(0))
    flat = traverse_util.flatten_dict(variables)
    # A zero-stride view has the shape of the array without its memory.
    return {
        name: layout.to_theirs(np.broadcast_to(np.float32(0), flat[path].shape)).shape
        for name, (path, layout) in name_map(config).items()
    }
