"""Masks as COCO run-length encodings: `{"size": [height, width], "counts": str}`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

Rle = Mapping[str, Any]


def encode(mask: np.ndarray) -> dict[str, Any]:
    """Encodes one mask.

    Args:
      mask: [H, W] bool or numeric; the object is where it is not zero.

    Returns:
      {"size": [H, W] as Python ints, "counts": str}: ready for JSON.

    Raises:
      ValueError: the mask is not two-dimensional.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise ValueError(f"a mask must have the shape [H, W], not {list(mask.shape)}")
    encoded = coco_mask.encode(np.asfortranarray(mask != 0, dtype=np.uint8))
    height, width = mask.shape
    return {"size": [height, width], "counts": encoded["counts"].decode("ascii")}


def encode_instances(instances: np.ndarray, count: int) -> list[dict[str, Any]]:
    """Encodes the objects of a label map.

    Args:
      instances: integers [H, W], 0 background, k + 1 = object k.
      count: number of objects M.

    Returns:
      M encodings; object k is where `instances == k + 1`.

    Raises:
      ValueError: the map holds another number of objects than `count` says.
    """
    instances = np.asarray(instances)
    present = set(np.unique(instances).tolist()) - {0}
    if present != set(range(1, count + 1)):
        raise ValueError(
            f"the label map holds the objects {sorted(present)}, but {count} boxes are given: "
            "object k must have the value k + 1; leave padding out"
        )
    return [encode(instances == k + 1) for k in range(count)]


def decode(rle: Rle) -> np.ndarray:
    """The mask of an encoding: bool [H, W]."""
    return coco_mask.decode(dict(rle)).astype(bool)


def area(rle: Rle) -> int:
    """Pixels of the object."""
    return int(coco_mask.area(dict(rle)))


def pairwise_iou(a: Sequence[Rle], b: Sequence[Rle]) -> np.ndarray:
    """Intersection over union of every pair of masks.

    Args:
      a: N encodings.
      b: M encodings of the same size.

    Returns:
      float64 [N, M]; 0 where both masks are empty.

    Raises:
      ValueError: masks of different sizes.
    """
    if not a or not b:
        return np.zeros((len(a), len(b)))
    sizes = {tuple(rle["size"]) for rle in [*a, *b]}
    if len(sizes) > 1:
        raise ValueError(f"masks of different sizes (height, width): {sorted(sizes)}")
    return coco_mask.iou(list(a), list(b), [0] * len(b))
