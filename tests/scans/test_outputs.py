"""Mask files in the source's geometry, summaries by hand, and lung masks."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("highdicom", reason="the extra ssm-jax[medical] is not installed")

import highdicom
import nibabel
import pydicom

from ssm_jax.ops import rle
from ssm_jax.predictor import Prediction, softmax
from ssm_jax.scans.body import body_mask
from ssm_jax.scans.masks import file_name, grid, label_map, write_masks
from ssm_jax.scans.open import open_scans
from ssm_jax.scans.options import ScanError
from ssm_jax.scans.output import to_json, without_folders
from ssm_jax.scans.predict import LungMask, predict_scan
from ssm_jax.scans.result import renamed
from ssm_jax.scans.summary import summarize, thicknesses
from tests.helpers.dicom_tools import (
    BRIGHT,
    ORIENTATIONS,
    SPACING,
    BrightSpots,
    Series,
    chest,
    multi_frame,
    save,
    windowed,
)
from tests.scans.test_inputs import TO_RAS, volume
from tests.test_classes import OWN

HU = chest()
LESIONS = windowed(HU) > BRIGHT  # [Z, H, W] as shown


def predicted(path):
    (scan,) = open_scans([str(path)])
    return scan, predict_scan(BrightSpots(), scan)


def in_ras(path):
    """Places (RAS, to the hundredth of a millimeter) of the voxels that are marked."""
    image = nibabel.load(path)
    voxels = np.argwhere(np.asarray(image.dataobj) > 0)
    places = voxels @ image.affine[:3, :3].T + image.affine[:3, 3]
    return {tuple(place) for place in np.round(places, 2) + 0.0}


def expected_ras(lesions=LESIONS):
    slices, rows, columns = np.nonzero(lesions)
    places = np.stack([columns, rows, slices], axis=1) @ TO_RAS[:3, :3].T + TO_RAS[:3, 3]
    return {tuple(place) for place in np.round(places, 2) + 0.0}


@pytest.mark.parametrize(
    ("order", "flips"), [((0, 1, 2), ()), ((2, 0, 1), (0, 2)), ((1, 0, 2), ())]
)
def test_nifti_masks_lie_on_the_voxels_of_their_source(tmp_path, order, flips):
    data, affine = volume(tmp_path / "v.nii.gz", order, flips)
    scan, result = predicted(tmp_path / "v.nii.gz")
    (path,) = write_masks(result, scan, "nifti", tmp_path)
    image = nibabel.load(path)
    np.testing.assert_array_equal(np.asarray(image.dataobj), windowed(data) > BRIGHT)
    np.testing.assert_allclose(image.affine, affine, atol=1e-4)
    source = nibabel.load(tmp_path / "v.nii.gz")
    assert image.header.get_zooms() == pytest.approx(source.header.get_zooms(), abs=1e-4)
    assert nibabel.aff2axcodes(image.affine) == nibabel.aff2axcodes(source.affine)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_nifti_masks_of_dicom_lie_where_the_lesions_are(tmp_path, orientation):
    Series(orientation).write(tmp_path / "s", HU)
    scan, result = predicted(tmp_path / "s")
    (path,) = write_masks(result, scan, "nifti", tmp_path)
    assert in_ras(path) == expected_ras()
    assert nibabel.load(path).header.get_zooms()[2] == pytest.approx(SPACING[0])


def test_places_without_a_slice_stay_empty(tmp_path):
    Series().write(tmp_path / "s", HU, places=[0, 1, 3, 5])
    scan, result = predicted(tmp_path / "s")
    (path,) = write_masks(result, scan, "nifti", tmp_path)
    assert nibabel.load(path).shape[2] == 6
    lesions = LESIONS.copy()
    lesions[[2, 4]] = False
    assert in_ras(path) == expected_ras(lesions)


def test_a_grid_by_hand():
    assert grid(np.array([3.0]), 2.0) == (2.0, [0])
    step, places = grid(np.array([0, 2.5, 5.001, 12.5]), 1.0)
    assert step == pytest.approx(2.5)
    assert places.tolist() == [0, 1, 2, 5]
    step, places = grid(np.array([0, 2.0, 5.0]), 1.0)
    assert (step, places.tolist()) == (1.0, [0, 2, 5])
    with pytest.raises(ScanError, match="uneven"):
        grid(np.array([0, 1, 2.37, 3.11]), 1.0)


@pytest.mark.parametrize("orientation", ["plain", "transposed and flipped"])
def test_dicom_seg_refers_to_the_right_slices(tmp_path, orientation):
    to_stored = ORIENTATIONS[orientation][0]
    paths = Series(orientation).write(tmp_path / "s", HU)
    scan, result = predicted(tmp_path / "s")
    (path,) = write_masks(result, scan, "dicom-seg", tmp_path)
    segmentation = highdicom.seg.segread(path)
    headers = {z: pydicom.dcmread(p, stop_before_pixels=True) for z, p in paths.items()}
    uids = [headers[z].SOPInstanceUID for z in range(len(HU))]
    assert segmentation.StudyInstanceUID == headers[0].StudyInstanceUID
    assert segmentation.FrameOfReferenceUID == headers[0].FrameOfReferenceUID
    pixels = segmentation.get_pixels_by_source_instance(
        uids, ignore_spatial_locations=True, assert_missing_frames_are_empty=True
    )
    expected = np.stack([to_stored(lesions) for lesions in LESIONS])
    np.testing.assert_array_equal(pixels[..., 0], expected)


def test_dicom_seg_has_a_segment_for_each_lesion_class(tmp_path):
    Series().write(tmp_path / "s", HU)
    scan, result = predicted(tmp_path / "s")
    for k, slice_ in enumerate(result.slices):  # the third class is in no slice
        slice_.prediction.labels[:] = 1 + k % 2
    result = dataclasses.replace(result, classes=OWN)
    (path,) = write_masks(result, scan, "dicom-seg", tmp_path)
    segments = highdicom.seg.segread(path).SegmentSequence
    assert [segment.SegmentLabel for segment in segments] == ["Cell", "Dirt", "Scratch"]
    types = [segment.SegmentedPropertyTypeCodeSequence[0] for segment in segments]
    codes = [(code.CodingSchemeDesignator, code.CodeValue) for code in types]
    assert codes == [("SCT", "4421005"), ("SCT", "52988006"), ("SCT", "52988006")]


def test_dicom_seg_of_pseudonymized_files(tmp_path):
    removed = dict.fromkeys(("PatientName", "PatientID", "StudyDate", "FrameOfReferenceUID"))
    Series().write(tmp_path / "s", HU, **removed)
    scan, result = predicted(tmp_path / "s")
    (path,) = write_masks(result, scan, "dicom-seg", tmp_path)
    uids = [frame.header.SOPInstanceUID for frame in scan.origin.frames]
    pixels = highdicom.seg.segread(path).get_pixels_by_source_instance(
        uids, ignore_spatial_locations=True, assert_missing_frames_are_empty=True
    )
    np.testing.assert_array_equal(pixels[..., 0], LESIONS)


def test_dicom_seg_of_many_frames(tmp_path):
    order = [3, 0, 5, 1, 4, 2]
    save(multi_frame(HU, order), tmp_path / "m.dcm")
    scan, result = predicted(tmp_path / "m.dcm")
    (path,) = write_masks(result, scan, "dicom-seg", tmp_path)
    segmentation = highdicom.seg.segread(path)
    pixels = segmentation.get_pixels_by_source_frame(
        scan.origin.frames[0].header.SOPInstanceUID,
        range(1, 7),
        ignore_spatial_locations=True,
        assert_missing_frames_are_empty=True,
    )
    np.testing.assert_array_equal(pixels[..., 0], LESIONS[order])


def test_png_masks_are_as_shown(tmp_path):
    Series("transposed").write(tmp_path / "s", HU)
    scan, result = predicted(tmp_path / "s")
    paths = write_masks(result, scan, "png", tmp_path)
    labels = np.stack([np.asarray(Image.open(path)) for path in paths])
    np.testing.assert_array_equal(labels, LESIONS)


def test_what_a_source_cannot_give(tmp_path):
    Image.fromarray(windowed(HU[0])).save(tmp_path / "a.png")
    scan, result = predicted(tmp_path / "a.png")
    for kind in ("nifti", "dicom-seg"):
        with pytest.raises(ScanError, match=r"does not tell|not DICOM"):
            write_masks(result, scan, kind, tmp_path)


def prediction(probabilities, scores=()):
    logits = np.log(np.array(probabilities, np.float32))
    count = len(scores)
    masks = [rle.encode(np.eye(4)[:: 1 - 2 * k]) for k in range(count)]
    predicted_class = int(logits.argmax()) if len(logits) else None
    found = (np.zeros((count, 4)), np.array(scores), np.arange(1, count + 1), masks)
    return Prediction(4, 4, logits, softmax(logits), predicted_class, *found)


def test_of_overlapping_masks_the_higher_score_shows():
    labels = label_map(prediction([1, 1, 1], [0.9, 0.8]))
    expected = 2 * np.eye(4)[::-1]
    expected[np.eye(4) > 0] = 1
    np.testing.assert_array_equal(labels, expected)


def test_summaries_by_hand():
    slices = [
        prediction([0.7, 0.2, 0.1]),
        None,
        prediction([0.1, 0.6, 0.3]),
        prediction([0.2, 0.1, 0.7]),
        *[prediction([0.9, 0.05, 0.05])] * 4,
    ]
    areas = [5, 0, 10, 20, 0, 0, 3, 0]
    mean = summarize(slices, areas, "mean", voxel_ml=[0.5] * 8)
    np.testing.assert_allclose(mean.class_probabilities, [4.6 / 7, 1.1 / 7, 1.3 / 7], rtol=1e-5)
    assert mean.predicted_class == 0
    assert mean.slices_per_class.tolist() == [5, 1, 1]
    assert mean.lesion_ml == 19.0
    assert mean.telling == [2, 3, 0, 6, 4]  # of equal probabilities the larger lesion first
    vote = summarize(slices, areas, "vote")
    np.testing.assert_allclose(vote.class_probabilities, [5 / 7, 1 / 7, 1 / 7], rtol=1e-5)
    assert vote.lesion_ml is None
    telling = summarize(slices, areas, "telling", in_lung=(3, 12))
    np.testing.assert_allclose(telling.class_probabilities, [2.8 / 5, 1.0 / 5, 1.2 / 5], rtol=1e-5)
    assert telling.lung_share == 0.25
    assert summarize([None], [0]) is None
    with pytest.raises(ValueError, match="mean, vote, telling"):
        summarize(slices, areas, "median")


def test_a_model_that_only_segments():
    summary = summarize([prediction([]), prediction([], [0.5])], [0, 4])
    assert summary.class_probabilities.shape == (0,)
    assert summary.predicted_class is None
    assert summary.telling == [1, 0]


def test_volume_and_share_of_the_lung(tmp_path):
    Series("transposed and flipped").write(tmp_path / "s", HU)
    lung = np.zeros_like(HU, bool)
    lung[:, 8:-8, 26:-8] = True
    # The lung mask has its own axes: the scan's and the mask's meet in patient coordinates only.
    data, affine = lung.transpose(2, 1, 0)[::-1], TO_RAS.copy()
    affine[:3, 3] += affine[:3, 0] * (data.shape[0] - 1)
    affine[:3, 0] *= -1
    nibabel.save(nibabel.Nifti1Image(data.astype(np.uint8), affine), tmp_path / "lung.nii.gz")
    (scan,) = open_scans([str(tmp_path / "s")])
    mask = LungMask.load(str(tmp_path / "lung.nii.gz"))
    summary = predict_scan(BrightSpots(), scan, lung=mask).summary
    assert summary.lung_share == pytest.approx((LESIONS & lung).sum() / lung.sum())
    assert summary.lesion_ml == pytest.approx(LESIONS.sum() * np.prod(SPACING) / 1000)
    far = LungMask(mask.voxels, mask.to_voxel + np.array([0, 0, 0, 1e4]))
    with pytest.raises(ScanError, match="elsewhere"):
        predict_scan(BrightSpots(), scan, lung=far)


def test_progress_batches_and_pixels_kept_or_not(tmp_path):
    Series().write(tmp_path / "s", HU)
    (scan,) = open_scans([str(tmp_path / "s")])
    model, seen, drawn = BrightSpots(4), [], []
    result = predict_scan(
        model,
        scan,
        progress=lambda done, total: seen.append((done, total)),
        keep_images=False,
        shown=lambda index, image, prediction: drawn.append((index, image.shape)),
    )
    assert model.batches == [4, 2]
    assert seen == [(0, 6), (4, 6), (6, 6)]
    assert drawn == [(k, (40, 48)) for k in range(6)]
    assert all(slice_.image is None for slice_ in result.slices)


def test_json_of_scans(tmp_path):
    paths = Series().write(tmp_path / "s", HU)
    paths[2].write_bytes(paths[2].read_bytes()[:-500])
    scans = open_scans([str(tmp_path / "s"), str(tmp_path / "none")])
    result = predict_scan(BrightSpots(), scans[0])
    content = json.loads(json.dumps(to_json([result], scans[1:])))
    assert [entry["file"] for entry in content["slices"][:6]] == [str(p) for p in paths.values()]
    assert content["slices"][2].keys() == {"file", "scan", "position", "error"}
    assert content["slices"][6] == {"file": str(tmp_path / "none"), "error": "no such file"}
    (scan,) = content["scans"]
    assert (scan["slices"], scan["unread"]) == (6, 1)
    assert scan["summary"]["telling"][0] == str(paths[5])
    assert scan["summary"]["predicted_class_name"] == "covid"


def test_thickness_by_hand():
    np.testing.assert_allclose(thicknesses([0, 2, 3, 7], 9), [2, 1.5, 2.5, 4])
    np.testing.assert_allclose(thicknesses([0, None, 3, None], 9), [3, 0, 3, 0])
    np.testing.assert_allclose(thicknesses([None, 5], 9), [0, 9])


def test_the_volume_of_uneven_slices_takes_each_by_its_own(tmp_path):
    Series().write(tmp_path / "s", HU, places=[0, 1, 2, 5])
    _, result = predicted(tmp_path / "s")
    areas, reach = LESIONS[[0, 1, 2, 5]].sum((1, 2)), np.array([2.5, 2.5, 5, 7.5])
    ml = areas @ reach * SPACING[1] * SPACING[2] / 1000
    assert result.summary.lesion_ml == pytest.approx(ml)
    assert any("slices are missing" in line for line in result.warnings)


@pytest.mark.parametrize("orientation", ["plain", "transposed"])
def test_the_model_is_told_the_shape_of_pixels(tmp_path, orientation):
    Series(orientation).write(tmp_path / "s", HU)
    (scan,) = open_scans([str(tmp_path / "s")])
    model = BrightSpots()
    predict_scan(model, scan)
    np.testing.assert_allclose(model.aspects, [SPACING[1] / SPACING[2]] * 6)
    square = {"PixelSpacing": [0.7, 0.7000001]}
    Series(orientation).write(tmp_path / "q", HU, **square)
    (scan,) = open_scans([str(tmp_path / "q")])
    assert [slice_.aspect for slice_ in scan.slices] == [1.0] * 6
    bare = {"PixelSpacing": None, "PixelAspectRatio": [2, 1]}
    Series("plain").write(tmp_path / "r", HU, **bare)
    (scan,) = open_scans([str(tmp_path / "r")])
    assert [slice_.aspect for slice_ in scan.slices] == [2.0] * 6


def tilted(folder, degrees=20, orientation="plain"):
    """A series whose slices are tilted against the way the table moves."""
    series, angle = Series(orientation), np.radians(degrees)
    turn = np.eye(3)
    turn[1:, 1:] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    folder.mkdir()
    for z, hu in enumerate(HU):
        dataset = series.dataset(hu, z)
        directions = np.reshape(dataset.ImageOrientationPatient, (2, 3)) @ turn.T
        place = turn @ [*dataset.ImagePositionPatient[:2], 0] + [0, 0, -100 + 2.5 * z]
        dataset.ImageOrientationPatient = np.round(directions.ravel(), 8).tolist()
        dataset.ImagePositionPatient = np.round(place, 6).tolist()
        save(dataset, folder / f"{z}.dcm")


@pytest.mark.parametrize(
    ("degrees", "orientation"), [(20, "plain"), (-30, "transposed and flipped")]
)
def test_masks_of_a_tilted_gantry_lie_where_its_slices_do(tmp_path, degrees, orientation):
    tilted(tmp_path / "s", degrees, orientation)
    scan, result = predicted(tmp_path / "s")
    assert any(f"tilted by {abs(degrees)}.0 degrees" in line for line in scan.warnings)
    assert scan.spacing[0] == pytest.approx(2.5 * np.cos(np.radians(degrees)))
    (path,) = write_masks(result, scan, "nifti", tmp_path)
    image = nibabel.load(path)
    sides = nibabel.affines.voxel_sizes(image.affine)
    axes = image.affine[:3, :3] / sides
    # Axes at right angles, told alike by both forms: what readers of every kind place alike.
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-5)
    np.testing.assert_allclose(image.get_qform(coded=True)[0], image.get_sform(), atol=1e-4)
    # Each voxel, by a plain computation, has the label of the pixel in its plane that is nearest.
    marked = np.asarray(image.dataobj)
    expected = np.zeros(marked.shape, bool)
    voxels = np.argwhere(marked >= 0)
    places = np.column_stack([voxels, np.ones(len(voxels))]) @ image.affine.T
    for slice_, lesions in zip(scan.slices, LESIONS, strict=True):
        columns, rows, beside, _ = np.linalg.inv(slice_.affine) @ places.T
        columns, rows = np.rint(columns).astype(int), np.rint(rows).astype(int)
        inside = (np.abs(beside) < sides[2] / 2) & (columns >= 0) & (rows >= 0)
        inside &= (columns < lesions.shape[1]) & (rows < lesions.shape[0])
        assert np.abs(beside[inside]).max() < 1e-3  # the planes are those of the slices
        labels = lesions[rows[inside], columns[inside]]
        expected[tuple(voxels[inside].T)] = labels
    np.testing.assert_array_equal(marked, expected)
    assert marked.sum() == LESIONS.sum()  # and no pixel is lost
    assert marked.shape[2] == len(HU)


def test_dicom_seg_of_a_tilted_gantry_lies_where_its_nifti_does(tmp_path):
    tilted(tmp_path / "s")
    scan, result = predicted(tmp_path / "s")
    (nifti,) = write_masks(result, scan, "nifti", tmp_path)
    (path,) = write_masks(result, scan, "dicom-seg", tmp_path)
    segmentation = highdicom.seg.segread(path)
    volume = segmentation.get_volume(combine_segments=True)  # highdicom's, of straight stacks alone
    marked = np.argwhere(volume.array > 0)
    places = np.column_stack([marked, np.ones(len(marked))]) @ volume.affine.T * [-1, -1, 1, 1]
    found = np.array(sorted(map(tuple, np.round(places[:, :3], 2) + 0.0)))
    np.testing.assert_allclose(found, sorted(in_ras(nifti)), atol=0.02)
    uids = {frame.header.SOPInstanceUID for frame in scan.origin.frames}
    for group in segmentation.PerFrameFunctionalGroupsSequence:
        (source,) = group.DerivationImageSequence[0].SourceImageSequence
        assert source.ReferencedSOPInstanceUID in uids
        assert source.SpatialLocationsPreserved == "NO"


@pytest.mark.parametrize("kind", ["nifti", "dicom-seg"])
def test_a_slice_far_beside_the_others_makes_no_giant_volume(tmp_path, kind):
    series = Series()
    (tmp_path / "s").mkdir()
    for z, hu in enumerate(HU):
        place = [90_000.0 if z == 3 else 0.0, 0.0, 2.5 * z]
        elements = {"ImagePositionPatient": place, "PixelSpacing": [0.03, 0.03]}
        save(series.dataset(hu, z, **elements), tmp_path / "s" / f"{z}.dcm")
    scan, result = predicted(tmp_path / "s")
    with pytest.raises(ScanError, match="too far apart"):
        write_masks(result, scan, kind, tmp_path)


def test_a_volume_longer_than_nifti_1_can_tell(tmp_path):
    from ssm_jax.scans.nifti import nifti_in_place

    nifti_in_place(tmp_path / "a.nii.gz", np.ones((40_000, 2, 1), np.uint8), np.eye(4))
    assert nibabel.load(tmp_path / "a.nii.gz").shape == (40_000, 2, 1)


def test_a_slice_far_away_makes_no_giant_volume(tmp_path):
    series = Series()
    (tmp_path / "s").mkdir()
    big = np.kron(chest(3), np.ones((1, 20, 20)))
    for z, place in enumerate((0, 1, 2000)):
        elements = {"ImagePositionPatient": [0, 0, place]}
        save(series.dataset(big[z], z, **elements), tmp_path / "s" / f"{z}.dcm")
    scan, result = predicted(tmp_path / "s")
    with pytest.raises(ScanError, match="too far apart"):
        write_masks(result, scan, "nifti", tmp_path)


@pytest.mark.parametrize(
    "removed",
    [
        {"SliceThickness": None},
        {"SpecificCharacterSet": ""},
        {"SpecificCharacterSet": ["", "ISO 2022 IR 87"], "PatientName": "Yamada^Tarou=山田^太郎"},
        {"StudyDate": "2004.01.19", "PatientSex": "unknown"},
        {"PatientBirthDate": None, "StudyID": None, "PositionReferenceIndicator": None},
    ],
)
def test_dicom_seg_of_headers_as_they_are(tmp_path, removed):
    Series().write(tmp_path / "s", HU, **removed)
    scan, result = predicted(tmp_path / "s")
    (path,) = write_masks(result, scan, "dicom-seg", tmp_path)
    seg = highdicom.seg.segread(path)
    (measures,) = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    assert measures.SliceThickness == SPACING[0]
    uids = [frame.header.SOPInstanceUID for frame in scan.origin.frames]
    pixels = seg.get_pixels_by_source_instance(
        uids, ignore_spatial_locations=True, assert_missing_frames_are_empty=True
    )
    np.testing.assert_array_equal(pixels[..., 0], LESIONS)


def test_dicom_seg_of_many_frames_with_measures_of_their_own(tmp_path):
    ds = multi_frame(HU, range(6))
    shared = ds.SharedFunctionalGroupsSequence[0]
    for group in ds.PerFrameFunctionalGroupsSequence:
        group.PixelMeasuresSequence = shared.PixelMeasuresSequence
        group.PlaneOrientationSequence = shared.PlaneOrientationSequence
    del shared.PixelMeasuresSequence, shared.PlaneOrientationSequence
    save(ds, tmp_path / "m.dcm")
    scan, result = predicted(tmp_path / "m.dcm")
    (path,) = write_masks(result, scan, "dicom-seg", tmp_path)
    assert highdicom.seg.segread(path).NumberOfFrames == LESIONS.any((1, 2)).sum()


def test_a_header_without_a_study_has_no_segmentation(tmp_path):
    Series().write(tmp_path / "s", HU, StudyInstanceUID=None)
    scan, result = predicted(tmp_path / "s")
    with pytest.raises(ScanError, match="they lack StudyInstanceUID"):
        write_masks(result, scan, "dicom-seg", tmp_path)


def test_lesions_on_the_table_are_told(tmp_path):
    large = np.kron(
        np.where(windowed(HU) > BRIGHT, 120, np.where(HU > -300, -100, HU)), np.ones((1, 3, 3))
    )
    hu = np.full((6, 150, 144), -1000.0)
    hu[:, :120] = large
    for row in (130, 140):
        hu[:, row : row + 4, 2:-2] = 130  # the table: as bright as a lesion
    Series().write(tmp_path / "s", hu)
    _, result = predicted(tmp_path / "s")
    inside = (large > 0).sum() / (hu > 0).sum()
    assert result.summary.body_share == pytest.approx(inside, abs=0.01)
    assert any("lie outside of the body" in line for line in result.warnings)
    Series().write(tmp_path / "t", large)
    _, result = predicted(tmp_path / "t")
    assert result.summary.body_share > 0.99  # corners are round
    assert not result.warnings


def test_a_body_by_hand():
    image = np.zeros((40, 40), np.uint8)
    image[5:30, 5:35] = 200
    expected = image > 0
    image[10:25, 12:28] = 20  # lungs
    image[34:36] = 220  # a thin table
    found = body_mask(image, 178)
    assert not (found & ~expected).any()
    assert (expected & ~found).sum() <= 4 * 3  # at the corners
    np.testing.assert_array_equal(body_mask(np.dstack([image] * 3), 178), found)
    assert not body_mask(np.zeros((9, 9), np.uint8), 178).any()


def test_names_for_files_and_texts(tmp_path):
    for name in ("n" * 300, "Ω" * 300, "𝐀" * 300, "a\udce9\nb", "../x", ""):
        made = file_name(7, f"{name}.png")
        assert made.startswith("00007_")
        (tmp_path / made).write_text("")
        assert (tmp_path / made).parent == tmp_path
    (tmp_path / "p1").mkdir()
    inputs = [str(tmp_path / "p1"), str(tmp_path / "p2" / "*.png"), "here/x.png"]
    short = without_folders(inputs)
    assert short(f"{tmp_path}/p1/a.dcm: broken") == "p1/a.dcm: broken"
    assert short("here/x.png") == "here/x.png"
    assert without_folders(["/a/x.png", "/b/c/y.png"])("/b/c/y.png") == "y.png"
    Series().write(tmp_path / "p1", HU)
    _, result = predicted(tmp_path / "p1")
    other = renamed(result, short)
    assert other.name == "p1"
    assert str(tmp_path) not in str([other.facts, other.warnings, *(s.name for s in other.slices)])
