"""Masks: training targets cut from a label map, and predictions pasted back into the slice."""

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from pycocotools import mask as coco_mask

from ssm_jax.ops.roi_align import bin_weights

MASK_SIZE = 28


def mask_targets(
    instances: Array, boxes: Array, instance_ids: Array, valid: Array, size: int = MASK_SIZE
) -> Array:
    """Each RoI's share of its object: RoIAlign of the object's binary mask at scale 1.

    The number of sample points is adaptive, ceil(RoI height / size) x ceil(RoI width / size) a
    bin. Work grows with the last valid row, so put the valid ones first. No gradient.

    Args:
      instances: [H, W] integer label map; 0 background, k the k-th object.
      boxes: [N, 4] float, pixels.
      instance_ids: [N] int32, the object of each RoI (from 1).
      valid: [N] bool.
      size: bins per side.

    Returns:
      [N, size, size] float32 in [0, 1]; 0 where not valid.
    """
    height, width = instances.shape
    count = boxes.shape[0]
    boxes = lax.stop_gradient(boxes)

    def axis_weights(start, end, cells):
        samples = jnp.maximum(jnp.ceil(jnp.maximum(end - start, 1.0) / size), 1).astype(jnp.int32)
        # RoIs lie inside the image, so `cells` bounds their length.
        most = -(-cells // size)
        return bin_weights(start[None], end[None], size, cells, samples[None], most)[0]

    def target(row, targets):
        left, top, right, bottom = boxes[row]
        mask = (instances == instance_ids[row]).astype(jnp.float32)
        rows = axis_weights(top, bottom, height)  # [size, H]
        columns = axis_weights(left, right, width)  # [size, W]
        pooled = jnp.matmul(rows, mask, precision=lax.Precision.HIGHEST)
        pooled = jnp.matmul(pooled, columns.T, precision=lax.Precision.HIGHEST)
        return targets.at[row].set(jnp.where(valid[row], pooled, 0))

    used = jnp.max(jnp.where(valid, jnp.arange(count) + 1, 0), initial=0)
    return lax.fori_loop(0, used, target, jnp.zeros((count, size, size), jnp.float32))


def paste_mask(probabilities: np.ndarray, box: np.ndarray, height: int, width: int) -> np.ndarray:
    """Draws one predicted mask into an empty slice (host, NumPy).

    The mask is padded by one bin, the box grown to match about its center and truncated to whole
    pixels, and the mask resized to it bilinearly (half-pixel centers).

    Args:
      probabilities: [M, M] float in [0, 1].
      box: [4] float, pixels of the slice.
      height: of the slice, pixels.
      width: of the slice, pixels.

    Returns:
      [height, width] float32 probabilities, 0 outside the box.
    """
    canvas = np.zeros((height, width), np.float32)
    place, resized = _resized_to_box(probabilities, box, height, width)
    canvas[place] = resized
    return canvas


def encode_masks(
    probabilities: np.ndarray, boxes: np.ndarray, height: int, width: int
) -> list[dict]:
    """Pastes predicted masks and encodes "lesion where > 0.5" as COCO run lengths.

    Args:
      probabilities: [n, M, M] float in [0, 1].
      boxes: [n, 4] float, pixels of the slice.
      height: of the slice, pixels.
      width: of the slice, pixels.

    Returns:
      n dicts {"size": [height, width], "counts": str}.
    """
    encoded = []
    canvas = np.zeros((height, width), np.uint8, order="F")  # as pycocotools reads it
    for mask, box in zip(np.asarray(probabilities), np.asarray(boxes), strict=True):
        place, resized = _resized_to_box(mask, box, height, width)
        canvas[place] = resized > 0.5
        rle = coco_mask.encode(canvas)
        canvas[place] = 0
        encoded.append({"size": [height, width], "counts": rle["counts"].decode("ascii")})
    return encoded


def _resized_to_box(
    probabilities: np.ndarray, box: np.ndarray, height: int, width: int
) -> tuple[tuple[slice, slice], np.ndarray]:
    """Where a mask goes in a slice (rows, columns), and its probabilities there."""
    bins = probabilities.shape[0]
    left, top, right, bottom = _grown_corners(box, (bins + 2) / bins)
    padded = np.pad(probabilities.astype(np.float32), 1)
    y = np.arange(max(top, 0), min(bottom + 1, height))
    x = np.arange(max(left, 0), min(right + 1, width))
    if not (y.size and x.size):
        return (slice(0), slice(0)), np.zeros((0, 0), np.float32)
    rows = _resize_weights(y - top, max(bottom - top + 1, 1), bins + 2)
    columns = _resize_weights(x - left, max(right - left + 1, 1), bins + 2)
    return (slice(y[0], y[-1] + 1), slice(x[0], x[-1] + 1)), rows @ padded @ columns.T


def _grown_corners(box: np.ndarray, factor: float) -> list[int]:
    """Corners of the box grown about its center, in float32, truncated toward zero."""
    left, top, right, bottom = np.asarray(box, np.float32)
    half, factor = np.float32(0.5), np.float32(factor)
    center_x, center_y = (right + left) * half, (bottom + top) * half
    half_width, half_height = (right - left) * half * factor, (bottom - top) * half * factor
    corners = (
        center_x - half_width,
        center_y - half_height,
        center_x + half_width,
        center_y + half_height,
    )
    return [int(c) for c in corners]


def _resize_weights(pixels: np.ndarray, length: int, bins: int) -> np.ndarray:
    """Bilinear weights [len(pixels), bins] of an axis of `bins` resized to `length` pixels."""
    position = (pixels.astype(np.float32) + np.float32(0.5)) * np.float32(bins / length) - 0.5
    position = np.clip(position, 0, bins - 1)
    return np.maximum(1 - np.abs(position[:, None] - np.arange(bins, dtype=np.float32)), 0)
