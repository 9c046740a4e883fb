"""Other tasks from the same slices: mask types, two image classes, segmentation alone."""

import functools

import jax
import numpy as np
import pytest

from ssm_jax.classes import paper
from ssm_jax.config import ModelConfig
from ssm_jax.data import DataError, TrainBatches, make_train_iterator, open_datasets
from ssm_jax.data.objects import lesion_objects
from ssm_jax.data.phantom.slices import set_slice
from ssm_jax.models.rpn import Proposals
from ssm_jax.training import targets
from ssm_jax.training.loop import Plan
from tests.helpers.data_tools import cls_folder, lesion_mask, noise, save, seg_folder, small_config


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("mask_type", ["merge", "both", "ggo"])
def test_objects_follow_the_mask_type(cache, mask_type):
    datasets = open_datasets(small_config(cache, data__mask_type=mask_type))
    found = set()
    for i, example in enumerate(datasets.seg_train):
        mask = set_slice(0, "seg", "train", i, 64)[1]
        instances, boxes, labels = lesion_objects(mask, 256, paper(mask_type=mask_type).lesion)
        np.testing.assert_array_equal(example.instances, instances)
        np.testing.assert_array_equal(example.boxes, boxes)
        np.testing.assert_array_equal(example.labels, labels)
        assert datasets.seg_train.object_counts[i] == len(labels)
        found |= set(labels.tolist())
    assert found == ({1, 2} if mask_type == "both" else {1})
    assert datasets.max_objects == datasets.seg_train.object_counts.max()


def test_two_lesion_classes_from_a_folder(tmp_path):
    root = seg_folder(tmp_path / "seg")
    mask = lesion_mask(64, 64, [(4, 4, 20, 20)], value=3)
    mask[30:50, 10:40] = 2
    mask[30:50, 40:44] = 3  # touches the ground glass
    save(root / "train" / "masks" / "a_0.png", mask)
    config = small_config(tmp_path / "cache", data__seg_dir=str(root), data__mask_type="both")
    datasets = open_datasets(config)
    example = datasets.seg_train[0]
    assert example.labels.tolist() == [1, 2, 2]
    boxes = [[10, 30, 40, 50], [4, 4, 20, 20], [40, 30, 44, 50]]
    np.testing.assert_array_equal(example.boxes, boxes)
    values = {1: 2, 2: 3}
    for k, label in enumerate(example.labels):
        assert set(mask[example.instances == k + 1]) == {values[label]}
    assert datasets.max_objects == 3
    batches = TrainBatches(datasets, seed=0, batch_size=8)
    files = [file for step in range(4) for file in batches[step]["seg_files"]]
    at = files.index("a_0.png")
    seg = batches[at // 8]["seg"]
    assert seg["labels"].dtype == np.int32
    assert seg["labels"][at % 8].tolist() == [1, 2, 2]
    assert seg["valid"][at % 8].all()
    assert (seg["labels"] > 0).tolist() == seg["valid"].tolist()


def test_lesions_of_another_class_are_background(tmp_path):
    root = seg_folder(tmp_path / "seg")
    for k in range(3):
        save(root / "train" / "masks" / f"a_{k}.png", lesion_mask(64, 64, value=3))
    config = small_config(tmp_path / "cache", data__seg_dir=str(root), data__mask_type="ggo")
    with pytest.raises(DataError, match="no slice with a lesion"):
        open_datasets(config)
    save(root / "train" / "masks" / "a_1.png", lesion_mask(64, 64))
    assert open_datasets(config).seg_train.object_counts.tolist() == [0, 1, 0]


def test_roi_targets_keep_the_lesion_class():
    model = ModelConfig(num_classes=3, roi_batch=4, roi_positives=4)
    boxes = np.float32([[[0, 0, 20, 20], [30, 30, 60, 60], [0, 0, 0, 0]]])
    batch = {"boxes": boxes, "labels": np.int32([[2, 1, 0]]), "valid": boxes.any(axis=2)}
    valid = np.array([[False, True, True]])
    proposals = Proposals(boxes[:, ::-1] + 1, np.zeros((1, 3)), valid)
    find = jax.jit(functools.partial(targets.roi_targets, model))
    rois = find(proposals, batch, jax.random.split(jax.random.key(0), 1))
    for label, obj, positive in zip(rois.labels[0], rois.objects[0], rois.positive[0], strict=True):
        assert label == (batch["labels"][0, obj] if positive else 0)
    assert sorted(rois.labels[0].tolist()) == [1, 1, 2, 2]


def test_two_image_classes_are_control_and_covid(cache):
    three = open_datasets(small_config(cache))
    two = open_datasets(small_config(cache, model__image_classes=2))
    assert [file[0] for file in two.cls_train.files] == ["0", "2"] * 3
    assert two.cls_train.labels.tolist() == [0, 1] * 3
    assert (len(two.cls_train), two.cls_train.left_out, two.epoch_slices) == (6, 3, 6)
    assert "6 train / 3 test slices (4 of other classes left out)" in two.descriptions[1]
    whole = {example.file: example.image for example in three.cls_train}
    for example in two.cls_train:
        assert example.label == {"0": 0, "2": 1}[example.file[0]]
        np.testing.assert_array_equal(example.image, whole[example.file])
    batches = TrainBatches(two, seed=0, batch_size=2)
    seen = [file for step in range(3) for file in batches[step]["cls_files"]]
    assert sorted(seen) == sorted(two.cls_train.files)
    labels = [label for step in range(3) for label in batches[step]["cls"]["label"]]
    assert labels == [int(file[0]) // 2 for file in seen]


def test_classes_that_were_numbered_otherwise_are_refused(tmp_path):
    root = cls_folder(tmp_path / "cls")
    config = small_config(tmp_path / "cache", data__cls_dir=str(root), model__image_classes=2)
    assert open_datasets(config).cls_test.labels.tolist() == [0, 1]
    for path in (root / "train").glob("2_*.png"):
        path.unlink()
    save(root / "train" / "1_p9_1_0001.png", noise(0, 64, 64))
    with pytest.raises(DataError, match=r"no slice of class 2: .*2 \(COVID-19\); 2 others"):
        open_datasets(config)


def test_segmentation_alone_reads_no_classification_slice(tmp_path):
    config = small_config(tmp_path, model__image_classes=0, model__branches=1)
    config.data.cls_dir = "nowhere"
    datasets = open_datasets(config)
    assert datasets.cls_train is None and datasets.cls_test is None
    assert datasets.epoch_slices == 7
    assert len(datasets.descriptions) == 1
    assert len(list((tmp_path / "ct_phantom").iterdir())) == 1

    batches = TrainBatches(datasets, seed=3, batch_size=2)
    batch = batches[0]
    assert "cls" not in batch and batch["cls_files"] == []
    files = [file for step in range(14) for file in batches[step]["seg_files"]]
    for epoch in range(4):  # every slice once an epoch, each time in another order
        assert sorted(files[7 * epoch : 7 * epoch + 7]) == sorted(datasets.seg_train.files)
    assert files[:7] != files[7:14]
    config.train.batch_size = 2
    config.seed = 3
    first = next(make_train_iterator(datasets, config))
    np.testing.assert_array_equal(first["seg"]["image"], batch["seg"]["image"])
    config.train.update(epochs=3, max_steps=0)
    assert Plan.of(config, datasets.epoch_slices).total == 11
