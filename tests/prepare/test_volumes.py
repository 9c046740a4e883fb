"""Volumes and raw sets of nnU-Net: slices are those of prediction, labels lie where they belong."""

import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("nibabel", reason="the extra ssm-jax[medical] is not installed")

import highdicom
import nibabel
import pydicom

from ssm_jax.data import DataError
from ssm_jax.scans.open import open_scans
from ssm_jax.scans.options import InputOptions
from tests.helpers.data_tools import noise, save
from tests.helpers.dicom_tools import ORIGIN, SPACING, Series, chest, multi_frame, windowed
from tests.helpers.dicom_tools import save as save_dicom
from tests.helpers.own_sets import items, run, write_csv, write_json

HU = chest()
LABELS = np.zeros(HU.shape, np.uint8)  # [slice, row, column] as shown
LABELS[1:4, 10:16, 28:33] = 1
LABELS[2:6, 20:26, 10:15] = 2
TO_RAS = np.diag([-SPACING[2], -SPACING[1], SPACING[0], 1])
TO_RAS[:3, 3] = np.array(ORIGIN) * [-1, -1, 1]
# Order of the axes as stored, and those that run the other way.
ORIENTATIONS = [((0, 1, 2), ()), ((2, 0, 1), (1,)), ((1, 0, 2), (0, 2)), ((1, 2, 0), (0, 1, 2))]


def turned(volume, order, flips):
    """[slice, row, column] -> the voxels and the affine of a file with these axes."""
    data, affine = volume.transpose(2, 1, 0).transpose(order), TO_RAS[:, [*order, 3]]
    for axis in flips:
        data = np.flip(data, axis)
        affine = affine.copy()
        affine[:3, 3] += affine[:3, axis] * (data.shape[axis] - 1)
        affine[:3, axis] *= -1
    return data, affine


def save_nifti(path, volume, orientation=ORIENTATIONS[0], dtype=np.int16, scaling=None):
    """A volume as NIfTI; `scaling`: (slope, intercept) of what is stored."""
    data, affine = turned(volume, *orientation)
    if scaling:
        data = np.rint((data - scaling[1]) / scaling[0])
    image = nibabel.Nifti1Image(data.astype(dtype), affine)
    if scaling:
        image.header.set_slope_inter(*scaling)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image, path)


def nnunet_set(root, count=4, channels=None):
    """Cases in all orientations, with scale factors, and labels in the orientation of their own."""
    for k in range(count):
        orientation = ORIENTATIONS[k % 4]
        scaling = [(1.0, -1024.0), (0.5, -1000.0), None, (2.0, 0.0)][k % 4]
        save_nifti(
            root / f"imagesTr/lung_{k:03d}_0000.nii.gz", HU + k, orientation, scaling=scaling
        )
        other = ORIENTATIONS[(k + 1) % 4]
        save_nifti(root / f"labelsTr/lung_{k:03d}.nii.gz", LABELS, other, np.uint8)
    content = {
        "channel_names": channels or {"0": "CT"},
        "labels": {"background": 0, "nodule": 1, "scar": 2},
        "numTraining": count,
        "file_ending": ".nii.gz",
    }
    write_json(root / "dataset.json", content)
    return root


def pictures(tree, part):
    """Name -> pixels, of all splits."""
    return {path.name: np.asarray(Image.open(path)) for path in tree.glob(f"*/{part}/*.png")}


def test_slices_of_nnunet_are_those_of_prediction(tmp_path):
    source = nnunet_set(tmp_path / "src")
    result = run(tmp_path, "nnunet", source, split=(0.5, 0.0, 0.5))
    assert result.report["errors"] == {}
    assert result.report["patients_known"]
    found, masks = pictures(result.tree, "imgs"), pictures(result.tree, "masks")
    assert len(found) == len(masks) == 4 * len(HU)
    for k in range(4):
        (scan,) = open_scans([str(source / f"imagesTr/lung_{k:03d}_0000.nii.gz")])
        for index, slice_ in enumerate(scan.slices):
            name = f"lung-{k:03d}_{index:04d}.png"
            np.testing.assert_array_equal(found[name], slice_.read())
            np.testing.assert_array_equal(masks[name], LABELS[index])
        if k in (0, 2):  # of which the file holds the very values
            shown = np.stack([found[f"lung-{k:03d}_{z:04d}.png"] for z in range(len(HU))])
            np.testing.assert_array_equal(shown, windowed(HU + k))
    splits = [{p.name[:8] for p in result.tree.glob(f"{s}/imgs/*")} for s in ("train", "test")]
    assert len(splits[0]) == len(splits[1]) == 2 and not splits[0] & splits[1]
    titles = [one["title"] for one in result.report["classes"]["lesion"]]
    assert titles == ["nodule", "scar"] and "image" not in result.report["classes"]


def test_the_window_is_that_of_the_flags(tmp_path):
    source = nnunet_set(tmp_path / "src", 2)
    reading = InputOptions(window=(40, 400))
    result = run(tmp_path, "nnunet", source, reading, split=(0.5, 0, 0.5), lesion=("scar",))
    found, masks = pictures(result.tree, "imgs"), pictures(result.tree, "masks")
    np.testing.assert_array_equal(found["lung-000_0003.png"], windowed(HU[3], 40, 400))
    np.testing.assert_array_equal(masks["lung-000_0003.png"], LABELS[3] == 2)


def test_the_decathlon_its_test_split_and_slices_without_lesions(tmp_path):
    source = tmp_path / "src"
    for k in range(3):
        part = "Ts" if k == 2 else "Tr"
        save_nifti(source / f"images{part}/lung_{k}.nii.gz", HU + k)
        save_nifti(source / f"labels{part}/lung_{k}.nii.gz", LABELS, dtype=np.uint8)
    named = {"0": "background", "1": "nodule", "2": "scar"}
    write_json(source / "dataset.json", {"modality": {"0": "CT"}, "labels": named})
    result = run(tmp_path, "nnunet", source, lesions_only=True)
    counts = {k: v["slices"] for k, v in result.report["parts"]["seg"].items()}
    assert counts == {"train": 10, "test": 5}
    assert len(items(result.report, "without_lesion")) == 3
    assert {p.name for p in result.tree.glob("test/imgs/*")} == {
        f"lung-2_{k:04d}.png" for k in range(1, 6)
    }


def test_a_set_of_pictures_and_one_channel_of_several(tmp_path):
    source = tmp_path / "src"
    for k in range(4):
        labels = np.zeros((40, 48), np.uint8)
        labels[5:20, 5 + k : 20] = 1
        save(source / f"imagesTr/a_{k}_0000.png", noise(k, 40, 48, 3))
        save(source / f"labelsTr/a_{k}.png", labels)
    content = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "labels": {"nut": 1}}
    write_json(source / "dataset.json", content | {"file_ending": ".png"})
    result = run(tmp_path, "nnunet", source, split=(0.5, 0, 0.5))
    assert result.report["errors"] == {}
    assert pictures(result.tree, "imgs")["a-1_0000.png"].shape == (40, 48, 3)
    source = nnunet_set(tmp_path / "two", 2, {"0": "CT", "1": "PET"})
    with pytest.raises(
        DataError, match=r"channels 0 \(CT\), 1 \(PET\).* choose one with --channel"
    ):
        run(tmp_path, "nnunet", source)
    assert not run(tmp_path, "nnunet", source, channel="CT", split=(0.5, 0, 0.5)).report["errors"]


def test_pixels_that_nobody_judged(tmp_path):
    source = nnunet_set(tmp_path / "src", 2)
    content = json.loads((source / "dataset.json").read_text())
    content["labels"] = {"background": 0, "nodule": 1, "ignore": 2}
    write_json(source / "dataset.json", content)
    result = run(tmp_path, "nnunet", source, split=(0.5, 0, 0.5))
    assert len(items(result.report, "unjudged")) == 8
    assert len(pictures(result.tree, "imgs")) == 4


def label(k, volume, dtype=np.uint8, **more):
    return lambda s: save_nifti(s / f"labelsTr/lung_{k:03d}.nii.gz", volume, dtype=dtype, **more)


def moved(source):
    """Labels that lie elsewhere."""
    path = source / "labelsTr/lung_001.nii.gz"
    image = nibabel.load(path)
    affine = image.affine.copy()
    affine[0, 3] += 0.4
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), affine), path)


DEFECTS = {
    "missing": (lambda s: (s / "imagesTr/lung_001_0000.nii.gz").unlink(), "lung_001_0000.nii.gz"),
    "missing_label": (lambda s: (s / "labelsTr/lung_001.nii.gz").unlink(), "lung_001_0000.nii.gz"),
    "unreadable_volume": (
        lambda s: (s / "imagesTr/lung_001_0000.nii.gz").write_bytes(b"no"),
        "lung_001 (lung_001_0000.nii.gz cannot be read as NIfTI",
    ),
    "unreadable_labels": (
        label(1, LABELS * 4),
        "lung_001 slice 1 (has the label values 4, which have no name)",
    ),
    "unreadable_labels damaged": (
        lambda s: (s / "labelsTr/lung_001.nii.gz").write_bytes(b"no"),
        "the label volume",
    ),
    "unreadable_labels of another size": (label(1, LABELS[:, :30]), "lies on other voxels"),
    "unreadable_labels elsewhere": (moved, "lies on other voxels than the image; resample it"),
    "unreadable_labels of fractions": (label(1, LABELS / 2, np.float32), "no whole numbers"),
    "empty_category": (lambda s: [label(k, LABELS == 1)(s) for k in range(4)], "scar"),
    "split_duplicate": (
        lambda s: [save_nifti(s / f"imagesTr/lung_{k:03d}_0000.nii.gz", HU) for k in range(4)],
        "lung_000 slice 0",
    ),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_every_defect_is_told_by_name_and_nothing_is_prepared(tmp_path, name):
    plant, expected = DEFECTS[name]
    source = nnunet_set(tmp_path / "src")
    plant(source)
    result = run(tmp_path, "nnunet", source, split=(0.5, 0.0, 0.5))
    kind = name.split()[0]
    assert expected in " | ".join(items(result.report, kind)), result.report["errors"]
    assert kind in result.report["errors"]
    assert result.report["prepared"] is None and not result.tree.exists()


UNUSABLE = {
    "no json": (lambda s: (s / "dataset.json").unlink(), "dataset.json, imagesTr and labelsTr"),
    "bad json": (lambda s: (s / "dataset.json").write_text("["), "cannot be read as JSON"),
    "no labels": (
        lambda s: write_json(s / "dataset.json", {"labels": {}}),
        "no label but the back",
    ),
    "regions": (
        lambda s: write_json(s / "dataset.json", {"labels": {"whole": [1, 2], "core": 2}}),
        "labels whole and core overlap: both have the value 2",
    ),
    "no folder": (lambda s: (s / "labelsTr").rename(s / "labels"), "no folder .*labelsTr"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_is_no_set_of_nnunet(tmp_path, name):
    plant, expected = UNUSABLE[name]
    source = nnunet_set(tmp_path / "src", 2)
    plant(source)
    with pytest.raises(DataError, match=expected):
        run(tmp_path, "nnunet", source)


def segmentation(sources, labels):
    """A DICOM segmentation of labels [N, rows, columns] of two segments, as highdicom makes it."""
    concept = highdicom.sr.CodedConcept("52988006", "SCT", "Lesion")
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=concept,
            segmented_property_type=concept,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        for number, name in ((1, "nodule"), (2, "scar"))
    ]
    return highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=labels,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=highdicom.UID(),
        series_number=100,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="x",
        manufacturer_model_name="x",
        software_versions="1",
        device_serial_number="1",
    )


def dicom_set(root, orientations=("plain", "transposed and flipped")):
    """Series in odd orientations with DICOM segmentations, and one with NIfTI labels."""
    for k, orientation in enumerate(orientations):
        series = Series(orientation)
        paths = series.write(root / f"images/p{k}", HU + k)
        sources = [pydicom.dcmread(paths[z]) for z in sorted(paths)]
        turn = open_scans([str(root / f"images/p{k}")])[0].slices[0].turn
        stored = np.stack([turn.undo(plane) for plane in LABELS])
        (root / "labels").mkdir(exist_ok=True)
        segmentation(sources, stored).save_as(root / f"labels/p{k}.dcm")
    Series().write(root / "images/p9", HU + 9)
    save_nifti(root / "labels/p9.nii.gz", LABELS, ORIENTATIONS[3], np.uint8)
    return root


def test_dicom_series_with_segmentations_and_nifti_labels(tmp_path):
    source = dicom_set(tmp_path / "src")
    # Other numbers than those of the segmentations, which name themselves.
    save_nifti(source / "labels/p9.nii.gz", LABELS * 3 % 5, ORIENTATIONS[3], np.uint8)
    names = ("3=nodule", "1=scar")
    result = run(tmp_path, "volumes", source, label_name=names, split=(0.5, 0, 0.5))
    assert result.report["errors"] == {}
    found, masks = pictures(result.tree, "imgs"), pictures(result.tree, "masks")
    for case in (0, 1, 9):
        for z in range(len(HU)):
            name = f"p{case}_{z:04d}.png"
            np.testing.assert_array_equal(found[name], windowed(HU[z] + case))
            np.testing.assert_array_equal(masks[name], LABELS[z])


def test_a_segmentation_of_many_frames(tmp_path):
    source = tmp_path / "src"
    order = [3, 0, 5, 1, 2, 4]
    for k in range(2):
        enhanced = multi_frame(HU + k, order)
        (source / f"images/p{k}").mkdir(parents=True)
        (source / f"labels/p{k}").mkdir(parents=True)
        save_dicom(enhanced, source / f"images/p{k}/all.dcm")
        made = segmentation([pydicom.dcmread(source / f"images/p{k}/all.dcm")], LABELS[order])
        made.save_as(source / f"labels/p{k}/seg.dcm")
    result = run(tmp_path, "volumes", source, split=(0.5, 0, 0.5))
    assert result.report["errors"] == {}
    masks = pictures(result.tree, "masks")
    for z in range(len(HU)):
        np.testing.assert_array_equal(masks[f"p1_{z:04d}.png"], LABELS[z])


def test_a_table_of_volumes(tmp_path):
    source = tmp_path / "src"
    rows = []
    for k in range(3):
        save_nifti(source / f"case{k}/ct.nii", HU + k)
        save_nifti(source / f"case{k}/mask.nii", LABELS, dtype=np.uint8)
        split = "test" if k == 2 else "train"
        rows.append((f"case{k}/ct.nii", f"case{k}/mask.nii", f"person{k // 2}", split))
    columns = ("image", "label", "patient", "split")
    table = write_csv(tmp_path / "pairs.csv", columns, rows)
    names = ("1=nodule", "2=scar")
    result = run(tmp_path, "volumes", source, labels=table, label_name=names)
    assert result.report["errors"] == {}
    counts = {k: (v["slices"], v["patients"]) for k, v in result.report["parts"]["seg"].items()}
    assert counts == {"train": (12, 1), "test": (6, 1)}
    assert (result.tree / "train/imgs/person0_0011.png").is_file()
    rows[1] = (*rows[1][:2], "person1", "train")
    write_csv(tmp_path / "pairs.csv", columns, rows)
    report = run(tmp_path, "volumes", source, labels=table, label_name=names).report
    assert items(report, "patient_overlap") == ["person1 (6 in train, 6 in test)"]


def test_defects_of_pairs(tmp_path):
    source = dicom_set(tmp_path / "src")
    (source / "labels/p1.dcm").write_bytes((source / "labels/p0.dcm").read_bytes())
    Series("flipped rows").write(source / "images/p9/again", HU)
    Series().write(source / "images/alone", HU)
    report = run(tmp_path, "volumes", source, label_name=("1=nodule", "2=scar")).report
    (other,) = items(report, "unreadable_labels")
    assert "p1 (p1.dcm is a segmentation of another series" in other
    (two,) = items(report, "unreadable_volume")
    assert "p9 (p9 holds 2 scans; leave one in it" in two
    assert items(report, "missing_label") == ["alone: no labels of this name are in labels"]
    assert report["prepared"] is None


def test_values_without_names(tmp_path):
    source = dicom_set(tmp_path / "src", ())
    report = run(tmp_path, "volumes", source, label_name=("1=nodule",), split=(1, 0, 0)).report
    assert "p9 slice 2 (has the label values 2, which" in items(report, "unreadable_labels")[0]
    with pytest.raises(DataError, match=r"--label_name=nodule has to be VALUE=NAME"):
        run(tmp_path, "volumes", source, label_name=("nodule",))
    with pytest.raises(DataError, match=r"give them names with --label_name=VALUE=NAME"):
        run(tmp_path, "volumes", source)
