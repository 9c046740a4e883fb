"""Volumes, pictures, folders and zips: what they mean, and hostile ones."""

import itertools
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("nibabel", reason="the extra ssm-jax[medical] is not installed")

import nibabel

from ssm_jax.scans.open import open_scans
from ssm_jax.scans.options import InputOptions, ScanError
from ssm_jax.scans.predict import predict_scan
from ssm_jax.scans.window import Reading, Stored, apply_window, plausible_hu
from tests.helpers.dicom_tools import ORIGIN, SPACING, BrightSpots, Series, chest, windowed

HU = chest()
# From (column, row, slice) of `chest` to RAS: columns run left, rows back, slices up.
TO_RAS = np.diag([-SPACING[2], -SPACING[1], SPACING[0], 1])
TO_RAS[:3, 3] = np.array(ORIGIN) * [-1, -1, 1]


def read(scan):
    return np.stack([slice_.read() for slice_ in scan.slices])


def volume(path, order, flips, dtype=np.int16, **scaling):
    """The chest as NIfTI with its axes in that order and those flipped."""
    data, affine = HU.transpose(2, 1, 0), TO_RAS  # [column, row, slice]
    data, affine = data.transpose(order), affine[:, [*order, 3]]
    for axis in flips:
        start = np.zeros(4)
        start[axis] = data.shape[axis] - 1
        data = np.flip(data, axis)
        affine = affine.copy()
        affine[:3, 3] += affine[:3, axis] * start[axis]
        affine[:3, axis] *= -1
    image = nibabel.Nifti1Image(data.astype(dtype), affine)
    nibabel.save(image, path)
    return data, affine


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flips", [(), (0,), (1, 2), (0, 1, 2)])
def test_any_axis_order_becomes_the_same_axial_slices(tmp_path, order, flips):
    volume(tmp_path / "v.nii", order, flips)
    (scan,) = open_scans([str(tmp_path / "v.nii")])
    np.testing.assert_array_equal(read(scan), windowed(HU))
    assert scan.spacing == pytest.approx(SPACING)
    point = scan.slices[2].affine @ [5, 7, 0, 1]
    np.testing.assert_allclose(point, TO_RAS @ [5, 7, 2, 1], atol=1e-4)


def test_oblique_compressed_float_and_nan(tmp_path):
    data = HU.transpose(2, 1, 0).astype(np.float32)
    data[:3, :3] = np.nan
    tilt = np.eye(4)
    tilt[1:3, 1:3] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]
    nibabel.save(nibabel.Nifti1Image(data, tilt @ TO_RAS), tmp_path / "v.nii.gz")
    (scan,) = open_scans([str(tmp_path / "v.nii.gz")])
    expected = windowed(HU)
    expected[:, :3, :3] = 0
    np.testing.assert_array_equal(read(scan), expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b"not a volume"), "cannot be read as NIfTI"),
        (lambda path: nibabel.save(nibabel.Nifti1Image(HU[0, 0], np.eye(4)), path), "no volume"),
        (lambda path: path.write_bytes(b""), "NIfTI"),
    ],
)
def test_what_is_no_volume(tmp_path, make, message):
    make(tmp_path / "v.nii")
    (scan,) = open_scans([str(tmp_path / "v.nii")])
    assert message in scan.error


def test_a_volume_beyond_the_limit_is_refused_unread(tmp_path):
    volume(tmp_path / "v.nii.gz", (0, 1, 2), ())
    header = nibabel.Nifti1Header()
    header.set_data_shape((20_000, 20_000, 100))
    header.set_data_dtype(np.int16)
    (tmp_path / "big.nii").write_bytes(header.binaryblock + bytes(400))
    small, big = sorted(open_scans([str(tmp_path)]), key=lambda s: s.error is not None)
    assert small.error is None
    assert "MiB, more than 1024" in big.error


def test_pictures_of_all_depths(tmp_path):
    gray = windowed(HU[0])
    stored = HU[0] + 1024
    Image.fromarray(gray).save(tmp_path / "1_gray.png")
    Image.fromarray(np.dstack([gray] * 3)).save(tmp_path / "2_color.tif")
    Image.fromarray(stored.astype(np.uint16)).save(tmp_path / "3_twelve.png")
    Image.fromarray((stored * 16).astype(np.uint16)).save(tmp_path / "4_sixteen.png")
    Image.fromarray(HU[0].astype(np.int32)).save(tmp_path / "5_units.tif")
    pages = [Image.fromarray(windowed(hu)) for hu in HU[:3]]
    pages[0].save(tmp_path / "6_pages.tiff", save_all=True, append_images=pages[1:])
    (scan,) = open_scans([str(tmp_path)])
    slices = [slice_.read() for slice_ in scan.slices]
    np.testing.assert_array_equal(slices[0], gray)
    np.testing.assert_array_equal(slices[1], np.dstack([gray] * 3))
    np.testing.assert_array_equal(slices[2], np.rint(stored / 4095 * 255))
    np.testing.assert_array_equal(slices[3], np.rint(stored * 16 / 65535 * 255))
    np.testing.assert_array_equal(slices[4], gray)
    np.testing.assert_array_equal(slices[5:], windowed(HU[:3]))
    assert "3 of 8 pictures have more than 8 bits" in scan.warnings[0]
    (hu,) = open_scans([str(tmp_path / "3_twelve.png")], InputOptions(rescale=(1, -1024)))
    np.testing.assert_array_equal(hu.slices[0].read(), gray)


def test_a_damaged_picture_stops_no_other(tmp_path):
    Image.fromarray(windowed(HU[0])).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "b.png").write_bytes(data[: len(data) // 2])
    (scan,) = open_scans([str(tmp_path)])
    result = predict_scan(BrightSpots(), scan)
    assert result.slices[0].prediction is not None
    assert "cannot be read as a picture" in result.slices[1].error


def test_folders_globs_and_what_is_missing(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "notes.txt").write_text("nothing")
    for name in ("a", "b"):
        Image.fromarray(windowed(HU[0])).save(tmp_path / f"{name}.png")
    paths = [tmp_path / "empty", tmp_path / "text", tmp_path / "none.png", tmp_path / "*.jpg"]
    scans = open_scans([*map(str, paths), str(tmp_path / "*.png")])
    errors = [scan.error for scan in scans if scan.error]
    nothing = "the folder holds no DICOM, NIfTI, PNG, JPEG or TIFF file"
    assert errors == [nothing, nothing, "no such file", "nothing matches this pattern"]
    (found,) = [scan for scan in scans if not scan.error]
    assert [slice_.name[-5:] for slice_ in found.slices] == ["a.png", "b.png"]


def zipped(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return str(path)


def members(tmp_path, prefix=""):
    paths = Series().write(tmp_path / "files", HU)
    return {f"{prefix}{path.name}": path.read_bytes() for path in paths.values()}


def test_a_zip_of_a_series(tmp_path):
    files = members(tmp_path, "study/series/")
    path = zipped(tmp_path / "scan.zip", {**files, "__MACOSX/._x.dcm": b"junk", "note.txt": b"n"})
    (scan,) = open_scans([path])
    np.testing.assert_array_equal(read(scan), windowed(HU))
    assert scan.slices[0].name.startswith(f"{path}/study/series/")


def test_names_that_leave_the_zip_leave_nothing(tmp_path):
    deep = tmp_path / "deep" / "deeper"
    deep.mkdir(parents=True)
    path = zipped(deep / "scan.zip", members(tmp_path, "../../evil/"))
    before = sorted(tmp_path.rglob("*"))
    (scan,) = open_scans([path])
    result = predict_scan(BrightSpots(), scan)
    assert all(slice_.prediction is not None for slice_ in result.slices)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_zip_with_a_password(tmp_path):
    path = tmp_path / "scan.zip"
    zipped(path, members(tmp_path))
    data = bytearray(path.read_bytes())
    for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = data.find(signature)
        while start >= 0:
            flags = struct.unpack_from("<H", data, start + place)[0]
            struct.pack_into("<H", data, start + place, flags | 1)
            start = data.find(signature, start + 4)
    path.write_bytes(data)
    (scan,) = open_scans([str(path)])
    assert "protected by a password" in scan.error


def test_a_damaged_zip(tmp_path):
    path = tmp_path / "scan.zip"
    zipped(path, members(tmp_path))
    path.write_bytes(path.read_bytes()[:-200])
    (scan,) = open_scans([str(path)])
    assert "no readable zip" in scan.error


def test_a_zip_bomb_of_two_gigabytes_beside_good_slices(tmp_path):
    files = members(tmp_path)
    path = zipped(tmp_path / "scan.zip", files)
    block = bytes(1 << 24)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, blocks in (("bomb.dcm", 128), ("small.dcm", 6)):
            with archive.open(name, "w", force_zip64=True) as member:
                for _ in range(blocks):
                    member.write(block)
    tracemalloc.start()
    scans = open_scans([path])
    results = [predict_scan(BrightSpots(), scan) for scan in scans if not scan.error]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 << 20
    (result,) = results
    np.testing.assert_array_equal([s.image for s in result.slices], windowed(HU))
    errors = {scan.name[-9:]: scan.error for scan in scans if scan.error}
    assert "unpacks to more than the limit" in errors["/bomb.dcm"]
    assert "zip bomb" in errors["small.dcm"]


def test_many_members_or_much_together_are_refused(tmp_path):
    path = zipped(tmp_path / "scan.zip", members(tmp_path))
    (scan,) = open_scans([path], InputOptions(max_zip_members=3))
    assert "6 members, more than 3" in scan.error


def test_a_window_by_hand():
    gray = apply_window(np.array([-2000, -1350, -975, -600, 150, 3000, np.nan]), -600, 1500)
    np.testing.assert_array_equal(gray, [0, 0, 64, 128, 255, 255, 0])


def test_a_range_of_one_value_is_black():
    reading, header = Reading(hu=False, invert=False), Stored(low=7, high=7)
    with np.errstate(all="raise"):
        shown = reading.to_uint8(np.full((2, 2), 7), header, InputOptions())
    np.testing.assert_array_equal(shown, np.zeros((2, 2), np.uint8))


def test_what_can_be_hounsfield_units():
    assert plausible_hu(HU)
    assert not plausible_hu(HU + 1024)
    assert not plausible_hu(windowed(HU))
    assert not plausible_hu(np.full(10, np.nan))
    for share, plausible in ((0.015, True), (0.025, False)):  # of metal
        values = HU.ravel().copy()
        values[: round(share * values.size)] = 3000
        assert plausible_hu(values) == plausible
    assert not plausible_hu(np.concatenate([HU.ravel(), np.full(HU.size, 3000)]))


@pytest.mark.parametrize(
    "settings", [{"window": (-600, 0)}, {"values": "x"}, {"rescale": (0, 1)}, {"max_pixels": 0}]
)
def test_options_that_make_no_sense(settings):
    with pytest.raises(ScanError):
        InputOptions(**settings)
