"""Picture files of 8 or 16 bits, gray or colored, shown as `ssm-jax predict` shows them."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from ssm_jax.data.images import ImageError
from ssm_jax.scans.find import Blob
from ssm_jax.scans.options import MIB, InputOptions
from ssm_jax.scans.pictures import Picture

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_PLAIN = {("PNG", "L"): False, ("JPEG", "L"): False, ("PNG", "RGB"): True, ("JPEG", "RGB"): True}


def picture_fields(path: pathlib.Path, options: InputOptions) -> dict[str, Any]:
    """The fields `read`, `plain` and `colored` of the draft of a picture file.

    A file that is no picture has them, too: reading it raises.
    """
    read = functools.partial(_read, path, options)
    try:
        with Image.open(path) as image:
            colored = _PLAIN.get((image.format or "", image.mode))
            animated = getattr(image, "is_animated", False)
    except Exception:  # damaged files raise almost anything; reading says what
        return {"read": read}
    if colored is None or animated or "transparency" in image.info:
        return {"read": read}
    return {"read": read, "plain": path, "colored": colored}


def is_deep(path: pathlib.Path) -> bool:
    """Whether a file has more than 8 bits a pixel; False for what is no picture."""
    try:
        with Image.open(path) as image:
            return image.mode.startswith(("I", "F"))
    except Exception:
        return False


def _read(path: pathlib.Path, options: InputOptions) -> np.ndarray:
    """uint8 [H, W] or [H, W, 3]."""
    picture = Picture(Blob(str(path), str(path), options.max_file_mib * MIB), options)
    picture.look()
    if picture.pages > 1:
        raise ImageError(f"has {picture.pages} pages; save each as a file of its own")
    return picture.read(0)
