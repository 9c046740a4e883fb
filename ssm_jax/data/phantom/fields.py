"""Small tools of the phantom: smooth noise, implicit shapes, and soft edges.

A shape is an implicit function: an array that is negative inside and grows about as fast as the
distance to the outline. Lengths are in half widths of the image, so that [-1, 1] spans it.
"""

from __future__ import annotations

import numpy as np
from PIL import Image


def resize_field(field: np.ndarray, size: int) -> np.ndarray:
    """Resizes a float32 field [h, h] bilinearly to [size, size] (half-pixel centers)."""
    if field.shape == (size, size):
        return field
    if 2 * field.shape[0] == size:
        return _double(field)
    return _resample(field, size, Image.Resampling.BILINEAR)


def _double(field: np.ndarray) -> np.ndarray:
    """`resize_field` by two: several times as fast as the general case, which counts here."""
    n = field.shape[0]
    padded = np.pad(field, ((0, 0), (1, 1)), mode="edge")
    padded *= np.float32(0.25)
    near = field * np.float32(0.75)
    wide = np.empty((n, n, 2), np.float32)
    np.add(near, padded[:, :-2], out=wide[:, :, 0])
    np.add(near, padded[:, 2:], out=wide[:, :, 1])
    doubled = wide.reshape(n, 2 * n)
    near = doubled * np.float32(0.75)
    doubled *= np.float32(0.25)
    full = np.empty((n, 2, 2 * n), np.float32)
    np.add(near[1:], doubled[:-1], out=full[1:, 0])
    np.add(near[:-1], doubled[1:], out=full[:-1, 1])
    np.add(near[0], doubled[0], out=full[0, 0])
    np.add(near[-1], doubled[-1], out=full[-1, 1])
    return full.reshape(2 * n, 2 * n)


def _resample(field, size, how):
    picture = Image.fromarray(np.ascontiguousarray(field, np.float32))
    return np.asarray(picture.resize((size, size), how))


def smooth_noise(rng: np.random.Generator, cells: int, size: int) -> np.ndarray:
    """Normal noise on a `cells` x `cells` grid, brought to [size, size]: cheap at any size."""
    noise = rng.standard_normal((cells, cells), np.float32)
    small = size if size <= 256 or size % 2 else size // 2
    return resize_field(_resample(noise, small, Image.Resampling.BICUBIC), size)


def grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centers as (x, y), each float32 [size, size], in [-1, 1]; x to the right, y down."""
    line = ((np.arange(size, dtype=np.float32) + 0.5) * (2.0 / size) - 1.0).astype(np.float32)
    return np.meshgrid(line, line)


def ellipse(
    x: np.ndarray, y: np.ndarray, center: tuple[float, float], radii: tuple[float, float], angle=0.0
) -> np.ndarray:
    """Implicit ellipse, turned by `angle` radians; same shape as x and y."""
    dx, dy = x - np.float32(center[0]), y - np.float32(center[1])
    if angle:
        c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        dx, dy = c * dx + s * dy, c * dy - s * dx
    rho = np.sqrt((dx / np.float32(radii[0])) ** 2 + (dy / np.float32(radii[1])) ** 2)
    return (rho - 1) * np.float32(min(radii))


def superellipse(x: np.ndarray, y: np.ndarray, radii, power: float) -> np.ndarray:
    """Implicit superellipse about the origin; `radii` may be arrays that broadcast with x and y."""
    p = np.float32(power)
    rho = (np.abs(x / radii[0]) ** p + np.abs(y / radii[1]) ** p) ** np.float32(1 / power)
    return (rho - 1) * np.minimum(*radii)


def smooth_max(a: np.ndarray, b: np.ndarray, blend: float = 0.03) -> np.ndarray:
    """Intersection of two implicit shapes with a rounded edge of about `blend`."""
    h = np.maximum(np.float32(blend) - np.abs(a - b), 0)
    return np.maximum(a, b) + h * h * np.float32(0.25 / blend)


def smooth_min(a: np.ndarray, b: np.ndarray, blend: float = 0.03) -> np.ndarray:
    """Union of two implicit shapes with a rounded edge of about `blend`."""
    return -smooth_max(-a, -b, blend)


def coverage(shape: np.ndarray, softness: float) -> np.ndarray:
    """Share of a pixel inside an implicit shape, in [0, 1], over an edge `softness` wide."""
    share = shape * np.float32(-1 / softness)
    share += np.float32(0.5)
    np.maximum(share, 0, out=share)
    return np.minimum(share, 1, out=share)


def paint(image: np.ndarray, alpha: np.ndarray, value) -> None:
    """Blends `value` (number or array) into `image` in place, by `alpha` in [0, 1]."""
    change = value - image
    change *= alpha
    image += change


def smoothstep(value, low: float, high: float):
    """0 below `low`, 1 above `high`, a cubic in between."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)
