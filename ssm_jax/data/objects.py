"""Lesion objects of a slice: connected components of the lesion mask, and their boxes."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

FIRST_LESION_VALUE = 2  # mask values: 0 background, 1 lung, 2 ground glass, 3 consolidation
_EIGHT_NEIGHBORS = np.ones((3, 3), bool)


def lesion_objects(mask: np.ndarray, min_area: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Splits a mask into lesion objects, as the reference implementation does.

    Ground glass and consolidation are merged; an object is an 8-connected component of more than
    `min_area` pixels. Objects are numbered in the order of their first pixel, row by row.

    Args:
      mask: uint8 [H, W], values 0 to 3.
      min_area: area in pixels that an object has to exceed.

    Returns:
      instances: uint8 [H, W], 0 outside objects, k + 1 on object k.
      boxes: float32 [n, 4], (min x, min y, max x + 1, max y + 1) in pixels.

    Raises:
      ValueError: more than 255 objects, which the label map can not hold.
    """
    components, count = ndimage.label(mask >= FIRST_LESION_VALUE, structure=_EIGHT_NEIGHBORS)
    areas = np.bincount(components.ravel(), minlength=count + 1)
    kept = np.flatnonzero(areas[1:] > min_area) + 1
    if len(kept) > 255:
        raise ValueError(f"{len(kept)} objects in one slice; the label map holds 255 at most")
    names = np.zeros(count + 1, np.uint8)
    names[kept] = np.arange(1, len(kept) + 1)
    instances = names[components]
    slices = ndimage.find_objects(instances, max_label=len(kept))
    boxes = [(s[1].start, s[0].start, s[1].stop, s[0].stop) for s in slices]
    return instances, np.array(boxes, np.float32).reshape(-1, 4)


def component_areas(mask: np.ndarray) -> np.ndarray:
    """Areas in pixels of all lesion components of a mask [H, W], whatever their size: int32 [n]."""
    components, count = ndimage.label(mask >= FIRST_LESION_VALUE, structure=_EIGHT_NEIGHBORS)
    return np.bincount(components.ravel(), minlength=count + 1)[1:].astype(np.int32)
