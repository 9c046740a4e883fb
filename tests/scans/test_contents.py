"""What is in a file, right or wrong: rescales, tables of values, windows, gaps in the numbers."""

import logging
import warnings

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pydicom", reason="the extra ssm-jax[medical] is not installed")
pytest.importorskip("nibabel", reason="the extra ssm-jax[medical] is not installed")

import nibabel
import pydicom
from pydicom.dataset import Dataset

from ssm_jax.scans.open import open_scans
from ssm_jax.scans.options import InputOptions
from tests.helpers.dicom_tools import Series, chest, save, windowed

HU = chest()


def only(path, **options):
    (scan,) = open_scans([str(path)], InputOptions(**options))
    assert scan.error is None
    return scan


def read(scan):
    return np.stack([slice_.read() for slice_ in scan.slices])


def stored_as(path, dtype, slope, intercept):
    """The chest as NIfTI, its numbers stored with a rescale in the header."""
    stored = ((HU - intercept) / slope).transpose(2, 1, 0).astype(dtype)
    image = nibabel.Nifti1Image(stored, np.diag([-1, -1, 2, 1]))
    nibabel.save(image, path)
    header = nibabel.load(path).header
    data = bytearray(path.read_bytes())
    for name, value in (("scl_slope", slope), ("scl_inter", intercept)):
        at = header.template_dtype.fields[name][1]
        data[at : at + 4] = np.float32(value).tobytes()
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("dtype", "slope", "intercept"),
    [
        (np.int16, 1, 0),
        (np.int16, 1, -1000),
        (np.int16, 1, -8192),
        (np.uint16, 0.5, -1200),
        (np.float32, 2, -1024),
    ],
)
def test_a_volume_is_rescaled_as_its_header_says(tmp_path, dtype, slope, intercept):
    stored_as(tmp_path / "v.nii", dtype, slope, intercept)
    scan = only(tmp_path / "v.nii")
    np.testing.assert_array_equal(read(scan), windowed(HU))
    assert scan.facts["Rescale"] == f"slope {slope:g}, intercept {intercept:g}"
    reading, stored = scan.slices[2].read.args[3:5]
    oracle = nibabel.load(tmp_path / "v.nii").get_fdata()[:, :, 2]
    np.testing.assert_allclose(reading.to_hu(scan.origin.plane(2), stored), oracle)


def with_affine(path, row, column, value):
    nibabel.save(nibabel.Nifti1Image(HU.transpose(2, 1, 0).astype(np.int16), np.eye(4)), path)
    data = bytearray(path.read_bytes())
    at = 280 + 16 * row + 4 * column
    data[254:256] = np.int16(1).tobytes()
    data[at : at + 4] = np.float32(value).tobytes()
    path.write_bytes(data)


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_an_affine_that_is_none_is_an_error(tmp_path, value):
    with_affine(tmp_path / "v.nii", 1, 3, value)
    (scan,) = open_scans([str(tmp_path / "v.nii")])
    assert "affine is not of numbers in millimeters" in scan.error


@pytest.mark.parametrize(
    "affine",
    [np.diag([1e-30, 1e-30, 1e-30, 1]), np.diag([1, 1, 1e-12, 1]), np.eye(4)[[0, 1, 1, 3]]],
)
def test_an_affine_without_a_volume_is_an_error(tmp_path, affine):
    image = nibabel.Nifti2Image(np.zeros((4, 4, 4), np.int16), np.eye(4))
    image.header.set_sform(affine, 1)
    image.header.set_qform(np.eye(4), 0)
    image.affine[:] = affine
    nibabel.save(image, tmp_path / "v.nii")
    (scan,) = open_scans([str(tmp_path / "v.nii")])
    assert "affine is singular" in scan.error


def test_a_volume_of_two_dimensions_is_one_slice(tmp_path):
    nibabel.save(
        nibabel.Nifti1Image(HU[2].T.astype(np.int16), np.diag([-1, -1, 1, 1])), tmp_path / "v.nii"
    )
    scan = only(tmp_path / "v.nii")
    np.testing.assert_array_equal(read(scan), windowed(HU[2:3]))


def test_voxels_that_are_no_numbers_are_told(tmp_path):
    data = HU.transpose(2, 1, 0).astype(np.float32)
    data[:12] = np.nan
    data[12, 0, 0] = np.inf
    nibabel.save(nibabel.Nifti1Image(data, np.diag([-1, -1, 1, 1])), tmp_path / "v.nii")
    scan = only(tmp_path / "v.nii")
    assert scan.warnings == ["0.25 of all voxels are no numbers, and taken for air"]
    assert (read(scan)[:, :, :12] == 0).all()
    np.testing.assert_array_equal(read(scan)[:, 1:, 12:], windowed(HU[:, 1:, 12:]))
    nibabel.save(nibabel.Nifti1Image(data * np.nan, np.eye(4)), tmp_path / "w.nii")
    (scan,) = open_scans([str(tmp_path / "w.nii")])
    assert "none of its voxels is a number" in scan.error


def test_pixels_that_are_no_numbers_are_told(tmp_path):
    values = HU[2].astype(np.float32)
    values[0, 0] = np.nan
    Image.fromarray(values).save(tmp_path / "a.tif")
    scan = only(tmp_path / "a.tif")
    expected = windowed(HU[2])
    expected[0, 0] = 0
    np.testing.assert_array_equal(read(scan)[0], expected)
    assert "1 pixels are no numbers, taken for air" in scan.warnings[0]
    Image.fromarray(values * np.nan).save(tmp_path / "b.tif")
    with pytest.raises(ValueError, match="none of its values is a number"):
        only(tmp_path / "b.tif").slices[0].read()


def test_pages_of_a_tiff_in_any_order(tmp_path):
    pages = [Image.fromarray(windowed(hu)) for hu in HU]
    pages[0].save(tmp_path / "p.tif", save_all=True, append_images=pages[1:])
    scan = only(tmp_path / "p.tif")
    for k in (4, 0, 5, 3):
        np.testing.assert_array_equal(scan.slices[k].read(), windowed(HU[k]))


def test_pages_in_order_are_each_found_once(tmp_path, monkeypatch):
    """Pages are found one after another: a file that is opened for each costs their sum."""
    pages = [Image.fromarray(windowed(hu)) for hu in HU]
    pages[0].save(tmp_path / "p.tif", save_all=True, append_images=pages[1:])
    scan, opened, whole = only(tmp_path / "p.tif"), [], Image.open
    monkeypatch.setattr(Image, "open", lambda *a, **k: opened.append(a) or whole(*a, **k))
    np.testing.assert_array_equal(read(scan), windowed(HU))
    assert len(opened) == 1


def test_of_an_animation_the_first_picture_is_read_and_that_is_said(tmp_path):
    frames = [Image.fromarray(windowed(hu)) for hu in HU[:3]]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    scan = only(tmp_path / "a.png")
    np.testing.assert_array_equal(read(scan), windowed(HU[:1]))
    assert "only the first was read" in scan.warnings[0]


@pytest.mark.parametrize("lost", [("RescaleSlope", "RescaleIntercept"), ("RescaleIntercept",)])
def test_a_slice_without_rescale_gets_that_of_the_others(tmp_path, lost):
    series = Series()
    paths = series.write(tmp_path, HU)
    save(series.dataset(HU[2], 2, **dict.fromkeys(lost)), paths[2])
    scan = only(tmp_path)
    np.testing.assert_array_equal(read(scan), windowed(HU))
    (line,) = scan.warnings
    assert f"1 of 6 slices have no rescale ({paths[2]})" in line


def test_rescales_that_differ_are_each_taken_and_told(tmp_path):
    series = Series()
    paths = series.write(tmp_path, HU)
    save(
        series.dataset((HU[2] + 1100) / 2 - 1024, 2, RescaleSlope=2, RescaleIntercept=-1100),
        paths[2],
    )
    scan = only(tmp_path)
    np.testing.assert_allclose(read(scan).astype(int), windowed(HU), atol=1)
    assert f"unlike most are {paths[2]}" in scan.warnings[0]


def test_one_damaged_slice_changes_no_reading_of_the_others(tmp_path):
    series = Series()
    paths = series.write(tmp_path, HU)
    for z, elements in ((3, {"RescaleIntercept": 30_000}), (1, {"BitsStored": 2, "HighBit": 1})):
        path = paths[z]
        save(series.dataset(HU[z], z, **elements), path)
        others = np.arange(6) != z
        np.testing.assert_array_equal(read(only(tmp_path))[others], windowed(HU)[others])
        save(series.dataset(HU[z], z), path)


@pytest.mark.parametrize("elements", [{"Columns": 47}, {"Rows": 39}, {"BitsAllocated": 8}])
def test_more_pixels_than_the_header_says_are_refused(tmp_path, elements):
    series = Series()
    paths = series.write(tmp_path, HU)
    save(series.dataset(HU[2], 2, **elements), paths[2])
    errors = {}
    for scan in open_scans([str(tmp_path)]):
        for slice_ in scan.slices:
            try:
                slice_.read()
            except ValueError as error:
                errors[slice_.name] = str(error)
    assert list(errors) == [str(paths[2])]
    assert "its pixels take 3840 bytes" in errors[str(paths[2])]


def test_a_table_of_values_is_applied(tmp_path):
    """Stored numbers are places in a table of Hounsfield units plus 1024."""
    values, places = np.unique(HU + 1024, return_inverse=True)
    table = Dataset()
    table.LUTDescriptor = [len(values), 0, 16]
    table.ModalityLUTType = "HU"
    table.LUTData = values.astype("<u2").tobytes()
    table["LUTData"].VR = "OW"
    elements = {"RescaleSlope": None, "RescaleIntercept": None, "ModalityLUTSequence": [table]}
    Series().write(tmp_path, places.reshape(HU.shape) - 1024, **elements)
    scan = only(tmp_path)
    np.testing.assert_array_equal(read(scan), windowed(HU))
    frame = scan.origin.frames[0]
    dataset = pydicom.dcmread(frame.blob.path)
    oracle = pydicom.pixels.apply_modality_lut(dataset.pixel_array, dataset)
    np.testing.assert_array_equal(scan.slices[0].read.args[0].frame(0, InputOptions()), oracle)


OWN = {"WindowCenter": 600, "WindowWidth": 1000}


def spread(values, low, high):
    return np.rint(np.clip((values - low) / (high - low), 0, 1) * 255)


@pytest.mark.parametrize("inverted", [False, True])
def test_values_of_other_machines_are_shown_by_their_own_window(tmp_path, inverted):
    values = np.abs(np.random.default_rng(1).normal(900, 300, HU.shape)).round()
    kind = "MONOCHROME1" if inverted else "MONOCHROME2"
    elements = {"Modality": "MR", "PhotometricInterpretation": kind, **OWN}
    elements |= {"RescaleSlope": 2, "RescaleIntercept": -500}
    Series().write(tmp_path, values - 1024, **elements)
    scan = only(tmp_path)
    expected = spread(values * 2 - 500, 100, 1100)
    np.testing.assert_array_equal(read(scan), 255 - expected if inverted else expected)
    assert "100 black and 1100 white" in scan.warnings[1]


def test_a_localizer_is_no_slice_of_its_series(tmp_path):
    series = Series()
    series.write(tmp_path, HU)
    elements = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], **OWN}
    save(series.dataset(HU[3], 9, **elements), tmp_path / "scout.dcm")
    scan, scout = open_scans([str(tmp_path)])
    np.testing.assert_array_equal(read(scan), windowed(HU))
    assert "a localizer, which is no slice" in scout.warnings[-1]
    np.testing.assert_array_equal(read(scout)[0], spread(HU[3], 100, 1100))


def test_a_ct_that_the_window_would_only_whiten_is_shown_by_its_own(tmp_path):
    values = np.random.default_rng(1).integers(3000, 3600, HU.shape)
    Series().write(tmp_path, values - 1024, RescaleIntercept=-10)
    scan = only(tmp_path)
    shown = read(scan)
    assert 60 < shown.std() < 90  # of values that are spread evenly: 74
    assert "not Hounsfield units" in scan.warnings[0]


def test_an_identity_is_shown_only_where_it_is_asked_for(tmp_path):
    personal = {"PatientName": "Doe^Jane", "PatientID": "4711", "PatientBirthDate": "19700102"}
    personal |= {"SeriesDescription": "Jane, lung", "StudyDate": "20200304"}
    Series().write(tmp_path, HU, **personal)
    values = [*personal.values(), "1.2.826"]
    facts = str(only(tmp_path).facts)
    assert not any(value in facts for value in values)
    known = str(only(tmp_path, identity=True).facts)
    assert all(value in known for value in values)


def test_what_libraries_warn_of_headers_is_not_shown(tmp_path, recwarn, caplog):
    elements = {"PatientName": "Doe^Jane"}
    paths = Series().write(tmp_path, HU, **elements)
    data = paths[2].read_bytes()
    paths[2].write_bytes(data.replace(b"PN\x08\x00Doe^Jane", b"UI\x08\x00Doe^Jane"))
    paths[3].write_bytes(data.replace(b"\x28\x00\x10\x00US", b"\x28\x00\x10\x00QQ"))
    with warnings.catch_warnings(record=True) as seen, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        for scan in open_scans([str(tmp_path)], InputOptions(identity=True)):
            for slice_ in scan.slices[:3]:
                slice_.read()
    assert [str(w.message) for w in seen] == []
    assert "Jane" not in caplog.text
