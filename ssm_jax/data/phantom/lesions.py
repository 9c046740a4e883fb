"""Lesions of the phantom: where they lie, how large, dense and irregular they are.

COVID-19 makes several ground-glass patches along the chest wall, mostly in both lungs, some with a
consolidated core. Common pneumonia makes one or a few larger consolidations with a ground-glass
rim, deeper in the lung and mostly on one side. A minority of either breaks one of these rules.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ssm_jax.classes import CONSOLIDATION, COVID, GROUND_GLASS
from ssm_jax.data.phantom import fields
from ssm_jax.data.phantom.anatomy import Anatomy

SMALLEST = 0.0012  # share of the slice that the largest lesion has at least (315 px at 512)


@dataclasses.dataclass(frozen=True)
class Patch:
    """One lesion: an ellipse to be warped by noise.

    Attributes:
      center: (x, y) in half image widths.
      radii: along and across `angle`, in half image widths.
      angle: in radians.
      rim: HU that the ground glass adds to the lung.
      core: radius of the consolidated part relative to the whole, 0 for none.
      softness: width of the ground-glass edge, relative to the radii.
    """

    center: tuple[float, float]
    radii: tuple[float, float]
    angle: float
    rim: float
    core: float
    softness: float


@dataclasses.dataclass
class Lesions:
    """Painted lesions.

    Attributes:
      ground_glass: float32 [size, size], HU to add.
      consolidation: float32 [size, size], share of the pixel that is consolidated.
      labels: uint8 [size, size], mask values of ground glass and consolidation, 0 elsewhere.
    """

    ground_glass: np.ndarray
    consolidation: np.ndarray
    labels: np.ndarray


def make_lesions(rng: np.random.Generator, anatomy: Anatomy, label: int) -> Lesions:
    """Draws the lesions of a class into a given anatomy.

    Args:
      rng: source of every random number.
      anatomy: the slice.
      label: 1 common pneumonia or 2 COVID-19.

    Returns:
      Lesions whose largest patch covers at least SMALLEST of the slice: smaller draws are
      repeated, with larger patches each time.
    """
    grow = 1.0
    while True:
        patches = (_covid if label == COVID else _pneumonia)(rng, anatomy, grow)
        lesions, largest = _render(rng, anatomy, patches)
        if largest >= SMALLEST or grow > 3:
            return lesions
        grow *= 1.25


def _sides(anatomy):
    """Grid cells (row, column) well inside a lung, for image left and image right."""
    x = anatomy.x
    inside = anatomy.lung_shape < -0.012
    return [inside & (x < 0), inside & (x > 0)]


def _pick(rng, cells, weight):
    """One grid cell (row, column) of a mask, drawn by weight; None where the mask is empty."""
    rows, columns = np.nonzero(cells)
    if len(rows) == 0:
        return None
    cumulative = np.cumsum(weight[rows, columns], dtype=np.float64)
    at = int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
    at = min(at, len(rows) - 1)
    return int(rows[at]), int(columns[at])


def _position(cell, g):
    return (float((cell[1] + 0.5) * 2 / g - 1), float((cell[0] + 0.5) * 2 / g - 1))


def _wall_angle(anatomy, cell):
    """Direction of the chest wall nearest to a grid cell: along a level line of its shape."""
    row, column = (int(np.clip(v, 1, anatomy.chest_shape.shape[0] - 2)) for v in cell)
    f = anatomy.chest_shape
    gy = f[row + 1, column] - f[row - 1, column]
    gx = f[row, column + 1] - f[row, column - 1]
    return float(np.arctan2(gx, -gy))


def _covid(rng, anatomy, grow):
    g = anatomy.x.shape[0]
    sides = _sides(anatomy)
    count = int(rng.choice([3, 4, 5, 6, 7, 8, 9], p=[0.07, 0.13, 0.2, 0.22, 0.18, 0.12, 0.08]))
    bilateral = rng.random() < 0.85
    first = int(rng.integers(2))
    severity = rng.uniform(0.8, 1.2) * grow
    density = rng.uniform(150, 420)
    depth = -anatomy.chest_shape
    behind = np.exp(1.6 * anatomy.y)
    patches = []
    for k in range(count):
        side = (first + k) % 2 if bilateral else first
        peripheral = rng.random() < 0.88
        low, high = (0.0, 0.1) if peripheral else (0.1, 0.5)
        cell = _pick(rng, sides[side] & (depth > low) & (depth < high), behind)
        if cell is None:
            continue
        size = severity * rng.uniform(0.045, 0.105)
        long = rng.uniform(1.2, 2.0) if peripheral else rng.uniform(1.0, 1.3)
        patches.append(
            Patch(
                center=_position(cell, g),
                radii=(size * long, size),
                angle=_wall_angle(anatomy, cell) + rng.normal(0, 0.2),
                rim=density * rng.uniform(0.75, 1.25),
                core=rng.uniform(0.35, 0.65) if rng.random() < 0.25 else 0.0,
                softness=rng.uniform(0.2, 0.55),
            )
        )
    return patches


def _pneumonia(rng, anatomy, grow):
    g = anatomy.x.shape[0]
    sides = _sides(anatomy)
    count = int(rng.choice([1, 2, 3], p=[0.8, 0.16, 0.04]))
    first = int(rng.integers(2))
    one_sided = rng.random() < 0.85
    sparse = rng.random() < 0.15  # hardly consolidated: told from COVID-19 by size and place
    depth = -anatomy.chest_shape
    weight = np.exp(0.6 * anatomy.y)
    patches = []
    for k in range(count):
        side = first if one_sided or k == 0 else 1 - first
        central = rng.random() < 0.8
        low, high = (0.12, 0.6) if central else (0.02, 0.14)
        cell = _pick(rng, sides[side] & (depth > low) & (depth < high), weight)
        if cell is None:
            cell = _pick(rng, sides[side], weight)
        if cell is None:
            continue
        size = grow * rng.uniform(0.1, 0.2) * (1.0 if k == 0 else rng.uniform(0.5, 0.8))
        patches.append(
            Patch(
                center=_position(cell, g),
                radii=(size * rng.uniform(1.0, 1.5), size),
                angle=float(rng.uniform(0, np.pi)),
                rim=rng.uniform(200, 450),
                core=rng.uniform(0.3, 0.5) if sparse else rng.uniform(0.7, 0.97),
                softness=rng.uniform(0.12, 0.35),
            )
        )
    return patches


def _render(rng, anatomy, patches):
    """Paints patches; also returns the share of the slice of the largest one."""
    g, size = anatomy.x.shape[0], anatomy.lung.shape[0]
    gx, gy = fields.grid(g)
    warp = fields.smooth_noise(rng, 14, g) * np.float32(0.24)
    warp += fields.smooth_noise(rng, 34, g) * np.float32(0.16)
    inside = anatomy.lung_shape < 0
    cover, added, core = (np.zeros((g, g), np.float32) for _ in range(3))
    largest = 0.0
    for patch in patches:
        # The ellipse is relative (1 at its edge), so that the noise eats equally into all sizes.
        window = _window(patch, g)
        dx, dy = gx[window] - np.float32(patch.center[0]), gy[window] - np.float32(patch.center[1])
        c, s = np.float32(np.cos(patch.angle)), np.float32(np.sin(patch.angle))
        along, across = (c * dx + s * dy) / patch.radii[0], (c * dy - s * dx) / patch.radii[1]
        shape = np.sqrt(along * along + across * across).astype(np.float32) - 1 + warp[window]
        alpha = fields.coverage(shape, patch.softness)
        largest = max(largest, float(np.sum((alpha > 0.5) & inside[window])) / (g * g))
        cover[window] = np.maximum(cover[window], alpha)
        added[window] = np.maximum(added[window], alpha * np.float32(patch.rim))
        if patch.core:
            dense = fields.coverage(shape + np.float32(1 - patch.core), 0.16)
            core[window] = np.maximum(core[window], dense)

    septa = fields.coverage(np.abs(fields.smooth_noise(rng, 60, g)) - np.float32(0.08), 0.1)
    texture = 1 + np.float32(0.22) * fields.smooth_noise(rng, 96, g)
    added *= np.maximum(0, texture + septa * np.float32(rng.uniform(0, 0.5)))
    # Air-filled bronchi stay open in a consolidation.
    bronchi = fields.coverage(np.abs(fields.smooth_noise(rng, 22, g)) - np.float32(0.03), 0.08)
    dense = core * (1 - bronchi * np.float32(rng.uniform(0, 0.7)))
    added, cover, core, dense = (fields.resize_field(f, size) for f in (added, cover, core, dense))
    lung = anatomy.lung > 0.5
    labels = (lung & (cover > 0.5)).view(np.uint8) * np.uint8(GROUND_GLASS)
    labels[lung & (core > 0.5)] = CONSOLIDATION
    return Lesions(added, dense, labels), largest


def _window(patch, g):
    """Slices of the grid that hold the patch with room for its warp."""
    reach = 2.2 * max(patch.radii)
    bounds = []
    for center in (patch.center[1], patch.center[0]):
        low = int((center - reach + 1) * g / 2)
        high = int((center + reach + 1) * g / 2) + 1
        bounds.append(slice(max(0, low), min(g, high)))
    return tuple(bounds)
