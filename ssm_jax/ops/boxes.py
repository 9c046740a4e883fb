"""Boxes: area, IoU, clipping, and the coder between boxes and regression deltas.

Boxes are (x1, y1, x2, y2) in pixels everywhere in this project; width is x2 - x1, without a "+1".
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Real

# Upper bound of the decoded log-sizes: no box grows more than 62.5-fold over its reference.
MAX_LOG_RATIO = math.log(1000.0 / 16)

Weights = tuple[float, float, float, float]
RPN_WEIGHTS: Weights = (1.0, 1.0, 1.0, 1.0)
ROI_WEIGHTS: Weights = (10.0, 10.0, 5.0, 5.0)


def area(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """Areas of boxes, square pixels."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def pairwise_iou(a: Float[Array, "N 4"], b: Float[Array, "M 4"]) -> Float[Array, "N M"]:
    """Intersection over union of every box of `a` with every box of `b`, in [0, 1].

    It is 0 where the union is empty, so that a zero-area box matches nothing.
    """
    width = jnp.minimum(a[:, None, 2], b[None, :, 2]) - jnp.maximum(a[:, None, 0], b[None, :, 0])
    height = jnp.minimum(a[:, None, 3], b[None, :, 3]) - jnp.maximum(a[:, None, 1], b[None, :, 1])
    intersection = jnp.maximum(width, 0) * jnp.maximum(height, 0)  # [N, M]
    union = area(a)[:, None] + area(b)[None, :] - intersection
    return jnp.where(union > 0, intersection / jnp.where(union > 0, union, 1), 0)


def clip_to_image(
    boxes: Float[Array, "*n 4"], image_size: Real[Array, "2"]
) -> Float[Array, "*n 4"]:
    """Moves every corner into the image: x into [0, width], y into [0, height].

    Args:
      boxes: pixels.
      image_size: (height, width), pixels.
    """
    height, width = image_size[0], image_size[1]
    return jnp.clip(boxes, 0, jnp.stack([width, height, width, height]).astype(boxes.dtype))


def _centers_and_sizes(boxes: Float[Array, "*n 4"]) -> tuple[Float[Array, "*n"], ...]:
    width = boxes[..., 2] - boxes[..., 0]
    height = boxes[..., 3] - boxes[..., 1]
    return boxes[..., 0] + 0.5 * width, boxes[..., 1] + 0.5 * height, width, height


def encode(
    boxes: Float[Array, "*n 4"], references: Float[Array, "*n 4"], weights: Weights
) -> Float[Array, "*n 4"]:
    """Regression targets that move `references` onto `boxes` (Faster R-CNN parametrization).

    Sizes that are not positive are taken as 1 pixel: such pairs are never regressed to, and this
    keeps both the value and its gradient finite.

    Args:
      boxes: where to go, pixels.
      references: anchors or proposals, pixels.
      weights: factors of (dx, dy, dw, dh).

    Returns:
      Deltas (dx, dy, dw, dh).
    """
    x, y, width, height = _centers_and_sizes(boxes)
    ref_x, ref_y, ref_width, ref_height = _centers_and_sizes(references)
    width, height, ref_width, ref_height = (
        jnp.where(size > 0, size, 1) for size in (width, height, ref_width, ref_height)
    )
    deltas = jnp.stack(
        [
            (x - ref_x) / ref_width,
            (y - ref_y) / ref_height,
            jnp.log(width / ref_width),
            jnp.log(height / ref_height),
        ],
        axis=-1,
    )
    return deltas * jnp.asarray(weights, deltas.dtype)


def decode(
    deltas: Float[Array, "*n 4"], references: Float[Array, "*#n 4"], weights: Weights
) -> Float[Array, "*n 4"]:
    """Inverse of `encode`, with dw and dh clipped above at log(1000 / 16).

    Args:
      deltas: (dx, dy, dw, dh).
      references: anchors or proposals, pixels.
      weights: factors of (dx, dy, dw, dh).

    Returns:
      Boxes, pixels, not clipped to the image.
    """
    x, y, width, height = _centers_and_sizes(references)
    dx, dy, dw, dh = jnp.moveaxis(deltas / jnp.asarray(weights, deltas.dtype), -1, 0)
    center_x = dx * width + x
    center_y = dy * height + y
    new_width = jnp.exp(jnp.minimum(dw, MAX_LOG_RATIO)) * width
    new_height = jnp.exp(jnp.minimum(dh, MAX_LOG_RATIO)) * height
    return jnp.stack(
        [
            center_x - 0.5 * new_width,
            center_y - 0.5 * new_height,
            center_x + 0.5 * new_width,
            center_y + 0.5 * new_height,
        ],
        axis=-1,
    )
