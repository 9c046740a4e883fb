"""Procedural chest anatomy: body, lungs, mediastinum, bones and table, in Hounsfield units.

Everything is drawn from one random generator, so that two slices with the same generator state
have the same anatomy whatever disease is painted into them.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ssm_jax.data.phantom import fields
from ssm_jax.data.phantom.fields import coverage, ellipse, paint, smooth_max, smooth_min

AIR, FAT, TISSUE, BLOOD = -1000.0, -100.0, 45.0, 60.0


@dataclasses.dataclass
class Anatomy:
    """One slice without vessels, lesions or noise.

    Attributes:
      image: float32 [size, size], Hounsfield units.
      lung: float32 [size, size], share of the pixel inside a lung.
      lung_shape: float32 [g, g], implicit lungs (negative inside), on a grid of g <= size cells
        that spans the same square.
      chest_shape: float32 [g, g], the chest wall alike.
      x: float32 [g, g], anatomical coordinate (before rotation and shift) of that grid.
      y: float32 [g, g], the other one.
      hila: the two points, (x, y) in image coordinates, where the vessels enter: image left, right.
      level: 0 at the apex of the lungs, 1 at their base.
      angle: rotation of the body in radians.
    """

    image: np.ndarray
    lung: np.ndarray
    lung_shape: np.ndarray
    chest_shape: np.ndarray
    x: np.ndarray
    y: np.ndarray
    hila: tuple[tuple[float, float], tuple[float, float]]
    level: float
    angle: float


def make_anatomy(rng: np.random.Generator, size: int) -> Anatomy:
    """Draws one body and cuts it at one level."""
    g = size if size <= 256 or size % 2 else size // 2
    level = float(rng.uniform(0.16, 0.84))
    angle = float(rng.normal(0, 0.05))
    shift = rng.normal(0, 0.02, 2)
    scale = float(rng.uniform(0.9, 1.06))

    gx, gy = fields.grid(g)
    c, s = np.float32(np.cos(angle) / scale), np.float32(np.sin(angle) / scale)
    dx, dy = gx - np.float32(shift[0]), gy - np.float32(shift[1])
    x = c * dx + s * dy + np.float32(0.014) * fields.smooth_noise(rng, 7, g)
    y = c * dy - s * dx + np.float32(0.014) * fields.smooth_noise(rng, 7, g)

    body, chest = _outlines(rng, x, y, level)
    organs = _mediastinum(rng, x, y, level, chest["radii"])
    lung_shape = _lungs(rng, x, y, level, chest, organs)

    soft = 3.0 / size
    bottom = float(gy[:, g // 2][body["shape"][:, g // 2] < 0].max())
    image = _outside(rng, size, bottom)
    texture = fields.smooth_noise(rng, 48, size)
    _paint_wall(rng, image, body, chest, x, y, texture, soft)
    _paint_mediastinum(image, organs, chest, texture, soft)
    lung = coverage(fields.resize_field(lung_shape, size), soft)
    _paint_lungs(rng, image, lung, y, texture)
    _paint_airways(image, organs, soft)
    _paint_bones(rng, image, x, y, chest, organs, texture, soft)

    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * scale
    left, right = (rotation @ point + shift for point in organs["hila"])
    hila = ((float(left[0]), float(left[1])), (float(right[0]), float(right[1])))
    return Anatomy(image, lung, lung_shape, chest["shape"], x, y, hila, level, angle)


def _outlines(rng, x, y, level):
    """Body surface and chest wall as implicit shapes, with the sizes the other organs follow."""
    half_width = rng.uniform(0.8, 0.96)
    half_height = half_width * rng.uniform(0.68, 0.8)
    fat = rng.uniform(0.02, 0.085)
    power = rng.uniform(2.2, 2.7)
    # Front and back differ: the chest is flatter behind, and some bodies have breasts.
    flat = np.where(y > 0, np.float32(rng.uniform(0.9, 0.97)), np.float32(1.0))
    breasts = rng.uniform(0.05, 0.16) if rng.random() < 0.4 and level > 0.3 else 0.0
    bump = np.exp(-(((np.abs(x) - 0.4) / 0.22) ** 2)) * np.float32(breasts)
    height = (half_height * flat + np.where(y < 0, bump, 0)).astype(np.float32)
    shape = fields.superellipse(x, y, (np.float32(half_width), height), power)
    body = {"shape": shape, "fat": fat, "radii": (half_width, half_height)}

    narrow = 0.78 + 0.22 * fields.smoothstep(level, 0.1, 0.45)  # the apex is narrower
    muscle = rng.uniform(0.05, 0.08)
    a = (half_width - fat * 1.3 - muscle * 1.2) * narrow
    back = rng.uniform(0.05, 0.08)  # the muscles of the back push the chest forward
    b = half_height - fat - muscle - back
    # Egg shape: wider behind than in front.
    tilt = np.float32(1.0) + np.float32(rng.uniform(0.05, 0.16)) * y
    chest_shape = fields.superellipse(
        x / tilt, y + np.float32(back), (np.float32(a), np.float32(b)), rng.uniform(2.1, 2.5)
    )
    # Behind, the lungs reach further back than the spine in the middle.
    groove = np.exp(-((x / np.float32(0.2)) ** 2)) * (y > 0)
    chest_shape += np.float32(rng.uniform(0.04, 0.08)) * groove
    return body, {"shape": chest_shape, "radii": (a, b), "back": back}


def _mediastinum(rng, x, y, level, radii):
    """Heart, vessels, airways and spine: a dict of implicit shapes and points."""
    a, b = radii
    midline = rng.normal(0, 0.012)
    spine = (midline, b * rng.uniform(0.68, 0.76) - 0.04)
    spine_radius = rng.uniform(0.095, 0.12)
    heart_size = float(fields.smoothstep(level, 0.38, 0.66)) * rng.uniform(0.85, 1.12)
    heart_center = (midline + 0.1 * a + 0.03 * heart_size, -0.24 * b)
    aorta = (midline + rng.uniform(0.09, 0.13), b * rng.uniform(0.36, 0.44) - 0.04)

    width = 0.035 + 0.1 * np.exp(-(((y / b - 0.05) / 0.5) ** 2)) * rng.uniform(0.8, 1.2)
    band = (np.abs(x - np.float32(midline)) - width).astype(np.float32)
    soft = [ellipse(x, y, spine, (spine_radius * 1.25, spine_radius * 1.2))]
    blood = [ellipse(x, y, aorta, (r := rng.uniform(0.045, 0.065), r))]
    if heart_size > 0.15:
        radii = (0.40 * a * heart_size + 0.03, 0.42 * b * heart_size + 0.03)
        blood.append(ellipse(x, y, heart_center, radii, rng.uniform(0.2, 0.7)))
    if level < 0.62:
        # Ascending aorta or arch, and the superior vena cava beside it.
        arch = rng.uniform(0.07, 0.09)
        blood.append(ellipse(x, y, (midline - 0.02, -0.2 * b), (arch, arch * 1.15)))
        blood.append(ellipse(x, y, (midline - 0.12, -0.12 * b), (0.04, 0.05)))
        if level > 0.36:
            angle = rng.uniform(-0.3, 0.1)
            blood.append(ellipse(x, y, (midline + 0.08, -0.06 * b), (0.17, 0.055), angle))
    hila = ((midline - 0.17, 0.06 * b), (midline + 0.19, 0.04 * b))
    presence = float(np.exp(-(((level - 0.47) / 0.16) ** 2)))
    if presence > 0.3:
        for px, py in hila:
            radius = 0.07 * presence * rng.uniform(0.8, 1.3)
            blood.append(ellipse(x, y, (px, py), (radius, radius * 1.4), rng.uniform(-0.6, 0.6)))
    if level < 0.42:
        r = rng.uniform(0.042, 0.058)
        airways = [ellipse(x, y, (midline - 0.005, 0.1 * b), (r, r * 0.85))]
    elif level < 0.62:
        r = rng.uniform(0.028, 0.04)
        centers = ((midline - 0.1, 0.12 * b), (midline + 0.09, 0.14 * b))
        airways = [ellipse(x, y, center, (r, r * 0.85)) for center in centers]
    else:
        airways = []
    solid = blood[0]
    for shape in blood[1:]:
        solid = smooth_min(solid, shape, 0.02)
    whole = smooth_min(smooth_min(solid, soft[0], 0.06), band, 0.05) - np.float32(0.012)
    return {
        "whole": whole,
        "solid": solid,
        "spine": spine,
        "spine_radius": spine_radius,
        "airways": np.minimum.reduce(airways) if airways else None,
        "hila": hila,
    }


def _lungs(rng, x, y, level, chest, organs):
    """Implicit shape of both lungs: the chest less mediastinum, liver dome and left diaphragm."""
    a, b = chest["radii"]
    lungs = smooth_max(chest["shape"] + np.float32(0.014), -organs["whole"], 0.05)
    for side, start, back in ((-1, 0.66, 0.0), (1, 0.74, 0.05)):
        rise = (level - start - rng.uniform(-0.04, 0.04)) / 0.3
        if rise > 0.04:
            size = min(1.15, rise**0.6)
            center = (side * a * 0.5, -b * (0.12 + back))
            radii = (a * 0.55 * size, b * 0.8 * size)
            lungs = smooth_max(lungs, -ellipse(x, y, center, radii), 0.04)
    return lungs


def _outside(rng, size, bottom):
    """Air with folds of a blanket, and the table under a back at `bottom`: [size, size] HU."""
    image = np.full((size, size), AIR, np.float32)
    x, y = fields.grid(size)
    top = slice(0, size // 2)
    lines = coverage(np.abs(fields.smooth_noise(rng, 9, size)[top]) - np.float32(0.015), 0.05)
    above = np.float32(rng.uniform(-0.6, -0.1))
    lines *= y[top] < np.float32(0.5) * np.abs(x[top]) + above
    image[top] += lines * np.float32(rng.uniform(0, 160))
    depth, bend = bottom + rng.uniform(0.02, 0.06), rng.uniform(0.1, 0.22)
    low = slice(min(size - 1, int((bottom + 0.7) * size / 2)), size)
    arc = y[low] - np.float32(depth) + np.float32(bend) * x[low] * x[low]
    under = image[low]
    for offset, width, value in ((0.0, 0.006, 250), (0.045, 0.004, -100), (0.16, 0.01, 300)):
        band = np.abs(arc - np.float32(offset)) - np.float32(width)
        paint(under, coverage(band, 3.0 / size), np.float32(value))
    paint(under, coverage(np.abs(arc - np.float32(0.1)) - np.float32(0.05), 0.01), np.float32(-930))
    return image


def _paint_wall(rng, image, body, chest, x, y, texture, soft):
    """Skin, fat and the muscles of the chest wall."""
    size = image.shape[0]
    surface = fields.resize_field(body["shape"], size)
    paint(image, coverage(surface, soft), np.float32(TISSUE - 20))
    flesh = np.float32(FAT) + np.float32(8) * texture
    paint(image, coverage(surface + np.float32(0.008), soft), flesh)
    # Muscle lies between the fat and the chest, thicker beside the spine, cut by planes of fat.
    g = x.shape[0]
    ripple = np.float32(0.014) * fields.smooth_noise(rng, 14, g)
    back = np.exp(-((x / 0.3) ** 2)) * (y > 0)
    inner = chest["shape"] - np.float32(0.06) - np.float32(0.05) * back.astype(np.float32)
    muscle = np.maximum(inner, body["shape"] + np.float32(0.018)) + ripple
    planes = np.abs(fields.smooth_noise(rng, 18, g)) - np.float32(0.1)
    muscle = np.maximum(muscle, -planes * np.float32(0.06))
    muscle = np.minimum(muscle, chest["shape"] + np.float32(0.0))
    paint(
        image,
        coverage(fields.resize_field(muscle, size), soft * 1.5),
        np.float32(TISSUE) + np.float32(6) * texture,
    )


def _paint_mediastinum(image, organs, chest, texture, soft):
    """Fat of the mediastinum, then heart and vessels; the diaphragm stays as soft tissue."""
    size = image.shape[0]
    inside = np.maximum(organs["whole"], chest["shape"] + np.float32(0.02))
    alpha = coverage(fields.resize_field(inside, size), 4 * soft)
    paint(image, alpha, np.float32(FAT + 40) + np.float32(12) * texture)
    solid = coverage(fields.resize_field(organs["solid"], size), soft * 1.5)
    paint(image, solid, np.float32(BLOOD) + np.float32(5) * texture)


def _paint_lungs(rng, image, lung, y, texture):
    """Aerated lung: denser towards the back, with a slow and a fine variation."""
    g = y.shape[0]
    value = np.float32(rng.uniform(-890, -820)) + np.float32(rng.uniform(20, 90)) * y
    value += fields.smooth_noise(rng, 6, g) * np.float32(rng.uniform(5, 18))
    value += fields.smooth_noise(rng, 110, g) * np.float32(rng.uniform(6, 16))
    value = fields.resize_field(value, image.shape[0])
    value += np.float32(5) * texture
    paint(image, lung, value)


def _paint_airways(image, organs, soft):
    """Trachea or main bronchi: a thin wall around air."""
    if organs["airways"] is not None:
        full = fields.resize_field(organs["airways"], image.shape[0])
        paint(image, coverage(full - np.float32(0.012), soft * 1.5), np.float32(TISSUE))
        paint(image, coverage(full, soft), np.float32(AIR + 10))


def _paint_bones(rng, image, x, y, chest, organs, texture, soft):
    """Ribs along the chest wall, vertebra, sternum and shoulder blades."""
    size = image.shape[0]
    a, b = chest["radii"]
    marrow = np.float32(160) + np.float32(40) * texture
    # Ribs: the wall between two offsets from the pleura, over some stretches of the angle.
    turn = np.arctan2(y / np.float32(b) + np.float32(0.1), x / np.float32(a))
    count = rng.integers(4, 7)
    waves = np.sin(turn * np.float32(count) * 2 + np.float32(rng.uniform(0, 6.28)))
    waves += np.float32(0.5) * np.sin(turn * 3 + np.float32(rng.uniform(0, 6.28)))
    stretch = (np.float32(rng.uniform(0.0, 0.4)) - waves) * np.float32(0.05)
    middle, half = rng.uniform(0.028, 0.036), rng.uniform(0.014, 0.019)
    ribs = smooth_max(np.abs(chest["shape"] - np.float32(middle)) - np.float32(half), stretch, 0.02)
    sx, sy = organs["spine"]
    r = organs["spine_radius"]
    spine = ellipse(x, y, (sx, sy), (r, r * 0.78))
    arch = ellipse(x, y, (sx, sy + 1.25 * r), (r * 0.75, r * 0.62))
    process = ellipse(x, y, (sx, sy + 1.95 * r), (r * 0.16, r * 0.6))
    wings = ellipse(x, y, (sx, sy + 1.1 * r), (r * 1.75, r * 0.2))
    spine = smooth_min(smooth_min(spine, arch, 0.03), smooth_min(process, wings, 0.02), 0.02)
    sternum = ellipse(x, y, (sx, -b - chest["back"] - 0.045), (rng.uniform(0.09, 0.14), 0.028))
    bones = np.minimum(np.minimum(ribs, spine), sternum)
    if rng.random() < 0.6:
        out, tilt = a * rng.uniform(0.66, 0.78), rng.uniform(0.5, 0.8)
        for side in (-1, 1):
            blade = ellipse(x, y, (side * out, b * 0.86), (0.15, 0.014), -side * tilt)
            bones = np.minimum(bones, blade)
    # No bone inside the chest but the spine, which the mediastinum keeps out of the lungs.
    full = fields.resize_field(bones, size)
    paint(image, coverage(full, soft), np.float32(420))
    paint(image, coverage(full + np.float32(0.012), soft * 2), marrow)
    canal = ellipse(x, y, (sx, sy + 1.2 * r), (r * 0.42, r * 0.36))
    paint(image, coverage(fields.resize_field(canal, size), soft), np.float32(20))
