"""Host resizing against plain loops, and PIL where both mean the same."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ssm_jax.ops.resizing import resize_bilinear, resize_nearest, resized_shape

lengths = st.integers(1, 24)


def bilinear_loops(image, height, width):
    out = np.zeros((height, width, image.shape[2]))
    for i in range(height):
        for j in range(width):
            y = max((i + 0.5) * image.shape[0] / height - 0.5, 0)
            x = max((j + 0.5) * image.shape[1] / width - 0.5, 0)
            y0, x0 = math.floor(y), math.floor(x)
            for yy, wy in ((y0, 1 - (y - y0)), (y0 + 1, y - y0)):
                for xx, wx in ((x0, 1 - (x - x0)), (x0 + 1, x - x0)):
                    row, column = min(yy, image.shape[0] - 1), min(xx, image.shape[1] - 1)
                    out[i, j] += wy * wx * image[row, column]
    return out


@given(lengths, lengths, lengths, lengths, st.sampled_from([1, 3]), st.integers(0, 99))
def test_bilinear_equals_loops(height, width, new_height, new_width, channels, seed):
    image = np.random.default_rng(seed).random((height, width, channels), np.float32)
    found = resize_bilinear(image, new_height, new_width)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, bilinear_loops(image, new_height, new_width), atol=1e-6)


def test_enlarging_equals_pil():
    image = np.random.default_rng(0).random((17, 23), np.float32)
    expected = np.asarray(Image.fromarray(image).resize((41, 64), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(
        resize_bilinear(image[..., None], 64, 41)[..., 0], expected, atol=1e-5
    )


@given(lengths, lengths, lengths, lengths)
def test_nearest_takes_floor(height, width, new_height, new_width):
    mask = np.arange(height * width).reshape(height, width)
    found = resize_nearest(mask, new_height, new_width)
    for i in range(new_height):
        for j in range(new_width):
            row = math.floor(i * height / new_height)
            assert found[i, j] == mask[row, math.floor(j * width / new_width)]


def test_same_size_changes_nothing():
    image = np.random.default_rng(1).random((9, 7, 1), np.float32)
    np.testing.assert_array_equal(resize_bilinear(image, 9, 7), image)
    mask = (image[..., 0] * 9).astype(np.uint8)
    np.testing.assert_array_equal(resize_nearest(mask, 9, 7), mask)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 512), (512, 512)),
        ((630, 630), (512, 512)),
        ((256, 384), (512, 768)),
        ((200, 1000), (204, 1024)),  # the long side decides
        ((1000, 200), (1024, 204)),
        ((512, 700), (512, 700)),
        ((694, 694), (511, 511)),  # 694 * (512 / 694) is just below 512 in double precision
    ],
)
def test_resized_shape(size, expected):
    assert resized_shape(*size, 512, 1024) == expected
