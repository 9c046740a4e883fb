"""Inference against recordings of the author's code: stage by stage, and end to end.

Stages read what the reference's stage before them gave. See docs/parity.md.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from ssm_jax.config import VARIANTS, ModelConfig
from ssm_jax.interop import reference_names
from ssm_jax.models import inference, ssm
from ssm_jax.models.roi_heads import BOX_BINS, MASK_BINS
from ssm_jax.models.rpn import propose
from ssm_jax.ops.masks import encode_masks
from ssm_jax.predictor import Predictor
from tests.parity import seeded
from tests.parity.comparing import (
    features_of,
    jitted,
    outputs_of,
    proposals_of,
    recording,
    relative_error,
    samples,
)

pytestmark = pytest.mark.usefixtures("quickly_compiled")

TOLERANCE = 2e-5  # of a tensor's largest magnitude
PIXELS = 1e-3
FEATURES = 16384  # numbers kept of mask logits
NUMBERS = {"image_size": 96, "max_size": 192}


def config_of(recorded, variant, branches=2):
    backbone, blocks = VARIANTS[variant]
    names = ("rpn_pre_nms", "rpn_post_nms", "selection_size")
    numbers = {name: int(recorded[name]) for name in names}
    detections = int(recorded["selection_size"])
    return ModelConfig(
        backbone=backbone,
        blocks=blocks,
        branches=branches,
        max_detections=detections,
        **numbers,
        **NUMBERS,
    )


@functools.cache
def weights_of(config, seed):
    return seeded.weights(reference_names.reference_shapes(config), seed)


@functools.cache
def variables_of(config, seed):
    return reference_names.to_variables(weights_of(config, seed), config)


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request):
    return request.param


@pytest.fixture(scope="module")
def recorded(variant):
    return recording(f"forward_{variant}")


@pytest.fixture(scope="module")
def config(variant, recorded):
    return config_of(recorded, variant)


@pytest.fixture(scope="module")
def variables(config, recorded):
    return variables_of(config, int(recorded["weights_seed"]))


def slice_of(recorded):
    image, _ = seeded.slice_with_lesions(int(recorded["slice_seed"]), *recorded["size"])
    assert image.astype(np.int64).sum() == recorded["image_sum"]
    return image


def sizes_of(recorded):
    return jnp.asarray(recorded["size"])[None]


def run(config, method, variables, **inputs):
    """One stage of the model."""
    return jitted(config, method)(variables, **inputs)


def test_the_seed_makes_the_weights_of_the_recording(config, recorded):
    weights = weights_of(config, int(recorded["weights_seed"]))
    total = sum(np.abs(array, dtype=np.float64).sum() for array in weights.values())
    np.testing.assert_allclose(total, recorded["weights_sum"], rtol=1e-12)


def test_features(config, variables, recorded):
    image = jnp.asarray(slice_of(recorded))[None, ..., None]
    sizes = sizes_of(recorded)
    ours = run(config, "extract", variables, images=image, image_sizes=sizes, train=False)
    assert relative_error(ours[0].transpose(2, 0, 1), recorded["features"]) <= TOLERANCE


def test_rpn_head(config, variables, recorded):
    ours = run(config, "score_anchors", variables, features=features_of(recorded))
    size = recorded["features"].shape[1:]
    for name, values in zip(("rpn_objectness", "rpn_deltas"), ours, strict=True):
        by_channel = values.reshape(*size, -1).transpose(2, 0, 1)
        assert relative_error(by_channel, recorded[name]) <= TOLERANCE


def test_proposals(config, recorded):
    objectness = jnp.asarray(recorded["rpn_objectness"]).transpose(1, 2, 0).reshape(1, -1)
    deltas = jnp.asarray(recorded["rpn_deltas"]).transpose(1, 2, 0).reshape(1, -1, 4)
    anchors = ssm.anchors_for(config, recorded["features"].shape[1:])
    propose_one = jax.jit(functools.partial(propose, config))
    ours = propose_one(objectness, deltas, anchors, sizes_of(recorded))
    assert ours.valid.all()
    np.testing.assert_array_equal(ours.logits[0], recorded["proposal_logits"])
    assert np.abs(ours.boxes[0] - recorded["proposals"]).max() <= PIXELS


def test_roi_align(config, recorded):
    boxes = jnp.asarray(recorded["proposals"])[None]
    ours = ssm.align(config, features_of(recorded), boxes, BOX_BINS).transpose(0, 3, 1, 2)
    theirs = recorded["roi_features"]
    assert relative_error(samples(ours, theirs.size), theirs) <= TOLERANCE


@pytest.mark.parametrize("branch", ["cls", "seg"])
def test_box_branches(config, variables, recorded, branch):
    boxes = jnp.asarray(recorded["proposals"])[None]
    roi_features = ssm.align(config, features_of(recorded), boxes, BOX_BINS)
    method = {"cls": "classify_boxes", "seg": "segment_boxes"}[branch]
    ours = run(config, method, variables, roi_features=roi_features)
    assert relative_error(ours.logits, recorded[f"{branch}_branch_logits"]) <= TOLERANCE
    deltas = ours.deltas.reshape(-1, 8)
    assert relative_error(deltas, recorded[f"{branch}_branch_deltas"]) <= TOLERANCE


@pytest.mark.parametrize(("branches", "branch"), [(1, "seg"), (2, "cls")])
def test_roi_batch(config, recorded, branches, branch):
    keys = jax.random.split(jax.random.key(0), 1)
    select = jax.jit(functools.partial(ssm.select_rois, config))
    ours = select(outputs_of(recorded, branch), proposals_of(recorded), sizes_of(recorded), keys)
    assert ours.distinct[0] == config.selection_size
    assert relative_error(ours.rows[0], recorded[f"roi_batch_{branches}"]) <= TOLERANCE


@pytest.mark.parametrize("branches", [1, 2])
def test_module_s(config, variables, recorded, branches):
    rows = jnp.asarray(recorded[f"roi_batch_{branches}"])[None]
    ours = run(config, "read_class", variables, rows=rows)
    assert relative_error(ours[0], recorded[f"class_logits_{branches}"]) <= TOLERANCE


def thresholds_of(recorded):
    return float(recorded["score_threshold"]), float(recorded["nms_threshold"])


def test_detections(config, recorded):
    detect = jax.jit(functools.partial(inference.detect, config))
    outputs, proposals = outputs_of(recorded, "seg"), proposals_of(recorded)
    thresholds = thresholds_of(recorded)
    boxes, scores, labels, valid = detect(outputs, proposals, sizes_of(recorded), *thresholds)
    count = len(recorded["det_boxes"])
    np.testing.assert_array_equal(valid[0], np.arange(config.max_detections) < count)
    assert (labels[0, :count] == 1).all()
    np.testing.assert_allclose(scores[0, :count], recorded["det_scores"], atol=1e-6)
    assert np.abs(boxes[0, :count] - recorded["det_boxes"]).max() <= PIXELS


def test_mask_logits(config, variables, recorded):
    boxes = jnp.asarray(recorded["det_boxes"])[None]
    roi_features = ssm.align(config, features_of(recorded), boxes, MASK_BINS)
    ours = run(config, "predict_masks", variables, roi_features=roi_features)
    theirs = recorded["mask_logits"]
    by_channel = samples(ours.transpose(0, 3, 1, 2), FEATURES)
    assert relative_error(by_channel, theirs) <= TOLERANCE


@functools.cache
def _predict_fn(config):
    return inference.make_predict_fn(config)


@pytest.mark.parametrize("branches", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_end_to_end(variant, recorded, branches):
    """Class logits, detections in order, and every pixel of the pasted masks."""
    config = config_of(recorded, variant, branches)
    variables = variables_of(config, int(recorded["weights_seed"]))
    image = jnp.asarray(slice_of(recorded))[None, ..., None]
    sizes = sizes_of(recorded)
    ours = _predict_fn(config)(variables, image, sizes, *thresholds_of(recorded))
    logits = recorded[f"class_logits_{branches}"]
    np.testing.assert_allclose(ours.class_logits[0], logits, atol=1e-4)
    count = len(recorded["out_boxes"])
    assert ours.valid[0].sum() == count
    boxes, scores = np.asarray(ours.boxes[0, :count]), ours.scores[0, :count]
    assert np.abs(boxes - recorded["out_boxes"]).max() <= PIXELS
    np.testing.assert_allclose(scores, recorded["out_scores"], atol=1e-5)
    probabilities = np.asarray(ours.mask_probabilities[0, :count])
    assert_same_masks(encode_masks(probabilities, boxes, *recorded["size"].tolist()), recorded)


def assert_same_masks(encoded, recorded):
    """Equal in every pixel, but where the reference's probability is 0.5 to within 1e-4."""
    ours = coco_mask.decode(encoded).transpose(2, 0, 1) > 0
    masks, undecided = (
        np.unpackbits(recorded[name], axis=-1, count=ours.shape[-1]).astype(bool)
        for name in ("out_masks", "undecided")
    )
    assert undecided.mean() < 1e-3
    assert masks.any(axis=(1, 2)).sum() >= 4
    assert not ((ours != masks) & ~undecided).any()


def test_a_slice_is_resized_padded_and_predicted_in_its_own_pixels():
    recorded = recording("forward_resized")
    config = config_of(recorded, "r18_3")
    variables = variables_of(config, int(recorded["weights_seed"]))
    ours = Predictor(config, variables, *thresholds_of(recorded))(slice_of(recorded))
    np.testing.assert_allclose(ours.class_logits, recorded["class_logits_2"], atol=1e-4)
    assert len(ours.boxes) == len(recorded["out_boxes"])
    assert np.abs(ours.boxes - recorded["out_boxes"]).max() <= PIXELS
    np.testing.assert_allclose(ours.scores, recorded["out_scores"], atol=1e-5)
    assert_same_masks(ours.masks, recorded)


@pytest.mark.slow  # with a small model in tests/test_predictor.py
def test_a_slice_gives_in_a_batch_what_it_gives_alone():
    recorded = recording("forward_r18_3")
    config = config_of(recorded, "r18_3")
    variables = variables_of(config, int(recorded["weights_seed"]))
    other, _ = seeded.slice_with_lesions(0, *recorded["size"])
    batch = jnp.asarray(np.stack([slice_of(recorded), other]))[..., None]
    predict, sizes = _predict_fn(config), sizes_of(recorded)
    together = predict(variables, batch, jnp.tile(sizes, (2, 1)), 0.05, 0.5)
    for index in range(2):
        alone = predict(variables, batch[index : index + 1], sizes, 0.05, 0.5)
        np.testing.assert_allclose(
            together.class_logits[index], alone.class_logits[0], rtol=1e-4, atol=1e-4
        )
        np.testing.assert_array_equal(together.valid[index], alone.valid[0])
        np.testing.assert_allclose(together.boxes[index], alone.boxes[0], atol=1e-2)
        np.testing.assert_allclose(
            together.mask_probabilities[index], alone.mask_probabilities[0], atol=1e-4
        )


@pytest.mark.parametrize("branches", [1, 2])
def test_state_dict_round_trip_is_exact(config, recorded, branches):
    config = dataclasses.replace(config, branches=branches)
    seed = int(recorded["weights_seed"])
    weights = weights_of(config, seed)
    back = reference_names.from_variables(variables_of(config, seed), config)
    assert set(back) == set(weights)
    for name, array in back.items():
        assert array.dtype == weights[name].dtype
        np.testing.assert_array_equal(array, weights[name], err_msg=name)


def test_wrong_weights_are_refused_with_a_list():
    config = ModelConfig()
    weights = dict(weights_of(config, 7))
    with pytest.raises(ValueError, match=r"missing: backbone.body.layer3|unknown: backbone"):
        reference_names.to_variables(weights, ModelConfig(blocks=2))
    name = "rpn.head.conv.bias"
    for value, message in ((np.zeros(3), "shape"), (np.full(256, np.nan), "not finite")):
        with pytest.raises(ValueError, match=f"{message}: {name}"):
            reference_names.to_variables(weights | {name: value}, config)
    del weights[name]
    with pytest.raises(ValueError, match=f"missing: {name}"):
        reference_names.to_variables(weights, config)
