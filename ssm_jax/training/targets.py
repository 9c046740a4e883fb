"""Training targets of anchors and RoIs: matching, sampling and encoding, by batch."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32, Key

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
    """Sampled anchors, those that matched an object first.

    Attributes:
      indices: of the anchors.
      deltas: encoded boxes of the matched objects.
      positive: anchors that matched one.
      valid: slots in use.
    """

    indices: Int32[Array, "*B S"]
    deltas: Float[Array, "*B S 4"]
    positive: Bool[Array, "*B S"]
    valid: Bool[Array, "*B S"]


class RoITargets(NamedTuple):
    """Sampled RoIs, those that matched an object first.

    Attributes:
      boxes: pixels.
      labels: classes, 0 background.
      deltas: encoded boxes of the matched objects.
      objects: which object each RoI matched.
      positive: RoIs that matched one.
      valid: slots in use.
    """

    boxes: Float[Array, "*B S 4"]
    labels: Int32[Array, "*B S"]
    deltas: Float[Array, "*B S 4"]
    objects: Int32[Array, "*B S"]
    positive: Bool[Array, "*B S"]
    valid: Bool[Array, "*B S"]


class MaskTargets(NamedTuple):
    """The RoIs that a mask loss may take, and their masks.

    Attributes:
      boxes: pixels.
      labels: classes.
      masks: targets in [0, 1], 0 where a slot holds no positive.
      positive: slots that hold one, the first ones of each image.
    """

    boxes: Float[Array, "*B S 4"]
    labels: Int32[Array, "*B S"]
    masks: Float32[Array, "*B S 28 28"]
    positive: Bool[Array, "*B S"]


def anchor_targets(
    config: ModelConfig,
    anchors: Float[Array, "N 4"],
    batch: Mapping[str, Array],
    keys: Key[Array, "B"],
) -> AnchorTargets:
    """Samples anchors and encodes the boxes of their objects. Slices without objects give none.

    Args:
      config: `rpn_batch` and `rpn_positives` are read.
      anchors: pixels.
      batch: `boxes` [B, M, 4] and `valid` [B, M] are read.
      keys: of the sampling, one an image.
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
    config: ModelConfig,
    proposals: Proposals,
    batch: Mapping[str, Array],
    keys: Key[Array, "B"],
) -> RoITargets:
    """Adds the objects to the proposals, samples RoIs, and encodes the boxes of their objects.

    Slices without objects give none.

    Args:
      config: `roi_batch` and `roi_positives` are read.
      proposals: of the batch.
      batch: `boxes` [B, M, 4], `labels` [B, M] and `valid` [B, M] are read.
      keys: of the sampling, one an image.
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


def mask_targets_of(batch: Mapping[str, Array], rois: RoITargets, slots: int) -> MaskTargets:
    """Mask targets of the first `slots` RoIs of each slice.

    Args:
      batch: `instances` [B, H, W] is read.
      rois: from `roi_targets`.
      slots: static; positives beyond it are left out.
    """
    boxes, labels, objects, positive = (
        array[:, :slots] for array in (rois.boxes, rois.labels, rois.objects, rois.positive)
    )
    of_images = sharding.per_device(jax.vmap(mask_targets))
    masks = of_images(batch["instances"], boxes, objects + 1, positive)
    return MaskTargets(boxes, labels, masks, positive)
