"""Greedy non-maximum suppression with static shapes."""

import jax
import jax.numpy as jnp
from jax import Array, lax

from ssm_jax.ops import boxes as box_ops

# Boxes settled at a time. Inside a block the greedy order is found by iterating to a fixed point;
# one block then suppresses all later boxes in a single step.
BLOCK = 128


def nms(
    boxes: Array,
    scores: Array,
    iou_threshold: Array | float,
    max_outputs: int,
    valid: Array | None = None,
) -> tuple[Array, Array]:
    """Greedy NMS: boxes by decreasing score, each kept unless a kept one overlaps it too much.

    A box is suppressed by an IoU strictly above the threshold. Zero-area boxes have IoU 0 with
    everything: they neither suppress nor are suppressed. Equal scores rank by index. It stops
    early once `max_outputs` boxes are kept, and equals a plain greedy loop at every threshold.

    Args:
      boxes: [N, 4] float, pixels.
      scores: [N] float.
      iou_threshold: scalar in [0, 1]; may be traced.
      max_outputs: the best so many survivors are returned.
      valid: [N] bool, boxes that take part; None for all.

    Returns:
      indices: [max_outputs] int32 into `boxes`, decreasing score; 0 in unused slots.
      kept: [max_outputs] bool, slots in use; these come first.
    """
    count = boxes.shape[0]
    boxes, scores = jnp.asarray(boxes), jnp.asarray(scores)
    valid = jnp.ones(count, bool) if valid is None else jnp.asarray(valid)
    order = jnp.argsort(jnp.where(valid, scores, -jnp.inf), descending=True, stable=True)
    blocks = -(-count // BLOCK)
    padding = blocks * BLOCK - count
    ranked = jnp.pad(boxes[order], ((0, padding), (0, 0)))
    alive = jnp.pad(valid[order], (0, padding))

    def unfinished(carry):
        block, _, total = carry
        return (block < blocks) & (total < max_outputs)

    def settle_block(carry):
        block, alive, total = carry
        start = block * BLOCK
        own = lax.dynamic_slice_in_dim(ranked, start, BLOCK)
        overlaps = box_ops.pairwise_iou(own, ranked) > iou_threshold  # [BLOCK, blocks * BLOCK]
        inside = lax.dynamic_slice_in_dim(overlaps, start, BLOCK, axis=1)
        keep = _greedy_block(jnp.triu(inside, 1), lax.dynamic_slice_in_dim(alive, start, BLOCK))
        later = jnp.arange(blocks * BLOCK) >= start + BLOCK
        suppressed = jnp.any(overlaps & keep[:, None], axis=0) & later
        alive = lax.dynamic_update_slice_in_dim(alive & ~suppressed, keep, start, 0)
        return block + 1, alive, total + keep.sum()

    block, alive, _ = lax.while_loop(unfinished, settle_block, (0, alive, 0))
    settled = alive & (jnp.arange(blocks * BLOCK) < block * BLOCK)
    # Ranks of the survivors, in order; `size` bounds them, `count` marks the unused slots.
    (ranks,) = jnp.nonzero(settled[:count], size=max_outputs, fill_value=count)
    kept = ranks < count
    return jnp.where(kept, order[jnp.minimum(ranks, count - 1)], 0).astype(jnp.int32), kept


def _greedy_block(suppresses: Array, alive: Array) -> Array:
    """Greedy survivors of one block.

    Iterating keep <- alive and not suppressed by keep settles at least one more box, in rank
    order, with every pass, so that it ends at the greedy answer, usually after few passes.

    Args:
      suppresses: [B, B] bool, strictly upper triangular: row i would suppress column j.
      alive: [B] bool, not suppressed by earlier blocks.

    Returns:
      [B] bool.
    """

    def step(carry):
        keep, _ = carry
        updated = alive & ~jnp.any(suppresses & keep[:, None], axis=0)
        return updated, jnp.any(updated != keep)

    first = (alive, jnp.any(alive))
    return jax.lax.while_loop(lambda carry: carry[1], step, first)[0]
