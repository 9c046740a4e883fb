"""Assigning ground-truth boxes to anchors and proposals."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1


class Matches(NamedTuple):
    """The best object of each of N boxes, and whether the box is POSITIVE, NEGATIVE or IGNORED."""

    objects: Int32[Array, "N"]
    labels: Int32[Array, "N"]


def match(
    iou: Float[Array, "N M"], valid: Bool[Array, "M"], high: float, low: float, low_quality: bool
) -> Matches:
    """Matches every box to the object of highest IoU and labels it.

    Positive from `high` on, negative below `low`, ignored between. With `low_quality`, every box
    that ties for the best IoU of some object is positive too, matched to its own best object.
    Without any object all boxes are negative.

    Args:
      iou: of N boxes with M objects.
      valid: objects that exist.
      high: IoU from which a box is positive.
      low: IoU below which a box is negative.
      low_quality: whether an object's best boxes count as positive whatever their IoU.

    Returns:
      Matches; `objects` are 0 where there is none.
    """
    iou = jnp.where(valid[None, :], iou, -1)
    best = iou.max(axis=1)
    # `iou.argmax(axis=1)`, the first of the best, by a minimum, which a CPU finds much sooner.
    numbers = jnp.arange(iou.shape[1], dtype=jnp.int32)
    objects = jnp.where(iou == best[:, None], numbers, len(numbers)).min(axis=1)
    positive = best >= high
    if low_quality:
        best_of_object = iou.max(axis=0)  # [M]
        ties = (iou == best_of_object[None, :]) & valid[None, :]
        positive |= ties.any(axis=1)
    labels = jnp.where(positive, POSITIVE, jnp.where(best < low, NEGATIVE, IGNORED))
    return Matches(objects, labels.astype(jnp.int32))
