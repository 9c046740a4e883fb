"""PNG, JPEG and TIFF slices of 8 or 16 bits."""

from __future__ import annotations

import functools
from typing import IO

import numpy as np
from PIL import Image, ImageMode, UnidentifiedImageError

from ssm_jax.data.images import FORMATS
from ssm_jax.scans.find import Blob
from ssm_jax.scans.options import InputOptions, ScanError, check_unpacked, guarded, visible
from ssm_jax.scans.source import Scan, Slice, refuse
from ssm_jax.scans.window import Reading, Stored

_GRAY = ("1", "L", "LA")
_DEEP = ("I", "F")  # modes of more than 8 bits begin with one of these
_MOST_PAGES = 10_000
_TILE = (322, 323)  # tags of a TIFF: width and height of its tiles


class Picture:
    """A picture, or the pages of a TIFF; the file stays open from its first page to its last.

    Attributes:
      pages: known after `look`.
      deep: pages of more than 8 bits; known after `look`.
      undefined: pixels of pages of floats that are no numbers; known after `look`.
      animated: whether the file holds more pictures, which are not read; known after `look`.
    """

    def __init__(self, blob: Blob, options: InputOptions):
        """Takes the file, and limits."""
        self._blob, self._options = blob, options
        self._stream: IO[bytes] | None = None
        self._image: Image.Image | None = None
        self.pages, self.deep, self.undefined, self.animated = 1, 0, 0, False
        self._unpacked = 0  # bytes of the pages that were looked at

    def look(self) -> None:
        """Looks at all pages.

        Raises:
          ScanError: not a picture, damaged, with more pages than the limit, or with pages that
            are compressed beyond what images are.
        """
        try:
            with guarded("cannot be read as a picture"):
                packed = self._blob.size()
                image = self._open()
                self.animated = image.format != "TIFF" and getattr(image, "is_animated", False)
                self._note(image)
                while image.format == "TIFF" and _has_page(image, self.pages):
                    self.pages += 1
                    self._note(image)
                    check_unpacked(self._unpacked, packed, "TIFF")
        finally:
            self.close()

    def _note(self, image: Image.Image) -> None:
        if self.pages > _MOST_PAGES:
            raise ScanError(f"has more than {_MOST_PAGES} pages")
        self.deep += image.mode.startswith(_DEEP)
        pixels = image.width * image.height
        if pixels <= self._options.max_pixels:  # others are never unpacked
            self._unpacked += pixels * _bytes_of(image.mode)
        if image.mode == "F":
            self.undefined += int((~np.isfinite(_pixels(image, self._options))).sum())

    def read(self, page: int) -> np.ndarray:
        """uint8 [H, W] of a page, counted from 0, if it is gray, else [H, W, 3].

        Raises:
          ScanError: not a picture, damaged, or too large.
        """
        whole = False
        try:
            with guarded("cannot be read as a picture"):
                image = self._open()
                if page != image.tell():
                    image.seek(page)
                values = _pixels(image, self._options)
                if values.dtype != np.uint8:
                    values = deep_to_uint8(values, self._options)
                whole = True
                return values
        finally:
            if not whole or page == self.pages - 1:
                self.close()

    def _open(self) -> Image.Image:
        if self._image is None:
            self._stream = self._blob.seekable()
            try:
                self._image = Image.open(self._stream, formats=FORMATS)
            except UnidentifiedImageError:  # whose message names the path
                raise ScanError("cannot be read as a picture: no PNG, JPEG or TIFF") from None
        return self._image

    def close(self) -> None:
        """Closes the file; it opens again when it is read."""
        if self._stream is not None:
            self._stream.close()
        self._stream = self._image = None


def _bytes_of(mode: str) -> int:
    """Bytes of a pixel in memory."""
    known = ImageMode.getmode(mode)
    return np.dtype(known.typestr).itemsize * len(known.bands)


def _has_page(image: Image.Image, page: int) -> bool:
    """Whether a TIFF has a page, to which it then is turned."""
    try:
        image.seek(page)
    except EOFError:
        return False
    return True


def _pixels(image: Image.Image, options: InputOptions) -> np.ndarray:
    """Of the page that a picture is turned to: uint8 [H, W] or [H, W, 3], or [H, W] of more bits.

    Raises:
      ScanError: larger than the limit.
    """
    tile = [getattr(image, "tag_v2", {}).get(tag, 1) for tag in _TILE]
    for width, height in (image.size, tile):
        if width * height > options.max_pixels:
            raise ScanError(f"{width}x{height} pixels are more than the limit")
    if image.mode.startswith(_DEEP):
        return np.asarray(image)
    return np.asarray(image.convert("L" if image.mode in _GRAY else "RGB"))


def open_pictures(name: str, blobs: list[Blob], options: InputOptions) -> Scan:
    """Makes a scan of pictures, in the order given; the pages of a TIFF are slices.

    A file that cannot be read becomes a slice that cannot be read.
    """
    slices, pictures, deep, warnings = [], [], 0, []
    for blob in blobs:
        picture = Picture(blob, options)
        try:
            picture.look()
        except ScanError as error:
            slices.append(Slice(blob.name, functools.partial(refuse, str(error))))
            continue
        pictures.append(picture)
        deep += picture.deep
        for page in range(picture.pages):
            label = blob.name if picture.pages == 1 else f"{blob.name} page {page + 1}"
            slices.append(Slice(label, functools.partial(picture.read, page)))
        if picture.undefined:
            warnings.append(
                f"{visible(blob.name)}: {picture.undefined} pixels are no numbers, taken for air"
            )
        if picture.animated:
            warnings.append(f"{visible(blob.name)}: of several pictures only the first was read")
    if deep and options.values == "auto" and options.rescale is None:
        warnings.append(
            f"{deep} of {len(slices)} pictures have more than 8 bits a pixel: windowed where there "
            "are negative values, else taken as already windowed, over 12 bits where no value "
            "exceeds 4095 and over 16 bits otherwise; --values=hu or --rescale force a window"
        )

    def release() -> None:
        for picture in pictures:
            picture.close()

    facts = {"Pictures": str(len(slices))}
    return Scan(name, "pictures", facts, warnings, slices, release=release)


def deep_to_uint8(values: np.ndarray, options: InputOptions) -> np.ndarray:
    """Shows a picture of more than 8 bits.

    Windowed where `options` say so or there are negative values; else spread over [0, 1] (floats),
    12 bits where no value exceeds 4095, or 16 bits.

    Args:
      values: integer or float [H, W]; what is no number counts as air.
      options: window and what to assume.

    Returns:
      uint8 [H, W].

    Raises:
      ScanError: no numbers, or values beyond 16 bits that are not said to be Hounsfield units.
    """
    numbers = values[np.isfinite(values)]
    if not numbers.size:
        raise ScanError("none of its values is a number")
    low, high = float(numbers.min()), float(numbers.max())
    if options.values == "hu" or options.rescale is not None:
        reading = Reading(True, False, options.rescale)
    else:
        reading = Reading(options.values == "auto" and low < 0, False)
    top = 4095.0 if high <= 4095 else 65535.0
    if values.dtype.kind == "f" and high <= 1:
        top = 1.0
    if not reading.hu and high > top:
        raise ScanError(f"values up to {high:g} are neither 16 bits nor said to be HU")
    if not reading.hu and top == 1.0:
        return np.round(np.clip(np.nan_to_num(values), 0, 1) * 255).astype(np.uint8)
    return reading.to_uint8(values, Stored(0.0, top), options)
