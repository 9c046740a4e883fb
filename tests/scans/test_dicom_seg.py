"""DICOM SEG refers to the slices of its source, by any orientation and with headers as they are."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("highdicom", reason="the extra ssm-jax[medical] is not installed")

import highdicom
import pydicom

from ssm_jax.scans.masks import write_masks
from ssm_jax.scans.options import ScanError
from tests.helpers.dicom_tools import ORIENTATIONS, SPACING, Series, multi_frame, save
from tests.helpers.scan_masks import HU, LESIONS, in_ras, predicted, tilted
from tests.test_classes import OWN


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
