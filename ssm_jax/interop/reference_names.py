"""Weights of the reference implementation: its parameter names and layouts, and ours.

The two trees hold the same numbers. Convolutions go from [out, in, h, w] to [h, w, in, out],
linear weights from [out, in] to [in, out], and the first linear layer of each RoI branch also
changes the order in which it reads a RoI, from (channel, y, x) to (y, x, channel).
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from ssm_jax.config import ModelConfig
from ssm_jax.models import fpn
from ssm_jax.models.resnet import DEPTHS
from ssm_jax.models.roi_heads import BOX_BINS

Path = tuple[str, ...]
Convert = Callable[[np.ndarray], np.ndarray]


def _conv_in(weight: np.ndarray) -> np.ndarray:
    return weight.transpose(2, 3, 1, 0)


def _conv_out(weight: np.ndarray) -> np.ndarray:
    return weight.transpose(3, 2, 0, 1)


def _upsample_in(weight: np.ndarray) -> np.ndarray:
    return weight.transpose(2, 3, 0, 1)


def _transpose(weight: np.ndarray) -> np.ndarray:
    return weight.T


def _fc6_in(weight: np.ndarray) -> np.ndarray:
    by_channel = weight.reshape(-1, fpn.CHANNELS, BOX_BINS, BOX_BINS)
    return by_channel.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0])


def _fc6_out(weight: np.ndarray) -> np.ndarray:
    by_position = weight.reshape(BOX_BINS, BOX_BINS, fpn.CHANNELS, -1)
    return by_position.transpose(3, 2, 0, 1).reshape(weight.shape[1], -1)


def _pointwise_in(weight: np.ndarray) -> np.ndarray:
    return weight[:, :, 0, 0].T


def _pointwise_out(weight: np.ndarray) -> np.ndarray:
    return weight.T[:, :, None, None]


def _same(array: np.ndarray) -> np.ndarray:
    return array


CONV = (_conv_in, _conv_out)
DENSE = (_transpose, _transpose)
POINTWISE = (_pointwise_in, _pointwise_out)  # a 1x1 convolution that is a linear layer here
FC6 = (_fc6_in, _fc6_out)
UPSAMPLE = (_upsample_in, _upsample_in)  # an exchange of two pairs of axes: its own inverse
SAME = (_same, _same)


def name_map(config: ModelConfig) -> dict[str, tuple[Path, Convert, Convert]]:
    """Every name of the reference's state dict: where it stands here, and both conversions.

    Args:
      config: the model; which layers exist depends on backbone, blocks and branches.

    Returns:
      {reference name: (path in our variables, reference -> ours, ours -> reference)}.
    """
    table: dict[str, tuple[Path, Convert, Convert]] = {}

    def weight(name: str, path: Path, kind: tuple[Convert, Convert], bias: bool = True) -> None:
        table[f"{name}.weight"] = (("params", *path, "kernel"), *kind)
        if bias:
            table[f"{name}.bias"] = (("params", *path, "bias"), *SAME)

    def norm(name: str, path: Path) -> None:
        table[f"{name}.weight"] = (("params", *path, "scale"), *SAME)
        table[f"{name}.bias"] = (("params", *path, "bias"), *SAME)
        for theirs, ours in BN_STATISTICS.items():
            table[f"{name}.{theirs}"] = (("batch_stats", *path, ours), *SAME)

    body = "backbone.body"
    weight(f"{body}.conv1", ("backbone", "conv1"), CONV, bias=False)
    norm(f"{body}.bn1", ("backbone", "bn1"))
    for stage in range(1, config.blocks + 1):
        for index in range(DEPTHS[config.backbone][stage - 1]):
            name, path = f"{body}.layer{stage}.{index}", ("backbone", f"layer{stage}_{index}")
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


BN_STATISTICS = {"running_mean": "mean", "running_var": "var", "num_batches_tracked": "count"}


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


_BODY = "backbone.body."


def _without_prefix(by_name: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of the backbone under torchvision's own names."""
    return {n.removeprefix(_BODY): value for n, value in by_name.items() if n.startswith(_BODY)}


def _converted(
    state_dict: Mapping[str, Any],
    table: Mapping[str, tuple[Path, Convert, Convert]],
    shapes: Mapping[str, tuple[int, ...]],
    what: str,
) -> dict[str, Any]:
    """Nested variables from a state dict that has to hold exactly the names of a table.

    Raises:
      ValueError: "these are not" `what`, and why.
    """
    counts = {name for name in table if name.endswith("num_batches_tracked")}
    names = set(state_dict.keys())
    problems = [f"missing: {name}" for name in sorted(set(table) - counts - names)]
    problems += [f"unknown: {name}" for name in sorted(names - set(table))]
    flat = {}
    for name, (path, to_ours, _) in table.items():
        if name in counts:
            value = np.asarray(state_dict[name] if name in names else 0)
            if value.size != 1:
                problems.append(f"shape: {name} is {value.shape}, the model has ()")
            elif not np.isfinite(value).all():
                problems.append(f"not finite: {name}")
            else:
                flat[path] = value.astype(np.int32).reshape(())
        elif name in names:
            array = np.asarray(state_dict[name])
            if array.shape != shapes[name]:
                problems.append(f"shape: {name} is {array.shape}, the model has {shapes[name]}")
                continue
            array = array.astype(np.float32, copy=False)
            if not np.isfinite(array).all():
                problems.append(f"not finite: {name}")
            else:
                flat[path] = np.ascontiguousarray(to_ours(array))
    if problems:
        start = " " if len(problems) == 1 else "\n  "
        shown = start + "\n  ".join(problems[:20])
        more = f"\n  ... and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise ValueError(f"these are not {what}:{shown}{more}")
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
    for name, (path, _, to_theirs) in name_map(config).items():
        array = np.array(to_theirs(np.asarray(flat[path])), order="C")
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
        name: to_theirs(np.broadcast_to(np.float32(0), flat[path].shape)).shape
        for name, (path, _, to_theirs) in name_map(config).items()
    }
