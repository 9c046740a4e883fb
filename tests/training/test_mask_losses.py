"""Masks on accelerators, all of a batch at once, are those of a CPU, a few at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssm_jax.config import validate
from ssm_jax.models import inference, ssm
from ssm_jax.training import mask_losses
from ssm_jax.training.targets import MaskTargets
from tests.helpers.tiny import get_config, random_variables

IMAGES, SLOTS, CELLS = 2, 3, 8
COUNTS = ((0, 0), (1, 1), (2, 1), (0, 3))  # RoIs in use of each image

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.fixture(scope="module")
def model():
    return validate(get_config())


@pytest.fixture(scope="module")
def variables(model):
    return random_variables(model)


@pytest.fixture(autouse=True)
def two_batches(monkeypatch):
    """One of two RoIs, and one of all: a CPU computes such convolutions slowly."""
    monkeypatch.setattr(ssm, "MASK_BATCHES", (2,))


@pytest.fixture
def head(variables):
    """A mask head none of whose ReLUs is so near zero that the last bit of its input matters."""
    head = variables["params"]["mask_head"]
    sides = np.where(np.arange(128) % 2, 1, -1).astype(np.float32)
    return {
        "conv": head["conv"] | {"bias": 10 * sides},
        "upsample": head["upsample"] | {"bias": 100 * sides},
        "logits": head["logits"] | {"kernel": head["logits"]["kernel"] / 1000},
    }


def rois(counts):
    """Features, boxes, labels and those in use: `counts` of them in each image."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((IMAGES, CELLS, CELLS, 256)).astype(np.float32)
    corners = rng.uniform(0, 40, (IMAGES, SLOTS, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(4, 24, corners.shape)], axis=-1)
    used = np.arange(SLOTS) < np.array(counts)[:, None]
    return features, boxes.astype(np.float32), used.astype(np.int32), used


def test_loss_and_gradients(model, head):
    wanted = np.random.default_rng(1).random((IMAGES, SLOTS, 28, 28)).astype(np.float32)
    in_turn, at_once = (
        jax.jit(functools.partial(function, model))
        for function in (mask_losses.in_turn, mask_losses.at_once)
    )
    for counts in ((1, 1), (0, 3)):
        features, boxes, labels, positive = rois(counts)
        inputs = (features, head, MaskTargets(boxes, labels, wanted, positive))
        expected, ours = (f(jnp.array(sum(counts)), *inputs) for f in (in_turn, at_once))
        assert expected[0] > 0
        for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5 * float(abs(other).max()))


def test_predicted_masks(model, variables, request):
    def masks_of():
        def masks(variables, features, boxes, labels, valid):
            empty = jnp.zeros((IMAGES, 3)), boxes, jnp.zeros(valid.shape)
            detected = inference.Predictions(*empty, labels, valid)
            return inference.predict_masks(model, variables, features, detected)

        run = jax.jit(masks)
        return [np.asarray(run(variables, *rois(counts))) for counts in COUNTS]

    expected = masks_of()
    request.getfixturevalue("as_on_accelerators")
    for counts, one, other in zip(COUNTS, masks_of(), expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
        np.testing.assert_array_equal(one.max(axis=(2, 3)) > 0, rois(counts)[-1])
