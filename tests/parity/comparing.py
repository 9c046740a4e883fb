"""Recorded arrays as our stages take them, and how their results are compared."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from ssm_jax.models import ssm
from ssm_jax.models.roi_heads import BoxOutputs
from ssm_jax.models.rpn import Proposals

RECORDINGS = pathlib.Path(__file__).parent / "recordings"


def recording(name: str) -> dict[str, np.ndarray]:
    """All arrays of a recording that is part of the repository."""
    with np.load(RECORDINGS / f"{name}.npz") as file:
        return dict(file)


def samples(array: np.ndarray, most: int) -> np.ndarray:
    """Every so manieth number of an array, `most` of them at most."""
    return np.ravel(array)[:: -(-array.size // most)]


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest deviation, of the largest magnitude."""
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def assert_same_ranking(
    ours: np.ndarray,
    theirs: np.ndarray,
    our_scores: np.ndarray,
    their_scores: np.ndarray,
    tolerance: float = 1e-3,
    near: float = 1e-5,
) -> None:
    """Equal row by row, but for swaps between scores closer than `near`, which rounding orders."""
    np.testing.assert_allclose(our_scores, their_scores, atol=near, rtol=0)
    for row in np.flatnonzero(np.abs(ours - theirs).max(axis=1) > tolerance):
        others = np.abs(their_scores - their_scores[row]) < near
        assert np.abs(theirs[others] - ours[row]).max(axis=1).min() <= tolerance, row


@functools.cache
def jitted(config, method):
    """One stage of the model, compiled."""
    return jax.jit(functools.partial(ssm.stage, config, method=method), static_argnames="train")


def features_of(recorded):
    """The recorded map as [1, h, w, 256]."""
    return jnp.asarray(recorded["features"]).transpose(1, 2, 0)[None]


def proposals_of(recorded):
    """The recorded proposals, all of them valid."""
    boxes, logits = (jnp.asarray(recorded[n])[None] for n in ("proposals", "proposal_logits"))
    return Proposals(boxes, logits, jnp.ones(logits.shape, bool))


def outputs_of(recorded, branch):
    """The recorded outputs of a branch, "cls" or "seg"."""
    logits = jnp.asarray(recorded[f"{branch}_branch_logits"])
    deltas = jnp.asarray(recorded[f"{branch}_branch_deltas"]).reshape(-1, 2, 4)
    return BoxOutputs(logits, deltas)
