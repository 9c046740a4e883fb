"""Detections and their masks with several lesion classes, against a plain loop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssm_jax.config import ModelConfig
from ssm_jax.models import ssm
from ssm_jax.models.inference import Predictions, detect, predict_masks
from ssm_jax.models.roi_heads import MASK_BINS, BoxOutputs
from ssm_jax.models.rpn import Proposals
from tests.helpers import ops_oracles as oracles
from tests.helpers.tiny import get_config, random_variables

pytestmark = pytest.mark.usefixtures("quickly_compiled")
CLASSES, DETECTIONS = 3, 6
CONFIG = dataclasses.replace(
    ModelConfig.from_mapping(get_config().model.to_dict()),
    num_classes=CLASSES,
    max_detections=DETECTIONS,
)
SIZES = np.array([[50, 64], [64, 40]], np.int32)


@pytest.fixture(scope="module")
def candidates():
    """Two slices with twelve crowded proposals each: boxes, valid, logits and deltas."""
    rng = np.random.default_rng(4)
    corners = rng.uniform(-4, 30, (2, 12, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(8, 30, (2, 12, 2))], axis=-1)
    valid = rng.random((2, 12)) < 0.8
    logits = rng.normal(0, 1.5, (2, 12, CLASSES))
    deltas = rng.normal(0, 0.7, (2, 12, CLASSES, 4))
    boxes, logits, deltas = (x.astype(np.float32) for x in (boxes, logits, deltas))
    return boxes, valid, logits, deltas


def expected_detections(boxes, valid, logits, deltas, size, score_threshold, nms_threshold):
    """(box, score, label) of one slice: class by class, then the best of all."""
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    found = []
    for label in range(1, CLASSES):
        decoded = oracles.decode(deltas[:, label], boxes, (10, 10, 5, 5))
        decoded = np.clip(decoded, 0, [size[1], size[0]] * 2)
        scores = probabilities[:, label]
        kept = oracles.nms(decoded, scores, nms_threshold, valid & (scores > score_threshold))
        found += [(decoded[k], scores[k], label) for k in kept]
    return sorted(found, key=lambda detection: -detection[1])[:DETECTIONS]


@pytest.mark.parametrize("thresholds", [(0.05, 0.5), (0.3, 0.2), (0.99, 0.5)])
def test_classes_do_not_suppress_each_other(candidates, thresholds):
    boxes, valid, logits, deltas = candidates
    outputs = BoxOutputs(logits.reshape(-1, CLASSES), deltas.reshape(-1, CLASSES, 4))
    proposals = Proposals(boxes, np.zeros(valid.shape, np.float32), valid)
    found = jax.jit(lambda *x: detect(CONFIG, *x))(outputs, proposals, SIZES, *thresholds)
    counts = []
    for image in range(2):
        own = [x[image] for x in candidates]
        expected = expected_detections(*own, SIZES[image], *thresholds)
        ours, scores, labels, used = (np.asarray(x[image]) for x in found)
        count = len(expected)
        np.testing.assert_array_equal(used, np.arange(DETECTIONS) < count)
        np.testing.assert_array_equal(labels[:count], [label for _, _, label in expected])
        np.testing.assert_allclose(scores[:count], [s for _, s, _ in expected], rtol=1e-5)
        if count:
            np.testing.assert_allclose(ours[:count], [box for box, _, _ in expected], atol=1e-3)
        assert not ours[count:].any() and not scores[count:].any() and not labels[count:].any()
        counts.append(count)
    assert (max(counts) > 2) == (thresholds[0] < 0.9)


def test_the_crowd_puts_every_rule_to_the_test(candidates):
    """Lesions of both classes overlap, and proposals that are not valid would be found."""
    thresholds = (0.05, 0.5)
    for image in range(2):
        boxes, valid, logits, deltas = (x[image] for x in candidates)
        decoded = np.concatenate(
            [oracles.decode(deltas[:, label], boxes, (10, 10, 5, 5)) for label in (1, 2)]
        )
        overlaps = oracles.pairwise_iou(decoded[:12], decoded[12:])
        assert (overlaps > 0.5).any()  # across the classes
        assert not valid.all()
        args = (logits, deltas, SIZES[image], *thresholds)
        expected = expected_detections(boxes, valid, *args)
        anyway = expected_detections(boxes, np.ones(12, bool), *args)
        assert [score for _, score, _ in anyway] != [score for _, score, _ in expected]


def test_masks_are_those_of_the_own_class():
    rng = np.random.default_rng(1)
    features = rng.normal(size=(2, 8, 8, 256)).astype(np.float32)
    variables = random_variables(CONFIG)
    corners = rng.uniform(0, 30, (2, DETECTIONS, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(8, 30, (2, DETECTIONS, 2))], axis=-1)
    boxes = boxes.astype(np.float32)
    labels = np.array([[1, 2, 2, 1, 0, 0], [2, 1, 0, 0, 0, 0]], np.int32)
    nothing = np.zeros((2, DETECTIONS), np.float32)
    predictions = Predictions(None, boxes, nothing, labels, labels > 0)
    found = jax.jit(lambda *x: predict_masks(CONFIG, *x))(variables, features, predictions)
    pooled = ssm.align(CONFIG, jnp.asarray(features), jnp.asarray(boxes), MASK_BINS)
    logits = np.asarray(ssm.stage(CONFIG, variables, "predict_masks", pooled))
    logits = logits.reshape(2, DETECTIONS, *logits.shape[1:])
    for image in range(2):
        for slot, label in enumerate(labels[image]):
            expected = 1 / (1 + np.exp(-logits[image, slot, ..., label])) if label else 0
            np.testing.assert_allclose(found[image, slot], expected, atol=1e-5)
    assert abs(logits[..., 1] - logits[..., 2]).max() > 0.1
