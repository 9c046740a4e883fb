"""Balanced random sampling of labeled anchors and proposals."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int32, PRNGKeyArray

from ssm_jax.ops.matching import NEGATIVE, POSITIVE


class Sample(NamedTuple):
    """Drawn candidates, the positives first; slots that are not valid hold none."""

    indices: Int32[Array, "size"]
    positive: Bool[Array, "size"]
    valid: Bool[Array, "size"]


def sample(key: PRNGKeyArray, labels: Int32[Array, "N"], size: int, max_positive: int) -> Sample:
    """Draws positives and negatives uniformly without replacement.

    min(#positive, max_positive) positives fill the first slots, then negatives up to `size` in
    all; slots that nothing is left for are invalid. Ignored entries are never drawn.

    Args:
      key: decides what is drawn.
      labels: POSITIVE, NEGATIVE or IGNORED, of `matching`.
      size: slots.
      max_positive: upper bound of the positives.

    Returns:
      Sample; indices are 0 in invalid slots.
    """
    count = labels.shape[0]
    # 30 random bits order the candidates, read as a positive number, since a CPU finds the largest
    # floats much sooner than integers; the sum keeps them normal. -1 puts all others behind them.
    bits = (jax.random.bits(key, (count,), jnp.uint32) >> 2) + jnp.uint32(0x00800000)
    priority = lax.bitcast_convert_type(bits, jnp.float32)
    positive_slots, negative_slots = min(max(max_positive, 1), count), min(size, count)
    _, positives = lax.top_k(jnp.where(labels == POSITIVE, priority, -1), positive_slots)
    _, negatives = lax.top_k(jnp.where(labels == NEGATIVE, priority, -1), negative_slots)
    num_positive = jnp.minimum(jnp.sum(labels == POSITIVE), min(max_positive, size))
    num_negative = jnp.minimum(jnp.sum(labels == NEGATIVE), size - num_positive)

    slot = jnp.arange(size)
    positive = slot < num_positive
    valid = slot < num_positive + num_negative
    from_positives = positives[jnp.minimum(slot, positive_slots - 1)]
    from_negatives = negatives[jnp.clip(slot - num_positive, 0, negative_slots - 1)]
    indices = jnp.where(positive, from_positives, from_negatives)
    return Sample(jnp.where(valid, indices, 0).astype(jnp.int32), positive, valid)
