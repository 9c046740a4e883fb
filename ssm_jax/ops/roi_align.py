"""RoIAlign: the features of a box, pooled to a square grid of bins.

Bilinear interpolation is separable: the weights that a bin puts on the rows of the feature map do
not depend on those that it puts on the columns. A box is therefore two small matrices, and pooling
is two matrix products, rows first and columns second, forward and backward, without a gather.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32


def roi_align(
    features: Float[Array, "h w C"],
    boxes: Float[Array, "N 4"],
    output_size: int,
    spatial_scale: float,
    sampling_ratio: int = 2,
    first_cell: Int32[Array, "2"] | tuple[int, int] = (0, 0),
    map_size: tuple[int, int] | None = None,
) -> Float[Array, "N {output_size} {output_size} C"]:
    """RoIAlign (He et al. 2017) with the reference's "aligned=False" conventions.

    No half-pixel shift; RoI sizes are at least one cell; a sample further than one cell outside
    the map counts 0, others are clamped to it. No gradient flows to the boxes.

    Args:
      features: a feature map, or a rectangle of it that holds all cells that the boxes read.
      boxes: pixels of the image.
      output_size: bins per side.
      spatial_scale: cells per pixel, such as 1 / 16.
      sampling_ratio: sample points per bin and side.
      first_cell: row and column of the map where `features` begins.
      map_size: height and width of the map, cells; None: `features` is the whole map.
    """
    height, width, _ = features.shape
    map_height, map_width = map_size or (height, width)
    left, top, right, bottom = jnp.moveaxis(lax.stop_gradient(boxes) * spatial_scale, -1, 0)
    weights = functools.partial(bin_weights, bins=output_size, samples=sampling_ratio)
    row_cells, column_cells = first_cell[0] + jnp.arange(height), first_cell[1] + jnp.arange(width)
    rows = weights(top, bottom, size=map_height, cells=row_cells)  # [N, bins, h]
    columns = weights(left, right, size=map_width, cells=column_cells)  # [N, bins, w]
    return _pool(features, rows.astype(features.dtype), columns.astype(features.dtype))


@jax.custom_vjp
def _pool(
    features: Float[Array, "h w C"],
    rows: Float[Array, "N b h"],
    columns: Float[Array, "N b w"],
) -> Float[Array, "N b b C"]:
    """Weighted sums over rows and columns. No gradient flows to the weights."""
    height, width, channels = features.shape
    count, bins, _ = rows.shape
    flat = features.reshape(height, width * channels)
    pooled_rows = _product(rows.reshape(count * bins, height), flat)
    pooled_rows = pooled_rows.reshape(count, bins, width, channels)
    # One product for each row of bins, so that no operand and no result is transposed in memory.
    return _product(_for_each_row(columns, bins), pooled_rows)


def _pool_forward(features, rows, columns):
    return _pool(features, rows, columns), (rows, columns)


def _pool_backward(residuals, gradient):
    # The same two products the other way. They are slow on a CPU with a left side that the
    # compiler takes transposed, as it would without the barrier.
    rows, columns = residuals
    count, bins, height = rows.shape
    width, channels = columns.shape[-1], gradient.shape[-1]
    rows, columns = lax.optimization_barrier(
        (rows.reshape(count * bins, height).T, _for_each_row(columns.mT, bins))
    )
    of_rows = _product(columns, gradient).reshape(count * bins, width * channels)
    of_features = _product(rows, of_rows).reshape(height, width, channels)
    return of_features, jnp.zeros_like(residuals[0]), jnp.zeros_like(residuals[1])


_pool.defvjp(_pool_forward, _pool_backward)


def _for_each_row(columns: Float[Array, "N a c"], bins: int) -> Float[Array, "N {bins} a c"]:
    """Copies of each matrix, one for every row of bins."""
    count, *shape = columns.shape
    return jnp.broadcast_to(columns[:, None], (count, bins, *shape))


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def bin_weights(
    start: Float[Array, "N"],
    end: Float[Array, "N"],
    bins: int,
    size: int,
    samples: Int32[Array, "N"] | int,
    max_samples: int = 0,
    cells: Int32[Array, "m"] | None = None,
) -> Float[Array, "N {bins} m"]:
    """Weights of the cells of one axis in each bin: the mean over the bin's sample points.

    Args:
      start: where each RoI starts on this axis, cells.
      end: where it ends, cells; a RoI shorter than one cell is taken as one cell long.
      bins: bins along the axis.
      size: cells along the axis.
      samples: sample points per bin: one number for all, or one for each RoI.
      max_samples: upper bound of `samples` where that is an array.
      cells: the cells whose weights are wanted; None: all.
    """
    length = jnp.maximum(end - start, 1.0)
    step = length / bins
    trips = samples if isinstance(samples, int) else jnp.minimum(samples.max(), max_samples)
    samples = jnp.broadcast_to(samples, start.shape)
    cells = (jnp.arange(size) if cells is None else cells).astype(start.dtype)
    bin_starts = start[:, None] + jnp.arange(bins, dtype=start.dtype) * step[:, None]  # [N, bins]

    def add_sample(index, total):
        offset = (index + 0.5) * step / samples  # [N]
        position = bin_starts + offset[:, None]
        inside = (position >= -1) & (position <= size) & (index < samples)[:, None]
        clamped = jnp.clip(position, 0, size - 1)
        hat = jnp.maximum(1 - jnp.abs(clamped[..., None] - cells), 0)  # [N, bins, m]
        return total + jnp.where(inside[..., None], hat, 0)

    total = jnp.zeros((start.shape[0], bins, len(cells)), start.dtype)
    if isinstance(trips, int):
        for index in range(trips):
            total = add_sample(index, total)
    else:
        # The trip count follows the largest RoI at hand, not the largest possible one.
        total = lax.fori_loop(0, trips, add_sample, total)
    return total / samples[:, None, None]
