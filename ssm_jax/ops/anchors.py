"""Anchors: the fixed boxes that the RPN scores and refines."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32


def cell_anchors(
    sizes: Sequence[float], aspect_ratios: Sequence[float]
) -> Float32[np.ndarray, "A 4"]:
    """Anchors of one cell, centered on the origin.

    For ratio r (height / width) and size s: height s * sqrt(r), width s / sqrt(r); coordinates are
    rounded half to even, as the reference implementation does.

    Args:
      sizes: square roots of the anchors' areas, pixels; the inner index.
      aspect_ratios: height / width; the outer index.

    Returns:
      One anchor for each ratio and size, pixels.
    """
    ratios = np.asarray(aspect_ratios, np.float32)[:, None]
    scales = np.asarray(sizes, np.float32)[None, :]
    root = np.sqrt(ratios)
    heights = (root * scales).reshape(-1)
    widths = (1 / root * scales).reshape(-1)
    corners = np.stack([-widths, -heights, widths, heights], axis=1) / 2
    return np.round(corners).astype(np.float32)


def grid_anchors(
    cell: Float32[np.ndarray, "A 4"], feature_size: tuple[int, int], stride: int
) -> Float32[np.ndarray, "N 4"]:
    """Anchors of a whole feature map: `cell` moved to (x * stride, y * stride), no half cell.

    Args:
      cell: from `cell_anchors`.
      feature_size: (height, width) of the feature map, cells.
      stride: pixels per cell.

    Returns:
      height * width * A anchors, pixels, in the order rows, columns, anchors of a cell.
    """
    y, x = np.meshgrid(*(np.arange(n) * stride for n in feature_size), indexing="ij")
    shifts = np.stack([x, y, x, y], axis=-1).reshape(-1, 1, 4)  # [height * width, 1, 4]
    return (shifts + cell[None]).reshape(-1, 4).astype(np.float32)
