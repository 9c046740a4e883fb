"""The two steps of an iteration (paper, section 3.3), as jitted pure functions.

A segmentation step trains everything but the classification branch and module S, and copies the
segmentation branch into the classification branch when its loss is the best so far. A
classification step trains module S and, by update rule, the backbone.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key

from ssm_jax import sharding
from ssm_jax.config import ModelConfig
from ssm_jax.models import ssm
from ssm_jax.models.roi_heads import BOX_BINS
from ssm_jax.ops import platforms
from ssm_jax.training import losses, mask_losses, optimizer, patterns, targets
from ssm_jax.training.state import TrainState

SEGMENTATION_KEY, CLASSIFICATION_KEY = 0, 1
SEGMENTATION_LOSSES = (
    "loss_objectness",
    "loss_rpn_box",
    "loss_roi_class",
    "loss_roi_box",
    "loss_mask",
)


def make_steps(
    model: ModelConfig,
    train: ml_collections.ConfigDict,
    total_steps: int = 0,
    mesh: Mesh | None = None,
) -> tuple[Callable, Callable]:
    """Builds both steps of a run; each donates the state it is given.

    Args:
      model: to train.
      train: section of the run's configuration.
      total_steps: iterations of the run, which a decaying schedule needs.
      mesh: devices that share the work (see `sharding`): the state is replicated, batches are
        split. What is computed does not depend on it, but for rounding. None: one device.

    Returns:
      segmentation_step(state, batch["seg"]) and classification_step(state, batch["cls"]), both
      -> (state, metrics), metrics being a flat dict of scalars. One iteration is one call of each,
      in this order; the second advances `state.step`, and who leaves it out has to do that. A model
      without module S has no use for the second.
    """
    schedules = optimizer.make_schedules(train, total_steps)
    chosen = patterns.chosen(model, train)
    frozen, still_layers = chosen.frozen, chosen.frozen_layers
    classification_groups = optimizer.CLASSIFICATION_STEP[train.update_rule]
    copy = make_copy(model, train.copy_rule, train.copy_ema)
    copies = model.branches == 2 and train.copy_rule != "never"

    def apply(state, params, gradients):
        rates = {group: schedule(state.step) for group, schedule in schedules.items()}
        return optimizer.apply_gradients(
            params, state.opt_state, gradients, rates, train.weight_decay, chosen.factors
        )

    def segmentation_update(state, batch):
        key = _step_key(state, SEGMENTATION_KEY)

        def loss_of(stepped):
            params = _with_groups(state.params, stepped)
            with patterns.still(still_layers):
                return segmentation_loss(model, params, state.batch_stats, batch, key)

        stepped = optimizer.stepped(state.params, optimizer.SEGMENTATION_STEP, frozen)
        (loss, aux), gradients = jax.value_and_grad(loss_of, has_aux=True)(stepped)
        batch_stats, metrics = aux
        improved = loss < state.best_seg_loss
        # The branch that produced the loss is copied, so the copy comes before the update.
        params = chosen.restored(copy(state.params, improved), state.params)
        params, opt_state = apply(state, params, gradients)
        best = jnp.where(improved, loss, state.best_seg_loss)
        metrics |= {
            "copied": improved & copies if train.copy_rule == "best" else jnp.asarray(copies),
            "best_seg_loss": best,
            "seg_grad_norm": optax.tree.norm(gradients),
        }
        state = state.replace(
            params=params, batch_stats=batch_stats, opt_state=opt_state, best_seg_loss=best
        )
        return state, metrics

    def classification_step(state: TrainState, batch: dict[str, Array]):
        key = _step_key(state, CLASSIFICATION_KEY)

        def loss_of(stepped):
            params = _with_groups(state.params, stepped)
            return classification_loss(model, params, state.batch_stats, batch, key)

        stepped = optimizer.stepped(state.params, classification_groups, frozen)
        (_, metrics), gradients = jax.value_and_grad(loss_of, has_aux=True)(stepped)
        params, opt_state = apply(state, state.params, gradients)
        metrics |= {"cls_grad_norm": optax.tree.norm(gradients)}
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    segmentation_step = _skipping_empty_batches(segmentation_update)
    return sharding.jit_step(segmentation_step, mesh), sharding.jit_step(classification_step, mesh)


def _skipping_empty_batches(update: Callable) -> Callable:
    """A segmentation step that changes nothing where a batch has no objects."""

    def segmentation_step(state: TrainState, batch: dict[str, Array]):
        # Both outcomes of `lax.cond` would hold convolutions, whose gradients a CPU computes far
        # slower in there; a selection costs the rare skipped step its time, and nothing else.
        updated, metrics = update(state, batch)
        present = batch["valid"].any()
        nothing = {
            name: jnp.full_like(value, jnp.nan if value.dtype == jnp.float32 else 0)
            for name, value in metrics.items()
        }
        nothing["best_seg_loss"] = state.best_seg_loss
        state, metrics = jax.tree.map(
            lambda new, old: jnp.where(present, new, old), (updated, metrics), (state, nothing)
        )
        return state, metrics | {"skipped": ~present}

    return segmentation_step


def make_copy(model: ModelConfig, rule: str, decay: float):
    """Builds the rule by which the segmentation branch reaches the classification branch.

    Args:
      model: with one RoI branch nothing is copied.
      rule: "best" copies on a best loss so far, "every_step" always, "ema" averages exponentially,
        "never" leaves the branch as it is.
      decay: of the average.

    Returns:
      copy(params, improved) -> params.
    """

    def copy(params, improved):
        if model.branches == 1 or rule == "never":
            return params
        source, target = params["segmentation_branch"], params["classification_branch"]
        if rule == "ema":
            copied = optax.incremental_update(source, target, 1 - decay)
        else:
            take = improved if rule == "best" else True
            copied = jax.tree.map(lambda s, t: jnp.where(take, s, t), source, target)
        return {**params, "classification_branch": copied}

    return copy


def segmentation_loss(
    model: ModelConfig, params: Any, batch_stats: Any, batch: dict[str, Array], key: Key[Array, ""]
) -> tuple[losses.Scalar, tuple[Any, dict[str, Array]]]:
    """L_SEG of a batch, BN in training mode. Slices without objects take no part.

    Args:
      model: the model.
      params: nested dict.
      batch_stats: running BN statistics.
      batch: `image` [B, H, W, C], `image_size` [B, 2], `instances` [B, H, W], `boxes` [B, M, 4],
        `labels` [B, M], `valid` [B, M].
      key: of the sampling.

    Returns:
      The sum of the five losses, and (updated batch_stats, metrics).
    """
    variables = {"params": params, "batch_stats": batch_stats}
    images, image_sizes = batch["image"], batch["image_size"]
    has_objects = batch["valid"].any(axis=1)
    features, updated = ssm.stage(
        model,
        variables,
        "extract",
        images,
        image_sizes,
        train=True,
        example_mask=has_objects,
        mutable=["batch_stats"],
    )
    anchor_key, roi_key = jax.random.split(key)
    objectness, deltas = ssm.stage(model, variables, "score_anchors", features)
    anchors = jnp.asarray(ssm.anchors_for(model, features.shape[1:3]))
    keys = jax.random.split(anchor_key, images.shape[0])
    sampled = targets.anchor_targets(model, anchors, batch, keys)
    rpn = losses.rpn_losses(
        jnp.take_along_axis(objectness, sampled.indices, axis=1),
        jnp.take_along_axis(deltas, sampled.indices[..., None], axis=1),
        sampled.deltas,
        sampled.positive,
        sampled.valid,
    )

    proposals = ssm.propose(model, objectness, deltas, anchors, image_sizes)
    keys = jax.random.split(roi_key, images.shape[0])
    rois = targets.roi_targets(model, proposals, batch, keys)
    roi_features = ssm.align(model, features, rois.boxes, BOX_BINS)
    outputs = ssm.stage(model, variables, "segment_boxes", roi_features)
    roi = losses.roi_losses(
        outputs.logits,
        outputs.deltas,
        rois.labels.reshape(-1),
        rois.deltas.reshape(-1, 4),
        rois.valid.reshape(-1),
    )
    mask = _mask_loss(model, params, features, batch, rois)

    parts = dict(zip(SEGMENTATION_LOSSES, (*rpn, *roi, mask), strict=True))
    total = sum(parts.values(), start=jnp.zeros(()))
    metrics = {"loss_seg": total, **parts, "positives": rois.positive.sum()}
    return total, (updated["batch_stats"], metrics)


def _mask_loss(
    model: ModelConfig,
    params: Any,
    features: Float[Array, "B h w C"],
    batch: dict[str, Array],
    rois: targets.RoITargets,
) -> losses.Scalar:
    """Mask loss of the positive RoIs; its gradient is computed with it, see `mask_losses`."""
    slots = min(model.roi_positives, rois.boxes.shape[1])
    masks = targets.mask_targets_of(batch, rois, slots)

    def of_images(features, mask_head, masks):
        positives = sharding.total(masks.positive.sum())
        loss, of_features, of_head = platforms.by_platform(
            positives,
            features,
            mask_head,
            masks,
            cpu=functools.partial(mask_losses.in_turn, model),
            default=functools.partial(mask_losses.at_once, model),
        )
        return sharding.total(loss), of_features, sharding.total(of_head)

    inputs = (features, params["mask_head"])
    once, split = sharding.REPLICATED, sharding.SPLIT
    evaluated = sharding.per_device(of_images, (split, once, split), (once, split, once))
    loss, *gradients = evaluated(*lax.stop_gradient(inputs), masks)
    return _with_gradient(inputs, loss, tuple(gradients))


@jax.custom_vjp
def _with_gradient(inputs: Any, value: losses.Scalar, gradient: Any) -> losses.Scalar:
    """A scalar `value` of `inputs` whose gradient is at hand: differentiates to `gradient`."""
    return value


def _with_gradient_forward(inputs, value, gradient):
    return value, gradient


def _with_gradient_backward(gradient, cotangent):
    scaled = jax.tree.map(lambda leaf: cotangent * leaf, gradient)
    return scaled, jnp.zeros_like(cotangent), jax.tree.map(jnp.zeros_like, gradient)


_with_gradient.defvjp(_with_gradient_forward, _with_gradient_backward)


def classification_loss(
    model: ModelConfig, params: Any, batch_stats: Any, batch: dict[str, Array], key: Key[Array, ""]
) -> tuple[losses.Scalar, dict[str, Array]]:
    """L_CLS of a batch, BN in inference mode.

    The RoI batch is chosen without gradient; RoIAlign and the branch then run once more on the
    few chosen RoIs, so that the gradient costs 128 RoIs instead of 1000.

    Args:
      model: the model.
      params: nested dict.
      batch_stats: running BN statistics.
      batch: `image` [B, H, W, C], `image_size` [B, 2], `label` [B] int32.
      key: of the stretching.

    Returns:
      The loss, and metrics.
    """
    variables = {"params": params, "batch_stats": batch_stats}
    fixed = lax.stop_gradient(variables)
    images, image_sizes = batch["image"], batch["image_size"]
    count = images.shape[0]
    features = ssm.stage(model, variables, "extract", images, image_sizes, train=False)

    still = lax.stop_gradient(features)
    proposals = ssm.proposals_from(model, fixed, still, image_sizes)
    (outputs,) = ssm.read_boxes(model, fixed, still, proposals.boxes, ("classify_boxes",))
    keys = jax.random.split(key, count)
    selection = ssm.select_rois(model, outputs, proposals, image_sizes, keys)

    chosen = jnp.take_along_axis(proposals.boxes, selection.indices[..., None], axis=1)
    chosen_features = ssm.align(model, features, chosen, BOX_BINS)
    outputs = ssm.stage(model, variables, "classify_boxes", chosen_features)
    scores = jax.nn.softmax(outputs.logits)[:, ssm.LESION, None]
    rows = jnp.concatenate([scores, outputs.deltas[:, ssm.LESION]], axis=1)
    rows = rows.reshape(count, model.selection_size, 5)
    empty = selection.distinct == 0
    rows = jnp.where(empty[:, None, None], 0, rows)
    logits = ssm.stage(model, variables, "read_class", rows)

    loss = losses.classification_loss(logits, batch["label"])
    correct = (logits.argmax(axis=-1) == batch["label"]).mean()
    metrics = {"loss_cls": loss, "cls_correct": correct, "roi_batch_empty": empty.sum()}
    return loss, metrics


def _step_key(state: TrainState, purpose: int) -> Key[Array, ""]:
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    return jax.random.fold_in(key, purpose)


def _with_groups(params: Any, stepped: dict[str, optimizer.Flat]) -> dict[str, Any]:
    """Parameters with some of them in place of theirs: what a gradient is taken by."""
    parts = optimizer.split(params)
    return optimizer.merge({**parts, **{name: parts[name] | of for name, of in stepped.items()}})
