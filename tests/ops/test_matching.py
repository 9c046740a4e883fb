"""The matcher against loops in NumPy and the recorded matches."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from ssm_jax.ops import matching
from tests.helpers import ops_oracles as oracles
from tests.helpers.shared import REFERENCE, needs_reference

match = jax.jit(matching.match, static_argnums=(2, 3, 4))

RPN = (0.7, 0.3, True)
ROI = (0.5, 0.5, False)


def check(overlaps, valid, high, low, low_quality):
    """Compares labels everywhere, and indices where there is a match; returns the labels."""
    ours = match(overlaps, valid, high, low, low_quality)
    index, label = np.asarray(ours.objects), np.asarray(ours.labels)
    assert index.dtype == label.dtype == np.int32
    assert index.shape == label.shape == overlaps.shape[:1]
    # Thresholds are float32 like the IoUs: 0.3 is not below 0.3.
    expected_index, expected = oracles.match(
        overlaps, valid, np.float32(high), np.float32(low), low_quality
    )
    np.testing.assert_array_equal(label, expected)
    np.testing.assert_array_equal(index[label == 1], expected_index[label == 1])
    assert ((index >= 0) & (index < overlaps.shape[1])).all()
    return label


def test_by_hand():
    overlaps = np.array(
        [
            [0.8, 0.1, 0.0],
            [0.7, 0.2, 0.0],  # exactly high: positive
            [0.5, 0.6, 0.0],  # between, but the best that column 1 has
            [0.5, 0.0, 0.1],  # between: ignored; the best of column 2 goes to its own best, 0
            [0.3, 0.0, 0.0],  # exactly low: ignored
            [0.2, 0.0, 0.1],  # below low, but ties for the best of column 2: matched to 0
            [0.2, 0.0, 0.0],
        ],
        np.float32,
    )
    valid = np.ones(3, bool)
    result = match(overlaps, valid, *RPN)
    np.testing.assert_array_equal(result.labels, [1, 1, 1, 1, -1, 1, 0])
    np.testing.assert_array_equal(np.asarray(result.objects)[[0, 1, 2, 3, 5]], [0, 0, 1, 0, 0])
    np.testing.assert_array_equal(
        match(overlaps, valid, 0.7, 0.3, False).labels, [1, 1, -1, -1, -1, 0, 0]
    )
    np.testing.assert_array_equal(match(overlaps, valid, *ROI).labels, [1, 1, 1, 1, 0, 0, 0])
    check(overlaps, valid, *RPN)


def test_first_column_wins_a_tie():
    overlaps = np.array([[0.2, 0.9, 0.9], [0.6, 0.6, 0.1]], np.float32)
    for settings in (RPN, ROI):
        result = match(overlaps, np.ones(3, bool), *settings)
        np.testing.assert_array_equal(result.labels, [1, 1])
        np.testing.assert_array_equal(result.objects, [1, 0])
    np.testing.assert_array_equal(
        match(overlaps, np.array([True, False, True]), *RPN).objects, [2, 0]
    )


def test_padded_columns_do_not_count():
    rng = np.random.default_rng(0)
    overlaps = (rng.uniform(0, 1, (50, 6)) ** 2).astype(np.float32)
    valid = np.array([False, True, True, False, True, False])
    for settings in (RPN, ROI):
        label = check(overlaps, valid, *settings)
        assert set(label.tolist()) >= {0, 1}
        packed = match(overlaps[:, valid], np.ones(3, bool), *settings)
        np.testing.assert_array_equal(packed.labels, label)
        # A padded column may hold anything at all.
        for junk in (0.0, 1.0, np.nan):
            dirty = np.where(valid, overlaps, junk).astype(np.float32)
            np.testing.assert_array_equal(match(dirty, valid, *settings).labels, label)


def test_padding_of_zeros_makes_no_low_quality_match():
    overlaps = np.zeros((4, 3), np.float32)
    overlaps[1, 0] = 0.4
    label = check(overlaps, np.array([True, False, False]), *RPN)
    np.testing.assert_array_equal(label, [0, 1, 0, 0])


@pytest.mark.parametrize("settings", [RPN, ROI])
def test_without_objects_all_is_negative(settings):
    overlaps = np.random.default_rng(1).uniform(size=(50, 6)).astype(np.float32)
    label = check(overlaps, np.zeros(6, bool), *settings)
    assert not label.any()


def test_an_object_that_nothing_overlaps_ties_everywhere():
    """The rule taken literally, as the reference implementation does: all tie at IoU 0."""
    overlaps = np.zeros((4, 3), np.float32)
    overlaps[1, 0] = 0.8
    label = check(overlaps, np.array([True, True, False]), *RPN)
    np.testing.assert_array_equal(label, 1)


tenths = st.integers(0, 10).map(lambda v: v / 10)


@hypothesis.given(
    hnp.arrays(np.float32, (10, 4), elements=tenths),
    hnp.arrays(bool, 4),
    st.sampled_from([RPN, ROI, (0.7, 0.3, False)]),
)
def test_any_overlaps(overlaps, valid, settings):
    """IoUs in tenths: full of ties between rows and columns, and equal to the thresholds."""
    check(overlaps, valid, *settings)


def test_vmap_equals_single_images():
    rng = np.random.default_rng(2)
    overlaps = rng.uniform(size=(3, 50, 6)).astype(np.float32)
    valid = np.array([[True] * 6, [True] * 2 + [False] * 4, [False] * 6])
    batched = jax.jit(jax.vmap(lambda iou, v: matching.match(iou, v, *RPN)))(overlaps, valid)
    for i in range(3):
        alone = match(overlaps[i], valid[i], *RPN)
        np.testing.assert_array_equal(batched.objects[i], alone.objects)
        np.testing.assert_array_equal(batched.labels[i], alone.labels)


@needs_reference
@pytest.mark.parametrize(("name", "settings"), [("rpn", RPN), ("roi", ROI)])
def test_recorded_matches(name, settings):
    with np.load(REFERENCE / "ops.npz") as file:
        overlaps, recorded = file["match_iou"].T, file[f"match_{name}"]
    result = match(overlaps, np.ones(5, bool), *settings)
    label, index = np.asarray(result.labels), np.asarray(result.objects)
    as_recorded = np.where(label == 1, index, np.where(label == 0, -1, -2))
    np.testing.assert_array_equal(as_recorded, recorded)
    # The same with three padded ground-truth boxes more.
    padded = np.concatenate([overlaps, np.zeros((400, 3), np.float32)], axis=1)
    result = match(padded, np.arange(8) < 5, *settings)
    np.testing.assert_array_equal(result.labels, label)
    np.testing.assert_array_equal(np.asarray(result.objects)[label == 1], index[label == 1])
