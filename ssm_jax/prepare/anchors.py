"""Sizes of anchors for a set: how many of its objects have an anchor that meets them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ssm_jax.ops.anchors import cell_anchors
from ssm_jax.ops.resizing import resized_shape

IOU = 0.5  # of an object with an anchor that meets it
_CANDIDATES = 48  # sizes that are tried, evenly spread over the logarithms of those of the boxes


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """Anchor sizes for a set, beside others.

    Attributes:
      stride: pixels between anchors.
      sizes: that were given.
      share: of the boxes with an anchor of `sizes` at an IoU of `IOU` or more.
      suggested: as many sizes, chosen for these boxes.
      suggested_share: of the objects that have such an anchor with the suggested sizes.
    """

    stride: int
    sizes: tuple[float, ...]
    share: float
    suggested: tuple[float, ...]
    suggested_share: float


def resized_boxes(
    boxes: np.ndarray, height: int, width: int, image_size: int, max_size: int
) -> np.ndarray:
    """Boxes [N, 4] (x1, y1, x2, y2) of a picture, in pixels of the picture that the model sees."""
    new_height, new_width = resized_shape(height, width, image_size, max_size)
    ratio = np.array([new_width / width, new_height / height] * 2)
    return np.asarray(boxes, float).reshape(-1, 4) * ratio


def suggest(
    boxes: np.ndarray, sizes: Sequence[float], ratios: Sequence[float], stride: int
) -> Suggestion:
    """Chooses as many sizes as there are, one after another: each meets most of what is left.

    Args:
      boxes: [N, 4] in pixels of the resized pictures, N at least 1.
      sizes: anchor sizes of the model.
      ratios: its anchor ratios, height / width.
      stride: pixels between anchors.
    """
    spread = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)).clip(1)
    tried = np.unique(np.rint(np.geomspace(spread.min(), spread.max(), _CANDIDATES)))
    met = np.stack([best_iou(boxes, [size], ratios, stride) for size in tried])  # [sizes, N]
    best, chosen = np.zeros(len(boxes)), []
    for _ in sizes:
        together = np.maximum(met, best)
        # Of sizes that meet as many, the one that meets them best.
        scores = (together >= IOU).mean(axis=1) + 1e-3 * together.mean(axis=1)
        chosen.append(int(scores.argmax()))
        best = together[chosen[-1]]
    suggested = tuple(sorted({float(tried[k]) for k in chosen}))
    return Suggestion(
        stride=stride,
        sizes=tuple(float(size) for size in sizes),
        share=float((best_iou(boxes, sizes, ratios, stride) >= IOU).mean()),
        suggested=suggested,
        suggested_share=float((best >= IOU).mean()),
    )


def best_iou(
    boxes: np.ndarray, sizes: Sequence[float], ratios: Sequence[float], stride: int
) -> np.ndarray:
    """The IoU of each box [N, 4] with the anchor that meets it best: [N].

    Anchors lie around multiples of the stride. The overlap of two intervals falls with the distance
    of their centers, so that the nearest such place is the best.
    """
    anchors = cell_anchors(sizes, ratios).astype(float)
    centers = (boxes[:, 2:] + boxes[:, :2]) / 2
    places = np.rint(centers / stride).clip(0) * stride  # [N, 2]
    moved = anchors[None] + np.tile(places, 2)[:, None]  # [N, A, 4]
    low = np.maximum(moved[..., :2], boxes[:, None, :2])
    high = np.minimum(moved[..., 2:], boxes[:, None, 2:])
    inside = np.prod((high - low).clip(0), axis=2)
    areas = np.prod(anchors[:, 2:] - anchors[:, :2], axis=1)
    own = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    return (inside / (areas[None] + own[:, None] - inside)).max(axis=1)
