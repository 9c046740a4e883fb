"""PNG, JPEG and TIFF slices of 8 or 16 bits."""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image

from ssm_jax.scans.find import Blob
from ssm_jax.scans.options import InputOptions, ScanError
from ssm_jax.scans.source import Scan, Slice
from ssm_jax.scans.window import Reading, Stored

_GREY = ("1", "L", "LA")


def open_pictures(name: str, blobs: list[Blob], options: InputOptions) -> Scan:
    """Makes a scan of pictures, in the order given; the pages of a TIFF are slices.

    A file that cannot be read becomes a slice that cannot be read.
    """
    slices, deep = [], 0
    for blob in blobs:
        pages = 1
        try:
            with blob.seekable() as stream, Image.open(stream) as picture:
                pages = getattr(picture, "n_frames", 1)
                deep += pages * picture.mode.startswith(("I", "F"))
        # A damaged file makes Pillow raise almost anything; reading the slice says what.
        except Exception:
            pages = 1
        for page in range(pages):
            read = functools.partial(read_picture, blob, page, options)
            label = blob.name if pages == 1 else f"{blob.name} page {page + 1}"
            slices.append(Slice(label, read))
    warnings = []
    if deep and options.values == "auto" and options.rescale is None:
        warnings.append(
            f"{deep} of {len(slices)} pictures have more than 8 bits a pixel: windowed where there "
            "are negative values, else taken as already windowed, over 12 bits where no value "
            "exceeds 4095 and over 16 bits otherwise; --values=hu or --rescale force a window"
        )
    return Scan(name, "pictures", {"Pictures": str(len(slices))}, warnings, slices)


def read_picture(blob: Blob, page: int, options: InputOptions) -> np.ndarray:
    """Reads a picture.

    Args:
      blob: the file.
      page: of a TIFF, from 0.
      options: the window, for Hounsfield units; limits.

    Returns:
      uint8 [H, W] if it is grey, else [H, W, 3].

    Raises:
      ScanError: not a picture, damaged, or too large.
    """
    try:
        with blob.seekable() as stream, Image.open(stream) as image:
            if image.width * image.height > options.max_pixels:
                raise ScanError(f"{image.width}x{image.height} pixels are more than the limit")
            if page:
                image.seek(page)
            if not image.mode.startswith(("I", "F")):
                return np.asarray(image.convert("L" if image.mode in _GREY else "RGB"))
            return deep_to_uint8(np.asarray(image), options)
    except Exception as error:
        raise ScanError(f"cannot be read as a picture: {error}") from error


def deep_to_uint8(values: np.ndarray, options: InputOptions) -> np.ndarray:
    """Shows a picture of more than 8 bits.

    Windowed where `options` say so or there are negative values; else spread over [0, 1] (floats),
    12 bits where no value exceeds 4095, or 16 bits.

    Args:
      values: integer or float [H, W].
      options: window and what to assume.

    Returns:
      uint8 [H, W].

    Raises:
      ScanError: values beyond 16 bits that are not said to be Hounsfield units.
    """
    high = float(values.max())
    if options.values == "hu" or options.rescale is not None:
        reading = Reading(True, False, options.rescale)
    else:
        reading = Reading(options.values == "auto" and float(values.min()) < 0, False)
    top = 4095.0 if high <= 4095 else 65535.0
    if values.dtype.kind == "f" and high <= 1:
        top = 1.0
    if not reading.hu and high > top:
        raise ScanError(f"values up to {high:g} are neither 16 bits nor said to be HU")
    if not reading.hu and top == 1.0:
        return np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return reading.to_uint8(values, Stored(0.0, top), options)
