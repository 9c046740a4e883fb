"""Files that would fill the memory when they are unpacked are refused within little of it."""

import gzip
import io
import json
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="the extra ssm-jax[medical] is not installed")
pytest.importorskip("nibabel", reason="the extra ssm-jax[medical] is not installed")

import nibabel
import pydicom
from PIL import Image
from pydicom import uid

from tests.helpers.damage import HU, png, replaced
from tests.helpers.dicom_tools import Series, save

MIB = 1 << 20


def apng(path):
    png(path)
    data = path.read_bytes()
    body = b"acTL" + struct.pack(">II", 2**31 - 1, 0)
    chunk = struct.pack(">I", 8) + body + struct.pack(">I", zlib.crc32(body))
    path.write_bytes(data[:33] + chunk + data[33:])


def frames(path):
    save(Series().dataset(HU[0], 0, NumberOfFrames=2**31 - 1), path)


def compressed(syntax):
    ds = pydicom.dcmread(io.BytesIO(bytes_of(Series().dataset(HU[0], 0))))
    ds.compress(syntax, generate_instance_uid=False)
    return bytearray(bytes_of(ds))


def bytes_of(ds):
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, ds, enforce_file_format=True)
    return stream.getvalue()


def jpeg_ls(path):
    data = compressed(uid.JPEGLSLossless)
    at = data.index(b"\xff\xf7", data.index(b"\xe0\x7f\x10\x00"))
    struct.pack_into(">HH", data, at + 5, 20_000, 20_000)
    path.write_bytes(data)


def jpeg_2000(path):
    data = compressed(uid.JPEG2000Lossless)
    at = data.index(b"\xff\x4f\xff\x51")
    struct.pack_into(">II", data, at + 8, 60_000, 60_000)
    struct.pack_into(">II", data, at + 24, 60_000, 60_000)
    path.write_bytes(data)


def deflated(path):
    ds = Series().dataset(HU[0], 0)
    ds.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    data = bytes_of(ds)
    start = 144 + struct.unpack("<I", data[140:144])[0]
    size = 128 * MIB
    more = struct.pack("<HH2sHI", 0x7FE1, 16, b"OB", 0, size)
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    body = packer.compress(zlib.decompress(data[start:], -15) + more)
    body += b"".join(packer.compress(bytes(MIB)) for _ in range(size // MIB)) + packer.flush()
    path.write_bytes(data[:start] + body)


def length_lies(path):
    data = bytes_of(Series().dataset(HU[0], 0, SeriesDescription="lung"))
    path.write_bytes(replaced(data, (0x8, 0x103E), b"UT", b"\0\0" + b"\xf0\xff\xff\xff"))


def nifti(path):
    header = nibabel.Nifti1Header()
    header.set_data_shape((512, 512, 1000))
    header.set_data_dtype(np.int16)
    path.write_bytes(gzip.compress(header.binaryblock + bytes(MIB)))


def tiff_page(path):
    packed = zlib.compress(bytes(5000 * 5000), 1)
    base = {258: (3, 8), 262: (3, 1), 277: (3, 1)}
    first = {**base, 256: (4, 8), 257: (4, 8), 259: (3, 1), 273: (4, 8), 278: (4, 8), 279: (4, 64)}
    data = b"II*\0" + struct.pack("<I", 72) + bytes(64)
    after = 72 + 2 + 12 * len(first) + 4
    place = after + len(packed)
    huge = {**first, 256: (4, 5000), 257: (4, 5000), 259: (3, 8), 273: (4, after)}
    huge |= {278: (4, 5000), 279: (4, len(packed))}
    path.write_bytes(data + directory(first, place) + packed + directory(huge, 0))


def tiff_pages(path):
    """Each page is within the limits; together they are a thousand times the file."""
    pages = [Image.fromarray(np.zeros((2000, 2000), np.float32))] * 8
    pages[0].save(path, compression="tiff_adobe_deflate", save_all=True, append_images=pages[1:])


def directory(tags, following):
    entries = [
        struct.pack("<HHI", tag, kind, 1) + struct.pack("<I", value)
        for tag, (kind, value) in sorted(tags.items())
    ]
    return struct.pack("<H", len(entries)) + b"".join(entries) + struct.pack("<I", following)


def zeros(path):
    head = bytes_of(Series().dataset(HU[0], 0))[:400]
    path.write_bytes(head + bytes(16 * MIB))


BOMBS = {
    "apng.png": (apng, "", 1),
    "frames.dcm": (frames, "frames, which the file does not hold", 0),
    "jpeg_ls.dcm": (jpeg_ls, "20000x20000x1, but 40x48x1 by its header", 1),
    "jpeg_2000.dcm": (jpeg_2000, "60000x60000x1, but 40x48x1 by its header", 1),
    "deflated.dcm": (deflated, "refused as a deflate bomb", 0),
    "length.dcm": (length_lies, "its header ends before it tells the size", 0),
    "volume.nii.gz": (nifti, "refused as a gzip bomb", 0),
    "page.tif": (tiff_page, "5000x5000 pixels are more than the limit", 2),
    "pages.tif": (tiff_pages, "refused as a TIFF bomb", 1),
    "zeros.dcm": (zeros, "its header ends before it tells the size", 0),
}
LOOK = """
import json, resource, sys
from ssm_jax.scans.open import open_scans
open_scans([sys.argv[1]])[0].slices[0].read()
limit = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + (200 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
found = {}
for path in sys.argv[2:]:
    scans = open_scans([path])
    errors = [scan.error for scan in scans if scan.error]
    slices = [slice_ for scan in scans for slice_ in scan.slices]
    for slice_ in slices:
        try:
            slice_.read()
        except Exception as error:
            errors.append(str(error))
    found[path] = errors, len(slices)
print(json.dumps(found))
"""


def test_bombs_are_refused_within_little_memory(tmp_path):
    """Each is read in a process that may take little memory more than Python itself."""
    png(tmp_path / "warm.png")
    for name, (make, *_) in BOMBS.items():
        make(tmp_path / name)
    command = [sys.executable, "-c", LOOK, tmp_path / "warm.png", *(tmp_path / b for b in BOMBS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    found = json.loads(done.stdout)
    for name, (_, message, count) in BOMBS.items():
        errors, slices = found[str(tmp_path / name)]
        assert slices == count, name
        assert message in " ".join(errors), (name, errors)
        assert "allocate" not in " ".join(errors).lower()
