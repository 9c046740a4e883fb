"""Masks: training targets cut from a label map, and predictions pasted back into the slice."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Integer

from ssm_jax.ops import platforms, rle
from ssm_jax.ops.roi_align import bin_weights

MASK_SIZE = 28
# Masks whose targets an accelerator computes at a time: of so many a slice of 512 x 512 pixels
# takes 34 MB. A CPU takes one after the other.
TARGETS_AT_ONCE = 32


def mask_targets(
    instances: Integer[Array, "H W"],
    boxes: Float[Array, "N 4"],
    instance_ids: Int32[Array, "N"],
    valid: Bool[Array, "N"],
    size: int = MASK_SIZE,
) -> Float32[Array, "N {size} {size}"]:
    """Each RoI's share of its object: RoIAlign of the object's binary mask at scale 1.

    The number of sample points is adaptive, ceil(RoI height / size) x ceil(RoI width / size) a
    bin. Work grows with the last valid row, so put the valid ones first. No gradient.

    Args:
      instances: label map; 0 is background, k the k-th object.
      boxes: pixels.
      instance_ids: the object of each RoI, from 1.
      valid: RoIs in use.
      size: bins per side.

    Returns:
      Shares in [0, 1]; 0 where not valid.
    """
    rows_at_once = functools.partial(_mask_targets, size=size)
    return platforms.by_platform(
        *(instances, lax.stop_gradient(boxes), instance_ids, valid),
        cpu=functools.partial(rows_at_once, at_once=1),
        default=functools.partial(rows_at_once, at_once=TARGETS_AT_ONCE),
    )


def _mask_targets(instances, boxes, instance_ids, valid, size: int, at_once: int):
    """`mask_targets` that computes so many rows in each turn of a loop over those in use."""
    height, width = instances.shape
    count = boxes.shape[0]
    boxes, instance_ids = (
        jnp.pad(x, ((0, -count % at_once), *((0, 0),) * (x.ndim - 1)))
        for x in (boxes, instance_ids)
    )

    def axis_weights(start, end, cells):
        samples = jnp.maximum(jnp.ceil(jnp.maximum(end - start, 1.0) / size), 1).astype(jnp.int32)
        # RoIs lie inside the image, so `cells` bounds their length.
        most = -(-cells // size)
        return bin_weights(start, end, size, cells, samples, most)

    def add(turn, targets):
        start = turn * at_once
        some, ids = (lax.dynamic_slice_in_dim(x, start, at_once) for x in (boxes, instance_ids))
        left, top, right, bottom = jnp.moveaxis(some, -1, 0)
        masks = (instances == ids[:, None, None]).astype(jnp.float32)
        rows = axis_weights(top, bottom, height)  # [n, size, H]
        columns = axis_weights(left, right, width)  # [n, size, W]
        pooled = jnp.matmul(rows, masks, precision=lax.Precision.HIGHEST)
        pooled = jnp.matmul(pooled, columns.mT, precision=lax.Precision.HIGHEST)
        return lax.dynamic_update_slice_in_dim(targets, pooled, start, 0)

    used = jnp.max(jnp.where(valid, jnp.arange(count) + 1, 0), initial=0)
    targets = jnp.zeros((boxes.shape[0], size, size), jnp.float32)
    targets = lax.fori_loop(0, -(-used // at_once), add, targets)[:count]
    return jnp.where(valid[:, None, None], targets, 0)


def encode_masks(
    probabilities: Float32[np.ndarray, "n bins bins"],
    boxes: Float32[np.ndarray, "n 4"],
    height: int,
    width: int,
) -> list[dict[str, Any]]:
    """Pastes predicted masks into slices and encodes the lesion, where they exceed 0.5.

    Args:
      probabilities: in [0, 1].
      boxes: pixels of the slice.
      height: of the slice, pixels.
      width: of the slice, pixels.

    Returns:
      The run lengths of each mask; see `rle.encode`.
    """
    encoded = []
    canvas = np.zeros((height, width), bool, order="F")  # the order that run lengths follow
    for mask, box in zip(probabilities, boxes, strict=True):
        place, resized = paste(mask, box, height, width)
        canvas[place] = resized > 0.5
        encoded.append(rle.encode(canvas))
        canvas[place] = False
    return encoded


def paste(
    probabilities: Float32[np.ndarray, "bins bins"],
    box: Float32[np.ndarray, "4"],
    height: int,
    width: int,
) -> tuple[tuple[slice, slice], Float32[np.ndarray, "h w"]]:
    """Resizes a predicted mask to its box.

    The mask is padded by one bin, the box grown to match about its center and truncated to whole
    pixels, and the mask resized to it bilinearly (half-pixel centers).

    Args:
      probabilities: in [0, 1].
      box: pixels of the slice.
      height: of the slice, pixels.
      width: of the slice, pixels.

    Returns:
      The rows and columns of the slice that the grown box covers, and the probabilities there.
    """
    bins = probabilities.shape[0]
    left, top, right, bottom = _grown_corners(box, (bins + 2) / bins)
    padded = np.pad(probabilities, 1)
    y = np.arange(max(top, 0), min(bottom + 1, height))
    x = np.arange(max(left, 0), min(right + 1, width))
    if not (y.size and x.size):
        return (slice(0), slice(0)), np.zeros((0, 0), np.float32)
    rows = _resize_weights(y - top, max(bottom - top + 1, 1), bins + 2)
    columns = _resize_weights(x - left, max(right - left + 1, 1), bins + 2)
    return (slice(y[0], y[-1] + 1), slice(x[0], x[-1] + 1)), rows @ padded @ columns.T


def _grown_corners(box: Float32[np.ndarray, "4"], factor: float) -> list[int]:
    """Corners of the box grown about its center, truncated toward zero."""
    half = np.float32(0.5)
    center = (box[2:] + box[:2]) * half
    half_size = (box[2:] - box[:2]) * half * np.float32(factor)
    return np.concatenate([center - half_size, center + half_size]).astype(int).tolist()


def _resize_weights(
    pixels: Int[np.ndarray, "n"], length: int, bins: int
) -> Float32[np.ndarray, "n {bins}"]:
    """Bilinear weights of an axis of `bins` at some pixels of its `length` when it is resized."""
    position = (pixels.astype(np.float32) + np.float32(0.5)) * np.float32(bins / length) - 0.5
    position = np.clip(position, 0, bins - 1)
    return np.maximum(1 - np.abs(position[:, None] - np.arange(bins, dtype=np.float32)), 0)
