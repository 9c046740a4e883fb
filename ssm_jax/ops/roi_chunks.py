"""RoIAlign of a batch, arranged for the machine: `roi_align` says what is computed.

A CPU takes a few boxes at a time, which its caches hold. Boxes that lie near each other are pooled
together, so that they read a small window of the feature map in place of all of it. Accelerators
take all boxes of several images in one product.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from ssm_jax.ops import platforms
from ssm_jax.ops.roi_align import roi_align

# Boxes of a chunk: what the first matrix product of so many writes stays in a CPU's cache.
CHUNK = 64
# Chunks whose features the function of `map_rois` reads together: its matrix products are faster
# with more rows, and so many features still stay in the outer cache (25 MB of 500 boxes).
CHUNKS_READ = 10
# Sides of the square windows, cells; a chunk reads the smallest that holds all it needs.
WINDOWS = (8, 16, 32)
# Boxes longer than this many cells are pooled last: they would widen the window of their chunk.
MAX_NEAR_LENGTH = 8
# Images of a turn on an accelerator, which bound its memory: the first product of 1000 boxes on a
# map of 64 x 64 cells writes 0.5 GB.
IMAGES_AT_ONCE = 8


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def roi_align_batch(
    features: Float[Array, "B h w C"],
    boxes: Float[Array, "B N 4"],
    output_size: int,
    spatial_scale: float,
) -> Float[Array, "B*N {output_size} {output_size} C"]:
    """`roi_align` of every image of a batch, with a gradient that goes by chunks too.

    Args:
      features: of each image.
      boxes: pixels of the images.
      output_size: bins per side.
      spatial_scale: cells per pixel.
    """
    return map_rois(lambda pooled: pooled, features, boxes, output_size, spatial_scale)


def _batch_forward(features, boxes, output_size, spatial_scale):
    pooled = roi_align_batch(features, boxes, output_size, spatial_scale)
    # RoIAlign is linear in the features: of them, the gradient needs nothing but the shape.
    return pooled, (jnp.zeros((0, *features.shape[1:]), features.dtype), boxes)


def _batch_backward(output_size, spatial_scale, residuals, cotangent):
    like, boxes = residuals
    cotangent = cotangent.reshape(*boxes.shape[:2], *cotangent.shape[1:])
    zeros = jnp.zeros(like.shape[1:], like.dtype)

    def transposed(boxes, cotangent):
        pool = functools.partial(
            roi_align, boxes=boxes, output_size=output_size, spatial_scale=spatial_scale
        )
        return jax.vjp(pool, zeros)[1](cotangent)[0]

    def by_chunks(boxes, cotangent):
        images, count, _ = boxes.shape
        size = chunk_size(count)
        padding = ((0, 0), (0, -count % size))
        chunks = jnp.pad(boxes, (*padding, (0, 0))).reshape(images, -1, size, 4)
        cotangent = jnp.pad(cotangent, (*padding, *((0, 0),) * 3))
        cotangent = cotangent.reshape(*chunks.shape[:3], *cotangent.shape[2:])

        def of_image(image):
            def add(total, chunk):
                return total + transposed(*chunk), None

            return lax.scan(add, zeros, image)[0]

        return lax.map(of_image, (chunks, cotangent))

    gradient = platforms.by_platform(boxes, cotangent, cpu=by_chunks, default=jax.vmap(transposed))
    return gradient, jnp.zeros_like(boxes)


roi_align_batch.defvjp(_batch_forward, _batch_backward)


def map_rois(
    function: Callable[[Array], Any],
    features: Float[Array, "B h w C"],
    boxes: Float[Array, "B N 4"],
    output_size: int,
    spatial_scale: float,
) -> Any:
    """Applies a function to the RoIAlign of all boxes of a batch: a chunk at a time on a CPU, all
    boxes of several images elsewhere.

    Args:
      function: of the pooled features [n, output_size, output_size, C] of some boxes; returns a
        pytree of arrays [n, ...] whose entry i depends on box i alone.
      features: of each image.
      boxes: pixels of the images.
      output_size: bins per side.
      spatial_scale: cells per pixel.

    Returns:
      The pytree of all boxes: arrays [B * N, ...], in the order of `boxes`.
    """
    images, count, _ = boxes.shape
    size = chunk_size(count)
    windows = [window for window in WINDOWS if window < min(features.shape[1:3])]
    scales = (output_size, spatial_scale)

    def all_of_map():
        return _by_chunks(lambda f, b: roi_align(f, b, *scales), function, features, boxes)

    def in_windows():
        near = functools.partial(
            _neighbors_first, size=size, longest=MAX_NEAR_LENGTH / spatial_scale
        )
        order = jax.vmap(near)(boxes)
        ordered = jnp.take_along_axis(boxes, order[..., None], axis=1)
        align = functools.partial(_align_in_window, windows, *scales)
        results = _by_chunks(align, function, features, ordered)
        back = jnp.argsort(order, axis=1)
        return jax.tree.map(lambda x: jax.vmap(jnp.take, (0, 0, None))(x, back, 0), results)

    def of_images(group):
        pooled = jax.vmap(lambda f, b: roi_align(f, b, *scales))(*group)
        results = function(pooled.reshape(-1, *pooled.shape[2:]))
        return jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[1:]), results)

    def at_once():
        # The number of images is a symbol in programs for any batch size.
        group = math.gcd(images, IMAGES_AT_ONCE) if isinstance(images, int) else 1
        groups = [x.reshape(-1, group, *x.shape[1:]) for x in (features, boxes)]
        results = lax.map(of_images, groups)
        return jax.tree.map(lambda x: x.reshape(images, count, *x.shape[3:]), results)

    in_chunks = in_windows if windows and count > size else all_of_map
    results = platforms.by_platform(cpu=in_chunks, default=at_once)
    return jax.tree.map(lambda x: x.reshape(images * count, *x.shape[2:]), results)


def _by_chunks(
    align: Callable[[Array, Array], Array],
    function: Callable[[Array], Any],
    features: Float[Array, "B h w C"],
    boxes: Float[Array, "B N 4"],
) -> Any:
    """Results [B, N, ...] of `function(align(features of an image, a chunk of its boxes))`, which
    reads a few chunks at a time.
    """
    images, count, _ = boxes.shape
    size = chunk_size(count)
    padded = jnp.pad(boxes, ((0, 0), (0, -count % size), (0, 0)), mode="edge")
    chunks = padded.shape[1] // size
    together = max(n for n in range(1, CHUNKS_READ + 1) if chunks % n == 0)
    groups = images * chunks // together

    def read(pooled, group):
        index, some_boxes = group
        of_image = features[index // (chunks // together)]

        def add(position, pooled):
            of_chunk = align(of_image, some_boxes[position])
            return lax.dynamic_update_index_in_dim(pooled, of_chunk, position, 0)

        pooled = lax.fori_loop(0, together, add, pooled)
        return pooled, function(pooled.reshape(-1, *pooled.shape[2:]))

    some_boxes = padded.reshape(groups, together, size, 4)
    # Handed on from group to group: a fresh array for each would be filled with zeros first.
    pooled = jax.eval_shape(jax.vmap(align, (None, 0)), features[0], some_boxes[0])
    pooled = jnp.zeros(pooled.shape, pooled.dtype)
    _, results = lax.scan(read, pooled, (jnp.arange(groups), some_boxes))
    return jax.tree.map(
        lambda x: x.reshape(images, chunks * size, *x.shape[2:])[:, :count], results
    )


def _align_in_window(
    windows: list[int],
    output_size: int,
    spatial_scale: float,
    features: Float[Array, "h w C"],
    boxes: Float[Array, "N 4"],
) -> Float[Array, "N {output_size} {output_size} C"]:
    """`roi_align` that reads the smallest window that holds all boxes, or else the whole map."""
    height, width, channels = features.shape
    first, needed = cells_read(boxes, spatial_scale, height, width)

    def in_window(window, features, boxes):
        corner = jnp.minimum(first, jnp.array([height, width]) - window)
        part = lax.dynamic_slice(features, (*corner, 0), (window, window, channels))
        return roi_align(
            part,
            boxes,
            output_size,
            spatial_scale,
            first_cell=corner,
            map_size=(height, width),
        )

    def in_map(features, boxes):
        return roi_align(features, boxes, output_size, spatial_scale)

    too_small = sum((needed.max() > window).astype(jnp.int32) for window in windows)
    branches: list[Callable] = [functools.partial(in_window, window) for window in windows]
    return lax.switch(too_small, [*branches, in_map], features, boxes)


def cells_read(
    boxes: Float[Array, "N 4"], spatial_scale: float, height: int, width: int
) -> tuple[Int32[Array, "2"], Int32[Array, "2"]]:
    """The rectangle of a map that RoIAlign of some boxes reads.

    Args:
      boxes: pixels.
      spatial_scale: cells per pixel.
      height: of the map, cells.
      width: of the map, cells.

    Returns:
      The first row and column that are read, and how many rows and columns from there on.
    """
    low, high = jnp.split(boxes * spatial_scale, 2, axis=-1)  # [N, 2], x and y
    high = jnp.maximum(high, low + 1)
    limit = jnp.array([width - 1, height - 1], boxes.dtype)
    first = jnp.floor(jnp.clip(low.min(axis=0), 0, limit)).astype(jnp.int32)
    last = jnp.ceil(jnp.clip(high.max(axis=0), 0, limit)).astype(jnp.int32)
    return first[::-1], (last - first + 1)[::-1]


def _neighbors_first(boxes: Float[Array, "N 4"], size: int, longest: float) -> Int32[Array, "N"]:
    """An order in which `size` boxes in a row lie close together, long boxes last.

    The ranks of the centers' heights cut the boxes into strips of equal number; in a strip they go
    from left to right.

    Args:
      boxes: pixels.
      size: boxes that should be close.
      longest: boxes longer than this come last, pixels.
    """
    count = boxes.shape[0]
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    long = (boxes[:, 2:] - boxes[:, :2]).max(axis=1) > longest
    chunks = -(-count // size)
    strip_size = -(-chunks // max(round(chunks**0.5), 1)) * size
    rank = jnp.argsort(jnp.argsort(jnp.where(long, jnp.inf, center[:, 1])))
    strip = rank // strip_size + jnp.where(long, count, 0)
    return jnp.lexsort((center[:, 0], strip))


def chunk_size(count: int) -> int:
    """Boxes of a chunk: at most CHUNK, and a divisor of their number where there is one."""
    divisors = [size for size in range(CHUNK // 2, CHUNK + 1) if count % size == 0]
    return max(divisors, default=min(CHUNK, count))
