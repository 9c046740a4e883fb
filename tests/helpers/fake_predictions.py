"""Stand-ins for what the predictor returns, for the tests of evaluation and pictures."""

import types

import numpy as np

from ssm_jax.classes import unnamed
from ssm_jax.ops import rle


def blob(height, width, center, radii):
    """An ellipse: bool [height, width]; center and radii are (y, x)."""
    y, x = np.mgrid[:height, :width]
    return ((y - center[0]) / radii[0]) ** 2 + ((x - center[1]) / radii[1]) ** 2 <= 1


def box_of(mask):
    """XYXY of a mask that is not empty, the far corner exclusive."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def label_map(masks, height, width):
    """uint8 [height, width]: 0 background, k + 1 where masks[k]; later masks win."""
    instances = np.zeros((height, width), np.uint8)
    for k, mask in enumerate(masks):
        instances[mask] = k + 1
    return instances


def prediction(
    masks, scores, height, width, labels=None, logits=(0.0, 0.0, 0.0), boxes=None, classes=None
):
    """The attributes of `ssm_jax.predictor.Prediction`; boxes default to those of the masks."""
    logits = np.asarray(logits, np.float32)
    probabilities = np.exp(logits) / np.exp(logits).sum()
    boxes = [box_of(mask) for mask in masks] if boxes is None else boxes
    return types.SimpleNamespace(
        height=height,
        width=width,
        class_logits=logits,
        class_probabilities=probabilities,
        predicted_class=int(logits.argmax()) if len(logits) else None,
        boxes=np.asarray(boxes, np.float32).reshape(-1, 4),
        scores=np.asarray(scores, np.float32),
        labels=np.ones(len(scores), np.int32) if labels is None else np.asarray(labels),
        masks=[rle.encode(mask) for mask in masks],
        classes=classes or unnamed(len(logits), 1),
    )
