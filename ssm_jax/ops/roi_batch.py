"""RoIBatchSelection: a ranked batch of fixed size from the output of an RoI branch."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, PRNGKeyArray

from ssm_jax.ops import boxes as box_ops
from ssm_jax.ops.nms import nms

MIN_AREA = 1e-5  # square pixels; smaller boxes are dropped


class RoIBatch(NamedTuple):
    """The input of module S.

    Attributes:
      rows: (score, tx, ty, tw, th), scores not increasing.
      indices: the proposal behind each row.
      distinct: how many different boxes they are.
    """

    rows: Float[Array, "*B size 5"]
    indices: Int32[Array, "*B size"]
    distinct: Int32[Array, "*B"]


def select(
    key: PRNGKeyArray,
    scores: Float[Array, "N"],
    deltas: Float[Array, "N 4"],
    boxes: Float[Array, "N 4"],
    valid: Bool[Array, "N"],
    size: int = 128,
    nms_threshold: Float[Array, ""] | float = 0.75,
) -> RoIBatch:
    """Drops degenerate and overlapping boxes, ranks the rest, makes exactly `size` rows of them.

    Where fewer than `size` boxes survive they are stretched in order: the first row starts box 0,
    a random choice of the rows between the first and the last start the others, and every box is
    repeated until the next starts (paper, section 3.3: "keeping the batch size fixed and
    maintaining the balance of high- and low-ranking boxes"). With no survivor all rows are zero.

    Args:
      key: of the stretching.
      scores: lesion probabilities.
      deltas: encoded boxes as the branch outputs them.
      boxes: the same boxes decoded and clipped, pixels.
      valid: proposals that exist.
      size: rows.
      nms_threshold: IoU above which the lower-ranked box is dropped.
    """
    valid = valid & (box_ops.area(boxes) > MIN_AREA)
    ranked, kept = nms(boxes, scores, nms_threshold, size, valid)
    count = kept.sum().astype(jnp.int32)
    indices = ranked[_stretch(key, count, size)]
    rows = jnp.concatenate([scores[:, None], deltas], axis=1)[indices]
    return RoIBatch(jnp.where(count > 0, rows, 0), indices, count)


def _stretch(key: PRNGKeyArray, count: Int32[Array, ""], size: int) -> Int32[Array, "{size}"]:
    """The ranked box, of `count`, that stands in each row: not decreasing, from 0."""
    stretched = jnp.cumsum(starting_order(key, size) < count - 1) - 1
    return jnp.where(count >= size, jnp.arange(size), stretched).astype(jnp.int32)


def starting_order(key: PRNGKeyArray, size: int) -> Int32[Array, "{size}"]:
    """Numbers of rows: of n boxes, those with a number below n - 1 start one.

    The first row always does, the last never, and those between take turns in random order.
    """
    inner = jax.random.permutation(key, size - 2)
    return jnp.concatenate([jnp.array([-2]), inner, jnp.array([size])])[:size]
