"""PyTorch checkpoints that are damaged, cut off or hostile: read or refused, at no great cost."""

import os
import re
import struct
import zipfile
import zlib

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from ssm_jax.interop import torch_file
from tests.helpers.shared import REFERENCE, needs_reference
from tests.helpers.torch_files import (
    MAGIC,
    SYSTEM,
    VERSION,
    Call,
    Name,
    pickled,
    storage,
    tensor,
    write_legacy,
    write_zip,
)
from tests.interop.test_torch_file import NUMBERS, both_formats, refused, small_files


def test_a_storage_larger_than_the_file_takes_no_memory(tmp_path):
    data = pickled(tensor(storage("s", 2**50), (2,), (1,)))
    path = write_legacy(tmp_path / "a.pth", data, [("s", 2**50, b"")])
    refused(path, "its storages are larger than the file")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_bombs(tmp_path, compression):
    data = pickled(tensor(storage("s", 2**20), (2,), (1,)))
    path = tmp_path / "a.pth"
    write_zip(path, data, [("s", bytes(2**22))], compression)
    assert torch_file.read(path).tolist() == [0, 0]
    refused(path, r"4 GiB|0\.00391 GiB", max_bytes=2**22)
    # Entries that are never read count as well.
    write_zip(path, pickled(1), [("unused", bytes(2**22))], compression)
    refused(path, "the limit is", max_bytes=2**22)
    assert os.path.getsize(path) < 2**22 or compression == zipfile.ZIP_STORED


def test_a_zip_directory_that_lies(tmp_path):
    """A deflated entry that unpacks to more than the directory says is not unpacked."""
    data = pickled(tensor(storage("s", 256), (2,), (1,)))
    path = write_zip(tmp_path / "a.pth", data, [("s", bytes(2**26))], zipfile.ZIP_DEFLATED)
    content = path.read_bytes()
    size = struct.pack("<I", 2**26)
    assert content.count(size) == 2  # before the entry, and in the directory
    assert len(content) < 2**17
    for checksum in (zlib.crc32(bytes(1024)), zlib.crc32(bytes(2**26))):
        lied = content.replace(size, struct.pack("<I", 1024))
        lied = lied.replace(
            struct.pack("<I", zlib.crc32(bytes(2**26))), struct.pack("<I", checksum)
        )
        path.write_bytes(lied)
        try:
            assert torch_file.read(path, max_bytes=2**20).tolist() == [0, 0]
        except ValueError as error:
            assert "damaged" in str(error)


def test_strange_archives(tmp_path):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weight.npy", b"")
    refused(path, "not one that torch.save wrote")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickled(1))
        archive.writestr("b/data.pkl", pickled(1))
    refused(path, "not one that torch.save wrote")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickled(1))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a/data.pkl", pickled(2))
    refused(path, "2 of its entries are named 'a/data.pkl'")
    write_zip(path, pickled(1), byteorder="middle")
    refused(path, "byte order")
    write_zip(path, pickled(1), **{"constants.pkl": b""})
    refused(path, "TorchScript")
    write_zip(path, pickled(1), compression=zipfile.ZIP_LZMA)
    refused(path, "packed unusually")
    content = write_zip(path, pickled(1)).read_bytes()
    start = content.index(b"PK\x01\x02")
    encrypted = bytearray(content)
    encrypted[start + 8] |= 1
    path.write_bytes(encrypted)
    refused(path, "encrypted")
    # A storage's name is not a path.
    value = tensor(storage("../../secret", 12), (2,), (1,))
    write_zip(path, pickled(value), [("s", NUMBERS.tobytes())])
    refused(path, "is missing")


def test_files_that_are_none(tmp_path):
    path = tmp_path / "a.pth"
    refused(path, "No such file")
    refused(tmp_path, "Is a directory")
    path.write_bytes(b"")
    refused(path, "empty")
    others = (b"a", b"no pickle at all\n" * 99, b"\x89PNG\r\n\x1a\n" + bytes(99), bytes(99))
    for content in (*others, pickled({"a": 1}), pickled(3)):
        path.write_bytes(content)
        refused(path, "not written by torch.save")
    path.write_bytes(b"PK\x03\x04" + bytes(99))
    refused(path, "damaged or cut off")
    path.write_bytes(bytes(257) + b"ustar" + bytes(250))
    refused(path, "damaged or cut off")
    for start in (MAGIC + pickled(1002) + SYSTEM, MAGIC + VERSION + pickled([])):
        path.write_bytes(start + pickled(1) + pickled([]))
        refused(path, "format is not the one of version 1001")
    path.write_bytes(MAGIC + VERSION + SYSTEM + pickled(1) + pickled([]))
    assert torch_file.read(path) == 1
    refused(path, "raise the limit", max_bytes=20)


def test_hostile_pickles_in_both_formats(tmp_path):
    marker = tmp_path / "ran"
    value = {"model_weights": Call(Name("os", "system"), (f"touch {marker}",))}
    for path in both_formats(tmp_path, [value, storage("s", 12)]):
        loaded = torch_file.read(path)
        assert loaded[0]["model_weights"].name == "os.system"
    bomb = b"\x80\x02)" + b"\x85" * 20_000 + b"."
    refused(write_zip(tmp_path / "a.pth", bomb), "nested")
    refused(write_legacy(tmp_path / "a.pth", bomb), "nested")
    extension = b"\x80\x02\x82\x01."
    refused(write_zip(tmp_path / "a.pth", extension), "registered extensions")
    refused(write_legacy(tmp_path / "a.pth", extension), "registered extensions")
    for start in (b"", MAGIC, MAGIC + VERSION):
        shell = pickled(Call(Name("os", "system"), (f"touch {marker}",)))
        (tmp_path / "a.pth").write_bytes(start + shell * 4)
        refused(tmp_path / "a.pth", "not written by torch.save|format is not")
    assert not marker.exists()


def test_files_cut_off_anywhere(tmp_path):
    for path in small_files(tmp_path):
        content = path.read_bytes()
        for length in range(len(content)):
            path.write_bytes(content[:length])
            refused(path, "cannot be read as a PyTorch checkpoint")


@needs_reference
@pytest.mark.parametrize("name", ["legacy", "small_zip"])
def test_recorded_files_cut_off_at_many_places(tmp_path, name):
    content = (REFERENCE / f"model_r18_2_{name}.pth").read_bytes()
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    places = np.linspace(0, len(content) - 1, 25).astype(int)
    for length in [*places[::-1], 20_000, 10_000, 200, 140, 30, 10]:
        os.truncate(path, length) if length < os.path.getsize(path) else path.write_bytes(
            content[:length]
        )
        refused(path, "cannot be read as a PyTorch checkpoint")


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=300)
def test_damaged_bytes_are_read_or_refused(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "damaged"
    folder.mkdir(exist_ok=True)
    path = data.draw(st.sampled_from(list(small_files(folder))))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        torch_file.read(path, max_bytes=2**20)
    except ValueError as error:
        assert re.match(rf"{path} cannot be read as a PyTorch checkpoint: .", str(error))
        assert "\n" not in str(error)
