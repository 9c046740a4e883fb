"""Test slices out of the training folder, where a set has no others: patients stay together."""

import numpy as np
import pytest

from ssm_jax.data import DataError, open_datasets
from ssm_jax.data.patients import classification_patient, segmentation_patient
from ssm_jax.data.splits import split_by_patient
from tests.helpers.data_tools import cls_folder, lesion_mask, noise, save, seg_folder, small_config


def folders(root, patients=8):
    """Slices of that many patients, two of each, without test slices."""
    for k in range(2 * patients):
        save(root / "seg" / "train" / "imgs" / f"p{k // 2}_{k}.png", noise(k, 64, 64))
        save(root / "seg" / "train" / "masks" / f"p{k // 2}_{k}.png", lesion_mask(64, 64))
        save(root / "cls" / "train" / f"{k // 2 % 3}_{k // 2}_0_n{k}.png", noise(k, 64, 64))
    return root


def config_of(root, **data):
    config = small_config(root / "all", data__seg_dir=str(root / "seg"))
    config.data.cls_dir = str(root / "cls")
    config.data.update(data)
    return config


def patients_of(source, patient):
    return {patient(file) for file in source.files}


def test_patients_are_kept_for_the_evaluation(tmp_path):
    root = folders(tmp_path)
    with pytest.raises(DataError, match="there is no folder"):
        open_datasets(config_of(root))
    config = config_of(root, dev_share=0.25, dev_seed=3)
    datasets = open_datasets(config)
    for part, patient in (("seg", segmentation_patient), ("cls", classification_patient)):
        train, test = (getattr(datasets, f"{part}_{name}") for name in ("train", "test"))
        assert (len(train), len(test)) == (12, 4)
        assert not patients_of(train, patient) & patients_of(test, patient)
        names = sorted([*train.files, *test.files])
        expected = split_by_patient([patient(name) for name in names], (0.75, 0.25), 3)
        assert sorted(test.files) == [n for n, k in zip(names, expected, strict=True) if k]
        for source in (train, test):
            assert [example.file for example in source] == source.files
    k = int(datasets.seg_test.files[0].rpartition("_")[2].partition(".")[0])
    np.testing.assert_array_equal(datasets.seg_test[0].image[..., 0], noise(k, 64, 64))
    assert datasets.seg_test.object_counts.tolist() == [1] * 4
    again = open_datasets(config)
    assert again.seg_test.files == datasets.seg_test.files
    config.data.dev_seed = 4
    assert open_datasets(config).cls_test.files != datasets.cls_test.files


def test_a_folder_with_test_slices_keeps_them(tmp_path):
    seg, cls = seg_folder(tmp_path / "seg"), cls_folder(tmp_path / "cls")
    datasets = open_datasets(config_of(tmp_path, dev_share=0.5))
    assert datasets.seg_test.files == ["b_0.png", "b_1.png"]
    assert len(datasets.cls_test) == 3
    assert seg.is_dir() and cls.is_dir()


def test_several_folders_each_for_itself(tmp_path):
    folders(tmp_path)
    other = seg_folder(tmp_path / "other")
    config = config_of(tmp_path, dev_share=0.25, seg_dir=f"{tmp_path / 'seg'},{other}")
    datasets = open_datasets(config)
    assert datasets.seg_test.folder_counts.tolist() == [4, 2]
    assert datasets.seg_train.folder_counts.tolist() == [12, 3]
    assert [example.folder for example in datasets.seg_test] == ["seg"] * 4 + ["other"] * 2


def test_names_that_tell_no_patients(tmp_path):
    root = folders(tmp_path)
    save(root / "seg" / "train" / "imgs" / "slice.png", noise(0, 64, 64))
    save(root / "seg" / "train" / "masks" / "slice.png", lesion_mask(64, 64))
    with pytest.raises(DataError, match=r"seg has no test slices, and the name slice\.png does"):
        open_datasets(config_of(root, dev_share=0.25))
