"""Objects as COCO has them, polygons or run lengths, drawn as pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ssm_jax.prepare.drafts import Truth
from ssm_jax.scans.options import guarded

_COVERED = 0.5  # share of an object from which it is told that others cover it
_LARGE = 1e9  # that coordinates are below
_FAR = 16  # sides of a picture from its corner that an outline may reach


@dataclasses.dataclass(frozen=True)
class Outline:
    """An object of a picture.

    Attributes:
      value: of its class in masks, from 1.
      shape: polygons, or run lengths, as COCO has them.
    """

    value: int
    shape: Any


def wrong_shape(shape: Any, image: Mapping[str, Any]) -> tuple[str, str] | None:
    """Says what is wrong with the segmentation of an annotation.

    Args:
      shape: as in the file.
      image: entry of the picture, whose height and width count where it has them.

    Returns:
      The kind of finding and a reason; None for a good one.
    """
    if not shape:
        return "no_outline", "no segmentation"
    if isinstance(shape, list):
        good = all(
            isinstance(polygon, list)
            and len(polygon) >= 6
            and len(polygon) % 2 == 0
            and all(type(x) in (int, float) and abs(x) < _LARGE for x in polygon)
            for polygon in shape
        )
        return None if good else ("bad_entry", "a polygon is 3 or more pairs of numbers")
    entry: Mapping[str, Any] = shape if isinstance(shape, dict) else {}
    counts, size = entry.get("counts", 0), entry.get("size")
    whole = isinstance(counts, list) and all(type(n) is int and n >= 0 for n in counts)
    if not (isinstance(counts, str) or whole) or not isinstance(size, list) or len(size) != 2:
        return "bad_entry", "neither polygons nor run lengths with counts and size"
    wanted = [image.get("height", size[0]), image.get("width", size[1])]
    if size != wanted:
        return "mask_size", f"{size[1]}x{size[0]} for {wanted[1]}x{wanted[0]}"
    if whole and sum(counts) != size[0] * size[1]:
        return "bad_entry", f"run lengths of {sum(counts)} pixels for {size[0] * size[1]}"
    return None


def draw(outlines: Sequence[Outline], height: int, width: int) -> Truth:
    """Objects as pixels, smaller ones before larger ones.

    Args:
      outlines: of the picture.
      height: of the picture.
      width: of the picture.

    Raises:
      ScanError: run lengths that are damaged.
    """
    with guarded("has an object that cannot be drawn"):
        masks = [_pixels(outline.shape, height, width) for outline in outlines]
    areas = np.array([np.count_nonzero(mask) for mask in masks], int)
    values = np.zeros((height, width), np.uint8)
    instances = np.zeros((height, width), np.uint16)
    for number in np.argsort(-areas, kind="stable"):
        values[masks[number]] = outlines[number].value
        instances[masks[number]] = number + 1
    seen = np.bincount(instances.ravel(), minlength=len(masks) + 1)[1:]
    kept = np.flatnonzero(seen)
    numbers = np.zeros(len(masks) + 1, np.uint16)
    numbers[kept + 1] = np.arange(1, len(kept) + 1)
    notes = []
    for kind, which in (
        ("no_pixels", seen == 0),
        ("covered", (seen > 0) & (seen < (1 - _COVERED) * areas)),
    ):
        if which.any():
            notes.append((kind, f"{which.sum()} of {len(masks)} objects"))
    return Truth(values, numbers[instances], tuple(notes))


def _pixels(shape: Any, height: int, width: int) -> np.ndarray:
    """bool [height, width] of an object."""
    if isinstance(shape, dict):
        return run_lengths(shape["counts"], height, width)
    corners = np.concatenate([np.asarray(polygon, float) for polygon in shape])
    # Far outside of the picture pycocotools takes memory without end.
    if np.abs(corners).max() > _FAR * max(height, width):
        raise ValueError("an outline far outside of the picture")
    polygons = coco_mask.frPyObjects(shape, height, width)
    return coco_mask.decode(coco_mask.merge(polygons)).astype(bool)


def run_lengths(counts: str | list[int], height: int, width: int) -> np.ndarray:
    """The pixels of COCO's run lengths, which go down the columns, background first.

    pycocotools reads beyond the end of damaged ones, which may be anything in a file.

    Args:
      counts: plain, or as the text that COCO packs them into.
      height: of the picture.
      width: of the picture.

    Returns:
      bool [height, width].

    Raises:
      ValueError: they are not of a picture of this size.
    """
    lengths = np.array(_unpacked(counts) if isinstance(counts, str) else counts, np.int64)
    if (lengths < 0).any() or lengths.sum() != height * width:
        raise ValueError(f"its run lengths are not of {width}x{height} pixels")
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(width, height).T


def _unpacked(text: str) -> list[int]:
    """Run lengths of COCO's text: 5 bits a character, lowest first; differences from the third."""
    lengths: list[int] = []
    value = shift = 0
    for code in text.encode("ascii"):
        bits = code - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value = shift = 0
    return lengths
