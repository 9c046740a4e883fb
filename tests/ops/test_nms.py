"""Non-maximum suppression against a greedy loop and the recorded lists."""

import functools

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from ssm_jax.ops import nms as nms_ops
from tests.helpers import ops_oracles as oracles
from tests.helpers.shared import REFERENCE, needs_reference

nms = jax.jit(nms_ops.nms, static_argnums=3)


def check(boxes, scores, threshold, max_outputs, valid=None):
    """Compares one call with the loop; returns the number of boxes that the loop keeps."""
    valid = np.ones(len(boxes), bool) if valid is None else valid  # one compilation for both
    indices, kept = nms(boxes, scores, threshold, max_outputs, valid)
    assert indices.shape == kept.shape == (max_outputs,)
    assert indices.dtype == np.int32
    assert kept.dtype == bool
    expected = oracles.nms(boxes, scores, threshold, valid)
    count = min(len(expected), max_outputs)
    np.testing.assert_array_equal(kept, np.arange(max_outputs) < count)
    np.testing.assert_array_equal(indices[:count], expected[:count])
    np.testing.assert_array_equal(indices[count:], 0)
    return len(expected)


def of_few(boxes, scores, threshold, valid=True):
    """NMS of a few boxes, padded with invalid ones to 20: the first slots, as many as boxes."""
    count = len(boxes)
    padding = 20 - count
    mask = np.pad(np.broadcast_to(valid, count), (0, padding))
    padded = np.pad(boxes, ((0, padding), (0, 0))), np.pad(scores, (0, padding))
    indices, kept = nms(*padded, threshold, 20, mask)
    assert not kept[count:].any()
    return indices[:count], kept[:count]


@functools.cache
def crowded_boxes(seed, count):
    """Random boxes [count, 4] in clusters, so that every threshold suppresses some; scores."""
    rng = np.random.default_rng(seed)
    clusters = rng.integers(0, count // 6 + 1, count)
    centers = rng.uniform(20, 80, (count // 6 + 1, 2))[clusters]
    sides = rng.uniform(12, 20, (count // 6 + 1, 2))[clusters]
    boxes = np.concatenate([centers - sides / 2, centers + sides / 2], axis=1)
    boxes += rng.normal(0, 1, (count, 4)) * rng.exponential(1, (count, 1))  # some close, some far
    return boxes.astype(np.float32), rng.normal(size=count).astype(np.float32)


@pytest.mark.parametrize("block_size", [7, nms_ops.CPU_BLOCK, nms_ops.ACCELERATOR_BLOCK])
def test_size_of_blocks_changes_nothing(block_size):
    boxes, scores = crowded_boxes(2, 300)
    valid = np.random.default_rng(2).random(300) < 0.9
    run = jax.jit(nms_ops._nms, static_argnums=(4, 5))
    for threshold, most in ((0.3, 300), (0.7, 20)):
        indices, kept = run(boxes, scores, threshold, valid, most, block_size)
        expected = oracles.nms(boxes, scores, threshold, valid)[:most]
        np.testing.assert_array_equal(kept, np.arange(most) < len(expected))
        np.testing.assert_array_equal(indices[: len(expected)], expected)


@pytest.mark.parametrize("threshold", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9])
@pytest.mark.parametrize("seed", [0, 1])
def test_random_clusters(threshold, seed):
    boxes, scores = crowded_boxes(seed, 131)
    assert 5 < check(boxes, scores, threshold, 131) < 131


@pytest.mark.parametrize("count", [1, 128, 129, 257])
def test_any_number_of_boxes(count):
    boxes, scores = crowded_boxes(2, count)
    check(boxes, scores, 0.5, count)


@pytest.mark.parametrize("seed", range(4))
def test_fewer_slots_than_survivors(seed):
    boxes, scores = crowded_boxes(seed, 131)
    assert check(boxes, scores, 0.8, 40) > 40


def test_without_a_mask_all_boxes_are_valid():
    boxes, scores = crowded_boxes(3, 40)
    ours = nms(boxes, scores, 0.5, 40, None)
    np.testing.assert_array_equal(ours[0], nms(boxes, scores, 0.5, 40, np.ones(40, bool))[0])
    assert ours[1].sum() == len(oracles.nms(boxes, scores, 0.5))


def test_more_slots_than_boxes():
    boxes, scores = crowded_boxes(3, 10)
    assert check(boxes, scores, 0.5, 20) < 10


def test_suppressed_boxes_suppress_nothing():
    # In a row of boxes that each overlap the next by 0.6, every second one stays.
    x = 2.5 * np.arange(300, dtype=np.float32)
    boxes = np.stack([x, np.zeros_like(x), x + 10, np.ones_like(x)], axis=1)
    indices, kept = nms(boxes, -x, 0.5, 300, np.ones(300, bool))
    assert kept.sum() == 150
    np.testing.assert_array_equal(indices[:150], np.arange(0, 300, 2))
    check(boxes, -x, 0.5, 300)
    check(boxes, x, 0.5, 300)
    check(boxes, np.sin(x), 0.3, 300)


def test_threshold_itself_does_not_suppress():
    boxes = np.array([[0, 0, 4, 4], [0, 0, 4, 2], [0, 0, 4, 4], [0, 0, 4, 3]], np.float32)
    scores = np.array([4, 3, 2, 1], np.float32)
    indices, kept = of_few(boxes, scores, 0.5)
    np.testing.assert_array_equal(indices, [0, 1, 0, 0])  # box 3 has IoU 0.75 with box 0
    np.testing.assert_array_equal(kept, [True, True, False, False])
    indices, kept = of_few(boxes, scores, 0.75)
    np.testing.assert_array_equal(indices, [0, 1, 3, 0])
    np.testing.assert_array_equal(kept, [True, True, True, False])
    assert of_few(boxes, scores, 0.49)[1].sum() == 1


def test_equal_scores_go_by_index():
    boxes, _ = crowded_boxes(4, 131)
    check(boxes, np.zeros(131, np.float32), 0.4, 131)
    check(boxes, np.round(np.random.default_rng(0).normal(size=131)).astype(np.float32), 0.4, 131)


def test_boxes_without_area_stay_and_suppress_nothing():
    boxes = np.array([[5, 5, 5, 5]] * 3 + [[0, 0, 10, 10]] * 2 + [[5, 0, 5, 10]] * 2, np.float32)
    scores = np.array([7, 6, 5, 4, 3, 2, 1], np.float32)
    indices, kept = of_few(boxes, scores, 0.1)
    np.testing.assert_array_equal(indices, [0, 1, 2, 3, 5, 6, 0])
    assert kept.sum() == 6


def test_invalid_boxes_neither_appear_nor_suppress():
    boxes, scores = crowded_boxes(5, 131)
    rng = np.random.default_rng(0)
    for share in (0.05, 0.5, 0.95):
        valid = rng.uniform(size=131) < share
        poisoned = np.where(valid, scores, 1e9).astype(np.float32)
        check(boxes, poisoned, 0.5, 131, valid)
    best = np.argmax(scores)
    check(boxes, scores, 0.5, 40, np.arange(131) != best)


def test_nothing_valid():
    boxes, scores = crowded_boxes(5, 131)
    assert check(boxes, scores, 0.5, 131, np.zeros(131, bool)) == 0


def test_values_of_invalid_boxes_do_not_matter():
    boxes, scores = crowded_boxes(6, 131)
    valid = np.arange(131) % 3 != 0
    expected = nms(boxes, scores, 0.5, 131, valid)
    for junk in (np.nan, np.inf, -np.inf):
        dirty_boxes = np.where(valid[:, None], boxes, junk).astype(np.float32)
        dirty_scores = np.where(valid, scores, junk).astype(np.float32)
        ours = nms(dirty_boxes, dirty_scores, 0.5, 131, valid)
        np.testing.assert_array_equal(ours[0], expected[0])
        np.testing.assert_array_equal(ours[1], expected[1])


def test_very_low_scores_are_scores():
    """Validity is the mask, not a value: valid boxes of the lowest score come before invalid."""
    boxes = np.array([[20 * i, 0, 20 * i + 10, 10] for i in range(6)], np.float32)
    lowest = np.finfo(np.float32).min
    scores = np.array([0, lowest, 1, -np.inf, -1e30, 2], np.float32)
    valid = np.array([False, True, False, True, True, False])
    indices, kept = of_few(boxes, scores, 0.5, valid)
    np.testing.assert_array_equal(kept, [True] * 3 + [False] * 3)
    np.testing.assert_array_equal(indices, [4, 1, 3, 0, 0, 0])


@hypothesis.given(
    hnp.arrays(np.int8, (20, 2), elements=st.integers(0, 4)),
    hnp.arrays(np.int8, (20, 2), elements=st.integers(0, 4)),
    hnp.arrays(np.int8, 20, elements=st.integers(-2, 2)),
    hnp.arrays(bool, 20),
    st.sampled_from([0.1, 0.25, 0.3, 0.5, 0.6, 0.75, 0.9]),
    st.sampled_from([7, 20]),
)
def test_small_grid_boxes(corners, sides, scores, valid, threshold, max_outputs):
    """Boxes on a small grid: duplicates, ties of the score, empty boxes, IoUs at the threshold."""
    boxes = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
    check(boxes, scores.astype(np.float32), threshold, max_outputs, valid)


def test_vmap_equals_single_images():
    batch = [crowded_boxes(seed, 131) for seed in (7, 8, 9)]
    boxes, scores = (np.stack(parts) for parts in zip(*batch, strict=True))
    valid = np.random.default_rng(1).uniform(size=scores.shape) < [[1.0], [0.6], [0.0]]
    thresholds = np.array([0.3, 0.5, 0.7], np.float32)
    batched = jax.jit(jax.vmap(lambda b, s, t, v: nms_ops.nms(b, s, t, 50, v)))
    indices, kept = batched(boxes, scores, thresholds, valid)
    for i in range(3):
        alone = nms(boxes[i], scores[i], thresholds[i], 50, valid[i])
        np.testing.assert_array_equal(indices[i], alone[0])
        np.testing.assert_array_equal(kept[i], alone[1])
        expected = oracles.nms(boxes[i], scores[i], thresholds[i], valid[i])[:50]
        np.testing.assert_array_equal(indices[i][np.asarray(kept[i])], expected)


@needs_reference
@pytest.mark.parametrize("case", range(5))
def test_recorded_lists(case):
    with np.load(REFERENCE / "ops.npz") as file:
        boxes, scores, threshold, keep = (
            file[f"nms{case}_{name}"] for name in ("boxes", "scores", "threshold", "keep")
        )
    valid = np.ones(len(boxes), bool)
    indices, kept = nms(boxes, scores, float(threshold), len(boxes), valid)
    assert kept.sum() == len(keep)
    np.testing.assert_array_equal(np.asarray(indices)[np.asarray(kept)], keep)
    if len(boxes) == 2000:  # as the proposals are made: the best 1000 of 2000
        first, kept = nms(boxes, scores, float(threshold), 1000, valid)
        assert kept.all()
        np.testing.assert_array_equal(first, keep[:1000])
