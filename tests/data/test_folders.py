"""Every defect of a folder stops before training, with the file and the remedy in the message."""

import os
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import EpsImagePlugin, UnidentifiedImageError

from ssm_jax.data import DataError, images, open_datasets
from ssm_jax.data.builders import CtClasses, CtLesionSeg
from ssm_jax.data.cache import prepared
from tests.helpers.data_tools import cls_folder, lesion_mask, noise, save, seg_folder, small_config


def prepare_error(tmp_path, builder_class, folder):
    with pytest.raises(DataError) as caught:
        prepared(builder_class, builder_class.config_of(str(folder)), str(tmp_path / "cache"))
    left = [path.name for path in (tmp_path / "cache").rglob("*.array_record*")]
    assert not left, "nothing may be written of a bad set"
    return str(caught.value)


def truncate(path):
    path.write_bytes(path.read_bytes()[:60])


SEG_DEFECTS = {
    "unreadable": (lambda f: truncate(f / "train/imgs/a_1.png"), "not readable.*replace.*a_1.png"),
    "no image": (lambda f: (f / "train/imgs/a_0.png").write_text("x"), "not readable.*a_0.png"),
    "no mask": (
        lambda f: (f / "train/masks/a_2.png").unlink(),
        "without a mask.*add the mask.*train/a_2.png",
    ),
    "bad mask": (
        lambda f: truncate(f / "test/masks/b_0.png"),
        r"mask not readable.*test/b_0.png \(no readable image\)",
    ),
    "size": (
        lambda f: save(f / "train/masks/a_0.png", lesion_mask(64, 32)),
        r"another size.*train/a_0.png \(32x64 for 64x64\)",
    ),
    "values": (
        lambda f: save(f / "test/masks/b_1.png", lesion_mask(64, 64, value=7)),
        r"outside 0 background.*test/b_1.png \(7\)",
    ),
    "channels": (
        lambda f: save(f / "train/masks/a_1.png", noise(0, 64, 64, 3)),
        r"mask not readable.*train/a_1.png \(has mode RGB; a mask is",
    ),
    "deep": (
        lambda f: save(f / "train/imgs/a_1.png", np.full((64, 64), 900, np.uint16)),
        r"train/a_1.png \(has more than 8 bits a pixel; apply a CT window",
    ),
    "color": (
        lambda f: save(f / "train/imgs/a_1.png", noise(0, 64, 64, 3)),
        r"train/a_1.png \(is colored where the set is gray; save all",
    ),
    "pipe": (
        lambda f: [(f / "train/imgs/a_1.png").unlink(), os.mkfifo(f / "train/imgs/a_1.png")],
        r"train/a_1.png \(is no regular file\)",
    ),
    "pipe of a mask": (
        lambda f: [(f / "train/masks/a_1.png").unlink(), os.mkfifo(f / "train/masks/a_1.png")],
        "without a mask.*train/a_1.png",
    ),
    "device": (
        lambda f: [
            (f / "train/imgs/a_0.png").unlink(),
            (f / "train/imgs/a_0.png").symlink_to("/dev/zero"),
        ],
        r"train/a_0.png \(is no regular file\)",
    ),
    "empty": (
        lambda f: [p.unlink() for p in (f / "test/imgs").iterdir()],
        "test/imgs has no PNG or JPEG",
    ),
    "split": (lambda f: shutil.rmtree(f / "test"), "no folder .*test/imgs.*config.data"),
    "masks": (lambda f: shutil.rmtree(f / "train/masks"), "no folder .*train/masks"),
}


@pytest.mark.parametrize("name", SEG_DEFECTS)
def test_segmentation_defect(tmp_path, name):
    spoil, expected = SEG_DEFECTS[name]
    folder = seg_folder(tmp_path / "seg")
    spoil(folder)
    message = prepare_error(tmp_path, CtLesionSeg, folder)
    assert re.search(expected, message, re.DOTALL), message


CLS_DEFECTS = {
    "unreadable": (
        lambda f: truncate(f / "train/0_p0_1_0000.png"),
        "not readable.*0_p0_1_0000.png",
    ),
    "prefix": (
        lambda f: save(f / "test/3_p_1_1.png", noise(0, 64, 64)),
        r"class other than 0 \(normal\).*test/3_p_1_1.png",
    ),
    "name": (
        lambda f: save(f / "train/covid.png", noise(0, 64, 64)),
        "not the form.*rename it.*train/covid.png",
    ),
    "parts": (lambda f: save(f / "train/2_7_1.png", noise(0, 64, 64)), "not the form.*2_7_1.png"),
    "empty": (lambda f: [p.unlink() for p in (f / "train").iterdir()], "train has no PNG or JPEG"),
    "split": (lambda f: shutil.rmtree(f / "train"), "no folder .*train"),
}


@pytest.mark.parametrize("name", CLS_DEFECTS)
def test_classification_defect(tmp_path, name):
    spoil, expected = CLS_DEFECTS[name]
    folder = cls_folder(tmp_path / "cls")
    spoil(folder)
    message = prepare_error(tmp_path, CtClasses, folder)
    assert re.search(expected, message, re.DOTALL), message


def numbered(root):
    """A segmentation folder whose objects have numbers: two that touch in every slice."""
    seg_folder(root)
    for split in ("train", "test"):
        for path in (root / split / "masks").iterdir():
            numbers = np.zeros((64, 64), np.uint16)
            numbers[8:24, 8:14], numbers[8:24, 14:20] = 7, 4000
            save(root / split / "instances" / path.name, numbers)
    return root


def test_objects_with_numbers_of_their_own(tmp_path):
    config = {"data__seg_dir": str(numbered(tmp_path / "seg")), "data__cls_dir": ""}
    datasets = open_datasets(small_config(tmp_path / "cache", **config))
    assert datasets.seg_train.object_counts.tolist() == [2, 2, 2]
    assert datasets.seg_train[1].boxes.tolist() == [[8, 8, 14, 24], [14, 8, 20, 24]]
    shutil.rmtree(tmp_path / "seg/train/instances")
    shutil.rmtree(tmp_path / "seg/test/instances")
    datasets = open_datasets(small_config(tmp_path / "cache", **config))
    assert datasets.seg_train.object_counts.tolist() == [1, 1, 1]


def test_defects_of_numbers(tmp_path):
    folder = numbered(tmp_path / "seg")
    (folder / "train/instances/a_1.png").unlink()
    save(folder / "test/instances/b_0.png", np.zeros((64, 60), np.uint16))
    text = prepare_error(tmp_path, CtLesionSeg, folder)
    assert re.search(r"without a file in instances.*train/a_1\.png", text)
    assert re.search(r"test/b_0\.png \(has numbers of its objects in another size", text)


def test_all_problems_at_once_up_to_ten_files_each(tmp_path):
    folder = seg_folder(tmp_path / "seg", sizes=((64, 64),) * 14)
    for k in range(12):
        (folder / "train" / "masks" / f"a_{k}.png").unlink()
    truncate(folder / "train" / "imgs" / "a_13.png")
    message = prepare_error(tmp_path, CtLesionSeg, folder)
    assert "not readable" in message and "a_13.png" in message
    assert "and 2 more" in message
    assert len(re.findall(r"a_\d+\.png", message)) == 11


def open_folder(tmp_path, folder, **overrides):
    classes = cls_folder(tmp_path / "cls")
    config = small_config(
        tmp_path / "cache", data__seg_dir=str(folder), data__cls_dir=str(classes), **overrides
    )
    return open_datasets(config)


def test_a_file_of_a_format_that_is_run_by_a_program_is_no_image(monkeypatch):
    def started(*_, **__):
        pytest.fail("a program was started")

    monkeypatch.setattr(subprocess, "Popen", started)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "gs")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n"
    for read in (lambda: images.read_mask(eps), lambda: images.slice_pixels(eps, 1)):
        with pytest.raises(images.ImageError, match="no readable image"):
            read()
    with pytest.raises(UnidentifiedImageError):
        images.decode(eps)


def test_training_split_without_lesions(tmp_path):
    folder = seg_folder(tmp_path / "seg")
    for path in (folder / "train" / "masks").iterdir():
        save(path, lesion_mask(64, 64, boxes=((1, 1, 3, 3),)))  # 4 pixels, as min_area
    with pytest.raises(DataError, match=r"train split .* no slice with a lesion .*min_area"):
        open_folder(tmp_path, folder)


def test_a_test_split_without_lesions_is_fine(tmp_path):
    folder = seg_folder(tmp_path / "seg")
    for path in (folder / "test" / "masks").iterdir():
        save(path, lesion_mask(64, 64, boxes=()))
    datasets = open_folder(tmp_path, folder)
    assert datasets.seg_test.object_counts.tolist() == [0, 0]
    assert datasets.seg_test[0].boxes.shape == (0, 4)


def test_more_objects_than_slots(tmp_path):
    folder = seg_folder(tmp_path / "seg")
    boxes = [(8 * k, 0, 8 * k + 4, 9) for k in range(5)]
    save(folder / "train" / "masks" / "a_1.png", lesion_mask(64, 64, boxes))
    assert open_folder(tmp_path, folder).max_objects == 5
    assert open_folder(tmp_path, folder, data__max_objects=8).max_objects == 8
    with pytest.raises(DataError, match=r"more than 4 .*max_objects.*a_1.png \(5\)"):
        open_folder(tmp_path, folder, data__max_objects=4)
    dots = np.zeros((64, 64), np.uint8)
    dots[::3, ::3] = 2
    save(folder / "test" / "masks" / "b_1.png", dots)
    with pytest.raises(DataError, match=r"test split .*more than 255 .*min_area.*b_1.png \(484\)"):
        open_folder(tmp_path, folder, data__min_area=0)


@pytest.mark.parametrize(("field", "value"), [("cls_test", 0), ("size", 31), ("seed", -1)])
def test_impossible_phantom(tmp_path, field, value):
    with pytest.raises(DataError, match=rf"phantom\.{field}={value} "):
        open_datasets(small_config(tmp_path, **{f"data__phantom__{field}": value}))


def test_data_dir_that_can_not_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    folder = seg_folder(tmp_path / "seg")
    with pytest.raises(DataError, match="data_dir"):
        prepared(CtLesionSeg, CtLesionSeg.config_of(str(folder)), str(tmp_path / "file" / "x"))
