"""Lesion objects of a slice: connected components of the lesion mask, and their boxes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from ssm_jax.class_set import LesionClass
from ssm_jax.classes import AREA_FIELDS, LESION_VALUES, PAPER

Values = tuple[int, ...]  # of masks, that make objects together
PAPER_GROUPS = tuple(AREA_FIELDS)
REFERENCE_SIDE = 512  # pixels; areas are told for a square slice of this side
_EIGHT_NEIGHBORS = np.ones((3, 3), bool)


def lesion_objects(
    mask: np.ndarray,
    min_area: int = 100,
    lesions: Sequence[LesionClass] = PAPER.lesion,
    numbers: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Splits a mask into lesion objects, as the reference implementation does.

    An object is an 8-connected component of the mask values of one lesion class that `exceeds` the
    least area; other values are background. Objects are numbered class by class, within it in the
    order of their first pixel, row by row. Where objects have numbers of their own, an object is
    what has one number, whether it touches another or is in several parts; they come in the order
    of their numbers.

    Args:
      mask: uint8 [H, W].
      min_area: area that an object has to exceed, in pixels of a slice of 512 x 512.
      lesions: the classes; default the paper's, one for all lesions.
      numbers: integer [H, W], the number of the object of each pixel, 0 outside; None: components.

    Returns:
      instances: uint8 [H, W], 0 outside objects, k + 1 on object k.
      boxes: float32 [n, 4], (min x, min y, max x + 1, max y + 1) in pixels.
      labels: int32 [n], lesion classes from 1.

    Raises:
      ValueError: more than 255 objects, which the label map can not hold.
    """
    instances = np.zeros(mask.shape, np.uint8)
    labels: list[int] = []
    for label, lesion in enumerate(lesions, 1):
        components, areas = _components(mask, lesion.values, numbers)
        kept = np.flatnonzero(exceeds(areas, min_area, *mask.shape)) + 1
        if len(labels) + len(kept) > 255:
            raise ValueError(
                f"{len(labels) + len(kept)} objects in one slice; the label map holds 255 at most"
            )
        names = np.zeros(len(areas) + 1, np.uint8)
        names[kept] = np.arange(1, len(kept) + 1) + len(labels)
        instances = np.maximum(instances, names[components])  # classes do not overlap
        labels += [label] * len(kept)
    return instances, object_boxes(instances, len(labels)), np.array(labels, np.int32)


def object_boxes(instances: np.ndarray, count: int) -> np.ndarray:
    """Boxes around objects, each of which has pixels.

    Args:
      instances: uint8 [H, W], 0 outside objects, k + 1 on object k.
      count: number of objects n.

    Returns:
      float32 [n, 4], (min x, min y, max x + 1, max y + 1) in pixels.
    """
    slices = ndimage.find_objects(instances, max_label=count)
    boxes = [(s[1].start, s[0].start, s[1].stop, s[0].stop) for s in slices]
    return np.array(boxes, np.float32).reshape(-1, 4)


def exceeds(areas: np.ndarray, min_area: int, height: int, width: int) -> np.ndarray:
    """Whether areas are above the least one, whatever the size of the slice.

    Args:
      areas: integer [n], pixels of the slice.
      min_area: pixels of a slice of 512 x 512, the paper's size; it is scaled to this slice.
      height: of the slice in pixels.
      width: of the slice in pixels.

    Returns:
      bool [n].
    """
    return np.asarray(areas, np.int64) * REFERENCE_SIDE**2 > min_area * height * width


def lesion_pixels(mask: np.ndarray, lesions: Sequence[LesionClass] = PAPER.lesion) -> np.ndarray:
    """All pixels of lesions, however small: 1 there and 0 elsewhere, uint8 [H, W].

    Args:
      mask: uint8 [H, W].
      lesions: the classes, see `lesion_objects`.
    """
    values = [value for lesion in lesions for value in lesion.values]
    return np.isin(mask, values).astype(np.uint8)


def component_areas(
    mask: np.ndarray, values: Sequence[int] = LESION_VALUES, numbers: np.ndarray | None = None
) -> np.ndarray:
    """Areas in pixels of all objects of some mask values, whatever their size.

    Args:
      mask: integer [H, W].
      values: mask values that make components together; default the paper's of all lesions.
      numbers: see `lesion_objects`.

    Returns:
      int32 [n].
    """
    return _components(mask, values, numbers)[1]


def area_field(values: Values) -> str:
    """The field of a prepared slice that holds the areas of the components of mask values."""
    return AREA_FIELDS.get(values) or "areas_" + "_".join(map(str, values))


def area_fields(
    mask: np.ndarray, groups: Sequence[Values] = PAPER_GROUPS, numbers: np.ndarray | None = None
) -> dict[str, list[int]]:
    """Areas in pixels of all objects of a mask [H, W]: {`area_field`: areas} of every group."""
    return {
        area_field(values): component_areas(mask, values, numbers).tolist() for values in groups
    }


def _components(
    mask: np.ndarray, values: Sequence[int], numbers: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Component numbers from 1 [H, W], and their areas [n]."""
    inside = np.isin(mask, values)
    if numbers is None:
        components, count = ndimage.label(inside, structure=_EIGHT_NEIGHBORS)
        areas = np.bincount(components.ravel(), minlength=count + 1)[1:]
        return components, areas.astype(np.int32)
    own = np.where(inside, numbers, 0)
    areas = np.bincount(own.ravel())
    areas[0] = 0
    present = np.flatnonzero(areas)
    places = np.zeros(len(areas), np.int32)
    places[present] = np.arange(1, len(present) + 1)
    return places[own], areas[present].astype(np.int32)
