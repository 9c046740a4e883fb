"""Anchors against values worked out by hand and against the recorded grid."""

import numpy as np
import pytest

from ssm_jax.config import ModelConfig
from ssm_jax.ops import anchors as anchor_ops
from tests.helpers.shared import REFERENCE, needs_reference


def test_cell_anchors_by_hand():
    # h = s sqrt(r), w = s / sqrt(r), halved, rounded half to even: 1.5 -> 2, 2.5 -> 2.
    ours = anchor_ops.cell_anchors((2, 3, 5, 32), (1, 0.25))
    expected = [
        [-1, -1, 1, 1],
        [-2, -2, 2, 2],
        [-2, -2, 2, 2],
        [-16, -16, 16, 16],
        [-2, -0.0, 2, 0],  # 4 wide, 1 high: 0.5 -> 0
        [-3, -1, 3, 1],  # 6 wide, 1.5 high: 0.75 -> 1
        [-5, -1, 5, 1],  # 10 wide, 2.5 high: 1.25 -> 1
        [-32, -8, 32, 8],
    ]
    assert isinstance(ours, np.ndarray)
    np.testing.assert_array_equal(ours, expected)


def test_wide_and_tall_cell_anchors():
    # sqrt(0.1) = 0.316: 32 / 0.316 / 2 = 50.6 and 32 * 0.316 / 2 = 5.06; sqrt(2) * 32 / 2 = 22.6.
    wide, tall = anchor_ops.cell_anchors((32,), (0.1, 2))
    np.testing.assert_array_equal(wide, [-51, -5, 51, 5])
    np.testing.assert_array_equal(tall, [-11, -23, 11, 23])


@needs_reference
def test_cell_anchors_are_the_recorded():
    config = ModelConfig()
    with np.load(REFERENCE / "ops.npz") as file:
        recorded = file["cell_anchors"]
    ours = anchor_ops.cell_anchors(config.anchor_sizes, config.anchor_ratios)
    assert ours.shape == (30, 4)
    np.testing.assert_array_equal(ours, recorded)


@pytest.mark.parametrize(("height", "width", "stride"), [(2, 3, 16), (5, 1, 8), (1, 1, 8)])
def test_grid_runs_over_rows_then_columns_then_anchors(height, width, stride):
    cells = np.array([[-1, -2, 1, 2], [-4, -3, 4, 3], [-5, 0, 5, 0]], np.float32)
    expected = [
        [x * stride + x1, y * stride + y1, x * stride + x2, y * stride + y2]
        for y in range(height)
        for x in range(width)
        for x1, y1, x2, y2 in cells
    ]
    ours = np.asarray(anchor_ops.grid_anchors(cells, (height, width), stride))
    assert ours.shape == (height * width * 3, 4)
    np.testing.assert_array_equal(ours, expected)


@needs_reference
def test_grid_is_the_recorded():
    config = ModelConfig()
    cells = anchor_ops.cell_anchors(config.anchor_sizes, config.anchor_ratios)
    ours = np.asarray(anchor_ops.grid_anchors(cells, (32, 32), 16))
    assert ours.shape == (32 * 32 * 30, 4)
    with np.load(REFERENCE / "ops.npz") as file:
        np.testing.assert_array_equal(ours[:100], file["anchors_32x32_stride16_first100"])
        np.testing.assert_array_equal(
            ours.astype(np.float64).sum(0), file["anchors_32x32_stride16_sum"]
        )
