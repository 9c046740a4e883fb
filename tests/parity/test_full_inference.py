"""Inference on whole CT slices against recordings beside the repository, as in test_inference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from ssm_jax.config import ModelConfig
from ssm_jax.interop import reference_names, torch_file
from ssm_jax.models import inference, ssm
from ssm_jax.models.roi_heads import BOX_BINS, MASK_BINS
from ssm_jax.models.rpn import propose
from ssm_jax.ops.masks import encode_masks
from tests.helpers.shared import REFERENCE, needs_reference
from tests.parity.comparing import (
    assert_same_ranking,
    features_of,
    jitted,
    outputs_of,
    proposals_of,
    relative_error,
)

pytestmark = [pytest.mark.slow, needs_reference]

CONFIG = ModelConfig()
TWO_BLOCKS = ModelConfig(blocks=2)
SLICES = ("2_015", "2_2_1_0030", "4_020")
RECORDINGS = {**dict.fromkeys(SLICES, CONFIG), "r18_2_2_015": TWO_BLOCKS}
SIZES = jnp.array([[512, 512]])
TOLERANCE = 1e-4  # of a tensor's largest magnitude


@functools.cache
def variables_of(config):
    if config == TWO_BLOCKS:
        checkpoint = torch_file.read(REFERENCE / "model_r18_2_legacy.pth")
        return reference_names.to_variables(checkpoint["model_weights"], config)
    with np.load(REFERENCE / "weights_r18_3.npz") as weights:
        return reference_names.to_variables(weights, config)


@pytest.fixture(scope="module", params=RECORDINGS)
def recording(request):
    return request.param


@pytest.fixture(scope="module")
def config(recording):
    return RECORDINGS[recording]


@pytest.fixture(scope="module")
def variables(config):
    return variables_of(config)


@pytest.fixture(scope="module")
def recorded(recording):
    return dict(np.load(REFERENCE / f"eval_{recording}.npz"))


def test_features(config, variables, recorded):
    image = jnp.asarray(recorded["image"])[None, ..., None]
    ours = jitted(config, "extract")(variables, images=image, image_sizes=SIZES, train=False)
    assert relative_error(ours[0].transpose(2, 0, 1), recorded["features"]) <= TOLERANCE


def test_rpn_head(config, variables, recorded):
    score_anchors = jitted(config, "score_anchors")
    objectness, deltas = score_anchors(variables, features=features_of(recorded))
    size = recorded["features"].shape[1:]
    objectness = objectness.reshape(*size, -1).transpose(2, 0, 1)
    deltas = deltas.reshape(*size, -1).transpose(2, 0, 1)
    assert relative_error(objectness, recorded["rpn_objectness"]) <= TOLERANCE
    assert relative_error(deltas, recorded["rpn_deltas"]) <= TOLERANCE


def test_proposals(config, recorded):
    objectness = jnp.asarray(recorded["rpn_objectness"]).transpose(1, 2, 0).reshape(1, -1)
    deltas = jnp.asarray(recorded["rpn_deltas"]).transpose(1, 2, 0).reshape(1, -1, 4)
    anchors = ssm.anchors_for(config, recorded["features"].shape[1:])
    ours = jax.jit(functools.partial(propose, config))(objectness, deltas, anchors, SIZES)
    count = len(recorded["proposals"])
    assert ours.valid[0, :count].all()
    assert ours.valid.sum() == count
    assert_same_ranking(
        np.asarray(ours.boxes[0, :count]),
        recorded["proposals"],
        np.asarray(ours.logits[0, :count]),
        recorded["proposal_logits"],
    )


def test_roi_align(config, recorded):
    boxes = jnp.asarray(recorded["proposals"])[None, :16]
    ours = ssm.align(config, features_of(recorded), boxes, BOX_BINS).transpose(0, 3, 1, 2)
    assert relative_error(ours, recorded["roi_features_first16"]) <= TOLERANCE


@pytest.mark.parametrize("branch", ["cls", "seg"])
def test_box_branches(config, variables, recorded, branch):
    boxes = jnp.asarray(recorded["proposals"])[None]
    roi_features = ssm.align(config, features_of(recorded), boxes, BOX_BINS)
    method = {"cls": "classify_boxes", "seg": "segment_boxes"}[branch]
    ours = jitted(config, method)(variables, roi_features=roi_features)
    assert relative_error(ours.logits, recorded[f"{branch}_branch_logits"]) <= TOLERANCE
    deltas = ours.deltas.reshape(-1, 8)
    assert relative_error(deltas, recorded[f"{branch}_branch_deltas"]) <= TOLERANCE


def thresholds_of(recorded):
    return float(recorded["score_threshold"]), float(recorded["nms_threshold"])


def test_roi_batch(config, recorded):
    keys = jax.random.split(jax.random.key(0), 1)
    select = jax.jit(functools.partial(ssm.select_rois, config))
    ours = select(outputs_of(recorded, "cls"), proposals_of(recorded), SIZES, keys)
    assert ours.distinct[0] == 128
    rows = np.asarray(ours.rows[0])
    theirs = recorded["roi_batch"]
    assert_same_ranking(rows, theirs, rows[:, 0], theirs[:, 0])


def test_module_s(config, variables, recorded):
    ours = jitted(config, "read_class")(variables, rows=jnp.asarray(recorded["roi_batch"])[None])
    assert relative_error(ours[0], recorded["class_logits"]) <= TOLERANCE


def test_detections(config, recorded):
    detect = jax.jit(functools.partial(inference.detect, config))
    outputs, proposals = outputs_of(recorded, "seg"), proposals_of(recorded)
    boxes, scores, labels, valid = detect(outputs, proposals, SIZES, *thresholds_of(recorded))
    count = len(recorded["det_boxes"])
    assert valid[0, :count].all()
    assert valid.sum() == count
    assert (labels[0, :count] == 1).all()
    assert_same_ranking(
        np.asarray(boxes[0, :count]),
        recorded["det_boxes"],
        np.asarray(scores[0, :count]),
        recorded["det_scores"],
    )


def test_mask_logits(config, variables, recorded):
    boxes = jnp.asarray(recorded["det_boxes"])[None]
    roi_features = ssm.align(config, features_of(recorded), boxes, MASK_BINS)
    ours = jitted(config, "predict_masks")(variables, roi_features=roi_features).transpose(
        0, 3, 1, 2
    )
    assert relative_error(ours, recorded["mask_logits"]) <= TOLERANCE


def box_iou(a, b):
    xywh = [np.concatenate([x[:, :2], x[:, 2:] - x[:, :2]], axis=1).astype(float) for x in (a, b)]
    return coco_mask.iou(*xywh, np.zeros(len(b), np.uint8))


def assert_end_to_end(predictions, recorded):
    """Class logits, detections one to one, and pasted masks."""
    np.testing.assert_allclose(
        np.asarray(predictions.class_logits[0]), recorded["class_logits"], atol=1e-2
    )
    valid = np.asarray(predictions.valid[0])
    boxes = np.asarray(predictions.boxes[0])[valid]
    iou = box_iou(boxes, recorded["out_boxes"])
    partner = iou.argmax(axis=0)
    assert len(boxes) == len(recorded["out_boxes"])
    matched = iou.max(axis=0) >= 0.99
    assert matched.mean() >= 0.99
    assert len(set(partner[matched])) == matched.sum()
    probabilities = np.asarray(predictions.mask_probabilities[0])[valid]
    ours = coco_mask.decode(encode_masks(probabilities, boxes, 512, 512)).transpose(2, 0, 1) > 0
    theirs = np.unpackbits(recorded["out_masks"], axis=-1).astype(bool)
    intersection = (ours[partner] & theirs).sum(axis=(1, 2))
    union = (ours[partner] | theirs).sum(axis=(1, 2))
    # Two empty masks agree.
    assert np.where(union > 0, intersection / np.maximum(union, 1), 1).mean() >= 0.99


def test_end_to_end(config, variables, recorded):
    image = jnp.asarray(recorded["image"])[None, ..., None]
    predict = _predict_fn(config)
    assert_end_to_end(predict(variables, image, SIZES, *thresholds_of(recorded)), recorded)


@functools.cache
def _predict_fn(config):
    return inference.make_predict_fn(config)
