"""Masks as COCO run-length encodings: `{"size": [height, width], "counts": str}`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Integer, Shaped
from pycocotools import mask as coco_mask

Rle = Mapping[str, Any]


def encode(mask: Shaped[np.ndarray, "..."]) -> dict[str, Any]:
    """Encodes one mask as JSON can hold it.

    Args:
      mask: [H, W] bool or numeric; the object is where it is not zero.

    Raises:
      ValueError: the mask is not two-dimensional.
    """
    if mask.ndim != 2:
        raise ValueError(f"a mask must have the shape [H, W], not {list(mask.shape)}")
    binary = mask if mask.dtype == bool else mask != 0
    encoded = coco_mask.encode(np.asfortranarray(binary).view(np.uint8))
    height, width = mask.shape
    return {"size": [height, width], "counts": encoded["counts"].decode("ascii")}


def encode_instances(instances: Integer[np.ndarray, "H W"], count: int) -> list[dict[str, Any]]:
    """Encodes the objects of a label map.

    Args:
      instances: 0 is background, and k + 1 is object k.
      count: number of objects.

    Returns:
      The encoding of each object, in their order.

    Raises:
      ValueError: the map holds another number of objects than `count` says.
    """
    present = set(np.unique(instances).tolist()) - {0}
    if present != set(range(1, count + 1)):
        raise ValueError(
            f"the label map holds the objects {sorted(present)}, but {count} boxes are given: "
            "object k must have the value k + 1; leave padding out"
        )
    return [encode(instances == k + 1) for k in range(count)]


def decode(rle: Rle) -> Bool[np.ndarray, "H W"]:
    """The mask of an encoding."""
    return coco_mask.decode(dict(rle)).astype(bool)


def area(rle: Rle) -> int:
    """Pixels of the object."""
    return int(coco_mask.area(dict(rle)))


def union(masks: Sequence[Rle]) -> dict[str, Any]:
    """Pixels in at least one of some masks of the same size; at least one mask."""
    return _merged(masks, intersect=False)


def intersection(masks: Sequence[Rle]) -> dict[str, Any]:
    """Pixels in all of some masks of the same size; at least one mask."""
    return _merged(masks, intersect=True)


def _merged(masks: Sequence[Rle], intersect: bool) -> dict[str, Any]:
    merged = coco_mask.merge([dict(mask) for mask in masks], intersect=intersect)
    return {"size": list(merged["size"]), "counts": merged["counts"].decode("ascii")}


def pairwise_iou(a: Sequence[Rle], b: Sequence[Rle]) -> Float64[np.ndarray, "N M"]:
    """Intersection over union of every mask of `a` with every mask of `b`; 0 of two empty masks.

    Args:
      a: N encodings.
      b: M encodings of the same size.

    Raises:
      ValueError: masks of different sizes.
    """
    if not a or not b:
        return np.zeros((len(a), len(b)))
    sizes = {tuple(rle["size"]) for rle in [*a, *b]}
    if len(sizes) > 1:
        raise ValueError(f"masks of different sizes (height, width): {sorted(sizes)}")
    return coco_mask.iou(list(a), list(b), [0] * len(b))
