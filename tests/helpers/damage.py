"""A small picture, and damage to one element of a DICOM file."""

import struct

from PIL import Image

from tests.helpers.dicom_tools import chest, windowed

HU = chest()


def png(path):
    """Writes a slice of the chest as a picture."""
    Image.fromarray(windowed(HU[0])).save(path)


def replaced(data, tag, vr, value):
    """A file with another VR and value in its first element of a tag, which has a short length."""
    at = data.index(struct.pack("<HH", *tag), 132)
    (length,) = struct.unpack_from("<H", data, at + 6)
    new = data[at : at + 4] + vr + struct.pack("<H", len(value)) + value
    return data[:at] + new + data[at + 8 + length :]
