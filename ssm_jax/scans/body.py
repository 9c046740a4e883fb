"""The patient's body in a CT slice, by a threshold: what lies outside of it is no lesion."""

from __future__ import annotations

import numpy as np

_THIN = 2  # pixels to each side that parts of the body are wider than, and tables and tubes are not


def body_mask(image: np.ndarray, tissue: float) -> np.ndarray:
    """Finds the body.

    It is the largest connected part that is as dense as tissue, without thin parts such as the
    table, and all that it surrounds in its rows and columns.

    Args:
      image: uint8 [H, W] or [H, W, 3], a slice as shown.
      tissue: gray level from which a pixel is tissue and no air or lung.

    Returns:
      bool [H, W]; nowhere true where there is no body.
    """
    from scipy import ndimage  # takes half a second to import

    gray = image if image.ndim == 2 else image.mean(axis=2)
    thick = ndimage.binary_opening(gray >= tissue, iterations=_THIN)
    parts, count = ndimage.label(thick)
    if not count:
        return thick
    largest = parts == np.bincount(parts.ravel())[1:].argmax() + 1
    inside = np.ones_like(largest)
    for axis in (0, 1):
        inside &= np.logical_or.accumulate(largest, axis)
        inside &= np.flip(np.logical_or.accumulate(np.flip(largest, axis), axis), axis)
    return inside
