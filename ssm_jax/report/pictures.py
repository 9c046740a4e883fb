"""Pictures inside a page: JPEG files as data URIs."""

from __future__ import annotations

import base64
import io

from PIL import Image

SIDE = 512  # longer side of a bounded picture at most, pixels
_QUALITIES = (85, 70, 55)


def jpeg(image: Image.Image, quality: int) -> bytes:
    """A picture, gray or RGB, as the bytes of a JPEG file of some quality (1 to 95)."""
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality, optimize=True)
    return data.getvalue()


def bounded_jpeg(image: Image.Image, limit: int) -> bytes:
    """A picture as a JPEG file of bounded size: first at lower quality, then with fewer pixels.

    Args:
      image: gray or RGB.
      limit: bytes at most; a picture of 32 pixels a side is taken whatever its bytes are.

    Returns:
      The file; its longer side has at most `SIDE` pixels.
    """
    side = min(SIDE, max(image.size))
    while True:
        shown = image
        if side < max(image.size):
            size = [max(1, round(side * length / max(image.size))) for length in image.size]
            shown = image.resize(size, Image.Resampling.LANCZOS)
        for quality in _QUALITIES:
            data = jpeg(shown, quality)
            if len(data) <= limit:
                return data
        if side <= 32:
            return data
        side = max(32, side * 3 // 4)


def data_uri(data: bytes) -> str:
    """The address of a JPEG file that is inside the page."""
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode('ascii')}"
