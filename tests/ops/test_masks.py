"""Mask targets, pasting and RLE encoding against loops in NumPy and recorded masks."""

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from ssm_jax.ops import masks as mask_ops
from tests.helpers import ops_oracles as oracles
from tests.helpers.shared import REFERENCE, needs_reference

mask_targets = jax.jit(mask_ops.mask_targets)


def expected_targets(instances, boxes, ids, valid):
    """RoIAlign of each row's own mask at scale 1 with an adaptive number of samples."""
    targets = np.zeros((len(boxes), 28, 28))
    for i in np.flatnonzero(valid):
        mask = (instances == ids[i])[..., None]
        targets[i] = oracles.roi_align(mask, boxes[i : i + 1], 28, 1.0, 0)[0, ..., 0]
    return targets


def label_map(height=48, width=72):
    """Three objects in one label map, the first full of holes; none has number 3."""
    rows, columns = np.mgrid[:height, :width]
    instances = np.zeros((height, width), np.uint8)
    instances[(rows - 14) ** 2 + (columns - 20) ** 2 < 110] = 1
    instances[8:40, 31:44] = 2
    instances[(instances == 1) & ((rows * 7 + columns * 3) % 5 == 0)] = 0
    instances[(rows > 35) & (columns > 55 + rows % 7)] = 4
    return instances


def test_several_objects_in_one_map():
    instances = label_map()
    boxes = np.array(
        [
            [10, 4, 31, 25],  # around object 1
            [10, 4, 30, 25],  # nearly the same, asking for object 2: nothing there
            [31, 8, 44, 40],  # object 2, exactly
            [33.5, 10.25, 40, 22],  # inside object 2
            [0, 0, 72, 48],  # the whole image, object 2: 3 x 2 samples a bin
            [55.3, 34.1, 71.9, 47.6],  # object 4
            [20, 0, 48, 48],  # exactly 28 wide: one sample across, two down
            [30, 20, 58.25, 21],  # just wider: two samples; one pixel high
        ],
        np.float32,
    )
    ids = np.array([1, 2, 2, 2, 2, 4, 1, 2], np.int32)
    valid = np.ones(8, bool)
    ours = mask_targets(instances, boxes, ids, valid)
    assert ours.shape == (8, 28, 28)
    assert ours.dtype == np.float32
    expected = expected_targets(instances, boxes, ids, valid)
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    means = expected.mean((1, 2))
    assert means[1] == 0
    assert means[3] == 1
    assert ((means[[0, 2, 4, 5, 6, 7]] > 0.05) & (means[[0, 2, 4, 5, 6, 7]] < 1)).all()


def test_small_boxes():
    """A side below one pixel counts as one pixel."""
    instances = label_map()
    boxes = np.array(
        [
            [20, 14, 21, 15],
            [30.5, 20.5, 31.5, 21.5],
            [31, 20, 31, 20],
            [30.25, 12, 30.5, 40],
            [12, 7.75, 50, 7.8],
            [0, 0, 0, 0],
            [72, 48, 72, 48],
            [71, 47, 72, 48],
        ],
        np.float32,
    )
    ids = np.array([1, 2, 2, 2, 2, 1, 4, 4], np.int32)
    valid = np.ones(8, bool)
    expected = expected_targets(instances, boxes, ids, valid)
    np.testing.assert_allclose(mask_targets(instances, boxes, ids, valid), expected, atol=1e-5)


def test_boxes_partly_outside():
    instances = label_map()
    boxes = np.array(
        [
            [-10, -6, 25, 20],
            [-1.5, 3, 30, 49.5],
            [50, 30, 90, 60],
            [60, 40, 74, 50],
            [30, -20, 44, 10],
            [-30, -30, -5, -5],
            [80, 10, 90, 20],
            [31, 8, 44, 40],
        ],
        np.float32,
    )
    ids = np.array([1, 1, 4, 4, 2, 1, 4, 2], np.int32)
    valid = np.ones(8, bool)
    expected = expected_targets(instances, boxes, ids, valid)
    np.testing.assert_allclose(mask_targets(instances, boxes, ids, valid), expected, atol=1e-5)


def test_invalid_rows_are_zero():
    instances = np.full((48, 72), 3, np.uint8)
    boxes = np.array([[10, 10, 30, 30]] * 5 + [[0, 0, 0, 0]] * 2 + [[np.nan] * 4], np.float32)
    ids = np.array([3, 3, 3, 3, 3, 3, 1, 1], np.int32)
    valid = np.array([True, False, True, False, False, False, False, False])
    ours = np.asarray(mask_targets(instances, boxes, ids, valid))
    np.testing.assert_allclose(ours[[0, 2]], 1, rtol=1e-6)
    np.testing.assert_array_equal(ours[~valid], 0)


def test_last_object_number():
    instances = np.zeros((48, 72), np.uint8)
    instances[10:20, 10:20] = 255
    instances[20:30, 20:30] = 1
    boxes = np.array([[10, 10, 20, 20]] * 8, np.float32)
    ids = np.array([255, 1, 254, 255, 1, 1, 1, 1], np.int32)
    ours = mask_targets(instances, boxes, ids, np.ones(8, bool))
    expected = expected_targets(instances, boxes, ids, np.ones(8, bool))
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert expected[0].mean() > 0.9
    assert expected[2].max() == 0


quarters = st.integers(0, 4 * 48).map(lambda v: v / 4)


@hypothesis.settings(max_examples=25)
@hypothesis.given(
    st.lists(st.tuples(quarters, quarters, quarters, quarters), min_size=8, max_size=8)
)
def test_any_boxes_in_the_image(corners):
    corners = np.array(corners, np.float32)
    boxes = np.concatenate([np.minimum(corners[:, :2], corners[:, 2:]), corners[:, :2]], axis=1)
    boxes[:, 2:] = np.maximum(corners[:, :2], corners[:, 2:])
    instances, ids = label_map(), np.array([1, 2, 4, 1, 2, 4, 3, 2], np.int32)
    valid = np.array([True] * 6 + [False, True])
    expected = expected_targets(instances, boxes, ids, valid)
    np.testing.assert_allclose(mask_targets(instances, boxes, ids, valid), expected, atol=1e-5)


@pytest.mark.parametrize("at_once", [2, 3])
def test_vmap_equals_single_images_on_accelerators(at_once, monkeypatch, as_on_accelerators):
    monkeypatch.setattr(mask_ops, "TARGETS_AT_ONCE", at_once)
    test_vmap_equals_single_images()


def test_vmap_equals_single_images():
    instances = np.stack([label_map(), label_map()[::-1]])
    boxes = np.array([[[10, 4, 31, 25], [31, 8, 44, 40]], [[5, 5, 60, 40], [0, 0, 72, 48]]])
    boxes = boxes.astype(np.float32)
    ids, valid = np.array([[1, 2], [2, 4]], np.int32), np.array([[True, True], [True, False]])
    ours = jax.jit(jax.vmap(mask_ops.mask_targets))(instances, boxes, ids, valid)
    for i in range(2):
        expected = expected_targets(instances[i], boxes[i], ids[i], valid[i])
        np.testing.assert_allclose(ours[i], expected, atol=1e-5)


@needs_reference
def test_recorded_targets():
    with np.load(REFERENCE / "ops.npz") as file:
        masks = np.unpackbits(file["masktarget_masks"], axis=-1)
        boxes, index = file["masktarget_boxes"], file["masktarget_index"]
        recorded = file["masktarget_28"]
    assert masks.sum(0).max() == 1  # so that they fit one label map
    instances = (masks * np.arange(1, 4, dtype=np.uint8)[:, None, None]).sum(0).astype(np.uint8)
    ids = (index + 1).astype(np.int32)
    ours = mask_targets(instances, boxes, ids, np.ones(len(boxes), bool))
    assert (recorded.mean((1, 2)) > 0).sum() >= 8  # most of the boxes miss their object
    np.testing.assert_allclose(ours, recorded, atol=1e-5)


def random_probabilities(seed):
    """Probabilities [28, 28] float32: a blob with noise, on both sides of a half."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:28, :28] / 27 * 2 - 1
    blob = 4 - 8 * (rows**2 + columns**2) + rng.normal(0, 1, (28, 28))
    return (1 / (1 + np.exp(-blob))).astype(np.float32)


PASTED = [
    [10.2, 8.1, 50.7, 33.9],
    [0, 0, 64, 40],  # the whole image: grown beyond it on all sides
    [-7.3, -4.2, 20.4, 15.3],
    [50.6, 30.3, 80.1, 55.5],
    [20.4, 10.7, 21.4, 11.7],  # one pixel
    [20.4, 10.7, 20.4, 10.7],  # nothing: still one pixel is pasted
    [0.3, 5.2, 3.1, 39.7],  # the grown corner is -0.x: truncated toward zero
    [0, 0, 0.5, 0.5],
    [62.9, 38.6, 64, 40],
    [5.3, 12.6, 60.2, 14.1],  # flat
]


def pasted(probabilities, box, height, width):
    """The slice that `paste` gives: [height, width] probabilities, 0 outside the box."""
    canvas = np.zeros((height, width), np.float32)
    place, values = mask_ops.paste(probabilities, box, height, width)
    assert values.dtype == np.float32
    canvas[place] = values
    return canvas


@pytest.mark.parametrize("box", PASTED)
def test_paste(box):
    for seed, (height, width) in enumerate([(40, 64), (64, 40)]):
        box = np.array(box, np.float32)
        probabilities = random_probabilities(seed)
        ours = pasted(probabilities, box, height, width)
        expected = oracles.paste(probabilities, box, height, width)
        np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_paste_truncates_toward_zero():
    box = np.array([0.3, 0.3, 14.3, 14.3], np.float32)  # grown by 0.5: corners -0.2 and 14.8
    ours = pasted(np.ones((28, 28), np.float32), box, 40, 64)
    rows, columns = np.nonzero(ours)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (0, 14, 0, 14)
    # Fifteen pixels for thirty cells: each averages two, the first the border and an inner one.
    np.testing.assert_allclose(ours[0, 1:14], 0.5, atol=1e-6)
    np.testing.assert_allclose(ours[1:14, 1:14], 1, atol=1e-6)
    assert ours[15:].max() == ours[:, 15:].max() == 0


def test_paste_wholly_outside_is_empty():
    for box in ([-40, 5, -10, 20], [70, 5, 90, 20], [5, -40, 20, -10], [5, 50, 20, 70]):
        ours = pasted(random_probabilities(0), np.array(box, np.float32), 40, 64)
        assert not ours.any()


coordinates = st.floats(-15, 70, width=16)


@hypothesis.settings(max_examples=50)
@hypothesis.given(coordinates, coordinates, coordinates, coordinates, st.integers(0, 5))
def test_paste_any_box(x1, x2, y1, y2, seed):
    box = np.array([min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)], np.float32)
    corners = oracles.pasted_corners(box)
    # Truncation is decided by rounding where a grown corner is an integer.
    hypothesis.assume((np.abs(corners - np.round(corners)) > 1e-4).all())
    expected = oracles.paste(random_probabilities(seed), box, 40, 64)
    ours = pasted(random_probabilities(seed), box, 40, 64)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@needs_reference
def test_recorded_pasted_masks():
    with np.load(REFERENCE / "ops.npz") as file:
        probabilities, boxes = file["paste_probs"], file["paste_boxes"]
        masks, sums = np.unpackbits(file["paste_masks_gt_half"], axis=-1), file["paste_sums"]
    encoded = mask_ops.encode_masks(probabilities, boxes, 512, 512)
    assert len(encoded) == len(boxes)
    for i, rle in enumerate(encoded):
        values = pasted(probabilities[i], boxes[i], 512, 512)
        np.testing.assert_array_equal(values > 0.5, masks[i])
        np.testing.assert_allclose(values.sum(dtype=np.float64), sums[i], rtol=1e-5)
        np.testing.assert_array_equal(coco_mask.decode(rle), masks[i])


def test_encoded_masks_are_coco_rle():
    probabilities = np.stack([random_probabilities(seed) for seed in range(len(PASTED))])
    boxes = np.array(PASTED, np.float32)
    encoded = mask_ops.encode_masks(probabilities, boxes, 40, 64)
    assert len(encoded) == len(PASTED)
    for i, rle in enumerate(encoded):
        assert set(rle) == {"size", "counts"}
        assert list(rle["size"]) == [40, 64]
        assert isinstance(rle["counts"], str)
        expected = oracles.paste(probabilities[i], boxes[i], 40, 64)
        assert (np.abs(expected - 0.5) > 1e-6).all()
        np.testing.assert_array_equal(coco_mask.decode(rle), expected > 0.5)


def test_half_is_not_lesion():
    box = np.array([[10, 10, 30, 30]], np.float32)
    for probability, lesion in ((0.5, False), (0.75, True)):
        probabilities = np.full((1, 28, 28), probability, np.float32)
        (rle,) = mask_ops.encode_masks(probabilities, box, 40, 64)
        assert coco_mask.decode(rle).any() == lesion


def test_no_masks_to_encode():
    empty = np.zeros((0, 28, 28), np.float32), np.zeros((0, 4), np.float32)
    assert mask_ops.encode_masks(*empty, 40, 64) == []
