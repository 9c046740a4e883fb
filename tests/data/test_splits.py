"""Splits by patient: shares, nobody in two, the same for the same names and seed."""

import numpy as np
import pytest

from ssm_jax.data import DataError
from ssm_jax.data.splits import split_by_patient

SHARES = (0.8, 0.1, 0.1)


def patients(seed=0, count=200):
    """Names of patients, each once for every one of 1 to 9 slices, mixed."""
    rng = np.random.default_rng(seed)
    names = np.repeat([f"p{k}" for k in range(count)], rng.integers(1, 10, count))
    return rng.permutation(names).tolist()


def test_shares_are_met_and_nobody_is_in_two_splits():
    names = patients()
    splits = split_by_patient(names, SHARES)
    np.testing.assert_allclose(np.bincount(splits) / len(names), SHARES, atol=0.01)
    assert len(set(zip(names, splits.tolist(), strict=True))) == len(set(names))


def test_the_seed_and_the_names_alone_determine_it():
    names = patients()
    splits = split_by_patient(names, SHARES)
    order = np.random.default_rng(1).permutation(len(names))
    again = split_by_patient([names[k] for k in order], SHARES)
    np.testing.assert_array_equal(again, splits[order])
    assert (split_by_patient(names, SHARES, seed=1) != splits).any()
    # Held here so that no version of the program splits a set anew.
    listed = split_by_patient(["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"], SHARES)
    assert listed.tolist() == [1, 0, 0, 0, 0, 0, 0, 2, 0, 0]


@pytest.mark.parametrize("sizes", [(1, 1, 1), (50, 1, 1), (1, 50, 50), (10, 10, 10)])
def test_every_split_gets_a_patient_where_there_are_as_many(sizes):
    names = [f"p{k}" for k, size in enumerate(sizes) for _ in range(size)]
    for seed in range(5):
        assert set(split_by_patient(names, SHARES, seed).tolist()) == {0, 1, 2}


def test_a_split_without_a_share_stays_empty():
    assert set(split_by_patient(patients(), (0.9, 0.0, 0.1)).tolist()) == {0, 2}


@pytest.mark.parametrize("shares", [(0.8, 0.1), (1.2, -0.2), (float("nan"), 1.0)])
def test_shares_that_are_none(shares):
    with pytest.raises(DataError, match="have to be from 0, together 1"):
        split_by_patient(["a", "b"], shares)


def test_too_few_patients():
    with pytest.raises(DataError, match="2 patients are too few for 3 splits"):
        split_by_patient(["a", "b", "b"], SHARES)
