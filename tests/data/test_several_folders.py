"""Several folders at once: their slices, weights, sizes, and names."""

import itertools

import numpy as np
import pytest

from ssm_jax.data import DataError, TrainBatches, open_datasets
from ssm_jax.data.datasets import folder_paths
from tests.helpers.data_tools import cls_folder, lesion_mask, noise, save, seg_folder, small_config


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two segmentation folders (3 and 4 slices) and two of classes (3 and 6), of other sizes."""
    root = tmp_path_factory.mktemp("folders")
    seg = seg_folder(root / "one" / "seg"), seg_folder(root / "two" / "seg", ((32, 48),) * 4)
    cls = cls_folder(root / "cls"), cls_folder(root / "more", ((40, 40),) * 6)
    return root, seg, cls


def opened(folders, **overrides):
    root, seg, cls = folders
    seg_dir, cls_dir = (",".join(map(str, paths)) for paths in (seg, cls))
    given = {"data__seg_dir": seg_dir, "data__cls_dir": cls_dir} | overrides
    return open_datasets(small_config(root / "cache", **given))


def test_slices_and_names_of_all_folders(folders):
    datasets = opened(folders)
    source = datasets.seg_train
    assert source.folders == ("seg_1", "seg_2"), "two folders of one name"
    assert source.files == [f"seg_1/a_{k}.png" for k in range(3)] + [
        f"seg_2/a_{k}.png" for k in range(4)
    ]
    assert source.heights.tolist() == [64] * 3 + [32] * 4
    assert [example.folder for example in source] == ["seg_1"] * 3 + ["seg_2"] * 4
    for example, alone in zip(source, itertools.chain(*alone_sources(folders)), strict=True):
        np.testing.assert_array_equal(example.image, alone.image)
        np.testing.assert_array_equal(example.instances, alone.instances)
        assert example.file == f"{example.folder}/{alone.file}"
    assert datasets.cls_test.folders == ("cls", "more")
    assert datasets.cls_test.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert datasets.epoch_slices == 9
    assert "7 train / 4 test slices (seg_1 3 / 2, seg_2 4 / 2)" in datasets.descriptions[0]


def alone_sources(folders):
    root, seg, cls = folders
    for k in range(2):
        yield opened((root, seg[k : k + 1], cls[:1])).seg_train


def test_one_batch_has_slices_of_several_sizes(folders):
    datasets = opened(folders)
    batch = TrainBatches(datasets, seed=0, batch_size=12)[0]
    sizes = {
        file.split("/")[0]: tuple(size)
        for file, size in zip(batch["seg_files"], batch["seg"]["image_size"].tolist(), strict=True)
    }
    assert sizes == {"seg_1": (64, 64), "seg_2": (64, 96)}
    assert batch["seg"]["image"].shape == (12, 64, 96, 1)
    assert batch["seg"]["image"].dtype == np.float32


def test_without_weights_all_slices_come_alike(folders):
    """Bit by bit the draws of one folder with as many slices."""
    batches = TrainBatches(opened(folders), seed=3, batch_size=4)
    for step in range(5):
        drawn, in_turn = batches.indices(step)
        rng = np.random.default_rng([3, 1, step])
        np.testing.assert_array_equal(drawn, rng.integers(7, size=4))
        orders = [np.random.default_rng([3, 2, epoch]).permutation(9) for epoch in range(3)]
        np.testing.assert_array_equal(in_turn, np.concatenate(orders)[4 * step : 4 * step + 4])


@pytest.mark.parametrize("weights", ["1", "7.5"])
def test_the_weight_of_a_single_folder_changes_nothing(folders, weights):
    root, seg, cls = folders
    plain, weighted = (
        TrainBatches(opened((root, seg[:1], cls[:1]), **given), 0, 3)
        for given in ({}, {"data__seg_weights": weights, "data__cls_weights": weights})
    )
    for step in range(4):
        np.testing.assert_array_equal(plain.indices(step), weighted.indices(step))


def test_drawn_slices_have_the_shares_of_their_folders(folders):
    datasets = opened(folders, data__seg_weights="3,1")
    drawn = np.concatenate([TrainBatches(datasets, 1, 8).indices(k)[0] for k in range(500)])
    counts = np.bincount(drawn, minlength=7)
    # 4000 draws: 3000 and 1000 of either folder, with a standard deviation of 27.
    assert abs(counts[:3].sum() - 3000) < 120
    assert counts[:3].min() > 850 and counts[3:].min() > 180


def test_slices_in_turn_have_the_shares_of_their_folders(folders):
    """In every epoch of 9 slices 6 are of the first folder, whose 3 come equally often."""
    datasets = opened(folders, data__cls_weights="2,1")
    batches = TrainBatches(datasets, seed=5, batch_size=3)
    epochs = np.concatenate([batches.indices(k)[1] for k in range(12)]).reshape(4, 9)
    for epoch in epochs:
        np.testing.assert_array_equal(np.bincount(epoch, minlength=9)[:3], 2)
        assert (epoch >= 3).sum() == 3
    counts = np.bincount(epochs.ravel(), minlength=9)
    np.testing.assert_array_equal(counts[3:], 2)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    again = TrainBatches(datasets, seed=5, batch_size=3)
    np.testing.assert_array_equal(again.indices(10)[1], epochs[3][3:6])


def test_segmentation_alone_follows_the_weights_in_turn(folders):
    given = {"model__image_classes": 0, "model__branches": 1, "data__seg_weights": "0,1"}
    datasets = opened(folders, **given)
    batches = TrainBatches(datasets, seed=0, batch_size=7)
    counts = np.bincount(np.concatenate([batches.indices(k)[0] for k in range(4)]), minlength=7)
    np.testing.assert_array_equal(counts, [0, 0, 0, 7, 7, 7, 7])


def test_the_least_lesion_is_the_same_share_of_every_size(tmp_path):
    """100 pixels of 512 x 512 are 25 of 256 x 256."""
    for name, side, area in (("large", 512, 101), ("small", 256, 26), ("less", 256, 25)):
        seg_folder(tmp_path / name, sizes=())
        mask = lesion_mask(side, side, ((3, 3, 3 + area, 4),))
        save(tmp_path / name / "train" / "masks" / "a_0.png", mask)
        save(tmp_path / name / "train" / "imgs" / "a_0.png", noise(0, side, side))
    paths = ",".join(str(tmp_path / name) for name in ("large", "small", "less"))
    config = small_config(tmp_path / "cache", data__seg_dir=paths, model__image_classes=0)
    config.data.min_area = 100
    config.model.branches = 1
    datasets = open_datasets(config)
    assert datasets.seg_train.object_counts.tolist() == [1, 1, 0]
    assert [len(example.boxes) for example in datasets.seg_train] == [1, 1, 0]


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        ("1", r"seg_weights=1 has 1 weights for 2 folders \(seg_1, seg_2\); give one for each"),
        ("1,-1", "seg_weights=1,-1 has to be numbers from 0"),
        ("0,0", "not all 0"),
        ("a,b", "seg_weights=a,b has to be numbers"),
        ("1,inf", "has to be numbers"),
    ],
)
def test_impossible_weights(folders, weights, match):
    with pytest.raises(DataError, match=match):
        opened(folders, data__seg_weights=weights)


def test_a_folder_without_slices_of_the_classes_can_not_have_a_weight(folders, tmp_path):
    root, seg, cls = folders
    for split in ("train", "test"):
        save(tmp_path / "cp" / split / "1_p_1_1.png", noise(0, 64, 64))
    both = (root, seg, (cls[0], tmp_path / "cp"))
    assert opened(both, model__image_classes=2).cls_train.folder_counts.tolist() == [2, 0]
    with pytest.raises(DataError, match="cp has no slice to train on; give it the weight 0"):
        opened(both, model__image_classes=2, data__cls_weights="1,1")


def test_gray_and_colored_folders_do_not_mix(folders, tmp_path):
    root, seg, cls = folders
    colored = seg_folder(tmp_path / "colored", channels=3)
    with pytest.raises(DataError, match=r"not all gray or all colored: .*colored \(colored\)"):
        opened((root, (seg[0], colored), cls))


def test_a_comma_in_the_name_of_a_folder(tmp_path):
    (tmp_path / "a,b").mkdir()
    assert folder_paths(str(tmp_path / "a,b")) == [str(tmp_path / "a,b")]
    assert folder_paths("a, b,") == ["a", "b"]
    assert folder_paths("") == []
