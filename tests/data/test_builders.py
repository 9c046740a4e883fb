"""Prepared sets: bit-equal pictures, found again at once, all or nothing, without TensorFlow."""

import errno
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap

import numpy as np
import pytest
from PIL import Image

from ssm_jax.data import DataError, folders, make_train_iterator, open_datasets
from ssm_jax.data.builders import CtClasses, CtLesionSeg
from ssm_jax.data.cache import prepared
from ssm_jax.data.objects import lesion_objects
from ssm_jax.data.phantom.builder import CtPhantom
from ssm_jax.data.phantom.slices import set_slice
from ssm_jax.data.sources import ClassificationSource, SegmentationSource
from tests.helpers.data_tools import cls_folder, lesion_mask, noise, save, seg_folder, small_config
from tests.helpers.shared import DATA, needs_data


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """The config of a small phantom and its datasets."""
    config = small_config(tmp_path_factory.mktemp("phantom"))
    return config, open_datasets(config)


def test_phantom_is_what_the_generator_makes(phantom):
    config, datasets = phantom
    sources = {
        ("seg", "train"): datasets.seg_train,
        ("seg", "test"): datasets.seg_test,
        ("cls", "train"): datasets.cls_train,
        ("cls", "test"): datasets.cls_test,
    }
    for (part, split), source in sources.items():
        assert len(source) == config.data.phantom[f"{part}_{split}"]
        for i in range(len(source)):
            image, mask, label = set_slice(0, part, split, i, 64)
            example = source[i]
            np.testing.assert_array_equal(example.image[..., 0], image)
            assert example.image.dtype == np.uint8
            if part == "cls":
                assert example.label == label == source.labels[i]
                assert example.file.startswith(f"{label}_")
            else:
                instances, boxes, labels = lesion_objects(mask, 256)
                np.testing.assert_array_equal(example.instances, instances)
                np.testing.assert_array_equal(example.boxes, boxes)
                np.testing.assert_array_equal(example.labels, labels)
                assert source.object_counts[i] == len(boxes)
    assert "phantom" in datasets.descriptions[0]
    assert "7 train / 3 test" in datasets.descriptions[0]
    assert "9 train / 4 test" in datasets.descriptions[1]
    assert datasets.epoch_slices == 9


def test_no_tensorflow(phantom):
    assert "tensorflow" not in sys.modules


def test_plain_tfds_access_decodes_too(phantom):
    config, datasets = phantom
    builder = prepared(CtPhantom, CtPhantom.config_of("seg", 0, 64, 7, 3), config.data.data_dir)
    record = builder.as_data_source(split="train")[2]
    np.testing.assert_array_equal(record["image"], datasets.seg_train[2].image)
    assert record["mask"].shape == (64, 64, 1) and record["height"] == 64
    assert record["file"] == b"train00002_0.png"
    assert record["areas"].sum() == (record["mask"] >= 2).sum()


def test_second_start_makes_nothing(phantom, monkeypatch):
    config, _ = phantom
    monkeypatch.setattr(CtPhantom, "split_sizes", lambda self: pytest.fail("prepared again"))
    open_datasets(config)


def test_other_parameters_are_another_set(phantom):
    names = {
        CtPhantom.config_of(*values).name
        for values in (
            ("seg", 0, 64, 7, 3),
            ("cls", 0, 64, 7, 3),
            ("seg", 1, 64, 7, 3),
            ("seg", 0, 32, 7, 3),
            ("seg", 0, 64, 8, 3),
            ("seg", 0, 64, 7, 4),
        )
    }
    assert len(names) == 6


def test_a_changed_folder_is_prepared_again(tmp_path):
    folder = cls_folder(tmp_path / "cls")
    before = CtClasses.config_of(str(folder))
    assert CtClasses.config_of(str(folder)).name == before.name
    save(folder / "train" / "1_new_1_1.png", noise(7, 64, 64))
    added = CtClasses.config_of(str(folder))
    path = folder / "test" / "0_q0_1_0001.png"
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 5))
    touched = CtClasses.config_of(str(folder))
    assert len({before.name, added.name, touched.name}) == 3
    assert CtClasses.config_of(str(folder), "test", "train").name != touched.name
    builder = prepared(CtClasses, added, str(tmp_path / "cache"))
    assert "1_new_1_1.png" in ClassificationSource({"": builder}, "train", 64).files


KILLED = """
import os, signal, sys
from ssm_jax.data.cache import prepared
from ssm_jax.data.phantom.builder import CtPhantom

whole = CtPhantom.examples

def examples(self, split, start, stop):
    for k, example in enumerate(whole(self, split, start, stop)):
        if split == "test" and k == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        yield example

CtPhantom.examples = examples
prepared(CtPhantom, CtPhantom.config_of("seg", 3, 48, 4, 2), sys.argv[1])
"""


def test_killed_half_way_starts_clean(tmp_path):
    root = str(pathlib.Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    home = tmp_path / "ct_phantom" / CtPhantom.config_of("seg", 3, 48, 4, 2).name
    assert any(path.is_dir() for path in home.iterdir()), "the kill came too early to mean anything"
    builder = prepared(CtPhantom, CtPhantom.config_of("seg", 3, 48, 4, 2), str(tmp_path))
    assert [path.name for path in home.iterdir() if path.is_dir()] == [str(builder.version)]
    for split, count in (("train", 4), ("test", 2)):
        source = SegmentationSource({"": builder}, split, 256)
        assert len(source) == count
        for i in range(count):
            expected = set_slice(3, "seg", split, i, 48)[0]
            np.testing.assert_array_equal(source[i].image[..., 0], expected)


def test_a_failed_preparation_leaves_nothing(tmp_path, monkeypatch):
    folder = cls_folder(tmp_path / "cls")
    config = CtClasses.config_of(str(folder))
    examples = CtClasses.examples

    def broken(self, split, start, stop):
        yield from examples(self, split, start, stop - 1)
        raise OSError("disk full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(CtClasses, "examples", broken)
        prepared(CtClasses, config, str(tmp_path / "cache"))
    builder = prepared(CtClasses, config, str(tmp_path / "cache"))
    assert len(ClassificationSource({"": builder}, "train", 64)) == 3


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("write() failed: No space left on device; writing x; Failed to close"),
    ],
)
@pytest.mark.parametrize("kind", [CtClasses, CtPhantom])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, kind, error):
    """The second error is how array_record tells it."""
    temporary, cache = tmp_path / "tmp", tmp_path / "cache"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    config = CtPhantom.config_of("cls", 0, 64, 3, 3)
    if kind is CtClasses:
        config = CtClasses.config_of(str(cls_folder(tmp_path / "cls")))
    whole = kind.examples

    def full(self, split, start, stop):
        yield from whole(self, split, start, stop)
        raise error

    with monkeypatch.context() as patch, pytest.raises(DataError) as told:
        patch.setattr(kind, "examples", full)
        prepared(kind, config, str(cache))
    line = r"can not write prepared data to \S+: the disk is full; they take about [\d.]+ MiB, and "
    assert re.match(line + r"[\d.]+ are free\. .*config\.data\.data_dir", str(told.value))
    assert "\n" not in str(told.value)
    builder = prepared(kind, config, str(cache))
    (home,) = (path.parent for path in cache.rglob("lock"))
    assert sorted(path.name for path in home.iterdir()) == [str(builder.version), "lock"]
    assert not list(temporary.iterdir())


def test_prepared_data_deleted_meanwhile_are_one_line(tmp_path):
    config = small_config(tmp_path / "cache", train__batch_size=1)
    datasets = open_datasets(config)
    shutil.rmtree(tmp_path / "cache")
    for read in (
        lambda: datasets.seg_test[0],
        lambda: datasets.cls_train[1],
        lambda: next(make_train_iterator(datasets, config, (0, 1))),  # by other threads
    ):
        with pytest.raises(DataError) as told:
            read()
        line = r"the prepared data in \S+ can not be read any more \(.*No such file.*start again"
        assert re.fullmatch(line, str(told.value))


def test_an_error_that_is_no_full_disk_passes(tmp_path, monkeypatch):
    config = CtPhantom.config_of("cls", 0, 64, 3, 3)

    def broken(*_):
        raise RuntimeError("another")

    monkeypatch.setattr(CtPhantom, "examples", broken)
    with pytest.raises(RuntimeError, match="another"):
        prepared(CtPhantom, config, str(tmp_path))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_bit_equal_to_pil(tmp_path, suffix, channels):
    folder = seg_folder(tmp_path / "seg", ((64, 64), (70, 50)), channels, suffix)
    builder = prepared(CtLesionSeg, CtLesionSeg.config_of(str(folder)), str(tmp_path / "cache"))
    source = SegmentationSource({"": builder}, "train", 256)
    assert source.channels == channels
    plain = builder.as_data_source(split="train")
    for i, name in enumerate(source.files):
        expected = np.asarray(Image.open(folder / "train" / "imgs" / name))
        expected = expected.reshape(*expected.shape[:2], channels)
        np.testing.assert_array_equal(source[i].image, expected)
        np.testing.assert_array_equal(plain[i]["image"], expected)
        np.testing.assert_array_equal(source[i].instances, lesion_mask(*expected.shape[:2]) == 2)
        np.testing.assert_array_equal(source[i].boxes, [[8, 8, 20, 24]])


def test_unusual_encodings(tmp_path):
    """Palette, alpha, bilevel and gray-as-RGB slices come in the set's channels."""
    folder = seg_folder(tmp_path / "seg", ((64, 64),) * 5)
    gray = noise(3, 64, 64)
    imgs, masks = folder / "train" / "imgs", folder / "train" / "masks"
    save(imgs / "a_1.png", np.repeat(gray[..., None], 3, 2))
    palette = Image.fromarray(gray).convert("P")
    palette.putpalette([v for k in range(256) for v in (k, k, k)])
    palette.save(imgs / "a_2.png")
    Image.fromarray(gray).convert("LA").save(imgs / "a_3.png")
    Image.fromarray(gray).convert("1").save(imgs / "a_4.png")
    save(masks / "a_1.png", lesion_mask(64, 64).astype(np.uint16))
    indexed = Image.fromarray(lesion_mask(64, 64))
    indexed.putpalette([0, 0, 0, 90, 90, 90, 255, 0, 0, 0, 255, 0])
    indexed.save(masks / "a_2.png")
    builder = prepared(CtLesionSeg, CtLesionSeg.config_of(str(folder)), str(tmp_path / "cache"))
    source = SegmentationSource({"": builder}, "train", 256)
    for i in (1, 2, 3):
        np.testing.assert_array_equal(source[i].image[..., 0], gray)
    bilevel = np.asarray(Image.open(imgs / "a_4.png").convert("L"))
    np.testing.assert_array_equal(source[4].image[..., 0], bilevel)
    assert source.object_counts.tolist() == [1] * 5


def test_hidden_and_other_files_are_left_out(tmp_path):
    folder = cls_folder(tmp_path / "cls")
    (folder / "train" / ".0_hidden_1_1.png").write_text("x")
    (folder / "train" / "README.txt").write_text("x")
    assert len(folders.list_images(folder / "train")) == 3


def test_splits_by_other_names(tmp_path):
    folder = seg_folder(tmp_path / "seg")
    (folder / "train").rename(folder / "learn")
    (folder / "test").rename(folder / "held out")
    config = small_config(tmp_path / "cache", data__seg_dir=str(folder))
    config.data.train_split, config.data.test_split = "learn", "held out"
    classes = cls_folder(tmp_path / "cls")
    (classes / "train").rename(classes / "learn")
    (classes / "test").rename(classes / "held out")
    config.data.cls_dir = str(classes)
    datasets = open_datasets(config)
    assert datasets.seg_train.files == ["a_0.png", "a_1.png", "a_2.png"]
    assert datasets.seg_test.files == ["b_0.png", "b_1.png"]
    assert "3 learn / 2 held out slices" in datasets.descriptions[0]


@needs_data
def test_real_sets(tmp_path):
    config = small_config(tmp_path / "cache")
    config.model.image_size, config.model.max_size, config.data.min_area = 512, 1024, 100
    config.data.seg_dir, config.data.cls_dir = str(DATA / "ct_lesion_seg"), str(DATA / "ct_classes")
    datasets = open_datasets(config)
    assert (len(datasets.seg_train), len(datasets.seg_test)) == (252, 42)
    assert np.bincount(datasets.cls_train.labels).tolist() == [47, 30, 80]
    assert np.bincount(datasets.cls_test.labels).tolist() == [50, 15, 68]
    assert datasets.seg_canvas == datasets.cls_canvas == (512, 512)
    assert not datasets.seg_float
    assert datasets.seg_train.channels == datasets.cls_train.channels == 1
    assert datasets.max_objects == datasets.seg_train.object_counts.max()
    for source, split in ((datasets.seg_train, "train"), (datasets.seg_test, "test")):
        for i in range(0, len(source), 40):
            path = DATA / "ct_lesion_seg" / split / "imgs" / source.files[i]
            np.testing.assert_array_equal(source[i].image[..., 0], np.asarray(Image.open(path)))
            mask = np.asarray(Image.open(path.parent.parent / "masks" / f"{path.stem}.png"))
            instances, boxes, _ = lesion_objects(mask, 100)
            np.testing.assert_array_equal(source[i].instances, instances)
            assert source.object_counts[i] == len(boxes)
    for i in range(0, len(datasets.cls_test), 30):
        path = DATA / "ct_classes" / "test" / datasets.cls_test.files[i]
        example = datasets.cls_test[i]
        np.testing.assert_array_equal(example.image[..., 0], np.asarray(Image.open(path)))
        assert example.label == int(path.name[0])
