"""Lesion objects against a plain flood fill."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ssm_jax.classes import paper
from ssm_jax.data.objects import area_fields, component_areas, lesion_objects


def flood_fill(mask, values=(2, 3)):
    """Components of some values in the order of their first pixel: lists of (row, column)."""
    left = {tuple(p) for p in np.argwhere(np.isin(mask, values))}
    components = []
    for start in map(tuple, np.argwhere(np.isin(mask, values))):
        if start not in left:
            continue
        left.remove(start)
        pixels, front = [], [start]
        while front:
            row, column = front.pop()
            pixels.append((row, column))
            for dr in (-1, 0, 1):
                for dc in (-1, 0, 1):
                    near = (row + dr, column + dc)
                    if near in left:
                        left.remove(near)
                        front.append(near)
        components.append(pixels)
    return components


masks = hnp.arrays(
    np.uint8, st.tuples(st.integers(1, 14), st.integers(1, 14)), elements=st.integers(0, 3)
)


# In pixels of a slice of 512 x 512: up to 37 pixels of the largest mask here.
min_areas = st.integers(0, 50_000)


def is_object(pixels, mask, min_area):
    return len(pixels) * 512 * 512 > min_area * mask.shape[0] * mask.shape[1]


@given(masks, min_areas)
def test_equals_flood_fill(mask, min_area):
    components = flood_fill(mask)
    large = [pixels for pixels in components if is_object(pixels, mask, min_area)]
    expected = np.zeros(mask.shape, np.uint8)
    boxes = []
    for k, pixels in enumerate(large):
        rows, columns = np.array(pixels).T
        expected[rows, columns] = k + 1
        boxes.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))

    instances, found, labels = lesion_objects(mask, min_area)

    assert instances.dtype == np.uint8 and found.dtype == np.float32
    np.testing.assert_array_equal(instances, expected)
    np.testing.assert_array_equal(found, np.array(boxes, np.float32).reshape(-1, 4))
    np.testing.assert_array_equal(labels, np.ones(len(large)))
    np.testing.assert_array_equal(component_areas(mask), [len(pixels) for pixels in components])


@given(masks, min_areas, st.sampled_from([("both", (2, 3)), ("ggo", (2,))]))
def test_mask_types_equal_a_flood_fill_of_each_value(mask, min_area, kind):
    mask_type, values = kind
    objects = [
        (label, pixels)
        for label, value in enumerate(values, 1)
        for pixels in flood_fill(mask, (value,))
        if is_object(pixels, mask, min_area)
    ]
    expected = np.zeros(mask.shape, np.uint8)
    for k, (_, pixels) in enumerate(objects):
        expected[tuple(np.array(pixels).T)] = k + 1
    instances, boxes, labels = lesion_objects(mask, min_area, paper(mask_type=mask_type).lesion)
    assert labels.dtype == np.int32 and boxes.shape == (len(objects), 4)
    np.testing.assert_array_equal(instances, expected)
    np.testing.assert_array_equal(labels, [label for label, _ in objects])
    for k, (_, pixels) in enumerate(objects):
        rows, columns = np.array(pixels).T
        box = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        np.testing.assert_array_equal(boxes[k], box)
    assert area_fields(mask) == {
        "areas": [len(pixels) for pixels in flood_fill(mask)],
        "ground_glass_areas": [len(pixels) for pixels in flood_fill(mask, (2,))],
        "consolidation_areas": [len(pixels) for pixels in flood_fill(mask, (3,))],
    }


def test_ground_glass_and_consolidation_are_one_object_and_corners_connect():
    mask = np.zeros((6, 6), np.uint8)
    mask[1, 1], mask[2, 2], mask[3, 3], mask[4, 4] = 2, 3, 2, 3
    instances, boxes, _ = lesion_objects(mask, 3 * 512 * 512 // 36)
    np.testing.assert_array_equal(boxes, [[1, 1, 5, 5]])
    np.testing.assert_array_equal(instances, mask >= 2)


@pytest.mark.parametrize("shape", [(512, 512), (256, 256), (128, 256), (1024, 512)])
def test_an_object_is_larger_than_the_same_share_of_any_slice(shape):
    """100 of 512 x 512 pixels are no object, and so is the same share of another size."""
    limit = 100 * shape[0] * shape[1] / (512 * 512)
    mask = np.zeros(shape, np.uint8)
    mask[0, : int(limit)] = 2
    mask[5, : int(limit) + 1] = 3
    _, boxes, _ = lesion_objects(mask)
    np.testing.assert_array_equal(boxes, [[0, 5, int(limit) + 1, 6]])


def test_more_objects_than_a_label_map_holds():
    mask = np.zeros((40, 40), np.uint8)
    mask[::2, ::2] = 2
    with pytest.raises(ValueError, match="400 objects"):
        lesion_objects(mask, 0)


@given(masks, hnp.arrays(np.uint16, (14, 14), elements=st.integers(0, 700)), min_areas)
def test_objects_with_numbers_are_what_has_one_number(mask, numbers, min_area):
    numbers = numbers[: mask.shape[0], : mask.shape[1]] // 100  # few numbers, with gaps
    lesions = paper(mask_type="both").lesion
    pixels = [
        (label, np.argwhere((mask == value) & (numbers == number)))
        for label, value in ((1, 2), (2, 3))
        for number in range(1, 8)
    ]
    large = [(label, own) for label, own in pixels if is_object(own, mask, min_area) and len(own)]
    expected = np.zeros(mask.shape, np.uint8)
    for k, (_, own) in enumerate(large):
        expected[tuple(own.T)] = k + 1
    instances, boxes, labels = lesion_objects(mask, min_area, lesions, numbers)
    np.testing.assert_array_equal(instances, expected)
    assert labels.tolist() == [label for label, _ in large]
    low_high = [[*own.min(axis=0)[::-1], *(own.max(axis=0)[::-1] + 1)] for _, own in large]
    np.testing.assert_array_equal(boxes, np.array(low_high).reshape(-1, 4))
    areas = component_areas(mask, (2,), numbers).tolist()
    assert areas == [len(own) for label, own in pixels if label == 1 and len(own)]
