"""Models and slices that the benchmarks run on: random weights, phantom slices."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from ssm_jax.config import VARIANTS, ModelConfig
from ssm_jax.data.phantom.slices import phantom_slice
from ssm_jax.models.ssm import init_variables

NAMES = {"r18_2": "R18*", "r18_3": "R18**", "r34_2": "R34*", "r34_3": "R34**"}
SIZE = 512
SMALL = {  # a model and slices of a size to try the programs out
    "image_size": 64,
    "max_size": 128,
    "anchor_sizes": (8, 16),
    "rpn_pre_nms": 32,
    "rpn_post_nms": 16,
    "rpn_batch": 16,
    "rpn_positives": 8,
    "roi_batch": 16,
    "roi_positives": 4,
    "selection_size": 8,
    "max_detections": 8,
}
_fields: dict[str, Any] = {}


def make_small() -> None:
    """From here on models and slices of this module are small."""
    global SIZE
    SIZE = SMALL["image_size"]
    _fields.update(SMALL)


def model_config(variant: str = "r18_3", **fields: Any) -> ModelConfig:
    """The two-branch model on a backbone of the paper."""
    backbone, blocks = VARIANTS[variant]
    return ModelConfig(backbone=backbone, blocks=blocks, **_fields, **fields)


@functools.lru_cache
def variables(config: ModelConfig) -> dict[str, Any]:
    """Initial weights of a model, on the device."""
    return init_variables(config, jax.random.key(0))


@functools.lru_cache
def slices(count: int) -> np.ndarray:
    """Phantom slices of all classes: [count, 512, 512, 1] uint8."""
    return np.stack([phantom_slice((0, i), i % 3, SIZE)[0] for i in range(count)])[..., None]


def sizes(count: int) -> np.ndarray:
    """The `image_sizes` of these slices: [count, 2] int32."""
    return np.full((count, 2), SIZE, np.int32)
