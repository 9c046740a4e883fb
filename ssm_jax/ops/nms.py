"""Greedy non-maximum suppression with static shapes."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32

from ssm_jax.ops import boxes as box_ops
from ssm_jax.ops import platforms

# Boxes settled at a time. Inside a block the greedy order is found by iterating to a fixed point;
# one block then suppresses all later boxes in a single step. The overlaps of a small block stay in
# a CPU's cache; on an accelerator every turn of a loop waits for the host, so that few are better.
CPU_BLOCK, ACCELERATOR_BLOCK = 128, 1024


def nms(
    boxes: Float[Array, "N 4"],
    scores: Float[Array, "N"],
    iou_threshold: Float[Array, ""] | float,
    max_outputs: int,
    valid: Bool[Array, "N"] | None = None,
) -> tuple[Int32[Array, "{max_outputs}"], Bool[Array, "{max_outputs}"]]:
    """Greedy NMS: boxes by decreasing score, each kept unless a kept one overlaps it too much.

    A box is suppressed by an IoU strictly above the threshold. Zero-area boxes have IoU 0 with
    everything: they neither suppress nor are suppressed. Equal scores rank by index. It stops
    early once `max_outputs` boxes are kept, and equals a plain greedy loop at every threshold.

    Args:
      boxes: pixels.
      scores: by which the boxes are ranked.
      iou_threshold: in [0, 1].
      max_outputs: the best so many survivors are returned.
      valid: boxes that take part; None for all.

    Returns:
      Indices into `boxes` by decreasing score, 0 in unused slots; and the slots in use, which come
      first.
    """
    valid = jnp.ones(boxes.shape[0], bool) if valid is None else valid

    def in_blocks(size):
        return functools.partial(_nms, max_outputs=max_outputs, block_size=size)

    return platforms.by_platform(
        *map(jnp.asarray, (boxes, scores, iou_threshold, valid)),
        cpu=in_blocks(CPU_BLOCK),
        default=in_blocks(ACCELERATOR_BLOCK),
    )


def _nms(
    boxes: Float[Array, "N 4"],
    scores: Float[Array, "N"],
    iou_threshold: Float[Array, ""],
    valid: Bool[Array, "N"],
    max_outputs: int,
    block_size: int,
) -> tuple[Int32[Array, "{max_outputs}"], Bool[Array, "{max_outputs}"]]:
    """`nms` that settles `block_size` boxes at a time."""
    count = boxes.shape[0]
    block_size = min(block_size, count)
    scores = jnp.where(scores == 0, 0, scores)  # `top_k` ranks -0 below 0, and equals by index
    _, order = lax.top_k(jnp.where(valid, scores, -jnp.inf), count)
    blocks = -(-count // block_size)
    padding = blocks * block_size - count
    ranked = jnp.pad(boxes[order], ((0, padding), (0, 0)))
    alive = jnp.pad(valid[order], (0, padding))

    def unfinished(carry):
        block, _, total = carry
        return (block < blocks) & (total < max_outputs)

    def settle_block(carry):
        block, alive, total = carry
        start = block * block_size
        own = lax.dynamic_slice_in_dim(ranked, start, block_size)
        overlaps = (
            box_ops.pairwise_iou(own, ranked) > iou_threshold
        )  # [block_size, blocks * block_size]
        inside = lax.dynamic_slice_in_dim(overlaps, start, block_size, axis=1)
        keep = _greedy_block(
            jnp.triu(inside, 1), lax.dynamic_slice_in_dim(alive, start, block_size)
        )
        later = jnp.arange(blocks * block_size) >= start + block_size
        suppressed = jnp.any(overlaps & keep[:, None], axis=0) & later
        alive = lax.dynamic_update_slice_in_dim(alive & ~suppressed, keep, start, 0)
        return block + 1, alive, total + keep.sum()

    block, alive, _ = lax.while_loop(unfinished, settle_block, (0, alive, 0))
    settled = alive & (jnp.arange(blocks * block_size) < block * block_size)
    # Ranks of the survivors, in order; `size` bounds them, `count` marks the unused slots.
    (ranks,) = jnp.nonzero(settled[:count], size=max_outputs, fill_value=count)
    kept = ranks < count
    return jnp.where(kept, order[jnp.minimum(ranks, count - 1)], 0).astype(jnp.int32), kept


def _greedy_block(suppresses: Bool[Array, "n n"], alive: Bool[Array, "n"]) -> Bool[Array, "n"]:
    """Greedy survivors of one block.

    Iterating keep <- alive and not suppressed by keep settles at least one more box, in rank
    order, with every pass, so that it ends at the greedy answer, usually after few passes.

    Args:
      suppresses: strictly upper triangular: row i would suppress column j.
      alive: not suppressed by earlier blocks.
    """

    def step(carry):
        keep, _ = carry
        updated = alive & ~jnp.any(suppresses & keep[:, None], axis=0)
        return updated, jnp.any(updated != keep)

    first = (alive, jnp.any(alive))
    return jax.lax.while_loop(lambda carry: carry[1], step, first)[0]
