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
# Cells per side of the parts of the map that a CPU reads instead of all of it, where they do.
WINDOWS = (8, 16, 32)
REACH = 8  # cells; longer boxes are kept from the others, whose window they would stretch


def roi_align(
    features: Array,
    boxes: Array,
    output_size: int,
    spatial_scale: float,
    sampling_ratio: int = 2,
    window: int | None = None,
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
      window: cells per side of a part of the map that holds what all boxes read, which the caller
        has made sure of by `cells_read`; None: the whole map is used.

    Returns:
      [N, P, P, C] float, in the order of `boxes`.
    """
    height, width, channels = features.shape
    count = boxes.shape[0]
    boxes = lax.stop_gradient(boxes)
    left, top, right, bottom = jnp.moveaxis(boxes * spatial_scale, -1, 0)
    first_row = first_column = 0
    sides = height, width
    if window is not None:
        first, _ = cells_read(boxes, spatial_scale, height, width)
        first_row, first_column = jnp.minimum(first, jnp.array([height, width]) - window)
        features = lax.dynamic_slice(
            features, (first_row, first_column, 0), (window, window, channels)
        )
        height = width = window
    weights = functools.partial(bin_weights, bins=output_size, samples=sampling_ratio)
    rows = weights(top, bottom, size=sides[0], cells=first_row + jnp.arange(height))  # [N, P, H]
    columns = weights(left, right, size=sides[1], cells=first_column + jnp.arange(width))
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
    return map_rois(lambda pooled: pooled, features, boxes, output_size, spatial_scale)


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


def map_rois(
    function: Callable[[Array], Any],
    features: Array,
    boxes: Array,
    output_size: int,
    spatial_scale: float,
) -> Any:
    """RoIAlign of all boxes of a batch and what is made of it, a few boxes at a time.

    On a CPU boxes that are near each other go together, and read no more of the map than the
    smallest of a few windows that holds them all.

    Args:
      function: [n, P, P, C] -> arrays [n, ...], each RoI on its own.
      features: [B, H, W, C] float.
      boxes: [B, N, 4] float, pixels of the images.
      output_size: bins P per side.
      spatial_scale: cells per pixel.

    Returns:
      What `function` returns for all boxes: arrays [B * N, ...], in their order.
    """
    images, count, _ = boxes.shape
    size = chunk_size(count)
    height, width, _ = features.shape[1:]
    windows = [window for window in WINDOWS if window < min(height, width)]

    def pool(window, image_features, some_boxes):
        return roi_align(image_features, some_boxes, output_size, spatial_scale, window=window)

    def pool_in_window(image_features, some_boxes):
        _, needed = cells_read(some_boxes, spatial_scale, height, width)
        index = sum((needed.max() > window).astype(jnp.int32) for window in windows)
        branches = [functools.partial(pool, window) for window in (*windows, None)]
        return lax.switch(index, branches, image_features, some_boxes)

    def run(pool, boxes):
        padded = jnp.pad(boxes, ((0, 0), (0, -count % size), (0, 0)), mode="edge")
        per_image = padded.shape[1] // size
        chunks = padded.reshape(images * per_image, size, 4)

        def one(chunk):
            index, some_boxes = chunk
            return function(pool(features[index // per_image], some_boxes))

        results = lax.map(one, (jnp.arange(images * per_image), chunks))
        return jax.tree.map(
            lambda x: x.reshape(images, per_image * size, *x.shape[2:])[:, :count], results
        )

    def all_of_map():
        return run(functools.partial(pool, None), boxes)

    def in_windows():
        order = jax.vmap(
            functools.partial(_neighbors_first, size=size, reach=REACH / spatial_scale)
        )
        order = order(boxes)
        results = run(pool_in_window, jnp.take_along_axis(boxes, order[..., None], axis=1))
        back = jnp.argsort(order, axis=1)
        return jax.tree.map(lambda x: jax.vmap(jnp.take, (0, 0, None))(x, back, 0), results)

    if windows and count > size:
        results = lax.platform_dependent(cpu=in_windows, default=all_of_map)
    else:
        results = all_of_map()
    return jax.tree.map(lambda x: x.reshape(images * count, *x.shape[2:]), results)


def cells_read(boxes: Array, spatial_scale: float, height: int, width: int) -> tuple[Array, Array]:
    """The part of a map that RoIAlign of some boxes reads.

    Args:
      boxes: [N, 4] float, pixels.
      spatial_scale: cells per pixel.
      height: of the map, cells.
      width: of the map, cells.

    Returns:
      first: [2] int32, the first row and column read.
      count: [2] int32, rows and columns from there on.
    """
    low, high = jnp.split(boxes * spatial_scale, 2, axis=-1)  # [N, 2], x and y
    high = jnp.maximum(high, low + 1)
    limit = jnp.array([width - 1, height - 1], boxes.dtype)
    first = jnp.floor(jnp.clip(low.min(axis=0), 0, limit)).astype(jnp.int32)
    last = jnp.ceil(jnp.clip(high.max(axis=0), 0, limit)).astype(jnp.int32)
    return first[::-1], (last - first + 1)[::-1]


def _neighbors_first(boxes: Array, size: int, reach: float) -> Array:
    """An order in which `size` boxes in a row lie close together, long boxes last: [N] int32.

    Rank by height cuts the boxes into strips of equal number, and in a strip they go from left to
    right.

    Args:
      boxes: [N, 4] float, pixels.
      size: boxes that should be close.
      reach: pixels; boxes longer than this come last.
    """
    count = boxes.shape[0]
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    long = (boxes[:, 2:] - boxes[:, :2]).max(axis=1) > reach
    chunks = -(-count // size)
    strip_size = -(-chunks // max(round(chunks**0.5), 1)) * size
    rank = jnp.argsort(jnp.argsort(jnp.where(long, jnp.inf, center[:, 1])))
    strip = rank // strip_size + jnp.where(long, count, 0)
    return jnp.lexsort((center[:, 0], strip))


def chunk_size(count: int) -> int:
    """Boxes pooled at a time: at most CHUNK, and a divisor of their number where there is one."""
    divisors = [size for size in range(CHUNK // 2, CHUNK + 1) if count % size == 0]
    return max(divisors, default=min(CHUNK, count))


def bin_weights(
    start: Array,
    end: Array,
    bins: int,
    size: int,
    samples: Array | int,
    max_samples: int = 0,
    cells: Array | None = None,
) -> Array:
    """Weights of the cells of one axis in each bin: the mean over the bin's sample points.

    Args:
      start: [N] float, cells: where the RoI starts on this axis.
      end: [N] float, cells; a RoI shorter than one cell is taken as one cell long.
      bins: bins along the axis.
      size: cells along the axis.
      samples: sample points per bin: a number, or [N] int32 to give each RoI its own.
      max_samples: upper bound of `samples` where that is an array.
      cells: [m] int32, the cells whose weights are wanted; None: all.

    Returns:
      [N, bins, m] float32.
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
