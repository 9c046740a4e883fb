"""Tables and class folders, pictures of 8 and 16 bits, and what is wrong with them."""

import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from ssm_jax.data import DataError
from ssm_jax.scans.open import open_scans
from ssm_jax.scans.options import InputOptions
from tests.helpers.data_tools import noise, save
from tests.helpers.own_sets import items, run, write_csv


def table_set(root, count=12, columns=("file", "label", "patient")):
    """Gray pictures of three classes, two of a patient."""
    rows = []
    for k in range(count):
        save(root / f"pictures/{k}.png", noise(k, 40, 48))
        row = {"file": f"{k}.png", "label": ("3", "10", "20")[k // 2 % 3], "patient": f"p_{k // 2}"}
        row["split"] = "test" if k >= count - 6 else "train"
        rows.append([row[name.lower()] for name in columns])
    write_csv(root / "table.csv", columns, rows)
    return root


def folder_set(root, splits=("train/", "test/")):
    """Pictures of two classes, two of each in every split."""
    for k, (split, name) in enumerate((s, c) for s in splits for c in ("cat", "dog")):
        for number in range(2):
            save(root / f"{split}{name}/{k}-{number}.png", noise(10 * k + number, 40, 48))
    return root


def test_a_table_is_split_by_patient(tmp_path):
    result = run(tmp_path, "csv", table_set(tmp_path / "src", 24), split=(0.5, 0.25, 0.25))
    report = result.report
    assert report["errors"] == {} and report["warnings"] == {}
    assert [one["title"] for one in report["classes"]["image"]] == ["3", "10", "20"]
    assert "lesion" not in report["classes"] and report["anchors"] is None
    names = [path.name for path in sorted(result.tree.glob("*/*.png"))]
    assert len(names) == 24 and "0_p-0_0_0001.png" in names
    patients = [
        {p.name.split("_")[1] for p in s.iterdir()} for s in result.tree.iterdir() if s.is_dir()
    ]
    assert sum(map(len, patients)) == 12 and len(set.union(*patients)) == 12


def test_the_splits_and_the_order_of_classes_of_a_table(tmp_path):
    source = table_set(tmp_path / "src", columns=("Label", "file", "split", "patient"))
    table = source / "table.csv"
    result = run(tmp_path, "csv", source, labels=table, image_class=("20", "3", "10"))
    assert result.report["errors"] == {}
    assert [one["title"] for one in result.report["classes"]["image"]] == ["20", "3", "10"]
    assert {path.name for path in result.tree.glob("test/*")} == {
        f"{(1, 2, 0)[k % 3]}_p-{k}_0_{n:04d}.png" for k in (3, 4, 5) for n in (0, 1)
    }
    report = run(tmp_path, "csv", source, image_class=("20", "3", "rare")).report
    assert items(report, "unknown_label") == ["10"]
    assert items(report, "empty_class") == ["rare"]


def test_class_folders(tmp_path):
    report = run(tmp_path, "class_folders", folder_set(tmp_path / "src")).report
    assert report["errors"] == {} and not report["patients_known"]
    counts = {split: found["classes"] for split, found in report["parts"]["cls"].items()}
    assert counts == {"train": {"cat": 2, "dog": 2}, "test": {"cat": 2, "dog": 2}}
    source = folder_set(tmp_path / "plain", ("", "more-"))
    result = run(tmp_path, "class_folders", source, patient=r"(\d+)-", split=(0.5, 0, 0.5), seed=1)
    names = [one["title"] for one in result.report["classes"]["image"]]
    assert names == ["cat", "dog", "more-cat", "more-dog"]
    assert "patients" in result.report["parts"]["cls"]["train"]


def test_names_of_patients_stay_apart(tmp_path):
    source, rows = tmp_path / "src", []
    patients = ("a_b", "a-b", "A B", "a/b", "_", "." * 200)
    for k, patient in enumerate(patients):
        save(source / f"{k}.png", noise(k, 40, 48))
        rows.append((f"{k}.png", k % 2, patient, "train" if k < 4 else "test"))
    write_csv(source / "table.csv", ("file", "label", "patient", "split"), rows)
    result = run(tmp_path, "csv", source)
    assert result.report["errors"] == {}
    names = [path.name for path in result.tree.glob("*/*.png")]
    assert len({name.split("_")[1].lower() for name in names}) == len(names) == len(patients)


def test_pictures_of_16_bits_are_shown_as_prediction_shows_them(tmp_path):
    source = table_set(tmp_path / "src")
    deep = np.random.default_rng(0).integers(5000, 50_000, (40, 48)).astype(np.uint16)
    for k in range(12):
        Image.fromarray(deep + k).save(source / f"pictures/{k}.png")
    result = run(tmp_path, "csv", source)
    (scan,) = open_scans([str(source / "pictures/2.png")])
    shown = np.asarray(Image.open(next(result.tree.glob("*/1_p-1_0_0000.png"))))
    np.testing.assert_array_equal(shown, scan.slices[0].read())
    np.testing.assert_array_equal(shown, np.rint((deep + 2) / 65535 * 255))
    (source / "pictures/2.png").unlink()
    Image.fromarray(deep // 16).save(source / "pictures/2.png")
    report = run(tmp_path, "csv", source).report
    assert len(items(report, "mixed_depth")) == 12
    assert any("pictures/2.png (as 12 bits)" in item for item in items(report, "mixed_depth"))
    reading = InputOptions(window=(10_000, 4_000), values="hu")
    result = run(tmp_path, "csv", source, reading)
    assert result.report["errors"] == {}
    shown = np.asarray(Image.open(next(result.tree.glob("*/1_p-1_0_0001.png"))))
    np.testing.assert_array_equal(shown, np.rint(np.clip((deep + 3 - 8e3) / 4e3, 0, 1) * 255))


def row(*cells):
    def plant(source):
        with (source / "table.csv").open("a") as file:
            file.write(",".join(cells) + "\n")

    return plant


def pages(source):
    first, second = (Image.fromarray(noise(k, 40, 48)) for k in (70, 71))
    (source / "pictures/0.png").unlink()
    first.save(source / "pictures/0.tif", save_all=True, append_images=[second])
    text = (source / "table.csv").read_text()
    (source / "table.csv").write_text(text.replace("\n0.png", "\n0.tif"))


DEFECTS = {
    "missing": (lambda s: (s / "pictures/3.png").unlink(), "table.csv line 5: 3.png"),
    "ambiguous": (lambda s: save(s / "other/3.png", noise(0, 4, 4)), "3.png (other/3.png, pict"),
    "unreadable": (lambda s: (s / "pictures/3.png").write_bytes(b"x"), "pictures/3.png"),
    "unreadable pages": (pages, "pictures/0.tif (has 2 pages; save each as a file of its own)"),
    "row_conflict": (row("3.png", "20", "p_1", "train"), "line 14 (3.png, as in table.csv line 5)"),
    "repeated_entry": (
        row("pictures/3.png", "10", "p_1", "train"),
        "line 14 (pictures/3.png, as in",
    ),
    "bad_line": (
        row("3.png", "20", "p_1", "dev"),
        "line 14 (split 'dev' is none of train, val, te",
    ),
    "bad_line of a patient": (row("12.png", "20", "", "train"), "table.csv line 14 (no patient)"),
    "patient_overlap": (
        lambda s: [
            save(s / "pictures/12.png", noise(99, 40, 48)),
            row("12.png", "3", "p_0", "test")(s),
        ],
        "p_0 (2 in train, 1 in test)",
    ),
    "split_duplicate": (
        lambda s: save(s / "pictures/11.png", noise(0, 40, 48)),
        "train/pictures/0.png = test/pictures/11.png",
    ),
    "untrained_class": (
        lambda s: [
            save(s / "pictures/12.png", noise(99, 40, 48)),
            row("12.png", "7", "q", "test")(s),
        ],
        "7",
    ),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_every_defect_of_a_table_is_told_and_nothing_is_prepared(tmp_path, name):
    plant, expected = DEFECTS[name]
    source = table_set(tmp_path / "src", columns=("file", "label", "patient", "split"))
    plant(source)
    result = run(tmp_path, "csv", source)
    kind = name.split()[0]
    assert expected in " | ".join(items(result.report, kind)), result.report["errors"]
    assert kind in result.report["errors"]
    assert result.report["prepared"] is None and not result.tree.exists()


def test_duplicates_in_a_split_are_warned_of(tmp_path):
    source = table_set(tmp_path / "src", columns=("file", "label", "patient", "split"))
    save(source / "pictures/1.png", noise(0, 40, 48))
    save(source / "pictures/99.png", noise(99, 40, 48))
    report = run(tmp_path, "csv", source).report
    assert report["errors"] == {}
    assert items(report, "duplicate") == ["train/pictures/0.png = train/pictures/1.png"]
    assert items(report, "unlisted") == ["pictures/99.png"]


def test_defects_of_class_folders(tmp_path):
    source = folder_set(tmp_path / "src")
    (source / "train/bird").mkdir()
    save(source / "test/cow/1.png", noise(77, 40, 48))
    report = run(tmp_path, "class_folders", source, patient="x(y)").report
    assert items(report, "empty_class") == ["train/bird", "bird"]
    assert items(report, "untrained_class") == ["cow"]
    assert items(report, "no_patient")[0] == "2-0 (--patient=x(y) finds nobody in it)"
    alone = folder_set(tmp_path / "alone", ("",))
    (alone / "dog").rename(tmp_path / "gone")
    assert items(run(tmp_path, "class_folders", alone).report, "one_class") == ["cat"]


UNUSABLE = {
    "bad csv": ('file,label\n"a.png,1\n', {}, "cannot be read as CSV"),
    "cells": ("file,label\na.png,1,2\n", {}, "table.csv line 2 has 3 cells for 2 columns"),
    "columns": ("file;label\na.png;1\n", {}, "has to name the columns file, label, each once"),
    "patient": (None, {"patient": "p"}, "--patient=p has no group"),
    "expression": (None, {"patient": "(p"}, "is no regular expression"),
    "class": (None, {"image_class": ("1", "1")}, "--image_class=1 is given twice"),
    "split": (None, {"split": (0.5, 0.5, 0.5)}, "have to be from 0, together 1"),
    "table": (None, {"labels": "nowhere.csv"}, "nowhere.csv cannot be read as CSV"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_is_no_table_and_what_flags_make_no_sense(tmp_path, name):
    text, flags, expected = UNUSABLE[name]
    source = table_set(tmp_path / "src")
    if text:
        (source / "table.csv").write_text(text)
    if "labels" in flags:
        flags = {"labels": pathlib.Path(flags["labels"])}
    with pytest.raises(DataError, match=re.escape(expected)):
        run(tmp_path, "csv", source, **flags)


def test_folders_of_splits_beside_classes_and_no_table(tmp_path):
    source = folder_set(tmp_path / "src", ("train/", ""))
    with pytest.raises(DataError, match=r"folders of splits \(train\) beside others \(cat, dog\)"):
        run(tmp_path, "class_folders", source)
    with pytest.raises(DataError, match="has no CSV files; say which"):
        run(tmp_path, "csv", source)
    with pytest.raises(DataError, match="lies in --source"):
        run(tmp_path, "class_folders", tmp_path)
