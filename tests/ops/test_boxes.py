"""Box area, IoU, clipping and the delta coder against loops in NumPy and recorded tensors."""

import functools

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssm_jax.ops import boxes as box_ops
from tests.helpers import ops_oracles as oracles
from tests.helpers.shared import REFERENCE, needs_reference

RPN = (1.0, 1.0, 1.0, 1.0)
ROI = (10.0, 10.0, 5.0, 5.0)

pairwise_iou = jax.jit(box_ops.pairwise_iou)
encode = jax.jit(box_ops.encode, static_argnums=2)
decode = jax.jit(box_ops.decode, static_argnums=2)


def random_boxes(rng, count, low=0.0, high=100.0, smallest=1.0):
    """Boxes [count, 4] float32 with sides from `smallest` on."""
    corners = rng.uniform(low, high, (count, 2))
    sides = rng.uniform(smallest, (high - low) / 2, (count, 2))
    return np.concatenate([corners, corners + sides], axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def recorded():
    """The recorded operators."""
    with np.load(REFERENCE / "ops.npz") as file:
        return {name: file[name] for name in file.files}


def test_area_of_known_boxes():
    boxes = np.array([[0, 0, 4, 3], [1, 2, 1, 9], [5, 5, 5, 5], [-2, -1, 2, 1.5]], dtype=np.float32)
    area = jax.jit(box_ops.area)
    np.testing.assert_array_equal(area(boxes), [12, 0, 0, 10])
    np.testing.assert_array_equal(area(boxes[0]), 12)
    np.testing.assert_array_equal(area(boxes.reshape(2, 2, 4)), [[12, 0], [0, 10]])


def test_iou_of_known_boxes():
    a = np.array([[0, 0, 4, 4], [2, 2, 2, 2], [0, 0, 0, 4]], np.float32)
    b = np.array([[2, 0, 6, 4], [0, 0, 4, 4], [4, 0, 8, 4], [2, 2, 2, 2], [9, 9, 9, 9]], np.float32)
    expected = [[1 / 3, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    np.testing.assert_allclose(pairwise_iou(a, b), expected, rtol=1e-6)


def test_iou_of_random_boxes():
    rng = np.random.default_rng(0)
    a, b = random_boxes(rng, 30), random_boxes(rng, 17)
    a[:3, 2:] = a[:3, :2]
    b[:2] = a[[0, 5]]
    expected = oracles.pairwise_iou(a, b)
    assert (expected > 0).mean() > 0.2
    np.testing.assert_allclose(pairwise_iou(a, b), expected, atol=1e-6)


@hypothesis.given(
    hnp.arrays(np.int8, (12, 2), elements=st.integers(-3, 4)),
    hnp.arrays(np.int8, (12, 2), elements=st.integers(0, 4)),
)
def test_iou_properties(corner, size):
    boxes = np.concatenate([corner, corner + size], axis=1).astype(np.float32)
    overlaps = np.asarray(pairwise_iou(boxes, boxes))
    np.testing.assert_allclose(overlaps, oracles.pairwise_iou(boxes, boxes), atol=1e-6)
    np.testing.assert_array_equal(overlaps, overlaps.T)
    np.testing.assert_array_equal(np.diag(overlaps), (size > 0).all(axis=1))


@needs_reference
def test_iou_is_the_recorded(recorded):
    ours = pairwise_iou(recorded["match_gt"], recorded["match_anchors"])
    np.testing.assert_allclose(ours, recorded["match_iou"], atol=1e-6)


def test_clip_uses_height_then_width():
    boxes = np.array(
        [[-5, -6, 30, 40], [3, 4, 5, 6], [25, 12, 60, 15], [-9, -9, -1, -2]], np.float32
    )
    clip = jax.jit(box_ops.clip_to_image)
    expected = [[0, 0, 20, 10], [3, 4, 5, 6], [20, 10, 20, 10], [0, 0, 0, 0]]
    np.testing.assert_array_equal(clip(boxes, np.array([10, 20], np.int32)), expected)
    np.testing.assert_array_equal(clip(boxes, np.array([10.0, 20.0], np.float32)), expected)


def test_clip_takes_one_size_an_image_under_vmap():
    rng = np.random.default_rng(1)
    boxes = rng.uniform(-50, 150, (3, 6, 4)).astype(np.float32)
    sizes = np.array([[10, 20], [90, 40], [64, 64]], np.int32)
    ours = jax.jit(jax.vmap(box_ops.clip_to_image))(boxes, sizes)
    for clipped, original, (height, width) in zip(ours, boxes, sizes, strict=True):
        limits = np.array([width, height, width, height])
        np.testing.assert_array_equal(clipped, np.minimum(np.maximum(original, 0), limits))


def test_coder_by_hand():
    reference = np.array([[10, 20, 30, 60]], np.float32)  # center (20, 40), 20 wide, 40 high
    box = np.array([[20, 20, 60, 40]], np.float32)  # center (40, 30), 40 wide, 20 high
    expected = np.array([[1, -0.25, np.log(2), -np.log(2)]])
    np.testing.assert_allclose(encode(box, reference, RPN), expected, rtol=1e-6)
    np.testing.assert_allclose(encode(box, reference, ROI), expected * ROI, rtol=1e-6)
    np.testing.assert_allclose(decode(expected, reference, RPN), box, rtol=1e-6)
    np.testing.assert_allclose(decode(expected * ROI, reference, ROI), box, rtol=1e-6)


@pytest.mark.parametrize("weights", [RPN, ROI])
def test_coder_against_numpy(weights):
    rng = np.random.default_rng(2)
    boxes, references = random_boxes(rng, 40), random_boxes(rng, 40)
    deltas = rng.normal(0, 1.5, (40, 4))
    deltas[:4, 2:] = [[4.1, 4.2], [5, 3], [-6, 9], [0, -9]]  # growth is clipped at 4.135
    deltas = (deltas * weights).astype(np.float32)
    np.testing.assert_allclose(
        encode(boxes, references, weights),
        oracles.encode(boxes, references, weights),
        rtol=1e-4,
        atol=1e-4,
    )
    expected = oracles.decode(deltas, references, weights)
    np.testing.assert_allclose(decode(deltas, references, weights), expected, rtol=1e-5, atol=1e-3)


def test_decode_clips_growth_but_not_shrinkage():
    reference = np.array([[0, 0, 8, 4]] * 3, np.float32)
    deltas = np.array([[0, 0, 50, 80], [0, 0, -20, -20], [0, 0, 4.13, 0]], np.float32)
    decoded = np.asarray(decode(deltas, reference, RPN))
    sides = decoded[:, 2:] - decoded[:, :2]
    np.testing.assert_allclose(sides[0], [500, 250], rtol=1e-5)
    assert (sides[1] < 1e-5).all()
    np.testing.assert_allclose(sides[2], [8 * np.exp(4.13), 4], rtol=1e-5)
    with_weights = np.asarray(decode(deltas, reference, (1.0, 1.0, 5.0, 5.0)))
    np.testing.assert_allclose(
        (with_weights[:, 2:] - with_weights[:, :2])[:1], [[500, 250]], rtol=1e-5
    )


@needs_reference
@pytest.mark.parametrize(("name", "weights"), [("rpn", RPN), ("roi", ROI)])
def test_coder_is_the_recorded(recorded, name, weights):
    anchors = recorded["match_anchors"]
    matched = recorded["match_gt"][np.maximum(recorded["match_roi"], 0)]
    np.testing.assert_allclose(
        encode(matched, anchors, weights), recorded[f"encode_{name}"], rtol=1e-4, atol=1e-4
    )
    ours = np.asarray(decode(recorded[f"decode_in_{name}"], anchors, weights))
    theirs = recorded[f"decode_{name}"]
    assert np.abs(ours - theirs).max() <= 1e-6 * np.abs(theirs).max()


sides = st.floats(0.5, 60, width=32)
corners = st.floats(-60, 60, width=32)


@st.composite
def box_lists(draw, count=8):
    """Boxes [count, 4] float32 with sides of at least half a pixel."""
    low = draw(hnp.arrays(np.float32, (count, 2), elements=corners))
    size = draw(hnp.arrays(np.float32, (count, 2), elements=sides))
    return np.concatenate([low, low + size], axis=1)


@hypothesis.given(box_lists(), box_lists(), st.sampled_from([RPN, ROI]))
def test_decode_inverts_encode(boxes, references, weights):
    # A box 60 / 0.5 = 120 times its reference would be clipped: stay below 62.5.
    ratio = (boxes[:, 2:] - boxes[:, :2]) / (references[:, 2:] - references[:, :2])
    hypothesis.assume((ratio < 60).all())
    back = decode(encode(boxes, references, weights), references, weights)
    np.testing.assert_allclose(back, boxes, atol=2e-3)


@functools.cache
def coder_gradients(name):
    """Jitted value and gradient, with respect to both arguments, of the sum of an operator."""
    operators = {
        "iou": lambda a, b: box_ops.pairwise_iou(a, b).sum(),
        "area": lambda a, b: (box_ops.area(a) * box_ops.area(b)).sum(),
        "encode": lambda a, b: box_ops.encode(a, b, ROI).sum(),
        "decode": lambda a, b: box_ops.decode(a, b, ROI).sum(),
        "decode_wild": lambda a, b: box_ops.decode(1e6 * a, b, ROI).sum(),
        "clip": lambda a, b: box_ops.clip_to_image(a + b, jnp.array([6, 7])).sum(),
    }
    return jax.jit(jax.value_and_grad(operators[name], argnums=(0, 1)))


@pytest.mark.parametrize("name", ["iou", "area", "encode", "decode", "decode_wild", "clip"])
def test_values_and_gradients_are_finite_at_boxes_without_size(name):
    """Padded rows and clipped proposals have no size; a NaN there would poison a masked loss."""
    boxes = np.array(
        [[0, 0, 0, 0], [3, 3, 3, 3], [3, 3, 3, 8], [2, 5, 9, 5], [1, 1, 4, 4]], np.float32
    )
    for other in (boxes, np.roll(boxes, 1, axis=0), np.zeros_like(boxes)):
        value, gradients = coder_gradients(name)(boxes, other)
        assert np.isfinite(value)
        for gradient in gradients:
            assert np.isfinite(gradient).all(), (name, other.tolist())
