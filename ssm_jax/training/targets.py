"""What each anchor and each RoI should have said: matching, sampling and encoding, by batch."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ssm_jax import sharding
from ssm_jax.config import ModelConfig
from ssm_jax.models.rpn import Proposals
from ssm_jax.ops import boxes as box_ops
from ssm_jax.ops.masks import mask_targets
from ssm_jax.ops.matching import match
from ssm_jax.ops.sampling import sample

RPN_HIGH, RPN_LOW = 0.7, 0.3
ROI_IOU = 0.5


class AnchorTargets(NamedTuple):
    """Sampled anchors: `indices` [B, S] int32, `deltas` [B, S, 4], `positive`, `valid` [B, S]."""

    indices: Array
    deltas: Array
    positive: Array
    valid: Array


class RoITargets(NamedTuple):
    """Sampled RoIs, positives first.

    `boxes` [B, S, 4], `labels` [B, S] int32 (0 background), `deltas` [B, S, 4], `objects` [B, S]
    int32 (which object each RoI matched), `positive` and `valid` [B, S] bool.
    """

    boxes: Array
    labels: Array
    deltas: Array
    objects: Array
    positive: Array
    valid: Array


def anchor_targets(
    config: ModelConfig, anchors: Array, batch: dict[str, Any], keys: Array
) -> AnchorTargets:
    """Samples anchors and encodes the boxes of their objects. Slices without objects give none.

    Args:
      config: `rpn_batch` and `rpn_positives` are read.
      anchors: [N, 4] float, pixels.
      batch: `boxes` [B, M, 4] and `valid` [B, M] are read.
      keys: [B] PRNG keys.

    Returns:
      AnchorTargets.
    """

    def one(anchors, boxes, valid, key):
        iou = box_ops.pairwise_iou(anchors, boxes)
        matches = match(iou, valid, RPN_HIGH, RPN_LOW, low_quality=True)
        chosen = sample(key, matches.labels, config.rpn_batch, config.rpn_positives)
        matched = boxes[matches.objects[chosen.indices]]
        deltas = box_ops.encode(matched, anchors[chosen.indices], box_ops.RPN_WEIGHTS)
        used = chosen.valid & valid.any()
        return AnchorTargets(chosen.indices, deltas, chosen.positive & used, used)

    specs = (sharding.REPLICATED, *(sharding.SPLIT,) * 3)
    of_images = sharding.per_device(jax.vmap(one, (None, 0, 0, 0)), specs)
    return of_images(anchors, batch["boxes"], batch["valid"], keys)


def roi_targets(
    config: ModelConfig, proposals: Proposals, batch: dict[str, Any], keys: Array
) -> RoITargets:
    """Adds the objects to the proposals, samples RoIs, and encodes the boxes of their objects.

    Slices without objects give none.

    Args:
      config: `roi_batch` and `roi_positives` are read.
      proposals: of the batch.
      batch: `boxes` [B, M, 4], `labels` [B, M] and `valid` [B, M] are read.
      keys: [B] PRNG keys.

    Returns:
      RoITargets.
    """

    def one(proposal_boxes, proposal_valid, boxes, labels, valid, key):
        candidates = jnp.concatenate([proposal_boxes, boxes])
        exists = jnp.concatenate([proposal_valid, valid])
        iou = box_ops.pairwise_iou(candidates, boxes)
        matches = match(iou, valid, ROI_IOU, ROI_IOU, low_quality=False)
        eligible = jnp.where(exists, matches.labels, -1)
        chosen = sample(key, eligible, config.roi_batch, config.roi_positives)
        objects = matches.objects[chosen.indices]
        rois = candidates[chosen.indices]
        deltas = box_ops.encode(boxes[objects], rois, box_ops.ROI_WEIGHTS)
        used = chosen.valid & valid.any()
        positive = chosen.positive & used
        return RoITargets(
            rois, jnp.where(positive, labels[objects], 0), deltas, objects, positive, used
        )

    return sharding.per_device(jax.vmap(one))(
        proposals.boxes, proposals.valid, batch["boxes"], batch["labels"], batch["valid"], keys
    )


def mask_targets_of(batch: dict[str, Any], rois: RoITargets, slots: int) -> Array:
    """Mask targets of the first `slots` RoIs of each slice: [B, slots, 28, 28] float32.

    Args:
      batch: `instances` [B, H, W] is read.
      rois: from `roi_targets`.
      slots: static; positives beyond it are left out.

    Returns:
      Targets in [0, 1], 0 where a slot holds no positive.
    """
    return sharding.per_device(jax.vmap(mask_targets))(
        batch["instances"],
        rois.boxes[:, :slots],
        rois.objects[:, :slots] + 1,
        rois.positive[:, :slots],
    )
