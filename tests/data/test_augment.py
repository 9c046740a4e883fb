"""Augmentation: a plain warp as oracle, objects that follow, and pure batches."""

import dataclasses
import json

import cv2
import numpy as np
import pytest

from ssm_jax.classes import paper
from ssm_jax.config import default_config, validate
from ssm_jax.data import TrainBatches, augment, make_train_iterator, open_datasets
from ssm_jax.data.augment import Augmentation
from ssm_jax.data.objects import lesion_objects
from ssm_jax.data.sources import ClassificationExample, SegmentationExample
from tests.helpers.data_tools import lesion_mask, noise, seg_folder, small_config

MOVES = Augmentation(flip=0.5, scale=0.3, shift=0.1, rotate=20, crop=0.2)
GRAY = Augmentation(gain=0.3, offset=0.1, gamma=0.4, noise=0.05, blur=1.5, clahe=0.5)
ALL = Augmentation(**{k: max(v, getattr(GRAY, k)) for k, v in dataclasses.asdict(MOVES).items()})
FIELDS = [field.name for field in dataclasses.fields(Augmentation)]


def places(shape, matrix):
    """Where every pixel (row, column) of the new slice lies in the old one: x, y."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    x, y = np.tensordot(matrix[:, :2], np.stack([columns, rows]), 1) + matrix[:, 2, None, None]
    return x, y


def at(pixels, rows, columns):
    """Pixels at whole-numbered places, 0 outside."""
    inside = (rows >= 0) & (rows < pixels.shape[0]) & (columns >= 0) & (columns < pixels.shape[1])
    rows, columns = (
        np.clip(v, 0, n - 1) for v, n in zip((rows, columns), pixels.shape, strict=True)
    )
    return np.where(inside, pixels[rows, columns], 0.0)


def plain_linear(pixels, matrix):
    x, y = places(pixels.shape, matrix)
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    right, low = x - left, y - top
    upper = at(pixels, top, left) * (1 - right) + at(pixels, top, left + 1) * right
    lower = at(pixels, top + 1, left) * (1 - right) + at(pixels, top + 1, left + 1) * right
    return upper * (1 - low) + lower * low


@pytest.mark.parametrize("shape", [(64, 64), (61, 80)])
def test_warps_equal_a_plain_warp(shape):
    """OpenCV places pixels to 1/32 of a pixel (linear) and 1/1024 (nearest)."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    smooth = (100 + 80 * np.sin(rows / 9) * np.cos(columns / 7)).astype(np.uint8)
    for _ in range(20):
        matrix = augment.draw_warp(MOVES, rng, *shape)
        for pixels, bound in ((smooth, 5), (noise(1, *shape), 255 / 32 + 1)):
            warped = augment.warp(pixels, matrix, cv2.INTER_LINEAR)
            assert np.abs(warped - plain_linear(pixels, matrix)).max() <= bound
        labels = rng.integers(0, 9, shape, np.uint8)
        x, y = places(shape, matrix)
        expected = at(labels, np.rint(y).astype(int), np.rint(x).astype(int))
        differ = augment.warp(labels, matrix, cv2.INTER_NEAREST) != expected
        halfway = np.minimum(abs(x - np.floor(x) - 0.5), abs(y - np.floor(y) - 0.5))
        assert (halfway[differ] < 2e-3).all() and differ.mean() < 0.01


def test_a_mirror_image_is_exact():
    image = noise(0, 40, 51, 1)
    flipped = augment.classification(
        Augmentation(flip=1), np.random.default_rng(0), ClassificationExample("a", image, 2)
    )
    np.testing.assert_array_equal(flipped.image, image[:, ::-1])
    assert (flipped.label, flipped.file) == (2, "a")


@pytest.mark.parametrize(
    ("field", "value", "least", "most"),
    [("scale", 0.25, 0.8, 1.25), ("crop", 0.2, 0.8, 1), ("rotate", 10, 1, 1)],
)
def test_zoom_rotation_and_crop_stay_in_their_ranges(field, value, least, most):
    rng = np.random.default_rng(0)
    drawn = [augment.draw_warp(Augmentation(**{field: value}), rng, 60, 90) for _ in range(300)]
    sizes = [np.sqrt(np.linalg.det(matrix[:, :2])) for matrix in drawn]
    assert least - 1e-9 <= min(sizes) < least + 0.05 * (most > least) + 1e-9
    assert most - 0.05 * (most > least) - 1e-9 <= max(sizes) <= most + 1e-9
    angles = np.rad2deg([np.arctan2(matrix[1, 0], matrix[0, 0]) for matrix in drawn])
    if field == "rotate":
        assert -10 <= angles.min() < -9 and 9 < angles.max() <= 10
    else:
        np.testing.assert_allclose(angles, 0, atol=1e-9)
    if field == "crop":  # the window stays inside of the slice
        corners = np.array([[0, 0, 1], [89, 59, 1]])
        x, y = np.stack([matrix @ corners.T for matrix in drawn], axis=1)
        assert x.min() >= -0.5 and x.max() <= 89.5 and y.min() >= -0.5 and y.max() <= 59.5


def segmentation_example(seed=0, side=96):
    mask = lesion_mask(side, side, ((5, 5, 30, 22), (50, 8, 62, 30), (20, 60, 26, 66)))
    mask[70:90, 60:90] = 3
    image = noise(seed, side, side, 1)
    objects = lesion_objects(mask, 0, paper(mask_type="both").lesion)
    return SegmentationExample("a", image, *objects, np.uint8(mask > 1), "folder")


def test_objects_follow_their_pixels():
    """Every object that stays has its pixels, box and class; the others are background."""
    example, min_area = segmentation_example(), 1000
    least = min_area * 96 * 96 / 512**2
    counts = []
    for seed in range(40):
        new = augment.segmentation(MOVES, np.random.default_rng(seed), example, min_area)
        rng = np.random.default_rng(seed)
        augment.change_gray(MOVES, rng, example.image)
        matrix = augment.draw_warp(MOVES, rng, 96, 96)
        moved = augment.warp(example.instances, matrix, cv2.INTER_NEAREST)
        np.testing.assert_array_equal(new.lesion > 0, moved > 0)  # all are objects here
        kept = [k for k in range(4) if (moved == k + 1).sum() > least]
        assert new.instances.dtype == np.uint8 and new.boxes.dtype == np.float32
        assert new.labels.tolist() == [example.labels[k] for k in kept]
        assert new.boxes.shape == (len(kept), 4) and new.folder == "folder"
        for number, k in enumerate(kept, 1):
            np.testing.assert_array_equal(new.instances == number, moved == k + 1)
            rows, columns = np.nonzero(moved == k + 1)
            box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            np.testing.assert_array_equal(new.boxes[number - 1], box)
        assert new.instances.max() == len(kept)
        counts.append(len(kept))
    assert min(counts) < 4 and max(counts) >= 3, "objects stay, and objects go"


def test_gray_changes_move_nothing():
    example = segmentation_example()
    new = augment.segmentation(GRAY, np.random.default_rng(1), example, 0)
    assert new.instances is example.instances and new.boxes is example.boxes
    assert new.image.shape == (96, 96, 1) and new.image.dtype == np.uint8
    assert (new.image != example.image).mean() > 0.5


@pytest.mark.parametrize("shape", [(96, 96, 1), (64, 80, 3)])
@pytest.mark.parametrize("field", ["gain", "offset", "gamma", "noise", "blur", "clahe"])
def test_every_gray_change_does_something_and_only_if_asked(field, shape):
    image = noise(0, *shape) // 2 + 60
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(augment.change_gray(Augmentation(), rng, image), image)
    new = augment.change_gray(Augmentation(**{field: 1}), rng, image)
    assert new.dtype == np.uint8 and new.shape == shape and (new != image).any()


def test_the_gray_table():
    """Ranges of a single change at a time."""
    rng = np.random.default_rng(0)
    gray = np.arange(256) / 255
    for _ in range(50):
        offset = augment.gray_table(Augmentation(offset=0.2), rng) / 255 - gray
        assert abs(offset[128]) < 0.203 and np.ptp(offset[80:170]) < 0.01
        gain = augment.gray_table(Augmentation(gain=0.5), rng) / 255
        slope = (gain[140] - gain[115]) / (gray[140] - gray[115])
        assert 0.6 < slope < 1.55 and abs(gain[128] - gray[128]) < 0.01
        gamma = augment.gray_table(Augmentation(gamma=1), rng) / 255
        assert 0.5**2 - 0.01 < gamma[128] < 0.5**0.5 + 0.01 and gamma[[0, 255]].tolist() == [0, 1]


def test_noise_is_as_strong_as_drawn():
    image = np.full((200, 200, 1), 128, np.uint8)
    deviations = [
        augment.change_gray(Augmentation(noise=0.1), np.random.default_rng(k), image).std() / 255
        for k in range(30)
    ]
    assert max(deviations) < 0.102 and max(deviations) > 0.08 and min(deviations) < 0.02


@pytest.fixture(scope="module")
def augmented(tmp_path_factory):
    config = small_config(tmp_path_factory.mktemp("augmented"))
    config.data.augment.update(dataclasses.asdict(ALL))
    return config, open_datasets(config)


def assert_same(one, two):
    for part in ("seg", "cls"):
        for name, array in one[part].items():
            np.testing.assert_array_equal(array, two[part][name])


def test_batches_are_pure_functions_of_seed_and_step(augmented):
    config, datasets = augmented
    batches = TrainBatches(datasets, seed=4, batch_size=3)
    forward = [batches[k] for k in range(4)]
    again = TrainBatches(datasets, seed=4, batch_size=3)
    for k in reversed(range(4)):
        assert_same(again[k], forward[k])
    parts = [TrainBatches(datasets, 4, 3, (k, 3))[2] for k in range(3)]
    together = {
        part: {name: np.concatenate([p[part][name] for p in parts]) for name in forward[2][part]}
        for part in ("seg", "cls")
    }
    assert_same(together, forward[2])
    config = config.copy_and_resolve_references()
    config.seed, config.train.batch_size = 4, 3
    iterator = make_train_iterator(datasets, config)
    next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    resumed = make_train_iterator(datasets, config)
    resumed.set_state(state)
    assert_same(next(resumed), forward[1])


def test_slices_change_each_time_and_test_slices_never(augmented):
    config, datasets = augmented
    batches = TrainBatches(datasets, seed=0, batch_size=3)
    seen = {}
    for step in range(12):
        batch = batches[step]
        for part in ("seg", "cls"):
            for file, image in zip(batch[f"{part}_files"], batch[part]["image"], strict=True):
                seen.setdefault(file, []).append(image.tobytes())
    assert all(len(set(images)) == len(images) for images in seen.values())
    plain = open_datasets(small_config(config.data.data_dir))
    for name in ("seg_test", "cls_test"):
        for one, two in zip(getattr(datasets, name), getattr(plain, name), strict=True):
            np.testing.assert_array_equal(one.image, two.image)


def test_the_papers_recipes_change_nothing():
    config = default_config()
    assert not Augmentation(**config.data.augment).active
    assert sorted(config.data.augment) == sorted(FIELDS)


@pytest.mark.parametrize(("field", "value"), [("flip", 1.5), ("crop", 0.95), ("noise", -0.1)])
def test_impossible_settings(field, value):
    config = default_config()
    config.data.augment[field] = value
    with pytest.raises(ValueError, match=rf"data\.augment\.{field}"):
        validate(config)


def test_slices_are_changed_at_the_size_of_training(tmp_path):
    """Boxes and masks are those of the resized slice; resized slices stay float."""
    folder = seg_folder(tmp_path / "seg", ((128, 160),) * 3)
    config = small_config(tmp_path / "cache", data__seg_dir=str(folder), model__image_classes=0)
    config.model.branches = 1
    plain = TrainBatches(open_datasets(config), 0, 3)[0]["seg"]
    config.data.augment.flip = 1.0
    flipped = TrainBatches(open_datasets(config), 0, 3)[0]["seg"]
    assert flipped["image"].dtype == np.float32 and flipped["image"].shape == (3, 64, 96, 1)
    assert (flipped["image_size"] == (64, 80)).all()
    for name in ("image", "instances"):
        mirrored, array = plain[name][:, :, 79::-1], flipped[name][:, :, :80]
        np.testing.assert_allclose(array, mirrored, atol=0.51 / 255 if name == "image" else 0)
        assert not flipped[name][:, :, 80:].any()
    rows, columns = np.nonzero(flipped["instances"][0])
    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    np.testing.assert_array_equal(flipped["boxes"][0, 0], box)
