"""Resizing on the host, as the reference implementation does before the network."""

from __future__ import annotations

import math

import numpy as np


def resized_shape(height: int, width: int, image_size: int, max_size: int) -> tuple[int, int]:
    """Height and width of a slice after resizing.

    The short side becomes `image_size` unless that makes the long side longer than `max_size`.
    Products are truncated in double precision, as the reference implementation does; so some short
    sides (694, say) come out one pixel less than `image_size`.

    Args:
      height: of the slice, pixels, positive.
      width: of the slice, pixels, positive.
      image_size: wanted length of the short side, pixels.
      max_size: bound of the long side, pixels.
    """
    scale = min(image_size / min(height, width), max_size / max(height, width))
    return max(1, math.floor(height * scale)), max(1, math.floor(width * scale))


def resize_bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear resizing with half-pixel centers, clamped at the border, without antialiasing.

    Args:
      image: float32 [H, W, C].
      height: of the result, pixels.
      width: of the result, pixels.

    Returns:
      float32 [height, width, C]; equals torch's interpolate(mode="bilinear", align_corners=False).
    """
    image = np.asarray(image, np.float32)
    low, high, share = _taps(image.shape[0], height)
    share = share[:, None, None]
    rows = image[low] * (1 - share) + image[high] * share
    low, high, share = _taps(image.shape[1], width)
    share = share[:, None]
    return rows[:, low] * (1 - share) + rows[:, high] * share


def _taps(size: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both source indices int [target] and the weight float32 [target] of the second."""
    source = np.maximum((np.arange(target) + 0.5) * (size / target) - 0.5, 0)
    low = np.minimum(np.floor(source).astype(np.intp), size - 1)
    return low, np.minimum(low + 1, size - 1), (source - low).astype(np.float32)


def resize_nearest(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Nearest-neighbor resizing: output i takes input floor(i * input / output).

    Args:
      mask: [H, W], any dtype.
      height: of the result, pixels.
      width: of the result, pixels.

    Returns:
      [height, width], same dtype; equals torch's interpolate(mode="nearest").
    """
    rows = np.arange(height) * mask.shape[0] // height
    columns = np.arange(width) * mask.shape[1] // width
    return mask[rows[:, None], columns]
