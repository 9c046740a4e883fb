"""The mask loss of the positive RoIs with its gradients, for a CPU and for accelerators.

The number of positives is known only when a step runs. A CPU visits them a few at a time, in a loop
that could not be followed backward: each turn takes its share of the loss and, with it, of the
gradients. Accelerators pool the RoIs of all slots and read the positives in one batch.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ssm_jax.config import ModelConfig
from ssm_jax.models import ssm
from ssm_jax.models.roi_heads import MASK_BINS
from ssm_jax.ops.roi_align import roi_align
from ssm_jax.training import losses
from ssm_jax.training.targets import MaskTargets

MaskLoss = tuple[losses.Scalar, Float[Array, "B h w C"], Any]


def in_turn(
    model: ModelConfig,
    positives: Int[Array, ""],
    features: Float[Array, "B h w C"],
    mask_head: Any,
    targets: MaskTargets,
) -> MaskLoss:
    """The loss a few RoIs of one image at a time.

    Args:
      model: the model.
      positives: RoIs that the mean is over, those of other devices included.
      features: of each image.
      mask_head: its parameters.
      targets: the RoIs and their masks; those that are positive count.

    Returns:
      This part's share of the loss, its gradient by the features, and that by the mask head.
    """
    padded = jax.tree.map(ssm.pad_to_chunks, targets)

    def share(image_features, mask_head, image, start):
        chunk = jax.tree.map(lambda array: ssm.chunk_of(array, image, start), padded)
        roi_features = roi_align(image_features, chunk.boxes, MASK_BINS, 1 / model.stride)
        variables = {"params": {"mask_head": mask_head}}
        logits = ssm.stage(model, variables, "predict_masks", roi_features)
        return losses.mask_loss(logits, chunk.labels, chunk.masks, chunk.positive, positives)

    def add(state, image, start):
        loss, feature_gradient, head_gradient = state
        part, (of_features, of_head) = jax.value_and_grad(share, (0, 1))(
            features[image], mask_head, image, start
        )
        feature_gradient = feature_gradient.at[image].add(of_features)
        return loss + part, feature_gradient, jax.tree.map(jnp.add, head_gradient, of_head)

    init = (jnp.zeros(()), *jax.tree.map(jnp.zeros_like, (features, mask_head)))
    return ssm.for_masks_in_use(targets.positive.sum(axis=1), add, init)


def at_once(
    model: ModelConfig,
    positives: Int[Array, ""],
    features: Float[Array, "B h w C"],
    mask_head: Any,
    targets: MaskTargets,
) -> MaskLoss:
    """The loss of all RoIs together; see `in_turn`, which it equals but for rounding."""

    def align(features):
        return ssm.align(model, features, targets.boxes, MASK_BINS)

    pooled, to_features = jax.vjp(align, features)
    of_all = jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), targets)

    def of(chosen):
        rois = jax.tree.map(lambda array: array[chosen], of_all)

        def loss_of(roi_features, mask_head):
            variables = {"params": {"mask_head": mask_head}}
            logits = ssm.stage(model, variables, "predict_masks", roi_features)
            return losses.mask_loss(logits, rois.labels, rois.masks, rois.positive, positives)

        loss, (of_pooled, of_head) = jax.value_and_grad(loss_of, (0, 1))(pooled[chosen], mask_head)
        scattered = jnp.zeros_like(pooled).at[chosen].set(of_pooled, unique_indices=True)
        return loss, scattered, of_head

    loss, of_pooled, of_head = ssm.with_masks_in_use(targets.positive, of)
    return loss, to_features(of_pooled)[0], of_head
