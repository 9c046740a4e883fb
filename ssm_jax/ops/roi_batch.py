"""RoIBatchSelection: a ranked batch of fixed size from the output of an RoI branch."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ssm_jax.ops import boxes as box_ops
from ssm_jax.ops.nms import nms

MIN_AREA = 1e-5  # square pixels; smaller boxes are dropped


class RoIBatch(NamedTuple):
    """What module S reads.

    `rows` [size, 5] float32 (score, tx, ty, tw, th); `indices` [size] int32, the proposal behind
    each row; `count` int32, distinct boxes among them.
    """

    rows: Array
    indices: Array
    count: Array


def select(
    key: Array,
    scores: Array,
    deltas: Array,
    boxes: Array,
    valid: Array,
    size: int = 128,
    nms_threshold: float = 0.75,
) -> RoIBatch:
    """Drops degenerate and overlapping boxes, ranks the rest, makes exactly `size` rows of them.

    Where fewer than `size` boxes survive they are stretched in order: the first row starts box 0,
    a random choice of the rows between the first and the last start the others, and every box is
    repeated until the next starts (paper, section 3.3: "keeping the batch size fixed and
    maintaining the balance of high- and low-ranking boxes"). With no survivor all rows are zero.

    Args:
      key: PRNG key of the stretching.
      scores: [N] float, lesion probabilities.
      deltas: [N, 4] float, encoded boxes as the branch outputs them.
      boxes: [N, 4] float, the same boxes decoded and clipped, pixels.
      valid: [N] bool, proposals that exist.
      size: rows.
      nms_threshold: IoU above which the lower-ranked box is dropped.

    Returns:
      RoIBatch, scores not increasing.
    """
    valid = valid & (box_ops.area(boxes) > MIN_AREA)
    ranked, kept = nms(boxes, scores, nms_threshold, size, valid)
    count = kept.sum().astype(jnp.int32)
    indices = ranked[_stretch(key, count, size)]
    rows = jnp.concatenate([scores[:, None], deltas], axis=1)[indices]
    return RoIBatch(jnp.where(count > 0, rows, 0), indices, count)


def _stretch(key: Array, count: Array, size: int) -> Array:
    """Which of `count` ranked boxes stands in each row: [size] int32, not decreasing from 0."""
    # Rows 1 .. size - 2 in random order; the first count - 1 of that order start a box.
    inner = jax.random.permutation(key, size - 2)
    starts = jnp.zeros(size, bool).at[0].set(True).at[1:-1].set(inner < count - 1)
    stretched = jnp.cumsum(starts) - 1
    return jnp.where(count >= size, jnp.arange(size), stretched).astype(jnp.int32)
