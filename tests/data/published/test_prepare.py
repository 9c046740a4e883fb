"""Published layouts become standard folders; every planted defect is reported, and only that."""

import json

import numpy as np
import pytest
from PIL import Image

from ssm_jax.data import DataError
from ssm_jax.data.published import covid_classes
from tests.helpers import publisher_trees as trees
from tests.helpers.data_tools import lesion_mask, noise, save
from tests.helpers.publisher_trees import copy, files_of, items, run


@pytest.mark.parametrize("flat", [False, True])
def test_cncb_as_downloaded_and_flattened(tmp_path, flat):
    flags = trees.cncb_seg(tmp_path / "src", flat)
    result = run(tmp_path, **flags)
    assert not result.report["errors"] and not result.report["warnings"]
    files = files_of(result.tree)
    names = {"train": ["7_4", "7_5", "12_30", "12_31", "12_32"], "test": ["110_104", "110_26"]}
    assert set(files) == {
        f"{split}/{part}"
        for split, listed in names.items()
        for name in listed
        for part in (f"imgs/{name}.jpg", f"masks/{name}.png")
    }
    folder = tmp_path / "src" / ("imgs" if flat else "image")
    source = folder / ("110_26.jpg" if flat else "110/26.jpg")
    assert files["test/imgs/110_26.jpg"].read_bytes() == source.read_bytes()
    train, test = result.report["splits"]["train"], result.report["splits"]["test"]
    assert (train["slices"], train["patients"], train["with_lesions"]) == (5, 2, 5)
    assert train["mask_values"] == {"1": 5, "2": 3, "3": 2}
    assert (test["slices"], test["patients"], test["sizes"]) == (2, 1, {"48x48": 2})
    assert json.loads(result.report_file.read_text()) == result.report


def test_covidx_lists_are_found_and_named_after_patients(tmp_path):
    result = run(tmp_path, **trees.covidx_ct(tmp_path / "src"))
    assert result.report["errors"] == {} and result.report["warnings"] == {}
    assert set(files_of(result.tree)) == {
        "train/0_1739_1042_0000.png",
        "train/1_1253_3471_0065.png",
        "train/2_341_1834_0022.png",
        "train/2_341_1834_0023.png",
        "train/2_patient76_137covid-SR-2_IM00014.png",
        "train/1_COVIDCTMD-cap004_0_IM0068.png",
        "val/0_LIDC-IDRI-0273_1.3.6.1_0032.png",
        "val/2_volume-covid19-A-0383_1-ct_0018.png",
        "test/0_1988_711_0084.png",
        "test/1_1766_3133_0010.png",
        "test/2_coronacases-010_0_0075.png",
    }
    splits = result.report["splits"]
    assert splits["train"]["classes"] == {"normal": 1, "cp": 2, "covid": 3}
    assert splits["train"]["patients"] == 5
    assert splits["val"]["classes"] == {"normal": 1, "cp": 0, "covid": 1}


@pytest.mark.parametrize(
    ("name", "label"),
    [  # lines of the lists that COVIDx-CT publishes, versions 1 and 3A
        ("Normal_1739_1042_0000.png", 0),
        ("CP_1253_3471_0065.png", 1),
        ("NCP_341_1834_0022.png", 2),
        ("COVIDCTMD-normal002-IM0001.png", 0),
        ("COVIDCTMD-cap004-IM0068.png", 1),
        ("COVIDCTMD-P002-IM0025.png", 2),
        ("normalcd1_patient408_SR_2_IM00008.png", 0),
        ("137covid_patient76_SR_2_IM00014.png", 2),
    ],
)
def test_covidx_class_order_is_ours(tmp_path, name, label):
    """0 normal, 1 common pneumonia, 2 COVID-19: the name of the source tells the class too."""
    source = tmp_path / "src"
    save(source / name, noise(1, 48, 48))
    save(source / "CP_9_9_0009.png", noise(2, 48, 48))
    test_list = trees.write_list(source / "test.txt", "CP_9_9_0009.png 1 0 0 40 40")
    patient, scan, picture = covid_classes.patient_of(name.removesuffix(".png"))
    for listed in range(3):
        train_list = trees.write_list(source / "train.txt", f"{name} {listed} 0 0 40 40")
        result = run(tmp_path, "covidx_ct", source, train_list=train_list, test_list=test_list)
        if listed == label:
            assert result.report["errors"] == {}
            made = result.tree / "train" / f"{label}_{patient}_{scan}_{picture}.png"
            assert made.read_bytes() == (source / name).read_bytes()
        else:
            [conflict] = items(result.report, "class_conflict")
            assert name in conflict and result.report["prepared"] is None


def test_covidx_classes_in_another_order(tmp_path):
    flags = trees.covidx_ct(tmp_path / "src", order=(2, 0, 1))  # 0 pneumonia, 1 covid, 2 normal
    plain = run(tmp_path, **flags).report
    listed = sum(len(files) for files in trees.COVIDX.values())
    assert len(items(plain, "class_conflict")) == listed
    assert "--class_order" in plain["errors"]["class_conflict"]["text"]
    order = covid_classes.class_order(["cp", "covid", "normal"])
    result = run(tmp_path, **flags, order=order)
    assert result.report["errors"] == {}
    assert result.report["splits"]["train"]["classes"] == {"normal": 1, "cp": 2, "covid": 3}
    assert (result.tree / "train" / "0_1739_1042_0000.png").is_file()
    with pytest.raises(DataError, match="class_order=covid,normal has to name"):
        covid_classes.class_order(["covid", "normal"])


@pytest.mark.parametrize("layout", ["flat", "covidx", "cncb"])
def test_flat_lists_with_every_naming_of_the_files(tmp_path, layout):
    flags = trees.ct_classes(tmp_path / "src", layout)
    result = run(tmp_path, **flags)
    assert result.report["errors"] == {} and result.report["warnings"] == {}
    suffix = ".jpg" if layout == "cncb" else ".png"
    assert set(files_of(result.tree)) == {
        f"{split}/{name}{suffix}" for split, names in trees.FLAT.items() for name in names
    }


def test_a_flat_list_with_a_covidx_list(tmp_path):
    flags = trees.ct_classes(tmp_path / "src", "covidx")
    flags["test_list"] = trees.write_list(
        tmp_path / "test.txt",
        "Normal_3905_5437_0094.png 0 1 2 3 4",
        "CP_1070_3134_0011.png 1 1 2 3 4",
    )
    result = run(tmp_path, **flags)
    assert result.report["errors"] == {}
    assert items(result.report, "unlisted") == ["images/NCP_100_1354_0040.png"]
    assert len(files_of(result.tree)) == 5


@pytest.mark.parametrize("renamed", [False, True])
def test_ictcf(tmp_path, renamed):
    result = run(tmp_path, **trees.ictcf(tmp_path / "src", renamed))
    assert result.report["errors"] == {} and not result.report["patients_known"]
    assert result.report["splits"]["train"]["classes"] == {"normal": 1, "cp": 0, "covid": 2}
    assert set(files_of(result.tree)) == {
        "train/0_nCT12_0_0.jpg",
        "train/2_pCT1088_0_0.jpg",
        "train/2_pCT7_0_0.jpg",
        "test/0_nCT500_0_0.jpg",
        "test/2_pCT603_0_0.jpg",
    }


def truncate(path):
    path.write_bytes(path.read_bytes()[:60])


SEG_DEFECTS = {
    "missing": (lambda s: (s / "image/7/5.jpg").unlink(), ["train/7_5.jpg"]),
    "missing_mask": (lambda s: (s / "mask/110/26.png").unlink(), ["test/110_26.jpg"]),
    "unreadable": (
        lambda s: truncate(s / "image/12/31.jpg"),
        ["train/12_31.jpg (no readable image)"],
    ),
    "unreadable_mask": (
        lambda s: save(s / "mask/7/4.png", noise(0, 48, 48, 3)),
        ["train/7_4.jpg (has mode RGB; a mask is a PNG of one integer channel)"],
    ),
    "mask_size": (
        lambda s: save(s / "mask/12/30.png", lesion_mask(48, 40, trees.LESION)),
        ["train/12_30.jpg (40x48 for 48x48)"],
    ),
    "mask_values": (
        lambda s: save(s / "mask/110/104.png", lesion_mask(48, 48, trees.LESION, value=7)),
        ["test/110_104.jpg (7)"],
    ),
    "bad_line": (
        lambda s: trees.add_line(s / "train_split.txt", "holiday.jpg"),
        ["train line 6: holiday.jpg (not <scan>_<slice>.jpg)"],
    ),
    "ambiguous": (
        lambda s: copy(s / "image/7/5.jpg", s / "again/image/7/5.jpg"),
        ["train/7_5.jpg (again/image/7/5.jpg, image/7/5.jpg)"],
    ),
    "patient_overlap": (
        lambda s: (
            save(s / "image/110/9.jpg", noise(50, 48, 48)),
            save(s / "mask/110/9.png", lesion_mask(48, 48, trees.LESION)),
            trees.add_line(s / "train_split.txt", "110_9.jpg"),
        ),
        ["110 (1 in train, 2 in test)"],
    ),
    "split_duplicate": (
        lambda s: copy(s / "image/110/26.jpg", s / "image/7/5.jpg"),
        ["train/7_5.jpg = test/110_26.jpg"],
    ),
}
SEG_ODDITIES = {
    "duplicate": (
        lambda s: copy(s / "image/12/30.jpg", s / "image/7/5.jpg"),
        ["train/7_5.jpg = train/12_30.jpg"],
    ),
    "listed_twice": (
        lambda s: trees.add_line(s / "test_split.txt", "110_26.jpg"),
        ["test/110_26.jpg"],
    ),
    "size_outlier": (
        lambda s: (
            save(s / "image/7/5.jpg", noise(3, 64, 40)),
            save(s / "mask/7/5.png", lesion_mask(64, 40, trees.LESION)),
        ),
        ["train/7_5.jpg (40x64, most are 48x48)"],
    ),
    "no_lesion": (
        lambda s: save(s / "mask/7/5.png", lesion_mask(48, 48, ((1, 1, 5, 6),))),  # 20 pixels
        ["train/7_5.jpg"],
    ),
    "blank": (
        lambda s: [
            save(s / f"image/{n}.jpg", np.zeros((48, 48), np.uint8)) for n in ("7/4", "7/5")
        ],
        ["train/7_4.jpg", "train/7_5.jpg"],
    ),
    "unlisted": (lambda s: copy(s / "image/7/4.jpg", s / "image/7/6.jpg"), ["image/7/6.jpg"]),
}


@pytest.mark.parametrize("kind", [*SEG_DEFECTS, *SEG_ODDITIES])
def test_planted_in_a_segmentation_set(tmp_path, kind):
    spoil, expected = (SEG_DEFECTS | SEG_ODDITIES)[kind]
    flags = trees.cncb_seg(tmp_path / "src")
    spoil(flags["source"])
    result = run(tmp_path, **flags)
    assert items(result.report, kind) == expected
    others = {*result.report["errors"], *result.report["warnings"]} - {kind, "unlisted"}
    assert not others, "one thing was planted, one is found"
    assert result.tree.exists() == (kind in SEG_ODDITIES)
    assert (result.report["prepared"] is None) == (kind in SEG_DEFECTS)
    if kind in SEG_ODDITIES:
        assert len(files_of(result.tree)) == 14


CLS_DEFECTS = {
    "bad_line": (
        lambda s: trees.add_line(s / "train.txt", "0_1_2.png"),
        ["train line 4: 0_1_2.png (not <class>_<patient>_<scan>_<slice>.png)"],
    ),
    "unknown_class": (
        lambda s: trees.add_line(s / "train.txt", "3_1_2_0003.png"),
        ["train line 4: 3_1_2_0003.png"],
    ),
    "missing": (lambda s: (s / "2_96_1328_0032.png").unlink(), ["train/2_96_1328_0032.png"]),
    "unreadable": (
        lambda s: save(s / "1_1068_2982_0031.png", np.full((48, 48), 900, np.uint16)),
        [
            "train/1_1068_2982_0031.png (has more than 8 bits a pixel; apply a CT window and save "
            "it in 8 bits)"
        ],
    ),
    "patient_overlap": (
        lambda s: (
            save(s / "2_1728_1_0001.png", noise(60, 48, 48)),
            trees.add_line(s / "test.txt", "2_1728_1_0001.png"),
        ),
        ["1728 (1 in train, 1 in test)"],
    ),
    "duplicate_class": (
        lambda s: copy(s / "0_1728_1013_0023.png", s / "2_96_1328_0032.png"),
        ["train/0_1728_1013_0023.png = train/2_96_1328_0032.png"],
    ),
    "class_conflict": (
        lambda s: (
            trees.add_line(s / "train.txt", "x/CP_5_6_0007.png 1 0 0 9 9"),
            trees.add_line(s / "train.txt", "x/HUST-Patient5-0001.png 1 0 0 9 9"),
            trees.add_line(s / "train.txt", "x/HUST-Patient5-0001.png 2 0 0 9 9"),
            trees.add_line(s / "train.txt", "x/CP_5_6_0007.png 2 0 0 9 9"),
            save(s / "x/CP_5_6_0007.png", noise(70, 48, 48)),
            save(s / "x/HUST-Patient5-0001.png", noise(71, 48, 48)),
        ),
        [
            "train line 7: x/CP_5_6_0007.png 2 0 0 9 9 (the name says cp)",
            "train/x/HUST-Patient5-0001.png (also listed as 1)",
        ],
    ),
    "collision": (
        lambda s: (
            save(s / "COVIDCTMD-P2-IM1.png", noise(80, 48, 48)),
            save(s / "COVIDCTMD-P2_IM1.png", noise(81, 48, 48)),
            trees.add_line(s / "train.txt", "COVIDCTMD-P2-IM1.png 2 0 0 9 9"),
            trees.add_line(s / "train.txt", "COVIDCTMD-P2_IM1.png 2 0 0 9 9"),
        ),
        ["train/COVIDCTMD-P2_IM1.png and COVIDCTMD-P2-IM1.png (2_COVIDCTMD-P2_0_IM1.png)"],
    ),
}


@pytest.mark.parametrize("kind", CLS_DEFECTS)
def test_planted_in_a_classification_set(tmp_path, kind):
    spoil, expected = CLS_DEFECTS[kind]
    flags = trees.ct_classes(tmp_path / "src")
    spoil(flags["source"])
    result = run(tmp_path, **flags)
    assert items(result.report, kind) == expected
    allowed = {kind, "unlisted", "duplicate", "duplicate_class"}
    assert {*result.report["errors"], *result.report["warnings"]} <= allowed
    assert result.tree.exists() == (kind == "duplicate_class")


def test_defects_of_ictcf_lists(tmp_path):
    flags = trees.ictcf(tmp_path / "src")
    for line in ("0_pCT7.jpg", "4_nCT1.jpg", "2_pCT9.jpg", "pCT7.jpg"):
        trees.add_line(flags["train_list"], line)
    copy(tmp_path / "src/nCT/nCT500.jpg", tmp_path / "src/nCT/nCT12.jpg")
    report = run(tmp_path, **flags).report
    assert items(report, "class_conflict") == ["train line 4: 0_pCT7.jpg (the name says covid)"]
    assert items(report, "unknown_class") == ["train line 5: 4_nCT1.jpg"]
    assert items(report, "missing") == ["train/2_pCT9.jpg"]
    assert items(report, "bad_line") == ["train line 7: pCT7.jpg (not <class>_<id>.jpg)"]
    assert items(report, "split_duplicate") == ["train/0_nCT12.jpg = test/0_nCT500.jpg"]
    assert report["prepared"] is None


def test_a_dangling_link_is_an_unreadable_slice(tmp_path):
    flags = trees.ct_classes(tmp_path / "src")
    path = tmp_path / "src/2_96_1328_0032.png"
    path.unlink()
    path.symlink_to(tmp_path / "gone.png")
    [item] = items(run(tmp_path, **flags).report, "unreadable")
    assert item.startswith("train/2_96_1328_0032.png (") and "No such file" in item


def test_linked_folders_are_followed_and_loops_are_not(tmp_path):
    flags = trees.ct_classes(tmp_path / "elsewhere", "cncb")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "CNCB").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "CP" / "loop").symlink_to(tmp_path / "elsewhere")
    result = run(tmp_path, **flags | {"source": tmp_path / "src"})
    assert result.report["errors"] == {} and len(files_of(result.tree)) == 6


def test_colored_slices(tmp_path):
    """A gray set refuses them as its builder would; a set of colored ones is fine."""
    flags = trees.ct_classes(tmp_path / "src")
    save(tmp_path / "src/2_96_1328_0032.png", noise(5, 48, 48, 3))
    report = run(tmp_path, **flags).report
    assert "colored where the set is gray" in items(report, "unreadable")[0]
    for k, name in enumerate([*trees.FLAT["train"], *trees.FLAT["test"]]):
        save(tmp_path / "src" / f"{name}.png", noise(k, 48, 48, 3))
    assert run(tmp_path, **flags).report["errors"] == {}


def test_a_picture_kept_in_another_encoding_is_a_duplicate(tmp_path):
    flags = trees.ct_classes(tmp_path / "src")
    pixels = np.asarray(Image.open(tmp_path / "src/0_1728_1013_0023.png"))
    Image.fromarray(pixels).save(tmp_path / "src/2_100_1354_0040.png", compress_level=0)
    report = run(tmp_path, **flags).report
    assert len(items(report, "split_duplicate")) == 1
    result = run(tmp_path, **flags, tolerated=("split_duplicate",))
    assert "split_duplicate" in result.report["warnings"] and result.report["prepared"]


@pytest.mark.parametrize("tolerated", [False, True])
def test_patient_overlap_can_be_allowed(tmp_path, tolerated):
    flags = trees.cncb_seg(tmp_path / "src")
    SEG_DEFECTS["patient_overlap"][0](flags["source"])
    result = run(tmp_path, **flags, tolerated=("patient_overlap",) if tolerated else ())
    where = "warnings" if tolerated else "errors"
    assert result.report[where]["patient_overlap"]["count"] == 1
    assert result.tree.exists() == tolerated
