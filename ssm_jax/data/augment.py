"""Random changes of training slices: of their gray values, then one affine warp."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np

from ssm_jax.data.objects import exceeds, object_boxes
from ssm_jax.data.sources import ClassificationExample, SegmentationExample

cv2.setNumThreads(1)  # slices are loaded by several threads anyway
_CLIP_LIMITS = (1.0, 4.0)  # of adaptive histogram equalization, in mean bin heights
_TILES = (8, 8)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How far slices are changed; all 0: not at all. Numbers are drawn for every slice.

    Attributes:
      flip: probability of a mirror image.
      scale: zoom by a factor from 1 / (1 + scale) to 1 + scale.
      shift: at most this share of the sides, in either direction.
      rotate: at most so many degrees, in either direction.
      crop: at most this share of the sides is cut off, and the rest enlarged to the whole.
      gain: contrast by a factor from 1 / (1 + gain) to 1 + gain.
      offset: brightness by at most this share of white.
      gamma: exponent of the gray values from 1 / (1 + gamma) to 1 + gamma.
      noise: standard deviation of white noise, at most this share of white.
      blur: standard deviation of a Gaussian blur, at most so many pixels of the slice.
      clahe: probability of contrast-limited adaptive histogram equalization.
    """

    flip: float = 0.0
    scale: float = 0.0
    shift: float = 0.0
    rotate: float = 0.0
    crop: float = 0.0
    gain: float = 0.0
    offset: float = 0.0
    gamma: float = 0.0
    noise: float = 0.0
    blur: float = 0.0
    clahe: float = 0.0

    @property
    def active(self) -> bool:
        """Whether anything changes."""
        return any(dataclasses.astuple(self))

    @property
    def moves(self) -> bool:
        """Whether pixels move."""
        return any((self.flip, self.scale, self.shift, self.rotate, self.crop))


def segmentation(
    augmentation: Augmentation,
    rng: np.random.Generator,
    example: SegmentationExample,
    min_area: int,
) -> SegmentationExample:
    """Changes a slice; its objects move with it.

    Boxes are those of the moved objects. Objects that are out of sight, or no longer exceed the
    least area, are background.

    Args:
      augmentation: how far.
      rng: source of every random number.
      example: the slice.
      min_area: see `objects.exceeds`.

    Returns:
      A slice of the same size.
    """
    image = change_gray(augmentation, rng, example.image)
    if not augmentation.moves:
        return dataclasses.replace(example, image=image)
    height, width = example.instances.shape
    matrix = draw_warp(augmentation, rng, height, width)
    moved = warp(example.instances, matrix, cv2.INTER_NEAREST)
    count = len(example.boxes)
    areas = np.bincount(moved.ravel(), minlength=count + 1)[1:]
    kept = np.flatnonzero(exceeds(areas, min_area, height, width))
    numbers = np.zeros(256, np.uint8)
    numbers[kept + 1] = np.arange(1, len(kept) + 1)
    instances = cv2.LUT(moved, numbers)
    return dataclasses.replace(
        example,
        image=warp(image, matrix, cv2.INTER_LINEAR),
        instances=instances,
        boxes=object_boxes(instances, len(kept)),
        labels=example.labels[kept],
        lesion=warp(example.lesion, matrix, cv2.INTER_NEAREST),
    )


def classification(
    augmentation: Augmentation, rng: np.random.Generator, example: ClassificationExample
) -> ClassificationExample:
    """Changes a slice, as `segmentation` does."""
    image = change_gray(augmentation, rng, example.image)
    if augmentation.moves:
        matrix = draw_warp(augmentation, rng, *image.shape[:2])
        image = warp(image, matrix, cv2.INTER_LINEAR)
    return dataclasses.replace(example, image=image)


def draw_warp(
    augmentation: Augmentation, rng: np.random.Generator, height: int, width: int
) -> np.ndarray:
    """Draws flip, zoom, shift, rotation and crop as one affine map.

    Returns:
      float64 [2, 3]: takes (x, y, 1) of a pixel of the new slice to its place in the old one; the
      centers of pixels are whole numbers.
    """
    side = 1 - rng.uniform(0, augmentation.crop)
    place = rng.uniform(-1, 1, 2) * (1 - side) / 2
    place += rng.uniform(-1, 1, 2) * augmentation.shift
    angle = np.deg2rad(augmentation.rotate) * rng.uniform(-1, 1)
    zoom = _factor(augmentation.scale, rng)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turn *= side / zoom
    if rng.random() < augmentation.flip:
        turn[:, 0] *= -1
    middle = np.array([width - 1, height - 1]) / 2
    start = middle + place * (width, height) - turn @ middle
    return np.column_stack([turn, start])


def warp(pixels: np.ndarray, matrix: np.ndarray, interpolation: int) -> np.ndarray:
    """Moves pixels; outside of the old slice everything is 0.

    Args:
      pixels: uint8 [H, W] or [H, W, C].
      matrix: see `draw_warp`.
      interpolation: `cv2.INTER_LINEAR` or `cv2.INTER_NEAREST`.

    Returns:
      uint8, of the same shape.
    """
    height, width = pixels.shape[:2]
    flags = interpolation | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(pixels, matrix, (width, height), flags=flags).reshape(pixels.shape)


def change_gray(
    augmentation: Augmentation, rng: np.random.Generator, image: np.ndarray
) -> np.ndarray:
    """Changes the gray values: equalization, blur, then gamma, gain and offset, then noise.

    Args:
      augmentation: how far.
      rng: source of every random number.
      image: uint8 [H, W, C].

    Returns:
      uint8 [H, W, C].
    """
    shape = image.shape
    if rng.random() < augmentation.clahe:
        equalize = cv2.createCLAHE(rng.uniform(*_CLIP_LIMITS), _TILES).apply
        image = np.dstack([equalize(channel) for channel in np.moveaxis(image, 2, 0)])
    if augmentation.blur:
        image = cv2.GaussianBlur(image, (0, 0), max(rng.uniform(0, augmentation.blur), 1e-3))
    image = cv2.LUT(image, gray_table(augmentation, rng)).reshape(shape)
    if augmentation.noise:
        deviation = np.float32(255 * rng.uniform(0, augmentation.noise))
        noise = deviation * rng.standard_normal(shape, np.float32)
        image = np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)
    return image


def gray_table(augmentation: Augmentation, rng: np.random.Generator) -> np.ndarray:
    """Draws gamma, gain (about middle gray) and offset: uint8 [256], old gray value -> new one."""
    gray = np.linspace(0, 1, 256) ** _factor(augmentation.gamma, rng)
    gray = (gray - 0.5) * _factor(augmentation.gain, rng) + 0.5
    gray += augmentation.offset * rng.uniform(-1, 1)
    return np.rint(255 * np.clip(gray, 0, 1)).astype(np.uint8)


def _factor(spread: float, rng: np.random.Generator) -> float:
    """A factor from 1 / (1 + spread) to 1 + spread, as often above 1 as below."""
    return (1 + spread) ** rng.uniform(-1, 1)
