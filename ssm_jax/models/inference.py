"""Inference: one jitted function from slices to class logits, boxes and masks."""

from collections.abc import Callable
from typing import no_type_check

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int32, UInt8

from ssm_jax.config import ModelConfig
from ssm_jax.models import ssm
from ssm_jax.models.roi_heads import MASK_BINS, BoxOutputs
from ssm_jax.models.rpn import Proposals
from ssm_jax.ops import boxes as box_ops
from ssm_jax.ops import platforms
from ssm_jax.ops.masks import MASK_SIZE
from ssm_jax.ops.nms import nms
from ssm_jax.ops.roi_align import roi_align
from ssm_jax.ops.roi_batch import RoIBatch

Images = UInt8[Array, "B H W C"] | Float[Array, "B H W C"]
Sizes = Int32[Array, "B 2"]


@no_type_check  # JAX puts shapes, axes and placeholders into such a tree
class ReadRoIs(flax.struct.PyTreeNode):
    """The ranked RoI batch of B slices, S rows each, with the boxes behind its encodings.

    Attributes:
      rows: (score, tx, ty, tw, th), scores not increasing.
      boxes: the same boxes decoded and clipped, pixels of the resized slice.
      count: distinct boxes; 0: all rows and boxes are zero.
    """

    rows: Float32[Array, "B S 5"]
    boxes: Float32[Array, "B S 4"]
    count: Int32[Array, "B"]


@no_type_check
class Predictions(flax.struct.PyTreeNode):
    """Classes and lesions of B slices, D detections each at most, by decreasing score.

    Attributes:
      class_logits: of the K image classes.
      boxes: pixels of the resized slice.
      scores: in [0, 1].
      labels: lesion class (1 where lesions are one class).
      valid: slots in use, which come first.
      mask_probabilities: in [0, 1]; None if masks were not asked for.
      roi_batch: the input of module S; None if it was not asked for.
    """

    class_logits: Float32[Array, "B K"]
    boxes: Float32[Array, "B D 4"]
    scores: Float32[Array, "B D"]
    labels: Int32[Array, "B D"]
    valid: Bool[Array, "B D"]
    mask_probabilities: Float32[Array, "B D 28 28"] | None = None
    roi_batch: ReadRoIs | None = None


def make_predict_fn(
    config: ModelConfig, masks: bool = True, roi_batch: bool = False
) -> Callable[..., Predictions]:
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


def make_classify_fn(config: ModelConfig) -> Callable[..., Array]:
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


def extract(
    config: ModelConfig, variables: ssm.Variables, images: Images, image_sizes: Sizes
) -> Float[Array, "B h w 256"]:
    """Feature maps of slices, without gradient.

    A CPU takes one slice after the other: what a layer has written of it is still in the cache
    when the next layer reads it.
    """

    def together(images, image_sizes):
        return ssm.stage(config, variables, "extract", images, image_sizes, train=False)

    def in_turn(images, image_sizes):
        return lax.map(lambda x: together(x[0][None], x[1][None])[0], (images, image_sizes))

    if images.shape[0] == 1:
        return together(images, image_sizes)
    return platforms.by_platform(images, image_sizes, cpu=in_turn, default=together)


def _classify(
    config: ModelConfig,
    variables: ssm.Variables,
    outputs: BoxOutputs,
    proposals: Proposals,
    image_sizes: Sizes,
) -> tuple[Float[Array, "B K"], RoIBatch]:
    """Class logits from the classification branch, and the RoI batch that they were read off."""
    keys = jnp.broadcast_to(jax.random.key(0), image_sizes.shape[:1])
    selection = ssm.select_rois(config, outputs, proposals, image_sizes, keys)
    return ssm.stage(config, variables, "read_class", selection.rows), selection


def read_rois(selection: RoIBatch, proposals: Proposals, image_sizes: Sizes) -> ReadRoIs:
    """Decodes the rows that module S reads.

    Args:
      selection: of B slices, from the proposals.
      proposals: of these slices.
      image_sizes: (height, width), pixels.
    """
    references = jnp.take_along_axis(proposals.boxes, selection.indices[..., None], axis=1)
    boxes = box_ops.decode(selection.rows[..., 1:], references, box_ops.ROI_WEIGHTS)
    boxes = jax.vmap(box_ops.clip_to_image)(boxes, image_sizes)
    found = (selection.distinct > 0)[:, None, None]
    return ReadRoIs(selection.rows, jnp.where(found, boxes, 0), selection.distinct)


def detect(
    config: ModelConfig,
    outputs: BoxOutputs,
    proposals: Proposals,
    image_sizes: Sizes,
    score_threshold: Float[Array, ""] | float,
    nms_threshold: Float[Array, ""] | float,
) -> tuple[Float[Array, "B D 4"], Float[Array, "B D"], Int32[Array, "B D"], Bool[Array, "B D"]]:
    """Detections of the segmentation branch, with NMS within each lesion class.

    Args:
      config: `max_detections` is read.
      outputs: of the segmentation branch on all B * P proposals.
      proposals: those proposals.
      image_sizes: (height, width), pixels.
      score_threshold: softmax score that a detection must exceed.
      nms_threshold: IoU above which the lower-scored box is dropped.

    Returns:
      `boxes`, `scores`, `labels` and `valid` of Predictions.
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
    config: ModelConfig,
    variables: ssm.Variables,
    features: Float[Array, "B h w C"],
    predictions: Predictions,
) -> Float32[Array, "B D 28 28"]:
    """Mask probabilities of the detections' own classes; 0 in unused slots."""

    def in_turn(features, boxes, labels, valid):
        boxes, labels = map(ssm.pad_to_chunks, (boxes, labels))

        def add(probabilities, image, start):
            chunk = ssm.chunk_of(boxes, image, start)
            roi_features = roi_align(features[image], chunk, MASK_BINS, 1 / config.stride)
            logits = ssm.stage(config, variables, "predict_masks", roi_features)
            own = _own_mask(logits, ssm.chunk_of(labels, image, start))
            return lax.dynamic_update_slice(probabilities, own[None], (image, start, 0, 0))

        empty = jnp.zeros((*boxes.shape[:2], MASK_SIZE, MASK_SIZE))
        return ssm.for_masks_in_use(valid.sum(axis=1), add, empty)[:, : valid.shape[1]]

    def at_once(features, boxes, labels, valid):
        roi_features = ssm.align(config, features, boxes, MASK_BINS)

        def of(chosen):
            logits = ssm.stage(config, variables, "predict_masks", roi_features[chosen])
            own = _own_mask(logits, labels.reshape(-1)[chosen])
            empty = jnp.zeros((roi_features.shape[0], MASK_SIZE, MASK_SIZE))
            return empty.at[chosen].set(own, unique_indices=True)

        return ssm.with_masks_in_use(valid, of).reshape(*valid.shape, MASK_SIZE, MASK_SIZE)

    detections = (predictions.boxes, predictions.labels, predictions.valid)
    probabilities = platforms.by_platform(features, *detections, cpu=in_turn, default=at_once)
    return jnp.where(predictions.valid[..., None, None], probabilities, 0)


def _own_mask(
    logits: Float[Array, "N 28 28 K"], labels: Int32[Array, "N"]
) -> Float32[Array, "N 28 28"]:
    """Mask probabilities of each RoI's own class."""
    own = jnp.take_along_axis(logits, labels[:, None, None, None], axis=-1)[..., 0]
    return jax.nn.sigmoid(own)
