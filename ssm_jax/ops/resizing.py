"""Resizing on the host, as the reference implementation does before the network."""

import math

import numpy as np
from jaxtyping import Float32, Int, Real, Shaped


def resized_shape(height: float, width: float, image_size: int, max_size: int) -> tuple[int, int]:
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


def resize_bilinear(
    image: Real[np.ndarray, "H W C"], height: int, width: int
) -> Float32[np.ndarray, "{height} {width} C"]:
    """Bilinear resizing with half-pixel centers, clamped at the border, without antialiasing.

    Equals torch's interpolate(mode="bilinear", align_corners=False).

    Args:
      image: of any number of channels and any type; values are kept as they are.
      height: of the result, pixels.
      width: of the result, pixels.
    """
    image = image.astype(np.float32, copy=False)
    low, high, share = _taps(image.shape[0], height)
    share = share[:, None, None]
    rows = image[low] * (1 - share) + image[high] * share
    low, high, share = _taps(image.shape[1], width)
    share = share[:, None]
    return rows[:, low] * (1 - share) + rows[:, high] * share


def _taps(
    size: int, target: int
) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"], Float32[np.ndarray, "n"]]:
    """The two pixels that each of `target` pixels interpolates, and the weight of the second."""
    source = np.maximum((np.arange(target) + 0.5) * (size / target) - 0.5, 0)
    low = np.minimum(np.floor(source).astype(np.intp), size - 1)
    return low, np.minimum(low + 1, size - 1), (source - low).astype(np.float32)


def resize_nearest(
    mask: Shaped[np.ndarray, "H W"], height: int, width: int
) -> Shaped[np.ndarray, "{height} {width}"]:
    """Nearest-neighbor resizing: output i takes input floor(i * input / output).

    Equals torch's interpolate(mode="nearest").

    Args:
      mask: of any dtype, which the result has too.
      height: of the result, pixels.
      width: of the result, pixels.
    """
    rows = np.arange(height) * mask.shape[0] // height
    columns = np.arange(width) * mask.shape[1] // width
    return mask[rows[:, None], columns]
