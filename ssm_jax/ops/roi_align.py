"""RoIAlign as matrix products.

Bilinear sampling is separable: the weights that a bin puts on the rows of the map do not depend on
those it puts on the columns. So every box is two small matrices, and pooling is "rows, then
columns", which runs at the speed of a matrix product, forward and backward, with no gather.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

# Boxes pooled at a time: what the two products write in between stays in a CPU's cache.
CHUNK = 64


def roi_align(
    features: Array,
    boxes: Array,
    output_size: int,
    spatial_scale: float,
    sampling_ratio: int = 2,
) -> Array:
    """RoIAlign (He et al. 2017) with the reference's "aligned=False" conventions.

    No half-pixel shift; RoI sizes are at least one cell; a sample further than one cell outside
    the map counts 0, others are clamped to it. No gradient flows to the boxes.

    Args:
      features: [H, W, C] float.
      boxes: [N, 4] float, pixels of the image.
      output_size: bins P per side.
      spatial_scale: cells per pixel, such as 1 / 16.
      sampling_ratio: sample points per bin and side.

    Returns:
      [N, P, P, C] float, in the order of `boxes`.
    """
    height, width, channels = features.shape
    count = boxes.shape[0]
    left, top, right, bottom = jnp.moveaxis(lax.stop_gradient(boxes) * spatial_scale, -1, 0)
    rows = bin_weights(top, bottom, output_size, height, sampling_ratio)  # [N, P, H]
    columns = bin_weights(left, right, output_size, width, sampling_ratio)  # [N, P, W]
    rows = rows.reshape(count * output_size, height).astype(features.dtype)
    flat = features.reshape(height, width * channels)
    pooled_rows = jnp.matmul(rows, flat, precision=lax.Precision.HIGHEST)
    pooled_rows = pooled_rows.reshape(count, output_size, width, channels)
    # One product per row of bins: its operands and its result lie as they are in memory.
    columns = jnp.broadcast_to(columns[:, None], (count, output_size, output_size, width))
    columns = columns.astype(features.dtype)
    return jnp.matmul(columns, pooled_rows, precision=lax.Precision.HIGHEST)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def roi_align_batch(features: Array, boxes: Array, output_size: int, spatial_scale: float) -> Array:
    """RoIAlign of every image of a batch, a few boxes at a time, forward and backward.

    Args:
      features: [B, H, W, C] float.
      boxes: [B, N, 4] float, pixels of the images.
      output_size: bins P per side.
      spatial_scale: cells per pixel.

    Returns:
      [B * N, P, P, C] float.
    """

    def pool(image_features, some_boxes):
        return roi_align(image_features, some_boxes, output_size, spatial_scale)

    return map_rois(pool, features, boxes)


def _batch_forward(features, boxes, output_size, spatial_scale):
    pooled = roi_align_batch(features, boxes, output_size, spatial_scale)
    # RoIAlign is linear in the features: of them, the gradient needs nothing but the shape.
    return pooled, (jnp.zeros((0, *features.shape[1:]), features.dtype), boxes)


def _batch_backward(output_size, spatial_scale, residuals, cotangent):
    like, boxes = residuals
    images, count, _ = boxes.shape
    size = chunk_size(count)
    padding = ((0, 0), (0, -count % size))
    cotangent = cotangent.reshape(images, count, *cotangent.shape[1:])
    cotangent = jnp.pad(cotangent, (*padding, *((0, 0),) * 3))
    chunks = jnp.pad(boxes, (*padding, (0, 0))).reshape(images, -1, size, 4)
    cotangent = cotangent.reshape(*chunks.shape[:3], *cotangent.shape[2:])
    zeros = jnp.zeros(like.shape[1:], like.dtype)

    def of_image(image):
        def add(total, chunk):
            some_boxes, pooled_cotangent = chunk
            pool = functools.partial(
                roi_align, boxes=some_boxes, output_size=output_size, spatial_scale=spatial_scale
            )
            (gradient,) = jax.linear_transpose(pool, zeros)(pooled_cotangent)
            return total + gradient, None

        return lax.scan(add, zeros, image)[0]

    return lax.map(of_image, (chunks, cotangent)), jnp.zeros_like(boxes)


roi_align_batch.defvjp(_batch_forward, _batch_backward)


def map_rois(function: Callable[[Array, Array], Any], features: Array, boxes: Array) -> Any:
    """Runs a function of RoIs over all images of a batch, a few boxes at a time.

    Args:
      function: (features [H, W, C], boxes [n, 4]) -> arrays [n, ...], each box on its own.
      features: [B, H, W, C] float.
      boxes: [B, N, 4] float.

    Returns:
      What `function` returns for all boxes: arrays [B * N, ...].
    """
    images, count, _ = boxes.shape
    size = chunk_size(count)
    chunks = jnp.pad(boxes, ((0, 0), (0, -count % size), (0, 0))).reshape(-1, size, 4)
    per_image = len(chunks) // images

    def one(chunk):
        index, some_boxes = chunk
        return function(features[index // per_image], some_boxes)

    results = lax.map(one, (jnp.arange(len(chunks)), chunks))

    def unpad(result):
        result = result.reshape(images, per_image * size, *result.shape[2:])[:, :count]
        return result.reshape(images * count, *result.shape[2:])

    return jax.tree.map(unpad, results)


def chunk_size(count: int) -> int:
    """Boxes pooled at a time: at most CHUNK, and a divisor of their number where there is one."""
    divisors = [size for size in range(CHUNK // 2, CHUNK + 1) if count % size == 0]
    return max(divisors, default=min(CHUNK, count))


def bin_weights(
    start: Array, end: Array, bins: int, size: int, samples: Array | int, max_samples: int = 0
) -> Array:
    """Weights of the cells of one axis in each bin: the mean over the bin's sample points.

    Args:
      start: [N] float, cells: where the RoI starts on this axis.
      end: [N] float, cells; a RoI shorter than one cell is taken as one cell long.
      bins: bins along the axis.
      size: cells along the axis.
      samples: sample points per bin: a number, or [N] int32 to give each RoI its own.
      max_samples: upper bound of `samples` where that is an array.

    Returns:
      [N, bins, size] float32.
    """
    length = jnp.maximum(end - start, 1.0)
    step = length / bins
    trips = samples if isinstance(samples, int) else jnp.minimum(samples.max(), max_samples)
    samples = jnp.broadcast_to(samples, start.shape)
    cells = jnp.arange(size, dtype=start.dtype)
    bin_starts = start[:, None] + jnp.arange(bins, dtype=start.dtype) * step[:, None]  # [N, bins]

    def add_sample(index, total):
        offset = (index + 0.5) * step / samples  # [N]
        position = bin_starts + offset[:, None]
        inside = (position >= -1) & (position <= size) & (index < samples)[:, None]
        clamped = jnp.clip(position, 0, size - 1)
        hat = jnp.maximum(1 - jnp.abs(clamped[..., None] - cells), 0)  # [N, bins, size]
        return total + jnp.where(inside[..., None], hat, 0)

    total = jnp.zeros((start.shape[0], bins, size), start.dtype)
    if isinstance(trips, int):
        for index in range(trips):
            total = add_sample(index, total)
    else:
        # The trip count follows the largest RoI at hand, not the largest possible one.
        total = lax.fori_loop(0, trips, add_sample, total)
    return total / samples[:, None, None]
