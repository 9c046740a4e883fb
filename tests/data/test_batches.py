"""Batches: a pure function of (seed, step), resumable, with the promised arrays."""

import json

import numpy as np
import pytest
from PIL import Image

from ssm_jax.data import TrainBatches, iterate_slices, make_train_iterator, open_datasets
from ssm_jax.data.batches import spread
from ssm_jax.ops.resizing import resize_bilinear, resize_nearest
from tests.helpers.data_tools import cls_folder, lesion_mask, noise, save, seg_folder, small_config


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """The config of a small phantom and its datasets."""
    config = small_config(tmp_path_factory.mktemp("phantom"))
    return config, open_datasets(config)


@pytest.fixture
def from_folders(tmp_path):
    """A function that opens folders with slices of given sizes."""

    def make(sizes, channels=1, cls_sizes=((64, 64),) * 3):
        seg = seg_folder(tmp_path / "seg", sizes, channels)
        cls = cls_folder(tmp_path / "cls", cls_sizes, channels)
        config = small_config(tmp_path / "cache", data__seg_dir=str(seg), data__cls_dir=str(cls))
        return seg, cls, open_datasets(config)

    return make


def assert_same(one, two):
    for part in ("seg", "cls"):
        assert one[part].keys() == two[part].keys()
        for name, array in one[part].items():
            np.testing.assert_array_equal(array, two[part][name])
        assert one[f"{part}_files"] == two[f"{part}_files"]


def test_shapes_dtypes_and_content(phantom):
    _, datasets = phantom
    slots = datasets.max_objects
    batches = TrainBatches(datasets, seed=1, batch_size=3)
    for step in range(6):
        batch = batches[step]
        seg, cls = batch["seg"], batch["cls"]
        expected = {
            "image": ((3, 64, 64, 1), np.uint8),
            "image_size": ((3, 2), np.int32),
            "instances": ((3, 64, 64), np.uint8),
            "boxes": ((3, slots, 4), np.float32),
            "labels": ((3, slots), np.int32),
            "valid": ((3, slots), bool),
        }
        assert {k: (v.shape, v.dtype) for k, v in seg.items()} == expected
        assert cls["image"].shape == (3, 64, 64, 1) and cls["image"].dtype == np.uint8
        assert cls["label"].shape == (3,) and cls["label"].dtype == np.int32
        assert (seg["image_size"] == 64).all() and (cls["image_size"] == 64).all()
        np.testing.assert_array_equal(cls["label"], [int(name[0]) for name in batch["cls_files"]])
        for b in range(3):
            source = datasets.seg_train
            index = source.files.index(batch["seg_files"][b])
            assert seg["valid"][b].sum() == source.object_counts[index]
            np.testing.assert_array_equal(seg["image"][b], source[index].image)
            for k in range(slots):
                rows, columns = np.nonzero(seg["instances"][b] == k + 1)
                if seg["valid"][b, k]:
                    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
                    np.testing.assert_array_equal(seg["boxes"][b, k], box)
                    assert seg["labels"][b, k] == 1
                else:
                    assert len(rows) == 0 and not seg["boxes"][b, k].any()
                    assert seg["labels"][b, k] == 0


def test_pure_function_of_seed_and_step(phantom):
    _, datasets = phantom
    one, two = TrainBatches(datasets, 4, 2), TrainBatches(datasets, 4, 2)
    forward = [one[i] for i in range(12)]
    for i in reversed(range(12)):
        assert_same(two[i], forward[i])
    other = TrainBatches(datasets, 5, 2)
    assert any(other[i]["cls_files"] != forward[i]["cls_files"] for i in range(12))
    assert any(other[i]["seg_files"] != forward[i]["seg_files"] for i in range(12))


def test_parts_make_up_the_batch(phantom):
    """What each of three processes loads, one after the other."""
    _, datasets = phantom
    whole = TrainBatches(datasets, seed=1, batch_size=6)[2]
    parts = [TrainBatches(datasets, 1, 6, (k, 3))[2] for k in range(3)]
    together = {
        part: {name: np.concatenate([p[part][name] for p in parts]) for name in whole[part]}
        for part in ("seg", "cls")
    }
    files = {name: [f for p in parts for f in p[name]] for name in ("seg_files", "cls_files")}
    assert_same(together | files, whole)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_classification_slices_come_once_an_epoch(phantom, batch_size):
    """Epochs of 9 slices follow each other without a gap, across the borders of batches."""
    _, datasets = phantom
    batches = TrainBatches(datasets, 0, batch_size)
    drawn = np.concatenate([batches.indices(i)[1] for i in range(36 // batch_size)])
    epochs = drawn.reshape(4, 9)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(9), (4, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_segmentation_slices_are_uniform_and_repeat(phantom):
    _, datasets = phantom
    batches = TrainBatches(datasets, 2, 4)
    counts = np.bincount(np.concatenate([batches.indices(i)[0] for i in range(1750)]), minlength=7)
    # 7000 draws from 7 slices: mean 1000, standard deviation 29.
    assert counts.sum() == 7000 and abs(counts - 1000).max() < 130


@pytest.mark.parametrize("stop", [0, 1, 5])
@pytest.mark.parametrize("threads", [0, 2])
def test_resuming_goes_on_exactly_there(phantom, stop, threads):
    config, datasets = phantom
    config = config.copy_and_resolve_references()
    config.data.threads, config.train.batch_size = threads, 2
    whole = make_train_iterator(datasets, config)
    expected = [next(whole) for _ in range(9)]
    for i, batch in enumerate(expected):
        assert_same(batch, TrainBatches(datasets, config.seed, 2)[i])

    first = make_train_iterator(datasets, config)
    for _ in range(stop):
        next(first)
    state = json.loads(json.dumps(first.get_state()))
    resumed = make_train_iterator(datasets, config)
    resumed.set_state(state)
    for batch in expected[stop:]:
        assert_same(next(resumed), batch)
    first.set_state(state)  # an iterator that has read ahead can go back as well
    assert_same(next(first), expected[stop])


def test_slices_are_resized_with_masks_and_boxes(from_folders):
    """Other sizes: float, short side 64, long side 128 at most, padded to one canvas."""
    sizes = ((64, 64), (32, 48), (80, 100), (40, 200))
    seg, _, datasets = from_folders(sizes)
    shapes = ((64, 64), (64, 96), (64, 80), (25, 128))
    assert datasets.seg_float and datasets.seg_canvas == (64, 128)
    seen = set()
    batches = TrainBatches(datasets, 0, 1)
    for step in range(30):
        batch = batches[step]
        arrays, name = batch["seg"], batch["seg_files"][0]
        k = int(name[2])
        (height, width), (new_height, new_width) = sizes[k], shapes[k]
        seen.add(k)
        assert arrays["image_size"][0].tolist() == [new_height, new_width]
        pixels = np.asarray(Image.open(seg / "train" / "imgs" / name), np.float32) / 255
        expected = resize_bilinear(pixels[..., None], new_height, new_width)
        image = arrays["image"][0]
        assert image.dtype == np.float32 and image.shape == (64, 128, 1)
        np.testing.assert_allclose(image[:new_height, :new_width], expected, atol=1e-6)
        assert not image[new_height:].any() and not image[:, new_width:].any()
        mask = resize_nearest(lesion_mask(height, width) == 2, new_height, new_width)
        np.testing.assert_array_equal(arrays["instances"][0, :new_height, :new_width], mask)
        assert arrays["instances"].sum() == mask.sum()
        scale = [new_width / width, new_height / height] * 2
        expected_box = np.array([8, 8, 20, 24]) * scale
        np.testing.assert_allclose(arrays["boxes"][0, 0], expected_box, rtol=1e-6)
    assert seen == {0, 1, 2, 3}


def test_slices_that_fit_stay_uint8_on_a_common_canvas(from_folders):
    seg, _, datasets = from_folders(((64, 64), (64, 96), (70, 64)))
    assert not datasets.seg_float and datasets.seg_canvas == (96, 96)
    batches = TrainBatches(datasets, 0, 2)
    for step in range(6):
        batch = batches[step]
        for b, name in enumerate(batch["seg_files"]):
            pixels = np.asarray(Image.open(seg / "train" / "imgs" / name))
            height, width = pixels.shape
            image = batch["seg"]["image"][b]
            assert image.dtype == np.uint8
            np.testing.assert_array_equal(image[:height, :width, 0], pixels)
            assert image.sum() == pixels.sum()


def test_colored_slices(from_folders):
    _, _, datasets = from_folders(((64, 64),) * 2, channels=3)
    batch = TrainBatches(datasets, 0, 2)[0]
    assert batch["seg"]["image"].shape == (2, 64, 64, 3)
    assert batch["cls"]["image"].shape == (2, 64, 64, 3)
    example = datasets.seg_train[datasets.seg_train.files.index(batch["seg_files"][1])]
    np.testing.assert_array_equal(batch["seg"]["image"][1], example.image)


@pytest.mark.parametrize("channels", [1, 3])
def test_classification_slices_are_squashed_by_pil(from_folders, channels):
    _, cls, datasets = from_folders(((64, 64),), channels, ((64, 64), (100, 40), (30, 64)))
    for name, example in zip(datasets.cls_train.files, datasets.cls_train, strict=True):
        with Image.open(cls / "train" / name) as picture:
            expected = np.asarray(picture.resize((64, 64), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(example.image, expected.reshape(64, 64, channels))
    batch = TrainBatches(datasets, 0, 3)[0]["cls"]
    assert batch["image"].dtype == np.uint8 and (batch["image_size"] == 64).all()


def test_slices_without_lesions_are_drawn_too(from_folders, tmp_path):
    seg = seg_folder(tmp_path / "seg")
    save(seg / "train" / "imgs" / "a_9.png", noise(9, 64, 64))
    save(seg / "train" / "masks" / "a_9.png", lesion_mask(64, 64, boxes=()))
    config = small_config(
        tmp_path / "cache", data__seg_dir=str(seg), data__cls_dir=str(cls_folder(tmp_path / "cls"))
    )
    batches = TrainBatches(open_datasets(config), 0, 1)
    empty = [b for b in (batches[i] for i in range(40)) if b["seg_files"] == ["a_9.png"]]
    assert empty and not any(b["seg"]["valid"].any() for b in empty)


@pytest.mark.parametrize("threads", [1, 3])
def test_iterating_over_a_split(phantom, threads):
    _, datasets = phantom
    source = datasets.cls_train
    files = [e.file for e in iterate_slices(source, range(len(source)), threads)]
    assert files == datasets.cls_train.files
    some = [e.file for e in iterate_slices(source, spread(len(source), 3), threads, ahead=1)]
    assert some == [datasets.cls_train.files[k] for k in (0, 3, 6)]
    assert spread(3, 50) == spread(3, 0) == [0, 1, 2]


def test_index_out_of_range(phantom):
    _, datasets = phantom
    with pytest.raises(IndexError, match="slice 7 of 7"):
        datasets.seg_train[7]
