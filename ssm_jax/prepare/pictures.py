"""Picture files of 8 or 16 bits, gray or colored, shown as `ssm-jax predict` shows them."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from ssm_jax.data.images import ImageError
from ssm_jax.scans.find import Blob
from ssm_jax.scans.options import MIB, InputOptions, guarded
from ssm_jax.scans.pictures import Picture

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_PLAIN = [(kind, mode) for kind in ("PNG", "JPEG") for mode in ("L", "RGB")]


def picture_fields(path: pathlib.Path, options: InputOptions) -> dict[str, Any]:
    """The fields `read`, `plain` and `deep` of the draft of a picture file.

    A file that is no picture has them, too: reading it raises.
    """
    read = functools.partial(_read, path, options)
    try:
        with Image.open(path) as image:
            plain = (image.format, image.mode) in _PLAIN and "transparency" not in image.info
            animated = getattr(image, "is_animated", False)
            deep = image.mode.startswith(("I", "F"))
    except Exception:  # damaged files raise almost anything; reading says what
        return {"read": read}
    if deep:
        decided = options.values == "hu" or options.rescale is not None
        return {"read": read, "deep": None if decided else path}
    return {"read": read, "plain": path if plain and not animated else None}


def depth_of(path: pathlib.Path) -> str:
    """How a picture of more than 8 bits is shown where nobody says how, see `deep_to_uint8`.

    Raises:
      ScanError: damaged.
    """
    with guarded("cannot be read as a picture"), Image.open(path) as image:
        values = np.asarray(image)
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if low < 0:
        return "windowed"
    return "12 bits" if high <= 4095 else "16 bits"


def _read(path: pathlib.Path, options: InputOptions) -> np.ndarray:
    """uint8 [H, W] or [H, W, 3]."""
    picture = Picture(Blob(str(path), str(path), options.max_file_mib * MIB), options)
    picture.look()
    if picture.pages > 1:
        raise ImageError(f"has {picture.pages} pages; save each as a file of its own")
    return picture.read(0)
