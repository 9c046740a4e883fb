"""Damaged and hostile files: none stops another, and none is lost without a word."""

import json
import os
import pathlib
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pydicom", reason="the extra ssm-jax[medical] is not installed")
pytest.importorskip("nibabel", reason="the extra ssm-jax[medical] is not installed")

import nibabel
import pydicom
from pydicom import uid

from ssm_jax.files import write_json, write_text_atomically
from ssm_jax.report.scan import scan_report
from ssm_jax.scans.open import open_scans
from ssm_jax.scans.options import InputOptions
from ssm_jax.scans.output import to_json
from ssm_jax.scans.predict import predict_scan
from tests.helpers.damage import HU, png, replaced
from tests.helpers.dicom_tools import BrightSpots, Series, chest, multi_frame, save, windowed


def told(scans):
    """Slices that can be read, and what is said of the rest: {name: error}."""
    read, errors = {}, {scan.name: scan.error for scan in scans if scan.error}
    for slice_ in (slice_ for scan in scans for slice_ in scan.slices):
        try:
            read[slice_.name] = slice_.read()
        except ValueError as error:
            errors[slice_.name] = str(error)
    for line in (*errors.values(), *(line for scan in scans for line in scan.warnings)):
        assert line.isprintable()
    return read, errors


def series_without_suffixes(folder):
    paths = Series().write(folder, HU)
    return [path.rename(folder / f"IM{z}") for z, path in paths.items()]


@pytest.mark.parametrize(
    ("tag", "vr", "value"),
    [
        ((0x28, 0x10), b"DS", b"ab"),
        ((0x28, 0x10), b"QQ", b"@\0"),
        ((0x28, 0x10), b"US", b"@\0@\0"),
        ((0x28, 0x10), b"US", b"@\0\0"),
        ((0x28, 0x1053), b"DS", b"x "),
        ((0x28, 0x100), b"US", b"\xff\xff"),
        ((0x20, 0x37), b"SQ", b"\xfe\xff\x00\xe0\x00\x00\x00\x00"),
    ],
)
def test_one_odd_header_is_an_error_of_its_own(tmp_path, tag, vr, value):
    paths = Series().write(tmp_path, HU)
    paths[2].write_bytes(replaced(paths[2].read_bytes(), tag, vr, value))
    read, errors = told(open_scans([str(tmp_path)]))
    assert list(errors) == [str(paths[2])]
    np.testing.assert_array_equal(list(read.values()), windowed(np.delete(HU, 2, 0)))


@pytest.mark.parametrize("place", [b"nan\\0\\5 ", b"0\\inf\\5 ", b"0\\0\\9e99"])
def test_a_position_that_is_none_keeps_no_prediction_from_being_written(tmp_path, place):
    paths = Series().write(tmp_path / "s", HU)
    paths[2].write_bytes(replaced(paths[2].read_bytes(), (0x20, 0x32), b"DS", place))
    scans = open_scans([str(tmp_path / "s")])
    results = [predict_scan(BrightSpots(), scan) for scan in scans]
    write_json(tmp_path / "predictions.json", to_json(results))
    slices = json.loads((tmp_path / "predictions.json").read_text())["slices"]
    assert sorted(entry["file"] for entry in slices) == sorted(map(str, paths.values()))
    assert all("error" not in entry for entry in slices)
    assert [entry["position"] is None for entry in slices].count(True) == 1


def test_a_folder_whose_name_is_no_text_is_reported(tmp_path):
    folder = pathlib.Path(os.fsdecode(bytes(tmp_path) + b"/s\xe9rie"))
    paths = Series().write(folder, HU)
    (scan,) = open_scans([str(folder)])
    result = predict_scan(BrightSpots(), scan)
    write_json(tmp_path / "predictions.json", to_json([result]))
    slices = json.loads((tmp_path / "predictions.json").read_text())["slices"]
    assert sorted(entry["file"] for entry in slices) == sorted(map(str, paths.values()))
    write_text_atomically(tmp_path / "report.html", scan_report([result], {}, 0.5))
    assert r"s\udce9rie" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_an_odd_text_loses_nothing(tmp_path):
    paths = Series().write(tmp_path, HU, SeriesDescription="lung")
    damaged = replaced(paths[2].read_bytes(), (0x8, 0x103E), b"QQ", b"\xff\xfe")
    paths[2].write_bytes(replaced(damaged, (0x20, 0x13), b"IS", b"many"))
    read, errors = told(open_scans([str(tmp_path)]))
    assert not errors
    np.testing.assert_array_equal(list(read.values()), windowed(HU))


def test_damaged_and_empty_files_without_suffix_are_errors(tmp_path):
    paths = series_without_suffixes(tmp_path)
    paths[0].write_bytes(b"")
    data = bytearray(paths[5].read_bytes())
    data[128] ^= 1
    paths[5].write_bytes(data)
    (tmp_path / "README").write_text("Bilder für den Arzt\n")
    (tmp_path / "viewer.exe").write_bytes(b"MZ\0\0")
    (scan,) = open_scans([str(tmp_path)])
    read, errors = told([scan])
    assert sorted(errors) == [str(paths[0]), str(paths[5])]
    np.testing.assert_array_equal(list(read.values()), windowed(HU[1:5]))
    assert f"left out: 2 files that are no images ({tmp_path / 'README'}" in scan.warnings[-1]


def test_files_without_preamble_or_suffix_are_found(tmp_path):
    ds = Series().dataset(HU[0], 0)
    del ds.file_meta
    for name, implicit in (("implicit", True), ("explicit", False)):
        ds.save_as(tmp_path / name, implicit_vr=implicit, little_endian=True)
        read, errors = told(open_scans([str(tmp_path / name)]))
        assert not errors
        np.testing.assert_array_equal(read[str(tmp_path / name)], windowed(HU[0]))


def test_lists_of_files_are_passed_over(tmp_path):
    Series().write(tmp_path, HU)
    index = pydicom.dataset.Dataset()
    index.file_meta = pydicom.dataset.FileMetaDataset()
    index.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    index.file_meta.MediaStorageSOPClassUID = uid.MediaStorageDirectoryStorage
    index.file_meta.MediaStorageSOPInstanceUID = uid.generate_uid()
    index.DirectoryRecordSequence = []
    for name in ("DICOMDIR", "list_of_files.dcm"):
        save(index, tmp_path / name)
    (scan,) = open_scans([str(tmp_path)])
    assert len(scan.slices) == 6
    assert scan.warnings == []
    (scan,) = open_scans([str(tmp_path / "list_of_files.dcm")])
    assert "give the folder" in scan.error


def test_whatever_lies_in_a_folder_is_read_or_named(tmp_path):
    folder, other = tmp_path / "in", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    png(folder / "good.png")
    png(other / "linked.png")
    with zipfile.ZipFile(folder / "some.zip", "w") as archive:
        archive.write(folder / "good.png", "inside.png")
        archive.writestr("inner.zip", b"PK\x05\x06" + bytes(18))
    (folder / "link").symlink_to(other)
    (folder / "again").symlink_to(".")
    (folder / "dangling.png").symlink_to("nothing")
    (folder / "loop.png").symlink_to("loop.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "broken.zip").write_bytes(b"PK\x03\x04 and no more")
    read, errors = told(open_scans([str(folder)]))
    assert sorted(name[len(str(folder)) + 1 :] for name in read) == [
        *("good.png", "link/linked.png", "some.zip/inside.png"),
    ]
    assert {name[len(str(folder)) + 1 :]: error[:22] for name, error in errors.items()} == {
        "broken.zip": "is no readable zip: Fi",
        "dangling.png": "is a link to nothing",
        "loop.png": "cannot be read: Too ma",
        "pipe.png": "is a pipe, a socket or",
        "some.zip/inner.zip": "is a zip within a zip;",
    }
    for name in ("pipe.png", "dangling.png"):
        (scan,) = open_scans([str(folder / name)])
        assert "is a " in scan.error


def test_a_folder_without_the_right_to_read_is_named(tmp_path, monkeypatch):
    png(tmp_path / "good.png")
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def denied(path):  # root may read everything, so the system is made to refuse
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    read, errors = told(open_scans([str(tmp_path)]))
    assert list(read) == [str(tmp_path / "good.png")]
    assert errors == {str(tmp_path / "closed"): "cannot be read: Permission denied"}


def test_names_of_any_bytes_and_any_length(tmp_path):
    names = [b"caf\xe9.png", b"a\nb.png", b"\x1b[31m.png", b"n" * 251 + b".png"]
    for name in names:
        png(os.path.join(os.fsencode(tmp_path), name))
    (scan, missing) = open_scans([str(tmp_path), "x" * 5000])
    assert missing.error == "no such file"
    assert sorted(os.path.basename(os.fsencode(s.name)) for s in scan.slices) == sorted(names)
    (tmp_path / "a\nb.png").write_bytes(b"")
    (_, errors) = told(open_scans([str(tmp_path)]))
    assert list(errors) == [f"{tmp_path}/a\nb.png"]


def size_lies(data, at):
    struct.pack_into("<II", data, data.rindex(b"PK\1\2") + 20, 10**5, 10**5)


def lzma_damage(data, at):
    struct.pack_into("<H", data, data.rindex(b"PK\1\2") + 10, 14)
    struct.pack_into("<H", data, at + 8, 14)
    data[at + 37 : at + 46] = b"\x09\x14\x05\x00\xff\x00\x00\x80\x00"


def name_undecodable(data, at):
    struct.pack_into("<H", data, at + 6, 0x800)
    data[at + 30] = 0xFF


def encrypted(data, at):
    struct.pack_into("<H", data, data.rindex(b"PK\1\2") + 8, 1)


@pytest.mark.parametrize("damage", [size_lies, lzma_damage, name_undecodable, encrypted])
def test_one_bad_member_of_a_zip_is_an_error_of_its_own(tmp_path, damage):
    png(tmp_path / "good.png")
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.write(tmp_path / "good.png", "good.png")
        archive.writestr("bad.dcm", b"A" * 600)
    data = bytearray((tmp_path / "z.zip").read_bytes())
    damage(data, data.rindex(b"PK\3\4"))
    (tmp_path / "z.zip").write_bytes(data)
    read, errors = told(open_scans([str(tmp_path / "z.zip")]))
    assert list(read) == [f"{tmp_path}/z.zip/good.png"]
    assert list(errors) == [f"{tmp_path}/z.zip/bad.dcm"]


def test_only_png_jpeg_and_tiff_are_opened(tmp_path):
    """Pillow starts Ghostscript for EPS, whatever the file is called."""
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n")
    Image.fromarray(windowed(HU[0])).save(tmp_path / "y.png", "BMP")
    _, errors = told(open_scans([str(tmp_path)]))
    assert set(errors.values()) == {"cannot be read as a picture: no PNG, JPEG or TIFF"}
    assert len(errors) == 2


def mutated(rng, data):
    """A few bytes, a piece, or the end of a file are other ones."""
    data, at = bytearray(data), int(rng.integers(len(data)))
    match int(rng.integers(4)):
        case 0:
            for place in rng.integers(len(data), size=8):
                data[place] ^= 1 << int(rng.integers(8))
        case 1:
            value = int(rng.choice([0, 1, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1]))
            data[at : at + 4] = struct.pack("<I", value)
        case 2:
            del data[at : at + int(rng.integers(1, 200))]
        case 3:
            del data[at:]
    return bytes(data)


def test_mutated_files_stop_no_other(tmp_path):
    """Headers are damaged more than pixels: most of a small file is header."""
    rng = np.random.default_rng(0)
    small = chest(4, 16, 20)
    paths = list(Series().write(tmp_path, small).values())
    save(multi_frame(small, [2, 0, 3, 1]), tmp_path / "many.dcm")
    volume = np.rint(small).astype(np.int16).transpose(2, 1, 0)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([1, 1, 2, 1])), tmp_path / "v.nii")
    for name in ("p.png", "p.jpg", "p.tif"):
        png(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "p.png", "in.png")
        archive.write(paths[0], "in.dcm")
    others = [tmp_path / name for name in ("many.dcm", "v.nii", "p.png", "p.jpg", "p.tif", "z.zip")]
    good, errors = told(open_scans([str(tmp_path)]))
    assert not errors
    for _ in range(60):
        path = [*others, paths[1]][int(rng.integers(7))]
        data = path.read_bytes()
        path.write_bytes(mutated(rng, data))
        scans = open_scans([str(tmp_path)])
        read, errors = told(scans)
        warnings = " ".join(line for scan in scans for line in scan.warnings)
        names = [*read, *errors, *(scan.name for scan in scans)]
        assert any(n.startswith(str(path)) for n in names) or "left out" in warnings
        for name, pixels in good.items():
            if not name.startswith(str(path)):
                np.testing.assert_array_equal(read[name], pixels, name)
        path.write_bytes(data)


def test_what_the_model_cannot_take_is_an_error_of_the_slice(tmp_path):
    Series().write(tmp_path, HU)
    (scan,) = open_scans([str(tmp_path)])
    for k, broken in ((1, np.zeros((0, 4), np.uint8)), (3, np.zeros((4, 4, 2), np.uint8))):
        object.__setattr__(scan.slices[k], "read", lambda broken=broken: broken)
    result = predict_scan(BrightSpots(), scan)
    assert [s.prediction is None for s in result.slices] == [k in (1, 3) for k in range(6)]
    assert "which is none of a slice" in result.slices[3].error


@pytest.mark.parametrize(
    "settings",
    [
        {"window": (float("nan"), 1500)},
        {"window": (-600, float("nan"))},
        {"window": (-600, float("inf"))},
        {"window": (1e308, 1e308)},
        {"rescale": (float("nan"), 0)},
        {"rescale": (1, float("inf"))},
    ],
)
def test_settings_that_are_no_numbers(settings):
    with pytest.raises(ValueError, match=r"positive|must be"):
        InputOptions(**settings)
