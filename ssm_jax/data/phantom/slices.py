"""Chest-CT-like slices made from a seed: the data used when no other is given.

They look like axial slices in the lung window (center -600 HU, width 1500 HU) and come with masks
in the encoding of the public sets. They are drawn, not measured: a model trained on them knows
nothing about patients.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ssm_jax.classes import COVID, CP, NORMAL, PAPER
from ssm_jax.data.phantom import fields
from ssm_jax.data.phantom.anatomy import BLOOD, make_anatomy
from ssm_jax.data.phantom.lesions import make_lesions
from ssm_jax.data.phantom.vessels import draw_vessels

GENERATOR_VERSION = 3  # part of the cache key: a change of the pictures needs another number
WINDOW_CENTER, WINDOW_WIDTH = -600.0, 1500.0
MIN_SIZE = 32  # pixels; below it nothing of a chest is left
LESION_FREE_SHARE = 0.07  # of a segmentation set
CP_SHARE = 0.35

_PARTS = {"seg": 1, "cls": 2}
_SPLITS = {"train": 1, "test": 2}
_ANATOMY, _LESIONS, _NOISE = 0, 1, 2


def phantom_slice(seed: Sequence[int], label: int, size: int = 512):
    """One slice: a pure function of its arguments.

    Body, vessels and noise follow from the seed alone: the same seed with another label is the
    same patient on the same scanner, so that nothing but lesions tells the classes apart.

    Args:
      seed: non-negative integers.
      label: 0 normal, 1 common pneumonia, 2 COVID-19.
      size: pixels of either side.

    Returns:
      image: uint8 [size, size], the lung window in 8 bits.
      mask: uint8 [size, size], 0 background, 1 lung, 2 ground glass, 3 consolidation.

    Raises:
      ValueError: a label other than 0, 1, 2, or a size below 32.
    """
    if label not in (NORMAL, CP, COVID):
        raise ValueError(f"label {label} is no class; the classes are {PAPER.numbered_classes()}")
    if size < MIN_SIZE:
        raise ValueError(f"a phantom of {size} pixels is too small; the least is {MIN_SIZE}")
    rng = np.random.default_rng([*seed, _ANATOMY])
    anatomy = make_anatomy(rng, size)
    vessels = draw_vessels(rng, anatomy.hila, anatomy.lung_shape, size)
    image, lung = anatomy.image, anatomy.lung
    mask = (lung > 0.5).astype(np.uint8)

    vessel_alpha = vessels * lung
    if label == NORMAL:
        fields.paint(image, vessel_alpha, np.float32(BLOOD - 20))
    else:
        lesions = make_lesions(np.random.default_rng([*seed, _LESIONS, label]), anatomy, label)
        image += np.minimum(lesions.ground_glass, np.float32(700)) * lung
        fields.paint(image, vessel_alpha, np.float32(BLOOD - 20))
        fields.paint(image, lesions.consolidation * lung, np.maximum(image, np.float32(20)))
        mask = np.maximum(mask, lesions.labels)

    image += _scanner_noise(np.random.default_rng([*seed, _NOISE]), size)
    low = WINDOW_CENTER - WINDOW_WIDTH / 2
    shade = (image - np.float32(low)) * np.float32(255 / WINDOW_WIDTH)
    return np.clip(np.rint(shade), 0, 255).astype(np.uint8), mask


def _scanner_noise(rng, size):
    """Noise with a short correlation, as reconstruction leaves it: float32 [size, size], HU."""
    level = np.float32(rng.uniform(14, 38))
    white = rng.standard_normal((size + 1, size + 1), np.float32)
    return (white[:-1, :-1] + white[1:, 1:] + white[:-1, 1:]) * (level / np.float32(np.sqrt(3)))


def slice_label(seed: int, part: str, split: str, index: int) -> int:
    """Class of slice `index` of a set: thirds in "cls"; in "seg" COVID-19, pneumonia, few normal.

    Args:
      seed: seed of the set.
      part: "seg" or "cls".
      split: "train" or "test".
      index: number of the slice.
    """
    if part == "cls":
        return index % 3
    draw = np.random.default_rng([seed, _PARTS[part], _SPLITS[split], index, 9]).random()
    if draw < LESION_FREE_SHARE:
        return NORMAL
    return CP if draw < LESION_FREE_SHARE + CP_SHARE else COVID


def set_slice(seed: int, part: str, split: str, index: int, size: int):
    """Slice `index` of a phantom set, as (image, mask, label); see `phantom_slice`.

    Parts and splits never share a seed, so that the test slices are other patients.
    """
    label = slice_label(seed, part, split, index)
    image, mask = phantom_slice((seed, _PARTS[part], _SPLITS[split], index), label, size)
    return image, mask, label
