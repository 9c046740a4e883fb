"""Pictures: what must be seen where, checked on pixels of chosen colors."""

import numpy as np
import pytest
from scipy import ndimage

from ssm_jax import visualize
from ssm_jax.class_set import ClassSet
from ssm_jax.classes import unnamed
from tests.helpers.fake_predictions import blob, box_of, label_map, prediction
from tests.test_classes import OWN

SIZE = 224  # half a panel: pixel (y, x) of the slice is at (2 y, 2 x) of a panel


def panel(picture, index, height=SIZE, width=SIZE):
    """The slice part of one panel as int [rows, columns, 3]."""
    scale = visualize.PANEL / max(height, width)
    rows, columns = round(height * scale), round(width * scale)
    left = visualize._GAP + index * (columns + visualize._GAP)
    top = visualize._HEADER
    return np.asarray(picture)[top : top + rows, left : left + columns].astype(int)


def has(pixels, color):
    return (pixels == color).all(-1)


def scene():
    masks = [blob(SIZE, SIZE, (70, 60), (24, 18)), blob(SIZE, SIZE, (150, 150), (30, 22))]
    image = np.full((SIZE, SIZE), 100, np.uint8)
    return image, masks


def test_three_panels_show_slice_truth_and_prediction():
    image, masks = scene()
    found = prediction(masks[:1], [0.9], SIZE, SIZE, logits=(0, 0, 5))
    picture = visualize.overlay(image, found, label_map(masks, SIZE, SIZE), 2)
    assert picture.mode == "RGB"
    left, truth, predicted = (panel(picture, k) for k in range(3))
    assert (left == 100).all()
    contours = has(truth, visualize._TRUTH)
    assert ndimage.label(contours, np.ones((3, 3)))[1] == 2
    filled = ndimage.binary_fill_holes(contours)
    wanted = np.kron(masks[0] | masks[1], np.ones((2, 2), bool))
    assert (filled & wanted).sum() > 0.97 * (filled | wanted).sum()
    assert contours.sum() < 0.25 * filled.sum()
    assert has(truth, (100, 100, 100))[~filled].all()
    # The prediction: opaque rim and box, translucent inside, nothing at the missed lesion.
    color = np.array(visualize.PREDICTED_COLORS[0])
    mixed = np.round((1 - visualize._MASK_OPACITY) * 100 + visualize._MASK_OPACITY * color)
    assert (predicted[140, 120] == mixed).all()
    x1, y1, x2, y2 = 2 * np.array(box_of(masks[0]))
    rim = has(predicted, color)
    assert rim[y1, x1 + 20 : x2 - 1].all()
    assert rim[y1 : y2 - 1, x2 - 1].all()
    assert rim[y2 - 1, x1 : x2 - 1].all()
    assert (predicted[240:360, 256:344] == 100).all()


def test_without_truth_and_without_masks():
    image, masks = scene()
    found = prediction(masks, [0.9, 0.8], SIZE, SIZE)
    found.masks = None
    two = visualize.overlay(image, found)
    three = visualize.overlay(image, found, np.zeros((SIZE, SIZE), np.uint8))
    assert two.width < three.width
    predicted = panel(two, 1)
    assert (predicted[140, 120] == 100).all()
    for color in visualize.PREDICTED_COLORS[:2]:
        assert has(predicted, color).any()
    assert (panel(three, 1) == 100).all()


def test_several_lesion_classes_have_colors_and_a_legend():
    image, masks = scene()
    found = prediction(masks, [0.9, 0.8], SIZE, SIZE, labels=[2, 1], logits=[0] * 5, classes=OWN)
    picture = visualize.overlay(image, found)
    cell, dirt, scratch = visualize.lesion_colors(OWN)
    assert cell == (10, 20, 30)  # its own; the others are usual ones
    assert [dirt, scratch] == [*visualize.PREDICTED_COLORS[1:3]]
    predicted, legend = panel(picture, 1), np.asarray(picture)[-visualize._LEGEND :]
    for color, mask in ((dirt, masks[0]), (cell, masks[1])):
        x1, y1, x2, _ = 2 * np.array(box_of(mask))
        assert has(predicted[y1, x1:x2], color).any()
    for color in (cell, dirt, scratch):
        assert has(legend, color).any()
    texts = [key.text for line in visualize._legend_lines(found, False, 896) for key in line]
    assert texts == ["Cell", "Dirt", "Scratch (mask, box and score)"]


def test_a_long_legend_takes_lines():
    many = ClassSet.from_json({"lesion": [f"a lesion with a long name {k}" for k in range(20)]})
    found = prediction([], [], SIZE, SIZE, logits=(), classes=many)
    lines = visualize._legend_lines(found, True, 896)
    assert sum(map(len, lines)) == 21
    assert all(sum(key.width for key in line) <= 896 for line in lines)
    one = visualize.overlay(np.zeros((SIZE, SIZE), np.uint8), prediction([], [], SIZE, SIZE))
    tall = visualize.overlay(np.zeros((SIZE, SIZE), np.uint8), found)
    assert tall.height - one.height == (len(lines) - 1) * visualize._LEGEND


def test_verdict_color():
    image, _ = scene()
    nothing = prediction([], [], SIZE, SIZE, logits=(0, 4, 0))
    truth = {"right": 1, "wrong": 2, "unknown": None}
    below = {
        name: np.asarray(visualize.overlay(image, nothing, None, label))[-100:]
        for name, label in truth.items()
    }
    seen = {
        name: (has(pixels, visualize._RIGHT).any(), has(pixels, visualize._WRONG).any())
        for name, pixels in below.items()
    }
    assert seen == {"right": (True, False), "wrong": (False, True), "unknown": (False, False)}


@pytest.mark.parametrize(("height", "width"), [(64, 100), (1024, 700), (33, 33)])
def test_panels_have_one_size_whatever_the_slice(height, width):
    color = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    # Boxes that reach over every side, more of them than colors, and one without an area.
    boxes = [[-5, -5, width + 5, height + 5]] * 7 + [[3, 3, 3, 3]]
    masks = [np.zeros((height, width), bool)] * 8
    found = prediction(masks, np.linspace(0.9, 0.1, 8), height, width, boxes=boxes)
    picture = visualize.overlay(
        color, found, np.zeros((height, width), np.uint8), 0, title="x" * 99
    )
    assert max(panel(picture, 0, height, width).shape) == visualize.PANEL
    gray = visualize.overlay(color[..., 0], found)
    assert (np.ptp(panel(gray, 0, height, width), axis=-1) == 0).all()


def test_contour():
    mask = np.zeros((7, 8), bool)
    mask[1:6, 2:8] = True  # touches the right side, which counts as outside
    inner, inner2 = np.zeros_like(mask), np.zeros_like(mask)
    inner[2:5, 3:7] = True
    inner2[3:4, 4:6] = True
    np.testing.assert_array_equal(visualize.contour(mask), mask & ~inner)
    np.testing.assert_array_equal(visualize.contour(mask, 2), mask & ~inner2)


def test_bad_input_is_refused():
    image, masks = scene()
    found = prediction(masks, [0.9, 0.8], SIZE, SIZE)
    with pytest.raises(ValueError, match="image must be uint8"):
        visualize.overlay(image / 255, found)
    with pytest.raises(ValueError, match=r"\[H, W, 3\], not uint8 \[224, 224, 4\]"):
        visualize.overlay(np.zeros((SIZE, SIZE, 4), np.uint8), found)
    with pytest.raises(ValueError, match="the prediction is for 224x224"):
        visualize.overlay(image[:100], found)
    with pytest.raises(ValueError, match="truth_instances"):
        visualize.overlay(image, found, np.zeros((5, 5), np.uint8))
    with pytest.raises(ValueError, match="2 image classes for 3"):
        visualize.overlay(image, prediction([], [], SIZE, SIZE, classes=unnamed(2, 1)))
    with pytest.raises(ValueError, match="true_label 3"):
        visualize.overlay(image, found, true_label=3)
