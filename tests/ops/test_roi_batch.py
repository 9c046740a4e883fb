"""RoIBatchSelection: which boxes are kept, and how fewer than 128 are stretched over the rows."""

import functools
import itertools

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
import scipy.stats

from ssm_jax.ops import roi_batch
from tests.helpers import ops_oracles as oracles

SIZE = 128
select = jax.jit(roi_batch.select)
select_at = jax.jit(lambda t, *candidates: roi_batch.select(*candidates, nms_threshold=t))
select_few = jax.jit(functools.partial(roi_batch.select, size=8))


def check(result, scores, deltas, boxes, valid, size=SIZE, threshold=0.75):
    """Checks all that a RoI batch promises; returns the kept boxes and the indices."""
    rows, indices, count = (np.asarray(x) for x in (result.rows, result.indices, result.distinct))
    assert rows.shape == (size, 5)
    assert rows.dtype == np.float32
    assert indices.shape == (size,)
    assert indices.dtype == count.dtype == np.int32
    large = np.array([oracles.area(box) > np.float32(1e-5) for box in boxes])
    kept = oracles.nms(boxes, scores, threshold, valid & large)[:size]
    assert count == len(kept)
    if not kept:
        np.testing.assert_array_equal(rows, 0)
        assert ((indices >= 0) & (indices < len(boxes))).all()
        return kept, indices
    expected = np.concatenate([scores[indices, None], deltas[indices]], axis=1)
    np.testing.assert_array_equal(rows, expected)
    assert (np.diff(rows[:, 0]) <= 0).all()
    starts = start_positions(indices)
    assert indices[starts].tolist() == kept  # every kept box once, in order, the best at row 0
    if len(kept) < size:
        assert (starts < size - 1).all()  # the last row starts no box
    return kept, indices


def start_positions(indices):
    """The rows where a box differs from that of the row before, and row 0."""
    return np.flatnonzero(np.concatenate([[True], indices[1:] != indices[:-1]]))


@functools.cache
def separate_boxes(count=200, size=SIZE):
    """Boxes that do not overlap, with scores in (0, 1) and deltas, all random."""
    rng = np.random.default_rng(count)
    corners = np.stack([20.0 * np.arange(count) % 400, 20.0 * (np.arange(count) // 20)], axis=1)
    boxes = np.concatenate([corners, corners + rng.uniform(1, 18, (count, 2))], axis=1)
    scores = rng.permutation(np.linspace(0.01, 0.99, count))
    deltas = rng.normal(size=(count, 4))
    return scores.astype(np.float32), deltas.astype(np.float32), boxes.astype(np.float32)


def only(count, total=200):
    """A validity mask with `count` random rows."""
    return np.random.default_rng(count).permutation(total) < count


@pytest.mark.parametrize("k", [0, 1, 2, 5, 64, 126, 127, 128, 129, 200])
def test_number_of_boxes(k):
    scores, deltas, boxes = separate_boxes()
    for seed in range(3):
        result = select(jax.random.key(seed), scores, deltas, boxes, only(k))
        kept, _ = check(result, scores, deltas, boxes, only(k))
        assert len(kept) == min(k, SIZE)


def test_one_box_fills_the_batch():
    scores, deltas, boxes = separate_boxes()
    result = select(jax.random.key(0), scores, deltas, boxes, np.arange(200) == 77)
    np.testing.assert_array_equal(result.indices, 77)
    np.testing.assert_array_equal(result.rows, np.tile([scores[77], *deltas[77]], (SIZE, 1)))


def test_one_box_short_repeats_only_the_last():
    scores, deltas, boxes = separate_boxes()
    result = select(jax.random.key(0), scores, deltas, boxes, only(127))
    kept, indices = check(result, scores, deltas, boxes, only(127))
    assert indices.tolist() == [*kept, kept[-1]]


def test_enough_boxes_are_not_stretched():
    scores, deltas, boxes = separate_boxes()
    best = np.argsort(-scores)
    for k in (128, 150, 200):
        valid = np.zeros(200, bool)
        valid[best[200 - k :]] = True
        result = select(jax.random.key(0), scores, deltas, boxes, valid)
        np.testing.assert_array_equal(result.indices, best[200 - k : 328 - k])
        assert result.distinct == SIZE


def test_clusters_are_suppressed():
    rng = np.random.default_rng(0)
    scores, deltas, boxes = separate_boxes()
    boxes = boxes[rng.integers(0, 60, 200)] + rng.normal(0, 0.3, (200, 4)).astype(np.float32)
    for threshold in (0.3, 0.75):
        result = select_at(threshold, jax.random.key(0), scores, deltas, boxes, only(150))
        kept, _ = check(result, scores, deltas, boxes, only(150), threshold=threshold)
        assert 20 < len(kept) < 128


def test_boxes_of_no_area_are_dropped():
    """At most 1e-5 square pixels, and before the suppression: they suppress nothing either."""
    scores, deltas, boxes = (part.copy() for part in separate_boxes())
    limit = np.float32(1e-5)
    for i, width in enumerate([0, 5e-6, limit, np.nextafter(limit, np.float32(1)), 2e-5]):
        boxes[i] = [0, 20 * i, width, 20 * i + 1]
    boxes[5] = [7, 7, 7, 7]
    valid = np.arange(200) < 10
    result = select(jax.random.key(0), scores, deltas, boxes, valid)
    kept, _ = check(result, scores, deltas, boxes, valid)
    assert sorted(kept) == [3, 4, 6, 7, 8, 9]
    # Nothing but such boxes: a batch of zeros.
    result = select(jax.random.key(0), scores, deltas, boxes, np.isin(np.arange(200), [0, 1, 2, 5]))
    assert result.distinct == 0
    np.testing.assert_array_equal(result.rows, 0)


def test_fewer_candidates_than_rows():
    scores, deltas, boxes = (part[:8] for part in separate_boxes())
    valid = np.arange(8) != 3
    result = select(jax.random.key(1), scores, deltas, boxes, valid)
    assert len(check(result, scores, deltas, boxes, valid)[0]) == 7


def test_equal_scores_go_by_index():
    _, deltas, boxes = separate_boxes()
    scores = np.full(200, 0.5, np.float32)
    result = select(jax.random.key(0), scores, deltas, boxes, only(30))
    kept, _ = check(result, scores, deltas, boxes, only(30))
    assert kept == np.flatnonzero(only(30)).tolist()


@hypothesis.given(
    hnp.arrays(np.int8, (12, 4), elements=st.integers(0, 4)),
    hnp.arrays(np.int8, 12, elements=st.integers(0, 5)),
    hnp.arrays(bool, 12),
    st.integers(0, 2**31 - 1),
)
def test_any_candidates(coordinates, fifths, valid, seed):
    """Twelve boxes on a small grid into eight rows: empty boxes, duplicates, ties of the score."""
    boxes = np.concatenate([coordinates[:, :2], coordinates[:, :2] + coordinates[:, 2:]], axis=1)
    boxes, scores = boxes.astype(np.float32), (fifths / 5).astype(np.float32)
    deltas = np.arange(48, dtype=np.float32).reshape(12, 4)
    result = select_few(jax.random.key(seed), scores, deltas, boxes, valid)
    check(result, scores, deltas, boxes, valid, size=8)


def test_the_key_decides():
    arguments = (*separate_boxes(), only(20))
    first = select(jax.random.key(3), *arguments)
    jax.tree.map(np.testing.assert_array_equal, first, select(jax.random.key(3), *arguments))
    other = select(jax.random.key(4), *arguments)
    assert (np.asarray(first.indices) != np.asarray(other.indices)).any()
    assert set(first.indices.tolist()) == set(other.indices.tolist())


@functools.cache
def select_many(size):
    """`select` for a batch of keys, compiled once for a size."""
    choose = functools.partial(roi_batch.select, size=size)
    return jax.jit(jax.vmap(choose, in_axes=(0, None, None, None, None)))


def draw_starts(k, size, draws):
    """Where the boxes start under `draws` keys: rows of k positions; [draws, k]."""
    candidates = (*(part[:size] for part in separate_boxes()), only(k, size))
    keys = jax.random.split(jax.random.key(21), draws)
    indices = np.asarray(select_many(size)(keys, *candidates).indices)
    starts = np.array([start_positions(row) for row in indices])
    assert starts.shape == (draws, k)
    assert (starts[:, 0] == 0).all()
    return starts


@pytest.mark.parametrize("k", [2, 3, 5])
def test_every_choice_of_starts_is_equally_likely(k):
    """In eight rows: k - 1 of the positions 1 to 6; the keys are fixed, so this passes or not."""
    counts = dict.fromkeys(itertools.combinations(range(1, 7), k - 1), 0)
    for starts in draw_starts(k, 8, 3000):
        counts[tuple(starts[1:].tolist())] += 1
    assert scipy.stats.chisquare(list(counts.values())).pvalue > 1e-3


@pytest.mark.parametrize("k", [5, 100])
def test_every_position_is_equally_likely_to_start_a_box(k):
    draws = 3000
    starts = draw_starts(k, SIZE, draws)
    counts = np.bincount(starts[:, 1:].ravel(), minlength=SIZE)
    assert counts[0] == counts[SIZE - 1] == 0
    share = (k - 1) / 126
    # Drawn without replacement: counts vary less than independent ones by (1 - share).
    statistic = ((counts[1:-1] - draws * share) ** 2).sum() / (draws * share * (1 - share))
    p = scipy.stats.chi2.sf(statistic * 125 / 126, 125)
    assert 1e-3 < p < 1 - 1e-3, p


def test_gradient_reaches_scores_and_deltas_but_not_boxes():
    scores, deltas, boxes = separate_boxes()
    cotangent = np.random.default_rng(5).normal(size=(SIZE, 5)).astype(np.float32)

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
    def loss(scores, deltas, boxes, valid):
        result = roi_batch.select(jax.random.key(2), scores, deltas, boxes, valid)
        return (result.rows * cotangent).sum(), result.indices

    for k in (0, 1, 20, 200):
        (_, indices), gradients = loss(scores, deltas, boxes, only(k))
        expected = np.zeros((200, 5))
        if k:
            np.add.at(expected, np.asarray(indices), cotangent)
        np.testing.assert_allclose(gradients[0], expected[:, 0], atol=1e-5)
        np.testing.assert_allclose(gradients[1], expected[:, 1:], atol=1e-5)
        np.testing.assert_array_equal(gradients[2], 0)


def test_vmap_equals_single_images():
    scores, deltas, boxes = (np.stack([part] * 3) for part in separate_boxes())
    valid = np.stack([only(0), only(12), only(180)])
    keys = jax.random.split(jax.random.key(9), 3)
    batched = jax.jit(jax.vmap(roi_batch.select))(keys, scores, deltas, boxes, valid)
    for i in range(3):
        alone = select(keys[i], scores[i], deltas[i], boxes[i], valid[i])
        jax.tree.map(lambda b, a, i=i: np.testing.assert_array_equal(b[i], a), batched, alone)
