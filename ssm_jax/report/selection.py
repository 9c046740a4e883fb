"""Which slices of a test set are worth looking at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def choose(
    values: Sequence[float], count: int, seed: int, ranked: Sequence[bool] | None = None
) -> dict[str, list[int]]:
    """The best, the worst, and some slices drawn at random; none is in two groups.

    Args:
      values: N figures, larger is better; of equals the first comes first.
      count: slices a group; fewer where there are not enough for three groups.
      seed: of the drawing.
      ranked: which slices can be best or worst; None: all. The others can only be drawn.

    Returns:
      Group -> indices: "best" from the best down, "worst" from the worst up, "random" in order.
    """
    figures = np.asarray(values, np.float64)
    candidates = np.arange(len(figures)) if ranked is None else np.flatnonzero(ranked)
    ends = min(count, -(-len(candidates) // 3))
    falling = candidates[np.argsort(-figures[candidates], kind="stable")].tolist()
    best = falling[:ends]
    rising = candidates[np.argsort(figures[candidates], kind="stable")].tolist()
    worst = [index for index in rising if index not in best][:ends]
    rest = [index for index in range(len(figures)) if index not in {*best, *worst}]
    drawn = np.random.default_rng(seed).choice(rest, min(count, len(rest)), replace=False)
    return {"best": best, "worst": worst, "random": sorted(int(index) for index in drawn)}
