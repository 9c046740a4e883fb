"""Reading and writing slices: PIL decoding to [H, W, C], and its inverse."""

from __future__ import annotations

import io
import pathlib

import numpy as np
from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg")
FORMATS = ("PNG", "JPEG", "TIFF")  # of contents: Pillow knows more, and starts programs for some
_GRAY, _DEEP = ("1", "L"), ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


class ImageError(ValueError):
    """Bytes that are no usable image; the message says why, without the name of the file."""


def read_file(path: pathlib.Path) -> bytes:
    """The content of a file.

    Raises:
      ImageError: a pipe or a device, which could be waited for without end.
      OSError: it can not be read.
    """
    if path.exists() and not path.is_file():
        raise ImageError("is no regular file")
    return path.read_bytes()


def decode(data: bytes) -> np.ndarray:
    """Decodes an encoded gray or RGB image, exactly as PIL does.

    Returns:
      uint8 [H, W, C], C = 1 for gray and 3 for RGB.
    """
    with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
        pixels = np.asarray(picture)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def decode_mask(data: bytes) -> np.ndarray:
    """Decodes an encoded single-channel image to uint8 [H, W]."""
    return decode(data)[..., 0]


def encode(pixels: np.ndarray, level: int = 1) -> bytes:
    """PNG of uint8 [H, W] or [H, W, C]; `level` 0 to 9 trades time for size."""
    pixels = pixels[..., 0] if pixels.shape[2:] == (1,) else pixels
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=level)
    return stream.getvalue()


def channels_of(data: bytes) -> int:
    """1 where PIL calls the image gray, 3 otherwise; reads the header only.

    Raises:
      ImageError: no image.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            return 1 if picture.mode in _GRAY or picture.mode in _DEEP else 3
    except Exception as error:
        raise ImageError(f"is no readable image ({error})") from error


def read_slice(data: bytes, channels: int) -> tuple[bytes, int, int]:
    """Checks an encoded slice, and recodes it where PIL does not read it as plain gray or RGB.

    Args:
      data: content of a PNG or JPEG file.
      channels: what the set has, 1 or 3.

    Returns:
      data: the same bytes, or a PNG with `channels` channels; height and width in pixels.

    Raises:
      ImageError: unreadable, more than 8 bits, or colored in a gray set.
    """
    picture = _load(data)
    if picture.mode == _mode(channels):
        return data, picture.height, picture.width
    return encode(_pixels(picture, channels)), picture.height, picture.width


def slice_pixels(data: bytes, channels: int) -> np.ndarray:
    """Decodes a slice as `read_slice` keeps it.

    Args:
      data: content of a PNG or JPEG file.
      channels: what the set has, 1 or 3.

    Returns:
      uint8 [H, W, channels].

    Raises:
      ImageError: unreadable, more than 8 bits, or colored in a gray set.
    """
    pixels = _pixels(_load(data), channels)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _mode(channels: int) -> str:
    """PIL's name of plain gray or RGB."""
    return "L" if channels == 1 else "RGB"


def _pixels(picture: Image.Image, channels: int) -> np.ndarray:
    """uint8 [H, W] or [H, W, 3] of a decoded slice, whatever the encoding; see `read_slice`."""
    if picture.mode in _DEEP:
        raise ImageError("has more than 8 bits a pixel; apply a CT window and save it in 8 bits")
    if channels == 3 or picture.mode in _GRAY:
        return np.asarray(picture.convert(_mode(channels)))
    pixels = np.asarray(picture.convert("RGB"))
    if np.any(pixels != pixels[..., :1]):
        raise ImageError("is colored where the set is gray; save all slices alike")
    return np.ascontiguousarray(pixels[..., 0])


def read_mask(data: bytes) -> np.ndarray:
    """Decodes a mask file, palette and 16-bit masks included.

    Returns:
      integer or bool [H, W], values as stored (palette images: the indices).

    Raises:
      ImageError: unreadable, or of more than one channel.
    """
    picture = _load(data)
    values = np.asarray(picture)
    if values.ndim != 2 or values.dtype.kind not in "uib":
        raise ImageError(f"has mode {picture.mode}; a mask is a PNG of one integer channel")
    return values


def read_numbers(data: bytes, mask: np.ndarray) -> np.ndarray:
    """Decodes the numbers of a mask's objects: integer [H, W], 0 outside of objects.

    Args:
      data: content of a PNG file of one channel, 8 or 16 bits.
      mask: [H, W], of the same picture.

    Raises:
      ImageError: unreadable, or of another size than the mask.
    """
    numbers = read_mask(data)
    if numbers.shape != mask.shape:
        raise ImageError("has numbers of its objects in another size; export both alike")
    return numbers.astype(np.int32)


def _load(data: bytes) -> Image.Image:
    """Decodes fully: a truncated file fails here."""
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
        picture.load()
    except Exception as error:
        raise ImageError(f"is no readable image ({error})") from error
    return picture
