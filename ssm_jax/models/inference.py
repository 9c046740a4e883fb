"""Inference: one jitted function from slices to class logits, boxes and masks."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array, lax

from ssm_jax.config import ModelConfig
from ssm_jax.models import ssm
from ssm_jax.models.roi_heads import MASK_BINS, BoxOutputs
from ssm_jax.models.rpn import Proposals
from ssm_jax.ops import boxes as box_ops
from ssm_jax.ops.masks import MASK_SIZE
from ssm_jax.ops.nms import nms
from ssm_jax.ops.roi_align import roi_align
from ssm_jax.ops.roi_batch import RoIBatch


class ReadRoIs(flax.struct.PyTreeNode):
    """The ranked RoI batch of B slices, S rows each, with the boxes behind its encodings.

    Attributes:
      rows: [B, S, 5] float32 (score, tx, ty, tw, th), scores not increasing.
      boxes: [B, S, 4] float32, the same boxes decoded and clipped, pixels of the resized slice.
      count: [B] int32, distinct boxes; 0: all rows and boxes are zero.
    """

    rows: Array
    boxes: Array
    count: Array


class Predictions(flax.struct.PyTreeNode):
    """What the model says of B slices, D detections each at most.

    Detections stand first, by decreasing score.

    Attributes:
      class_logits: [B, 3] float32.
      boxes: [B, D, 4] float32, pixels of the resized slice.
      scores: [B, D] float32 in [0, 1].
      labels: [B, D] int32, lesion class (1 where lesions are one class).
      valid: [B, D] bool, slots in use.
      mask_probabilities: [B, D, 28, 28] float32 in [0, 1], or None.
      roi_batch: what module S read, or None.
    """

    class_logits: Array
    boxes: Array
    scores: Array
    labels: Array
    valid: Array
    mask_probabilities: Array | None = None
    roi_batch: ReadRoIs | None = None


def make_predict_fn(config: ModelConfig, masks: bool = True, roi_batch: bool = False):
    """Builds the jitted inference function of a model.

    Args:
      config: the model.
      masks: whether to predict masks; without them the mask head does not run.
      roi_batch: whether to return the rows that module S read.

    Returns:
      predict(variables, images, image_sizes, score_threshold, nms_threshold) -> Predictions, with
      images [B, H, W, C] as in `ops.images.normalize` (H and W multiples of 32), image_sizes
      [B, 2] int32 and scalar thresholds, whose values may change without a new compilation. Each
      slice gives what it gives alone: the random stretching of its RoI batch uses a fixed key.
    """

    @jax.jit
    def predict(variables, images, image_sizes, score_threshold=0.75, nms_threshold=0.5):
        features = extract(config, variables, images, image_sizes)
        proposals = ssm.proposals_from(config, variables, features, image_sizes)
        classified, segmented = ssm.read_boxes(config, variables, features, proposals.boxes)
        class_logits, selection = _classify(config, variables, classified, proposals, image_sizes)

        thresholds = (score_threshold, nms_threshold)
        detections = detect(config, segmented, proposals, image_sizes, *thresholds)
        predictions = Predictions(class_logits, *detections)
        if masks:
            probabilities = predict_masks(config, variables, features, predictions)
            predictions = predictions.replace(mask_probabilities=probabilities)
        if roi_batch:
            read = read_rois(selection, proposals, image_sizes)
            predictions = predictions.replace(roi_batch=read)
        return predictions

    return predict


def make_classify_fn(config: ModelConfig):
    """Builds the jitted function that finds the class of slices and nothing else.

    Args:
      config: the model.

    Returns:
      classify(variables, images, image_sizes) -> class logits [B, K] float32, those of
      `make_predict_fn`; the segmentation branch and the mask head do not run.
    """

    @jax.jit
    def classify(variables, images, image_sizes):
        features = extract(config, variables, images, image_sizes)
        proposals = ssm.proposals_from(config, variables, features, image_sizes)
        branch = ("classify_boxes",)
        (classified,) = ssm.read_boxes(config, variables, features, proposals.boxes, branch)
        return _classify(config, variables, classified, proposals, image_sizes)[0]

    return classify


def extract(config: ModelConfig, variables: Any, images: Array, image_sizes: Array) -> Array:
    """Feature maps [B, h, w, 256] of B slices, without gradient.

    On a CPU slice after slice: what a layer of one slice writes is in the cache still when the
    next layer reads it.
    """

    def together(images, image_sizes):
        return ssm.stage(config, variables, "extract", images, image_sizes, train=False)

    def in_turn(images, image_sizes):
        return lax.map(lambda x: together(x[0][None], x[1][None])[0], (images, image_sizes))

    if images.shape[0] == 1:
        return together(images, image_sizes)
    return lax.platform_dependent(images, image_sizes, cpu=in_turn, default=together)


def _classify(
    config: ModelConfig,
    variables: Any,
    outputs: BoxOutputs,
    proposals: Proposals,
    image_sizes: Array,
) -> tuple[Array, RoIBatch]:
    """Class logits [B, K] from the classification branch, and the RoI batch they were read off."""
    keys = jnp.broadcast_to(jax.random.key(0), image_sizes.shape[:1])
    selection = ssm.select_rois(config, outputs, proposals, image_sizes, keys)
    return ssm.stage(config, variables, "read_class", selection.rows), selection


def read_rois(selection: RoIBatch, proposals: Proposals, image_sizes: Array) -> ReadRoIs:
    """Decodes the rows that module S reads.

    Args:
      selection: of B slices, from the proposals.
      proposals: of these slices.
      image_sizes: [B, 2], pixels.

    Returns:
      ReadRoIs.
    """
    references = jnp.take_along_axis(proposals.boxes, selection.indices[..., None], axis=1)
    boxes = box_ops.decode(selection.rows[..., 1:], references, box_ops.ROI_WEIGHTS)
    boxes = jax.vmap(box_ops.clip_to_image)(boxes, image_sizes)
    found = (selection.count > 0)[:, None, None]
    return ReadRoIs(selection.rows, jnp.where(found, boxes, 0), selection.count)


def detect(
    config: ModelConfig,
    outputs: BoxOutputs,
    proposals: Proposals,
    image_sizes: Array,
    score_threshold: Array | float,
    nms_threshold: Array | float,
) -> tuple[Array, Array, Array, Array]:
    """Detections of the segmentation branch, with NMS within each lesion class.

    Args:
      config: `max_detections` is read.
      outputs: of the segmentation branch on all B * P proposals.
      proposals: those proposals.
      image_sizes: [B, 2], pixels.
      score_threshold: softmax score that a detection must exceed.
      nms_threshold: IoU above which the lower-scored box is dropped.

    Returns:
      boxes [B, D, 4], scores [B, D], labels [B, D] and valid [B, D] of `Predictions`.
    """
    batch, count = proposals.valid.shape
    lesions = config.num_classes - 1
    scores = jax.nn.softmax(outputs.logits)[:, 1:].reshape(batch, count * lesions)
    deltas = outputs.deltas[:, 1:].reshape(batch, count, lesions, 4)
    labels = jnp.tile(jnp.arange(1, config.num_classes, dtype=jnp.int32), count)

    def one(scores, deltas, proposal_boxes, valid, image_size):
        boxes = box_ops.decode(deltas, proposal_boxes[:, None], box_ops.ROI_WEIGHTS)
        boxes = box_ops.clip_to_image(boxes, image_size).reshape(-1, 4)
        candidates = jnp.repeat(valid, lesions) & (scores > score_threshold)
        # Classes moved apart by more than the image do not meet in one NMS.
        apart = ((labels - 1) * (image_size.max() + 1)).astype(boxes.dtype)[:, None]
        kept, used = nms(boxes + apart, scores, nms_threshold, config.max_detections, candidates)
        boxes = jnp.where(used[:, None], boxes[kept], 0)
        return boxes, jnp.where(used, scores[kept], 0), jnp.where(used, labels[kept], 0), used

    return jax.vmap(one)(scores, deltas, proposals.boxes, proposals.valid, image_sizes)


def predict_masks(
    config: ModelConfig, variables: Any, features: Array, predictions: Predictions
) -> Array:
    """Mask probabilities of the detections' own classes, [B, D, 28, 28]; 0 in unused slots."""
    boxes, labels = (ssm.pad_to_chunks(x) for x in (predictions.boxes, predictions.labels))

    def add(probabilities, image, start):
        chunk = ssm.chunk_of(boxes, image, start)
        roi_features = roi_align(features[image], chunk, MASK_BINS, 1 / config.stride)
        logits = ssm.stage(config, variables, "predict_masks", roi_features)
        own = ssm.chunk_of(labels, image, start)[:, None, None, None]
        logits = jnp.take_along_axis(logits, own, axis=-1)[..., 0]
        at = (image, start, 0, 0)
        return lax.dynamic_update_slice(probabilities, jax.nn.sigmoid(logits)[None], at)

    empty = jnp.zeros((*boxes.shape[:2], MASK_SIZE, MASK_SIZE))
    counts = predictions.valid.sum(axis=1)
    probabilities = ssm.for_masks_in_use(counts, add, empty)[:, : predictions.valid.shape[1]]
    return jnp.where(predictions.valid[..., None, None], probabilities, 0)
