"""The predictor: any size and type of slice, everything in the slice's own pixels."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import ssm_jax
from ssm_jax.checkpoints import save_model
from ssm_jax.config import ModelConfig
from ssm_jax.models.inference import make_predict_fn, read_rois
from ssm_jax.models.rpn import Proposals
from ssm_jax.ops import rle
from ssm_jax.ops.resizing import resize_bilinear
from ssm_jax.ops.roi_batch import RoIBatch
from ssm_jax.predictor import prepare
from tests.helpers import ops_oracles as oracles
from tests.helpers.tiny import get_config, random_variables

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.fixture(scope="module")
def model():
    config = ModelConfig.from_mapping(get_config().model.to_dict())
    return config, random_variables(config)


@pytest.fixture(scope="module")
def predictor(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, *model)
    return ssm_jax.load(folder, score_threshold=0.05, batch_size=2)


def slice_of(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)


def assert_equal(a, b):
    for name in ("class_logits", "class_probabilities", "boxes", "scores", "labels"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-4, atol=1e-4)
    assert (a.height, a.width, a.predicted_class) == (b.height, b.width, b.predicted_class)
    assert a.masks == b.masks


def test_prediction_in_the_pixels_of_the_slice(model, predictor):
    height, width = 90, 41
    image = slice_of(height, width)
    prediction = predictor(image)
    # The same by hand: the long side bounds the size, 128x58, padded to 128x64.
    canvas = np.zeros((1, 128, 64, 1), np.float32)
    canvas[0, :, :58] = resize_bilinear(image[..., None].astype(np.float32) / 255, 128, 58)
    sizes = np.array([[128, 58]], np.int32)
    outputs = make_predict_fn(model[0])(model[1], canvas, sizes, 0.05, 0.5)
    used = np.asarray(outputs.valid[0])
    assert used.sum() > 1
    assert (prediction.height, prediction.width) == (height, width)
    boxes = np.asarray(outputs.boxes[0])[used] * [41 / 58, 90 / 128, 41 / 58, 90 / 128]
    np.testing.assert_allclose(prediction.boxes, boxes, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(prediction.scores, outputs.scores[0][used], rtol=1e-4)
    assert (np.diff(prediction.scores) <= 0).all()
    logits = np.asarray(outputs.class_logits[0])
    np.testing.assert_allclose(prediction.class_logits, logits, rtol=1e-4, atol=1e-4)
    softmax = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(prediction.class_probabilities, softmax, rtol=1e-3)
    assert prediction.predicted_class == logits.argmax()
    probabilities = np.asarray(outputs.mask_probabilities[0])[used]
    assert len(prediction.masks) == len(probabilities)
    for mask, grid, box in zip(prediction.masks, probabilities, prediction.boxes, strict=True):
        pasted = oracles.paste(grid, box, height, width)
        wrong = (rle.decode(mask) != (pasted > 0.5)) & (abs(pasted - 0.5) > 1e-3)
        assert not wrong.any()


def test_the_roi_batch_is_what_module_s_read(model, predictor):
    config, variables = model
    image = slice_of(90, 41)
    curious = ssm_jax.Predictor(config, variables, score_threshold=0.05, roi_batch=True)
    prediction, plain = curious(image), predictor(image)
    assert_equal(prediction, plain)
    assert plain.roi_batch is None
    read = prediction.roi_batch
    size = config.selection_size
    assert (read.rows.shape, read.boxes.shape) == ((size, 5), (size, 4))
    layers, x = variables["params"]["module_s"], read.rows.ravel()
    for name in ("fc1", "fc2"):
        x = np.maximum(x @ layers[name]["kernel"] + layers[name]["bias"], 0)
    logits = x @ layers["logits"]["kernel"] + layers["logits"]["bias"]
    np.testing.assert_allclose(logits, prediction.class_logits, rtol=1e-3, atol=1e-3)
    assert (np.diff(read.rows[:, 0]) <= 0).all()
    assert 1 <= read.count <= size
    assert len(np.unique(np.column_stack([read.rows, read.boxes]), axis=0)) == read.count
    assert (read.boxes >= 0).all()
    assert (read.boxes <= [41, 90, 41, 90]).all()
    assert (read.boxes[:, 2:] > read.boxes[:, :2]).all()
    assert read.boxes[:, 3].max() > 60  # in pixels of the slice, not of the resized one


def test_rows_are_decoded_against_their_proposals():
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 40, (2, 6, 2))
    references = np.concatenate([corners, corners + rng.uniform(2, 20, (2, 6, 2))], axis=-1)
    rows = rng.normal(0, 1, (2, 4, 5)).astype(np.float32)
    indices = np.array([[5, 0, 0, 3], [1, 2, 3, 4]], np.int32)
    sizes = np.array([[50, 60], [40, 64]], np.int32)
    proposals = Proposals(jnp.asarray(references, jnp.float32), None, None)
    selection = RoIBatch(jnp.asarray(rows), jnp.asarray(indices), jnp.array([3, 0]))
    read = read_rois(selection, proposals, jnp.asarray(sizes))
    for k in range(4):
        x1, y1, x2, y2 = references[0, indices[0, k]]
        _, tx, ty, tw, th = rows[0, k]
        x, y = (x1 + x2) / 2 + tx / 10 * (x2 - x1), (y1 + y2) / 2 + ty / 10 * (y2 - y1)
        w, h = (x2 - x1) * np.exp(tw / 5), (y2 - y1) * np.exp(th / 5)
        box = np.clip([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 0, [60, 50, 60, 50])
        np.testing.assert_allclose(read.boxes[0, k], box, rtol=1e-4, atol=1e-3)
    assert not np.any(read.boxes[1])  # no box survived
    np.testing.assert_array_equal(read.rows, rows)


@pytest.mark.slow
def test_gray_rgb_and_float_slices_are_the_same(predictor):
    image = slice_of(64, 64)
    gray = predictor(image)
    assert_equal(predictor(np.repeat(image[..., None], 3, axis=2)), gray)
    assert_equal(predictor(image.astype(np.float32) / 255), gray)
    assert_equal(predictor(image.astype(np.float64) / 255), gray)
    assert_equal(predictor((image.astype(np.float32) / 255)[..., None].repeat(3, 2)), gray)


@pytest.mark.slow
def test_a_batch_of_all_sizes_gives_what_each_slice_gives_alone(predictor):
    sizes = [(64, 64), (90, 41), (64, 64), (32, 32), (3, 500), (64, 64), (1, 1)]
    images = [slice_of(*size, seed) for seed, size in enumerate(sizes)]
    together = predictor.predict_batch(images)
    assert [(p.height, p.width) for p in together] == sizes
    for image, prediction in zip(images[:3], together, strict=False):
        assert_equal(predictor(image), prediction)
    np.testing.assert_array_equal(
        predictor.class_logits(images), [p.class_logits for p in together]
    )
    assert predictor.predict_batch([]) == []


def test_pixels_that_are_no_squares_are_predicted_as_squares(predictor):
    image = slice_of(64, 128)
    square = resize_bilinear(image[..., None].astype(np.float32) / 255, 64, 64)[..., 0]
    plain, (stretched,) = predictor(square), predictor.predict_batch([image], aspects=[2.0])
    np.testing.assert_allclose(stretched.class_logits, plain.class_logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(stretched.boxes, plain.boxes * [2, 1, 2, 1], rtol=1e-4, atol=1e-3)
    assert (stretched.height, stretched.width) == (64, 128)
    assert [rle.decode(mask).shape for mask in stretched.masks] == [(64, 128)] * len(plain.masks)


def test_the_score_threshold_is_a_lower_bound(model, predictor):
    image = slice_of(64, 64)
    scores = predictor(image).scores
    middle = float(np.median(scores))
    strict = ssm_jax.Predictor(*model, score_threshold=middle, batch_size=2)
    assert strict(image).scores.min(initial=1) > middle
    assert len(strict(image).scores) < len(scores)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((8, 8), 1.5), r"\[0, 1\], this one spans \[1.5, 1.5\]"),
        (np.full((8, 8), -1000.0), r"apply a CT window"),
        (np.full((8, 8), np.nan), r"\[0, 1\]"),
        (np.zeros((8, 8), np.uint16), "not uint16"),
        (np.zeros((8, 8), bool), "not bool"),
        (np.zeros((8, 8, 4), np.uint8), r"not \[8, 8, 4\]"),
        (np.zeros(8, np.uint8), r"not \[8\]"),
        (np.zeros((0, 8), np.uint8), "needs pixels"),
    ],
)
def test_an_unusable_slice_is_refused(image, message):
    with pytest.raises(ValueError, match=message):
        prepare(image, 64, 128)


@pytest.mark.parametrize(
    "wrong", [{"score_threshold": 1.5}, {"nms_threshold": -0.1}, {"batch_size": 0}]
)
def test_unusable_settings_are_refused(model, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ssm_jax.Predictor(*model, **wrong)


def test_importing_the_package_is_cheap():
    program = "import sys, ssm_jax; ssm_jax.__version__; print('jax' in sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, text=True
    )
    assert output.stdout.strip() == "False"
    assert {"load", "Predictor", "Prediction"} <= set(dir(ssm_jax))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = ssm_jax.nonsense
