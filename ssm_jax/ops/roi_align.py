"""RoIAlign as matrix products.

Bilinear sampling is separable: the weights that a bin puts on the rows of the map do not depend on
those it puts on the columns. So every box is two small matrices, and pooling is "rows, then
columns", which runs at the speed of a matrix product, forward and backward, with no gather.
"""

import jax.numpy as jnp
from jax import Array, lax

# Boxes pooled at a time: bounds the size of the intermediate [CHUNK * P, W * C] product.
CHUNK = 50


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
    chunk = min(CHUNK, count)
    chunks = -(-count // chunk)
    padded = jnp.pad(lax.stop_gradient(boxes), ((0, chunks * chunk - count), (0, 0)))
    flat = features.reshape(height, width * channels)

    def pool(chunk_boxes):
        left, top, right, bottom = jnp.moveaxis(chunk_boxes * spatial_scale, -1, 0)
        rows = bin_weights(top, bottom, output_size, height, sampling_ratio)  # [chunk, P, H]
        columns = bin_weights(left, right, output_size, width, sampling_ratio)  # [chunk, P, W]
        rows = rows.reshape(chunk * output_size, height).astype(features.dtype)
        pooled_rows = jnp.matmul(rows, flat, precision=lax.Precision.HIGHEST)
        pooled_rows = pooled_rows.reshape(chunk, output_size, width, channels)
        # One product per row of bins: its operands and its result lie as they are in memory.
        columns = jnp.broadcast_to(columns[:, None], (chunk, output_size, output_size, width))
        columns = columns.astype(features.dtype)
        return jnp.matmul(columns, pooled_rows, precision=lax.Precision.HIGHEST)

    pooled = lax.map(pool, padded.reshape(chunks, chunk, 4))
    return pooled.reshape(chunks * chunk, output_size, output_size, channels)[:count]


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
