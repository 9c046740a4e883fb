"""Files of PyTorch before version 0.1.10 that are damaged or cut off: read or refused."""

import os
import re
import tarfile

import hypothesis
import hypothesis.strategies as st
import pytest

from ssm_jax.interop import torch_file
from tests.helpers.torch_files import (
    pickled,
    write_tar,
)
from tests.interop.test_torch_tar import STORAGES, TENSORS, VALUE, refused, small_file


def header_of(name, size, kind=tarfile.REGTYPE):
    """The header of an entry, with any size."""
    entry = tarfile.TarInfo(name)
    entry.type = kind
    header = bytearray(entry.tobuf(tarfile.USTAR_FORMAT))
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


SIZES = {
    "beyond the end": b"00000100000\0",
    "huge": b"77777777777\0",
    "of many bytes": b"\x80" + b"\xff" * 11,
    "negative": b"\xff" * 12,
    "negative one block": b"\xff" * 10 + b"\xfe\x00",
    "no number": b"size        ",
}


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_headers_that_lie(tmp_path, name, kind):
    whole = write_tar(tmp_path / "a.pth", VALUE, STORAGES, TENSORS).read_bytes()
    for data in (
        header_of("x", SIZES[name], kind) + whole,
        whole[:1024] + header_of("x", SIZES[name], kind),
    ):
        path = tmp_path / "b.pth"
        path.write_bytes(data)
        refused(path, "cut off")


def test_a_header_with_another_checksum(tmp_path):
    path = small_file(tmp_path)
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    refused(path, "damaged or cut off .bad checksum")


def test_files_cut_off_anywhere(tmp_path):
    path = small_file(tmp_path)
    content = path.read_bytes()
    end = content.rindex(pickled([(104, 101, 2, 10)])) + len(pickled([(104, 101, 2, 10)]))
    for length in [*range(0, end, 64), *range(end - 20, end)]:
        path.write_bytes(content[:length])
        refused(path, "cannot be read as a PyTorch checkpoint")


def test_the_limit_of_bytes(tmp_path):
    path = small_file(tmp_path)
    size = os.path.getsize(path)
    torch_file.read(path, max_bytes=size)
    refused(path, "the limit is", max_bytes=size - 1)


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=200)
def test_damaged_bytes_are_read_or_refused(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "damaged_tar"
    folder.mkdir(exist_ok=True)
    path = small_file(folder)
    content = bytearray(path.read_bytes())
    used = [k for k, byte in enumerate(content) if byte]  # most of an archive is padding
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.sampled_from(used))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        torch_file.read(path, max_bytes=2**20)
    except ValueError as error:
        assert re.match(rf"{path} cannot be read as a PyTorch checkpoint: .", str(error))
        assert "\n" not in str(error)
