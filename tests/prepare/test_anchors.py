"""Anchor sizes for a set, against every anchor of the picture."""

import pathlib
import re

import jax.numpy as jnp
import numpy as np
import pytest

from ssm_jax.config import ModelConfig
from ssm_jax.ops.anchors import cell_anchors, grid_anchors
from ssm_jax.ops.boxes import pairwise_iou
from ssm_jax.prepare import anchors

MODEL = ModelConfig()


def boxes_of(seed, count, low, high, side=256):
    """Boxes with sides from `low` to `high` inside a picture of `side` pixels."""
    rng = np.random.default_rng(seed)
    sides = rng.uniform(low, high, (count, 2))
    start = rng.uniform(0, 1, (count, 2)) * (side - 24 - sides)
    return np.concatenate([start, start + sides], axis=1)


@pytest.mark.parametrize("stride", [8, 16])
def test_the_best_anchor_is_that_of_all_anchors(stride):
    boxes = boxes_of(0, 60, 4, 60)
    cell = cell_anchors(MODEL.anchor_sizes, MODEL.anchor_ratios)
    grid = grid_anchors(cell, (256 // stride, 256 // stride), stride)
    expected = np.asarray(pairwise_iou(jnp.asarray(boxes, jnp.float32), jnp.asarray(grid))).max(
        axis=1
    )
    found = anchors.best_iou(boxes, MODEL.anchor_sizes, MODEL.anchor_ratios, stride)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_sizes_for_large_objects():
    boxes = boxes_of(1, 100, 60, 120)
    found = anchors.suggest(boxes, MODEL.anchor_sizes, MODEL.anchor_ratios, 16)
    assert found.stride == 16 and found.share == 0 and found.suggested_share == 1
    assert all(60 <= size <= 120 for size in found.suggested)
    own = anchors.best_iou(boxes, found.suggested, MODEL.anchor_ratios, 16)
    assert (own >= 0.5).mean() == found.suggested_share


def nodules(count=400):
    """Boxes of 16 to 80 pixels in pictures of 1024 pixels, up to twice as high as wide."""
    rng = np.random.default_rng(0)
    side = np.exp(rng.uniform(np.log(16), np.log(80), count))
    ratio = np.exp(rng.uniform(-0.3, 0.3, count))
    sides = np.stack([side * ratio, side / ratio], axis=1)
    start = rng.uniform(0, 1, (count, 2)) * (1024 - sides)
    return np.concatenate([start, start + sides], axis=1)


def test_the_figures_of_the_documentation():
    text = (pathlib.Path(__file__).parents[2] / "docs/your_data.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| (\d+) \| (\d) \| (\d+%) \| (\d+%) with ([\d, ]+) \|$", text, re.MULTILINE
    )
    assert len(rows) == 3
    for size, blocks, share, suggested_share, suggested in rows:
        boxes = anchors.resized_boxes(nodules(), 1024, 1024, int(size), 2048)
        stride = ModelConfig(blocks=int(blocks)).stride
        found = anchors.suggest(boxes, MODEL.anchor_sizes, MODEL.anchor_ratios, stride)
        assert f"{found.share:.0%}" == share
        assert f"{found.suggested_share:.0%}" == suggested_share
        assert ", ".join(f"{size:g}" for size in found.suggested) == suggested


def test_boxes_follow_the_resizing_of_the_model():
    boxes = anchors.resized_boxes(np.array([[10, 20, 30, 60]]), 200, 400, 100, 1024)
    np.testing.assert_array_equal(boxes, [[5, 10, 15, 30]])
    assert anchors.resized_boxes(np.zeros((0, 4)), 200, 400, 100, 1024).shape == (0, 4)
