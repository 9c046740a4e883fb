"""The sampler: exact counts, never an ignored candidate, uniform, deterministic in its key."""

import itertools

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ssm_jax.ops import sampling

sample = jax.jit(sampling.sample, static_argnums=(2, 3))


def check(labels, size, max_positive, seed=0):
    """Checks all that a sample promises; returns the chosen positives and negatives as sets."""
    labels = np.asarray(labels, np.int32)
    result = sample(jax.random.key(seed), labels, size, max_positive)
    indices, positive, valid = (
        np.asarray(part) for part in (result.indices, result.positive, result.valid)
    )
    assert indices.shape == positive.shape == valid.shape == (size,)
    assert indices.dtype == np.int32
    assert positive.dtype == valid.dtype == bool
    expected_positive = min((labels == 1).sum(), max_positive)
    expected_negative = min((labels == 0).sum(), size - expected_positive)
    assert valid.sum() == expected_positive + expected_negative
    np.testing.assert_array_equal(positive, np.arange(size) < expected_positive)
    assert valid[positive].all()
    chosen = indices[valid]
    assert len(set(chosen.tolist())) == len(chosen)
    np.testing.assert_array_equal(labels[indices[positive]], 1)
    np.testing.assert_array_equal(labels[indices[valid & ~positive]], 0)
    assert ((indices >= 0) & (indices < len(labels))).all()
    return set(indices[positive].tolist()), set(indices[valid & ~positive].tolist())


def candidates(positives, negatives, ignored, seed=0):
    """Labels in random order."""
    labels = np.repeat([1, 0, -1], [positives, negatives, ignored])
    return np.random.default_rng(seed).permutation(labels)


@pytest.mark.parametrize(
    ("positives", "negatives"),
    [(30, 60), (5, 85), (90, 0), (0, 90), (16, 16), (17, 14), (0, 0), (1, 3), (89, 1), (3, 2)],
)
def test_counts(positives, negatives):
    labels = candidates(positives, negatives, 100 - positives - negatives)
    check(labels, 32, 16)
    check(labels, 32, 32)


def test_no_room_for_positives():
    positive, negative = check(candidates(30, 60, 10), 32, 0)
    assert len(positive) == 0
    assert len(negative) == 32


def test_all_candidates_can_be_taken():
    """With the size and the bound of the positives at N, every candidate is in the sample."""
    labels = candidates(30, 60, 10)
    positive, negative = check(labels, 100, 100)
    assert positive == set(np.flatnonzero(labels == 1).tolist())
    assert negative == set(np.flatnonzero(labels == 0).tolist())


def test_more_slots_than_candidates():
    positive, negative = check(candidates(3, 6, 1), 16, 8)
    assert len(positive) == 3
    assert len(negative) == 6


@hypothesis.given(
    hnp.arrays(np.int8, 24, elements=st.integers(-1, 1)),
    st.sampled_from([(8, 4), (24, 12), (24, 24)]),
    st.integers(0, 2**31 - 1),
)
def test_any_labels(labels, sizes, seed):
    check(labels, *sizes, seed)


def test_the_key_decides():
    labels = candidates(30, 60, 10).astype(np.int32)
    first = sample(jax.random.key(3), labels, 32, 16)
    again = sample(jax.random.key(3), labels, 32, 16)
    other = sample(jax.random.key(4), labels, 32, 16)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    taken, others = (
        set(np.asarray(s.indices)[np.asarray(s.valid)].tolist()) for s in (first, other)
    )
    assert taken != others


def test_raw_key_data_is_a_key():
    labels = candidates(30, 60, 10).astype(np.int32)
    typed = sample(jax.random.key(3), labels, 32, 16)
    raw = sample(jax.random.PRNGKey(3), labels, 32, 16)
    jax.tree.map(np.testing.assert_array_equal, typed, raw)


def draw_many(labels, size, max_positive, draws):
    """Samples under `draws` keys: a 0/1 array [draws, N] of what was chosen."""
    keys = jax.random.split(jax.random.key(11), draws)
    labels = jnp.asarray(labels, jnp.int32)
    result = jax.jit(jax.vmap(lambda key: sampling.sample(key, labels, size, max_positive)))(keys)
    indices, valid = np.asarray(result.indices), np.asarray(result.valid)
    chosen = np.zeros((draws, len(labels)), int)
    np.add.at(chosen, (np.repeat(np.arange(draws), valid.sum(1)), indices[valid]), 1)
    return chosen


def assert_uniform(counts):
    """Chi-square test of equal cells; the keys are fixed, so the bounds are passed or not."""
    p = scipy.stats.chisquare(counts).pvalue
    assert 1e-3 < p < 1 - 1e-6, (p, counts)


def test_every_subset_is_equally_likely():
    """2 of 4 positives and 3 of 5 negatives: 6 x 10 outcomes, each 1 in 60."""
    labels = np.array([0, 1, -1, 1, 0, 0, 1, -1, 0, 1, 0])
    chosen = draw_many(labels, 5, 2, 12000)
    assert not chosen[:, labels == -1].any()
    np.testing.assert_array_equal(chosen[:, labels == 1].sum(1), 2)
    np.testing.assert_array_equal(chosen[:, labels == 0].sum(1), 3)
    outcomes = [
        positive + negative
        for positive in itertools.combinations(np.flatnonzero(labels == 1).tolist(), 2)
        for negative in itertools.combinations(np.flatnonzero(labels == 0).tolist(), 3)
    ]
    cells = {tuple(sorted(outcome)): 0 for outcome in outcomes}
    for row in chosen:
        cells[tuple(np.flatnonzero(row).tolist())] += 1
    assert len(cells) == 60
    assert_uniform(list(cells.values()))


def test_every_candidate_is_equally_likely():
    """Frequencies over many candidates: no bias by place, neither first nor last."""
    labels = candidates(200, 700, 100)
    draws, size, max_positive = 2000, 64, 32
    chosen = draw_many(labels, size, max_positive, draws)
    for label, taken in ((1, max_positive), (0, size - max_positive)):
        counts = chosen[:, labels == label].sum(0)
        share = taken / len(counts)
        # Drawn without replacement: counts vary less than independent ones by (1 - share).
        statistic = ((counts - draws * share) ** 2).sum() / (draws * share * (1 - share))
        statistic *= (len(counts) - 1) / len(counts)
        p = scipy.stats.chi2.sf(statistic, len(counts) - 1)
        assert 1e-3 < p < 1 - 1e-3, (label, p)


def test_vmap_equals_single_images():
    labels = np.stack([candidates(30, 60, 10), candidates(0, 90, 10), candidates(2, 5, 93)])
    labels = labels.astype(np.int32)
    keys = jax.random.split(jax.random.key(5), 3)
    batched = jax.jit(jax.vmap(lambda k, x: sampling.sample(k, x, 32, 16)))(keys, labels)
    for i in range(3):
        alone = sample(keys[i], labels[i], 32, 16)
        jax.tree.map(lambda b, a, i=i: np.testing.assert_array_equal(b[i], a), batched, alone)
