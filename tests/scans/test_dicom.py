"""DICOM: order, orientation, values, many frames, and series in which something is wrong."""

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="the extra ssm-jax[medical] is not installed")

from ssm_jax.scans import open as opening
from ssm_jax.scans import options as options_module
from ssm_jax.scans.open import open_scans
from ssm_jax.scans.options import InputOptions
from ssm_jax.scans.predict import predict_scan
from tests.helpers.dicom_tools import (
    ORIENTATIONS,
    ORIGIN,
    SPACING,
    BrightSpots,
    Series,
    chest,
    multi_frame,
    save,
    windowed,
)

HU = chest()


def only(paths, options=None):
    (scan,) = open_scans([str(path) for path in np.atleast_1d(paths)], options)
    assert scan.error is None
    return scan


def read(scan):
    return np.stack([slice_.read() for slice_ in scan.slices])


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_slices_are_in_order_and_in_the_radiological_view(tmp_path, orientation):
    Series(orientation).write(tmp_path, HU)
    scan = only(tmp_path)
    np.testing.assert_array_equal(read(scan), windowed(HU))
    assert scan.warnings == []
    assert scan.spacing == pytest.approx(SPACING)
    places = ORIGIN[2] + SPACING[0] * np.arange(len(HU))
    np.testing.assert_allclose([s.position for s in scan.slices], places)
    for k, slice_ in enumerate(scan.slices):
        for column, row in ((0, 0), (5, 0), (0, 7), (47, 39)):
            lps = np.add(ORIGIN, (column * SPACING[2], row * SPACING[1], k * SPACING[0]))
            ras = lps * [-1, -1, 1]
            np.testing.assert_allclose((slice_.affine @ [column, row, 0, 1])[:3], ras, atol=1e-6)


def test_a_frame_of_many_lies_where_its_groups_say(tmp_path):
    save(multi_frame(HU, [3, 0, 5, 1, 4, 2]), tmp_path / "enhanced.dcm")
    scan = only(tmp_path / "enhanced.dcm")
    np.testing.assert_array_equal(read(scan), windowed(HU))
    assert [s.name[-7:] for s in scan.slices] == [f"frame {k}" for k in (2, 4, 6, 1, 5, 3)]
    assert scan.spacing == pytest.approx(SPACING)


def test_gaps_duplicates_and_other_objects_are_reported(tmp_path):
    series = Series()
    paths = series.write(tmp_path, HU, places=[0, 1, 2, 4, 5])
    (tmp_path / "copy.dcm").write_bytes(paths[1].read_bytes())
    save(series.dataset(HU[0], 0, Modality="SR", Rows=None, PixelData=None), tmp_path / "sr.dcm")
    scan = only(tmp_path)
    np.testing.assert_array_equal(read(scan), windowed(HU[[0, 1, 2, 4, 5]]))
    text = "\n".join(scan.warnings)
    assert "slices are missing: usually 2.5 mm apart, but 5 mm after" in text
    assert paths[2].name in text
    assert "1 duplicates of files" in text
    assert "1 DICOM files without an image" in text


def test_mixed_orientations_and_phases_are_taken_apart(tmp_path):
    series = Series()
    series.write(tmp_path / "axial", HU)
    coronal = {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}
    series.write(tmp_path / "scout", HU[:1], **coronal)
    series.write(tmp_path / "again", HU[:2] + 1)
    axial, again, scout = open_scans([str(tmp_path)])
    assert [len(s.slices) for s in (axial, again, scout)] == [6, 2, 1]
    assert all("taken apart into 3 scans" in s.warnings[0] for s in (axial, again, scout))
    assert any("not axial" in line for line in scout.warnings)
    np.testing.assert_array_equal(read(axial)[2:], windowed(HU[2:]))


def test_two_series_of_a_folder_are_two_scans(tmp_path):
    Series().write(tmp_path / "a", HU)
    Series().write(tmp_path / "b", HU[:3])
    assert [len(s.slices) for s in open_scans([str(tmp_path)])] == [6, 3]


def test_without_positions_instance_numbers_order_slices(tmp_path):
    Series().write(tmp_path, HU, ImagePositionPatient=None)
    scan = only(tmp_path)
    np.testing.assert_array_equal(read(scan), windowed(HU[::-1]))  # they count downward here
    assert scan.spacing is None
    assert "the headers tell no positions" in scan.warnings[0]


def test_monochrome1_is_inverted(tmp_path):
    inverted = 4095 - (HU + 1024) - 1024  # so that low + high - stored is the slice
    Series().write(tmp_path, inverted, PhotometricInterpretation="MONOCHROME1")
    scan = only(tmp_path)
    np.testing.assert_array_equal(read(scan), windowed(HU))
    assert scan.warnings == []


def test_monochrome1_of_hounsfield_units_is_left(tmp_path):
    Series().write(tmp_path, HU, PhotometricInterpretation="MONOCHROME1")
    scan = only(tmp_path)
    np.testing.assert_array_equal(read(scan), windowed(HU))
    assert "not inverted" in scan.warnings[0]


def test_a_missing_rescale_is_assumed_and_said(tmp_path):
    Series().write(tmp_path, HU, RescaleSlope=None, RescaleIntercept=None)
    scan = only(tmp_path)
    np.testing.assert_array_equal(read(scan), windowed(HU))
    assert "an intercept of -1024" in scan.warnings[0]
    forced = only(tmp_path, InputOptions(rescale=(2.0, -2048.0)))
    np.testing.assert_array_equal(read(forced), windowed(HU * 2))
    assert forced.warnings == []
    spread = only(tmp_path, InputOptions(values="range"))
    expected = np.rint((HU + 1024) / 4095 * 255).astype(np.uint8)
    np.testing.assert_array_equal(read(spread), expected)


def test_another_modality_of_other_values_is_spread_and_said(tmp_path):
    values = np.abs(np.random.default_rng(1).normal(900, 300, HU.shape)).round() - 1024
    elements = {"Modality": "MR", "RescaleSlope": None, "RescaleIntercept": None}
    Series().write(tmp_path, values, **elements)
    scan = only(tmp_path)
    low, high = np.percentile(values[[1, 3, 4]] + 1024, (0.5, 99.5))
    expected = np.rint(np.clip((values + 1024 - low) / (high - low), 0, 1) * 255)
    np.testing.assert_array_equal(read(scan), expected)
    assert "the modality is MR" in scan.warnings[0]
    assert "not Hounsfield units" in scan.warnings[1]


def test_the_window_can_be_set(tmp_path):
    Series().write(tmp_path, HU)
    scan = only(tmp_path, InputOptions((40, 400)))
    np.testing.assert_array_equal(read(scan), windowed(HU, 40, 400))
    assert scan.facts["Values"] == "Hounsfield units, window center 40, width 400"


def test_a_file_without_preamble_is_read(tmp_path):
    ds = Series().dataset(HU[0], 0)
    del ds.file_meta
    ds.save_as(tmp_path / "bare.dcm", implicit_vr=True, little_endian=True)
    np.testing.assert_array_equal(read(only(tmp_path)), windowed(HU[:1]))


@pytest.mark.parametrize("size", [200, 600, -800])
def test_one_corrupt_file_of_a_hundred(tmp_path, size):
    """Cut in the preamble's meta data, in the header, and in the pixels."""
    hu = chest(100)
    paths = Series().write(tmp_path, hu)
    paths[40].write_bytes(paths[40].read_bytes()[:size])
    scan = only(tmp_path)
    model = BrightSpots()
    result = predict_scan(model, scan)
    assert sum(model.batches) == 99
    assert len(result.slices) == 100
    unread = [s for s in result.slices if s.prediction is None]
    assert [s.name for s in unread] == [str(paths[40])]
    assert "cannot be read" in unread[0].error
    others = [s.image for s in result.slices if s.prediction is not None]
    np.testing.assert_array_equal(others, windowed(np.delete(hu, 40, axis=0)))
    assert result.summary is not None


def test_a_single_damaged_file_is_an_error_of_its_own(tmp_path):
    Series().write(tmp_path, HU[:1])
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:140])
    (scan,) = open_scans([str(path)])
    assert "DICOM" in scan.error


def test_without_pydicom_the_extra_is_named(tmp_path, monkeypatch):
    Series().write(tmp_path, HU[:1])

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(options_module.importlib, "import_module", missing)
    (scan,) = opening.open_scans([str(tmp_path)])
    assert "pip install 'ssm-jax[medical]'" in scan.error
