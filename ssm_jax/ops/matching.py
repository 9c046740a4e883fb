"""Assigning ground-truth boxes to anchors and proposals."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1


class Matches(NamedTuple):
    """For each of N boxes: `index` int32 [N] of its best object, `label` int32 [N] (1, 0, -1)."""

    index: Array
    label: Array


def match(iou: Array, valid: Array, high: float, low: float, low_quality: bool) -> Matches:
    """Matches every box to the object of highest IoU and labels it.

    Positive from `high` on, negative below `low`, ignored between. With `low_quality`, every box
    that ties for the best IoU of some object is positive too, matched to its own best object.
    Without any object all boxes are negative.

    Args:
      iou: [N, M] float, boxes by objects.
      valid: [M] bool, objects that exist.
      high: IoU from which a box is positive.
      low: IoU below which a box is negative.
      low_quality: whether an object's best boxes count as positive whatever their IoU.

    Returns:
      Matches; `index` is 0 where there is no object.
    """
    iou = jnp.where(valid[None, :], iou, -1)
    best = iou.max(axis=1)
    index = iou.argmax(axis=1).astype(jnp.int32)
    positive = best >= high
    if low_quality:
        best_of_object = iou.max(axis=0)  # [M]
        ties = (iou == best_of_object[None, :]) & valid[None, :]
        positive |= ties.any(axis=1)
    label = jnp.where(positive, POSITIVE, jnp.where(best < low, NEGATIVE, IGNORED))
    return Matches(index, label.astype(jnp.int32))
