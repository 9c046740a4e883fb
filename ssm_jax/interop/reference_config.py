"""The model that weights of the reference implementation belong to, as far as they tell it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ssm_jax.config import ModelConfig
from ssm_jax.interop.weight_files import Weights
from ssm_jax.ops.anchors import cell_anchors

ANCHOR_FIELDS = ("anchor_sizes", "anchor_ratios")
ROW_LENGTH = 5  # of the RoI batch that module S reads: score and deltas


def infer_config(weights: Weights, given: Mapping[str, Any] | None = None) -> ModelConfig:
    """The configuration of a model from the names and shapes of its weights.

    Args:
      weights: from `weight_files.read_weights`.
      given: fields of ModelConfig that are known: of `inferred` those, and the anchors.

    Returns:
      The configuration. Anchors that neither the file nor `given` tell are the reference's own.

    Raises:
      ValueError: the file says something else than `given`, its anchors are not those of its model,
        or it belongs to no possible model.
    """
    found = inferred(weights)
    fields = {**found, **(given or {})}
    wrong = [
        f"{name} is {_text(found[name])} in the file, not {_text(fields[name])}"
        for name in found
        if fields[name] != found[name]
    ]
    if wrong:
        raise ValueError(f"{'; '.join(wrong)}: leave the flag out, or give another file")
    config = ModelConfig.from_mapping(fields)
    _check_anchors(weights, config)
    return config


def inferred(weights: Weights) -> dict[str, Any]:
    """The fields of ModelConfig that weights tell: by names, shapes, and the record of anchors.

    Args:
      weights: a state dict of the reference.

    Returns:
      backbone, blocks and branches; num_classes, image_classes, selection_size, and the anchors
      where they are told.
    """
    names = tuple(weights.arrays)

    def has(*starts: str) -> bool:
        return any(name.startswith(starts) for name in names)

    found: dict[str, Any] = {
        # ResNet-18 has two blocks in each stage, ResNet-34 at least three.
        "backbone": "resnet34"
        if has(*(f"backbone.body.layer{n}.2." for n in (1, 2, 3)))
        else "resnet18",
        "blocks": 3 if has("backbone.body.layer3.") else 2,
        "branches": 2 if has("roi_heads.box_head_s2.", "roi_heads.box_predictor_s2.") else 1,
    }
    if found["branches"] == 1 and not has("s2new."):
        found["image_classes"] = 0  # segmentation alone
    rows = {
        "num_classes": "roi_heads.box_predictor.cls_score.weight",
        "image_classes": "s2new.fc_scores_img.weight",
    }

    def shape(name: str) -> tuple[int, ...]:
        return weights.arrays[name].shape if name in weights.arrays else ()

    for field, name in rows.items():
        if len(shape(name)) == 2 and shape(name)[0] > 1:
            found[field] = shape(name)[0]
    batch = shape("s2new.fc_scores.weight")
    if len(batch) == 2 and batch[1] and batch[1] % ROW_LENGTH == 0:
        found["selection_size"] = batch[1] // ROW_LENGTH
    for field in ANCHOR_FIELDS:
        if getattr(weights, field) is not None:
            found[field] = getattr(weights, field)
    return found


def _check_anchors(weights: Weights, config: ModelConfig) -> None:
    """Compares the anchors with the objectness layer and with those that the file has computed."""
    sizes, ratios = config.anchor_sizes, config.anchor_ratios
    count = len(sizes) * len(ratios)
    what = f"anchor sizes {_text(sizes)} and ratios {_text(ratios)}"
    name = "rpn.head.cls_logits.weight"
    objectness = weights.arrays.get(name)
    if objectness is not None and objectness.ndim == 4 and len(objectness) != count:
        raise ValueError(
            f"{what} make {count} anchors a cell, but {name} scores {len(objectness)}: give the "
            "sizes and ratios that the model was trained with"
        )
    recorded = weights.cell_anchors
    if recorded is None:
        return
    ours = cell_anchors(sizes, ratios)
    if recorded.shape != ours.shape or not np.array_equal(recorded, ours):
        raise ValueError(
            f"{what} do not make the cell_anchors that the file holds: its anchor generator is not "
            "the reference's, and the model would not detect what it was trained to"
        )


def _text(value: Any) -> str:
    return ",".join(f"{number:g}" for number in value) if isinstance(value, tuple) else str(value)
