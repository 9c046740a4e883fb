"""RoIAlign, its values and the gradient of the map, against loops in NumPy and recorded tensors."""

import functools

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from ssm_jax.ops import roi_align as roi_ops
from ssm_jax.ops import roi_chunks
from tests.helpers import ops_oracles as oracles
from tests.helpers.shared import REFERENCE, needs_reference

roi_align = jax.jit(roi_ops.roi_align, static_argnums=(2, 3, 4))


@functools.partial(jax.jit, static_argnums=(3, 4))
def feature_gradient(features, boxes, cotangent, size, scale):
    """Gradient of <cotangent, roi_align(features)> with respect to the features."""
    _, pull = jax.vjp(lambda f: roi_ops.roi_align(f, boxes, size, scale), features)
    return pull(cotangent)[0]


# On a map of 9 rows and 13 columns at stride 16: an image of 144 x 208 pixels.
KNOWN_BOXES = np.array(
    [
        [32, 32, 144, 96],  # aligned with the cells
        [3.5, 7.25, 101.75, 60.5],
        [0, 0, 208, 144],  # the whole map
        [50, 50, 50, 50],  # no size
        [50, 20, 52, 140],  # narrower than a cell
        [20, 60, 140, 61],  # flatter than a cell
        [190, 130, 207, 143],  # the last cell
        [-40, -30, 60, 50],  # beyond the top and the left edge
        [150, 100, 260, 190],  # beyond the bottom and the right edge
        [-500, -500, 900, 900],  # around everything
        [-300, 20, -100, 60],  # wholly to the left
        [20, 400, 60, 500],  # wholly below
        [120, 90, 40, 20],  # corners in the wrong order
        [-20, -20, 92, 92],  # at 7 bins samples lie exactly one cell outside: still read
        [96, 32, 208, 144],  # and
        [100, 36, 212, 148],  # exactly on the far limit (row 9, column 13)
    ],
    np.float32,
)


def random_map(seed, height=9, width=13, channels=3):
    """Features [height, width, channels] float32."""
    return np.random.default_rng(seed).normal(size=(height, width, channels)).astype(np.float32)


@pytest.mark.parametrize("size", [7, 14])
@pytest.mark.parametrize("stride", [8, 16])
def test_known_boxes(size, stride):
    features, boxes = random_map(0), KNOWN_BOXES * (stride / 16)
    ours = roi_align(features, boxes, size, 1 / stride, 2)
    assert ours.shape == (len(boxes), size, size, 3)
    assert ours.dtype == np.float32
    expected = oracles.roi_align(features, boxes, size, 1 / stride)
    np.testing.assert_allclose(ours, expected, atol=2e-5)
    assert not expected[10:12].any()
    np.testing.assert_array_equal(ours[10:12], 0)


@pytest.mark.parametrize("size", [7, 14])
@pytest.mark.parametrize("stride", [8, 16])
def test_feature_gradient_is_the_transpose(size, stride):
    boxes = KNOWN_BOXES * (stride / 16)
    cotangent = np.random.default_rng(1).normal(size=(len(boxes), size, size, 3))
    cotangent = cotangent.astype(np.float32)
    ours = feature_gradient(random_map(0), boxes, cotangent, size, 1 / stride)
    expected = oracles.roi_align_transpose(cotangent, (9, 13, 3), boxes, size, 1 / stride)
    np.testing.assert_allclose(ours, expected, atol=1e-4 * np.abs(expected).max())


def test_limits_of_the_map():
    """One cell beyond the first or the last is read as the border, further is zero."""
    features = np.ones((9, 13, 1), np.float32)
    # Seven bins of one cell: samples at a quarter and three quarters of each.
    for shift, rows in ((-1.25, 14), (-1.5, 13), (-1.75, 13), (2.25, 14), (2.5, 13), (4.25, 10)):
        box = np.array([[32, 0, 144, 112]], np.float32)
        box[:, [1, 3]] += 16 * shift
        ours = np.asarray(roi_align(features, box, 7, 1 / 16, 2))[0, :, :, 0]
        np.testing.assert_allclose(2 * ours.sum(0), rows, rtol=1e-6)


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_number_of_samples(samples):
    features = random_map(2)
    ours = roi_align(features, KNOWN_BOXES, 4, 1 / 16, samples)
    expected = oracles.roi_align(features, KNOWN_BOXES, 4, 1 / 16, samples)
    np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_two_samples_are_the_default():
    features = random_map(3)
    np.testing.assert_array_equal(
        jax.jit(roi_ops.roi_align, static_argnums=(2, 3))(features, KNOWN_BOXES, 7, 1 / 16),
        roi_align(features, KNOWN_BOXES, 7, 1 / 16, 2),
    )


def test_a_plane_is_sampled_at_bin_centers():
    rows, columns = np.mgrid[:9, :13].astype(np.float32)
    features = np.stack([rows, columns], axis=-1)
    box = np.array([[16, 32, 128, 96]], np.float32)  # cells: x 1..8, y 2..6
    ours = np.asarray(roi_align(features, box, 7, 1 / 16, 2))[0]
    np.testing.assert_allclose(ours[:, 0, 0], 2 + (np.arange(7) + 0.5) * 4 / 7, rtol=1e-5)
    np.testing.assert_allclose(ours[0, :, 1], 1 + np.arange(7) + 0.5, rtol=1e-5)


def distance_to_limits(boxes, bins, height=9, width=13):
    """How far, in cells, the nearest of all samples is from one cell outside the map."""
    offsets = (np.arange(2 * bins) + 0.5) / (2 * bins)
    distances = []
    for axis, size in ((0, width), (1, height)):
        start, end = boxes[:, axis].astype(np.float64), boxes[:, axis + 2].astype(np.float64)
        samples = start[:, None] + np.maximum(end - start, 1)[:, None] * offsets
        distances += [np.abs(samples + 1).min(), np.abs(samples - size).min()]
    return min(distances)


@hypothesis.given(
    hnp.arrays(np.float32, (2, 4), elements=st.integers(-400, 1200).map(lambda v: v / 4)),
    st.integers(0, 9),
)
def test_any_boxes(boxes, seed):
    # Where a sample lies on the limit to rounding, rounding decides whether it is read.
    hypothesis.assume(distance_to_limits(boxes / 16, 7) > 1e-4)
    features = random_map(seed)
    ours = roi_align(features, boxes, 7, 1 / 16, 2)
    np.testing.assert_allclose(ours, oracles.roi_align(features, boxes, 7, 1 / 16), atol=1e-4)


@pytest.mark.parametrize("count", [1, 64, 66, 67, 131])
def test_batch_equals_single_images(count):
    """Counts that chunks divide, and prime ones, which are padded."""
    check_batch(count)


def test_batch_on_accelerators(as_on_accelerators):
    check_batch(67)


def check_batch(count):
    """Values and gradients of two images against the loops."""
    rng = np.random.default_rng(count)
    features = np.stack([random_map(4), random_map(5)])
    boxes = rng.uniform(-20, 220, (2, count, 4)).astype(np.float32)
    cotangent = rng.normal(size=(2 * count, 7, 7, 3)).astype(np.float32)

    @jax.jit
    def values_and_gradients(features, boxes):
        pool = functools.partial(roi_chunks.roi_align_batch, output_size=7, spatial_scale=1 / 16)
        values, pull = jax.vjp(lambda f, b: pool(f, b), features, boxes)
        return values, pull(cotangent)

    values, (gradient, box_gradient) = values_and_gradients(features, boxes)
    for i in range(2):
        mine = slice(i * count, (i + 1) * count)
        expected = oracles.roi_align(features[i], boxes[i], 7, 1 / 16)
        np.testing.assert_allclose(values[mine], expected, atol=2e-5)
        shape = features[i].shape
        expected = oracles.roi_align_transpose(cotangent[mine], shape, boxes[i], 7, 1 / 16)
        np.testing.assert_allclose(gradient[i], expected, atol=1e-5 * np.abs(expected).max())
    assert not box_gradient.any()


@pytest.mark.parametrize(("count", "chunks"), [(5, 1), (67, 1), (100, 1), (100, 2)])
def test_map_rois(count, chunks, monkeypatch):
    """Every box meets the features of its own image, and results keep their order."""
    monkeypatch.setattr(roi_chunks, "CHUNKS_READ", chunks)
    assert min(check_map_rois(count)) <= chunks * roi_chunks.CHUNK


def test_map_rois_on_accelerators(as_on_accelerators, monkeypatch):
    """All boxes of three images in one product."""
    monkeypatch.setattr(roi_chunks, "IMAGES_AT_ONCE", 3)
    assert check_map_rois(70) == {3 * 70}


def check_map_rois(count):
    """Three images against the loop; returns how many boxes were read at a time."""
    sizes = set()
    rng = np.random.default_rng(0)
    features = rng.standard_normal((3, 12, 10, 2)).astype(np.float32)
    corners = rng.uniform(0, 150, (3, count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0, 60, (3, count, 2))], -1)
    boxes = boxes.astype(np.float32)

    def read(pooled):
        sizes.add(len(pooled))
        return pooled[:, 0, 0], pooled.sum(axis=(1, 2, 3))

    run = jax.jit(lambda *args: roi_chunks.map_rois(read, *args, 7, 1 / 16))
    first, sums = run(features, boxes)
    for image in range(3):
        expected = oracles.roi_align(features[image], boxes[image], 7, 1 / 16)
        own = slice(image * count, (image + 1) * count)
        np.testing.assert_allclose(first[own], expected[:, 0, 0], atol=2e-5)
        np.testing.assert_allclose(sums[own], expected.sum(axis=(1, 2, 3)), atol=1e-3)
    return sizes


@pytest.mark.parametrize("longest", [30, 100, 700])
@pytest.mark.parametrize("shape", [(40, 24), (18, 50)])
def test_windows_change_nothing(shape, longest, monkeypatch):
    """Boxes gathered by place and pooled in windows are those of the whole map, bit by bit."""
    rng = np.random.default_rng(longest)
    features = rng.standard_normal((2, *shape, 3)).astype(np.float32)
    limits = 16 * np.array(shape[::-1])
    corners = rng.uniform(-20, limits + 20, (2, 200, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0, longest, (2, 200, 2))], -1)
    boxes = boxes.astype(np.float32)

    def run():
        return jax.jit(lambda *args: roi_chunks.map_rois(lambda x: x, *args, 7, 1 / 16))(
            features, boxes
        )

    assert [w for w in roi_chunks.WINDOWS if w < min(shape)]
    in_windows = run()
    monkeypatch.setattr(roi_chunks, "WINDOWS", ())
    np.testing.assert_array_equal(in_windows, run())
    expected = oracles.roi_align(features[1], boxes[1], 7, 1 / 16)
    np.testing.assert_allclose(in_windows[200:], expected, atol=2e-5)


@pytest.mark.parametrize("window", [4, 8])
def test_cells_read(window):
    """Cells outside of what a box is said to read have no weight in it."""
    rng = np.random.default_rng(window)
    corners = rng.uniform(-40, 360, (500, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0, 16 * window, (500, 2))], -1)
    boxes = boxes.astype(np.float32)
    cells_read = jax.vmap(lambda box: roi_chunks.cells_read(box[None], 1 / 16, 20, 16))
    first, count = (np.asarray(x) for x in jax.jit(cells_read)(boxes))
    weights = jax.jit(roi_ops.bin_weights, static_argnums=(2, 3, 4))
    for axis, (size, low) in enumerate(((20, 1), (16, 0))):
        of_bins = np.asarray(weights(boxes[:, low] / 16, boxes[:, low + 2] / 16, 7, size, 2))
        cells = np.arange(size)
        read = (cells >= first[:, axis, None]) & (cells < (first + count)[:, axis, None])
        assert (read | ~of_bins.any(axis=1)).all()
        assert 1 < read.sum(axis=1).mean() < size


def test_gradient_is_finite_and_zero_outside():
    boxes = KNOWN_BOXES[[3, 10, 11]]  # no size, and two outside
    cotangent = np.ones((3, 7, 7, 3), np.float32)
    gradient = np.asarray(feature_gradient(random_map(6), boxes, cotangent, 7, 1 / 16))
    np.testing.assert_allclose(gradient.sum((0, 1)), 49, rtol=1e-5)
    assert not gradient[6:].any()
    assert not gradient[:, 6:].any()


@needs_reference
@pytest.mark.parametrize("size", [7, 14])
def test_recorded_values_and_gradients(size):
    with np.load(REFERENCE / "ops.npz") as file:
        recorded = {name: file[name] for name in file.files if name.startswith("roialign")}
    features = recorded["roialign_features"].transpose(1, 2, 0)
    boxes = recorded["roialign_boxes"]
    values = recorded[f"roialign_{size}"].transpose(0, 2, 3, 1)
    ours = roi_align(features, boxes, size, 1 / 16, 2)
    assert np.abs(ours - values).max() <= 1e-5 * np.abs(values).max()
    cotangent = recorded[f"roialign_{size}_cotangent"].transpose(0, 2, 3, 1)
    gradient = recorded[f"roialign_{size}_grad_features"].transpose(1, 2, 0)
    ours = feature_gradient(features, boxes, cotangent, size, 1 / 16)
    assert np.abs(ours - gradient).max() <= 1e-5 * np.abs(gradient).max()
