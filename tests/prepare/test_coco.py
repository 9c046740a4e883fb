"""COCO sets: objects survive, image classes come along, every planted defect is told by name."""

import csv
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from ssm_jax.data import DataError, images, open_datasets
from ssm_jax.prepare import outlines
from tests.helpers import own_sets as sets
from tests.helpers.data_tools import noise, save, small_config
from tests.helpers.own_sets import items, polygon, run, write_csv, write_json


@pytest.fixture
def source(tmp_path):
    sets.coco_set(tmp_path / "src")
    return tmp_path / "src"


def content_of(source):
    return json.loads((source / "annotations.json").read_text())


def prepared_of(tree, file):
    """Split and name of the picture with objects that comes from a file."""
    with (tree / "sources.csv").open() as table:
        found = [row for row in csv.DictReader(table) if row["source"] == file]
    (row,) = [row for row in found if not row["file"][0].isdigit()]
    return tree / row["split"], row["file"]


def test_objects_and_classes_reach_the_training(tmp_path, source):
    result = run(tmp_path, "coco", source, labels=source / "kinds.csv", patient=r"(box\d+)_")
    assert result.report["errors"] == {}
    assert set(result.report["warnings"]) == {"no_lesion"}
    classes = json.loads((result.tree / "classes.json").read_text())
    assert [one["title"] for one in classes["lesion"]] == ["nut", "bolt"]
    assert [one["title"] for one in classes["image"]] == sorted(sets.KINDS)
    given = {f"data__{part}_dir": str(result.tree) for part in ("seg", "cls")}
    datasets = open_datasets(small_config(tmp_path / "cache", **given, data__min_area=0))
    assert datasets.seg_train.channels == datasets.cls_train.channels == 3
    assert sorted(set(datasets.cls_train.labels.tolist())) == [0, 1, 2, 3, 4]
    _, two_nuts = prepared_of(result.tree, "images/box3_7.png")
    example = datasets.seg_train[datasets.seg_train.files.index(two_nuts)]
    # They touch: as components of a mask they would be one.
    assert example.boxes.tolist() == [[8, 8, 24, 24], [24, 8, 40, 24]]
    assert example.labels.tolist() == [1, 1]
    np.testing.assert_array_equal(
        example.image, np.asarray(Image.open(source / "images/box3_7.png"))
    )
    _, both = prepared_of(result.tree, "images/box4_9.png")
    for split in (datasets.seg_train, datasets.seg_test):
        if both in split.files:
            example = split[split.files.index(both)]
            assert example.labels.tolist() == [1, 2]
            assert example.boxes.tolist() == [[8, 40, 20, 56], [36, 36, 48, 60]]


def test_run_lengths_are_those_of_pycocotools():
    rng = np.random.default_rng(0)
    for _ in range(50):
        height, width = rng.integers(1, 40, 2)
        mask = np.kron(rng.random((3, 4)) < 0.5, np.ones((height, width))) > 0
        packed = coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()
        found = outlines.run_lengths(packed, *mask.shape)
        np.testing.assert_array_equal(found, mask)


def test_polygons_are_those_of_pycocotools_and_small_objects_lie_on_top():
    large, small = (
        [[2.5, 2, 30, 3.5, 28, 29]],
        [[10, 6, 14, 6, 14, 10, 10, 10], [20, 9, 24, 9, 22, 14]],
    )
    shapes = [outlines.Outline(1, small), outlines.Outline(2, large)]
    truth = outlines.draw(shapes, 32, 40)
    expected = np.zeros((32, 40), np.uint8)
    for number, shape in ((2, large), (1, small)):
        merged = coco_mask.merge(coco_mask.frPyObjects(shape, 32, 40))
        expected[coco_mask.decode(merged) > 0] = number
    np.testing.assert_array_equal(truth.instances, expected)
    np.testing.assert_array_equal(truth.mask, expected)
    assert truth.notes == ()


def test_hidden_objects_are_told():
    square = outlines.Outline(1, polygon(4, 4, 12, 12))
    strip = outlines.Outline(2, polygon(4, 4, 12, 10))
    nothing = outlines.Outline(1, polygon(5, 5, 5, 5))
    truth = outlines.draw([square, strip, nothing, square], 16, 16)
    assert dict(truth.notes) == {"no_pixels": "2 of 4 objects", "covered": "1 of 4 objects"}
    assert sorted(np.unique(truth.instances)) == [0, 1, 2]


def test_the_splits_of_files_are_kept(tmp_path, source):
    content = content_of(source)
    (source / "annotations.json").unlink()
    for name, part in (("train", slice(0, 10)), ("valid", slice(10, 20))):
        listed = content["images"][part]
        keys = {entry["id"] for entry in listed}
        annotations = [a for a in content["annotations"] if a["image_id"] in keys]
        (source / name).mkdir()
        for entry in listed:
            (source / "images" / entry["file_name"]).rename(source / name / entry["file_name"])
        part = content | {"images": listed, "annotations": annotations}
        write_json(source / name / "_annotations.coco.json", part)
    report = run(tmp_path, "coco", source).report
    assert report["errors"] == {}
    counts = {split: found["slices"] for split, found in report["parts"]["seg"].items()}
    assert counts == {"train": 10, "val": 10}
    assert report["shares"] is None


def test_some_categories_and_labels_of_images(tmp_path, source):
    content = content_of(source)
    for k, entry in enumerate(content["images"]):
        entry["label"] = k % 2
    write_json(source / "annotations.json", content)
    result = run(tmp_path, "coco", source, lesion=("bolt",), image_class=("1", "0"))
    assert result.report["errors"] == {}
    classes = result.report["classes"]
    assert [one["title"] for one in classes["lesion"]] == ["bolt"]
    assert [one["title"] for one in classes["image"]] == ["1", "0"]
    split, name = prepared_of(result.tree, "images/box4_9.png")
    assert np.unique(np.asarray(Image.open(split / "masks" / name))).tolist() == [0, 1]


def change(part, place, **fields):
    """Changes an entry of the JSON; a field of None goes."""

    def plant(source):
        content = content_of(source)
        content[part][place].update(fields)
        for name in [name for name, value in fields.items() if value is None]:
            del content[part][place][name]
        write_json(source / "annotations.json", content)

    return plant


def again(part):
    """Repeats the first entry."""

    def plant(source):
        content = content_of(source)
        content[part].append(content[part][0])
        write_json(source / "annotations.json", content)

    return plant


def category(source):
    content = content_of(source)
    content["categories"].append({"id": 11, "name": "washer"})
    write_json(source / "annotations.json", content)


def row(*cells):
    def plant(source):
        with (source / "kinds.csv").open("a") as file:
            file.write(",".join(cells) + "\n")

    return plant


RUN_LENGTHS = {"size": [64, 60], "counts": [10, 3830]}
DEFECTS = {
    "missing": (lambda s: (s / "images/box0_0.png").unlink(), "annotations.json image 100: box0_0"),
    "ambiguous": (
        lambda s: save(s / "more/box0_0.png", noise(0, 64, 64, 3)),
        "box0_0.png (images/",
    ),
    "unreadable": (lambda s: (s / "images/box0_0.png").write_bytes(b"\x89PNG"), "box0_0.png"),
    "picture_size": (
        lambda s: save(s / "images/box0_0.png", noise(0, 60, 64, 3)),
        "box0_0.png (64x60, not 64x64)",
    ),
    "bad_entry": (change("annotations", 0, image_id=5), "annotation 1 (image_id 5 is unknown)"),
    "bad_entry of a category": (change("annotations", 0, category_id=1), "(category_id 1 is unk"),
    "bad_entry of a polygon": (
        change("annotations", 0, segmentation=[[1, 2, 3]]),
        "annotation 1 (a",
    ),
    "bad_entry of a list": (change("annotations", 0, image_id=[1]), "(image_id [1] is unknown)"),
    "bad_entry of a number": (
        change("annotations", 0, segmentation=[[0, 0, 5, 0, 5, float("nan")]]),
        "annotation 1 (a polygon is 3 or more pairs of numbers)",
    ),
    "bad_entry of a label": (change("images", 0, label={"a": 1}), "(label {'a': 1} is no text)"),
    "bad_entry of an image": (change("images", 0, file_name=None), "image 100 (no file_name)"),
    "bad_entry of a size": (change("images", 0, width=-3), "(height 64, width -3)"),
    "mask_size": (
        change("annotations", 0, segmentation=RUN_LENGTHS),
        "annotation 1 (60x64 for 64x",
    ),
    "no_outline": (change("annotations", 0, segmentation=[]), "annotation 1 (no segmentation)"),
    "unreadable_labels": (
        change("annotations", 0, segmentation={"size": [64, 64], "counts": "z~~~z"}),
        "its run lengths are not of 64x64 pixels",
    ),
    "unreadable_labels far outside": (
        change("annotations", 0, segmentation=polygon(0, 0, 1e6, 1e6)),
        "an outline far outside of the picture",
    ),
    "repeated_entry": (again("images"), "annotations.json images id 100"),
    "empty_category": (category, "washer"),
    "missing of a row": (row("lost.png", "both"), "kinds.csv line 22: lost.png"),
    "row_conflict": (row("box0_0.png", "both"), "kinds.csv line 22 (box0_0.png, as in"),
    "bad_line": (row("box0_0.png", ""), "kinds.csv line 22 (no label)"),
    "split_duplicate": (
        lambda s: [
            (s / f"images/box{k // 2}_{k}.png").write_bytes((s / "images/box0_0.png").read_bytes())
            for k in (5, 10, 15)
        ],
        "images/box0_0.png",
    ),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_every_defect_is_told_by_name_and_nothing_is_prepared(tmp_path, source, name):
    plant, expected = DEFECTS[name]
    plant(source)
    result = run(tmp_path, "coco", source, labels=source / "kinds.csv", patient=r"(box\d+)_")
    kind = name.split()[0]
    assert expected in " | ".join(items(result.report, kind)), result.report["errors"]
    assert kind in result.report["errors"] and "(" in result.report["errors"][kind]["text"]
    assert result.report["prepared"] is None and not result.tree.exists()


def test_leaks_between_the_splits_of_files(tmp_path, source):
    content = content_of(source)
    for k, entry in enumerate(content["images"]):
        entry["patient"] = f"p{k % 15}"
    (source / "annotations.json").unlink()
    lists = {}
    for split, part in (("train", slice(0, 15)), ("test", slice(15, 20))):
        keys = {entry["id"] for entry in content["images"][part]}
        own = [a for a in content["annotations"] if a["image_id"] in keys]
        lists[split] = source / f"{split}.json"
        write_json(lists[split], content | {"images": content["images"][part], "annotations": own})
    report = run(tmp_path, "coco", source, lists=lists).report
    assert "p0 (1 in train, 1 in test)" in items(report, "patient_overlap")
    assert len(items(report, "patient_overlap")) == 5


UNUSABLE = {
    "no json": (lambda s: (s / "annotations.json").unlink(), "name COCO files with --train_list"),
    "bad json": (lambda s: (s / "annotations.json").write_text("{"), "cannot be read as JSON"),
    "nested": (
        lambda s: (s / "annotations.json").write_text("[" * 200_000),
        "annotations.json cannot be read as JSON",
    ),
    "no section": (
        lambda s: write_json(s / "annotations.json", {"annotations": []}),
        "no list of objects 'images'",
    ),
    "two": (
        lambda s: write_json(s / "other.json", content_of(s)),
        "several COCO files .* say which is of which split",
    ),
    "table": (
        lambda s: write_csv(s / "kinds.csv", ("picture", "label"), []),
        "columns file, label",
    ),
    "no rows": (lambda s: write_csv(s / "kinds.csv", ("file", "label"), []), "has no rows"),
    "no folder": (lambda s: s.rename(s.parent / "moved"), "there is no folder"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_is_no_set_is_told_in_one_line(tmp_path, source, name):
    plant, expected = UNUSABLE[name]
    plant(source)
    with pytest.raises(DataError, match=expected):
        run(tmp_path, "coco", source, labels=source / "kinds.csv")
    assert not (tmp_path / "data/coco").exists()


def test_crowds_are_left_out_and_told(tmp_path, source):
    change("annotations", 0, iscrowd=1)(source)
    result = run(tmp_path, "coco", source)
    assert items(result.report, "crowd") == ["annotations.json annotation 1"]
    split, name = prepared_of(result.tree, "images/box0_1.png")
    assert not np.asarray(Image.open(split / "masks" / name)).any()


def test_gray_pictures_among_colored_ones(tmp_path, source):
    gray = noise(1, 64, 64)
    save(source / "images/box0_0.png", gray)
    result = run(tmp_path, "coco", source)
    assert result.report["errors"] == {}
    split, name = prepared_of(result.tree, "images/box0_0.png")
    pixels = images.slice_pixels((split / "imgs" / name).read_bytes(), 3)
    np.testing.assert_array_equal(pixels, np.repeat(gray[..., None], 3, 2))


def test_a_second_run_does_nothing_and_a_changed_one_makes_it_again(tmp_path, source):
    assert not run(tmp_path, "coco", source).done_before
    assert run(tmp_path, "coco", source).done_before
    assert not run(tmp_path, "coco", source, seed=1).done_before
    change("annotations", 0, iscrowd=1)(source)
    assert not run(tmp_path, "coco", source, seed=1).done_before
    assert sorted(path.name for path in (tmp_path / "data/.coco").iterdir()) == ["lock"]
