"""Pulmonary vessels of the phantom: branching, tapering trees seen through one thin slice."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

STEPS = 34
STEP = 0.024  # length of a segment, in half widths of the image
MAX_BRANCHES = 160


def draw_vessels(rng: np.random.Generator, hila, lung_shape: np.ndarray, size: int) -> np.ndarray:
    """Share of every pixel that is vessel.

    Trees grow from the hila away from the midline. A third coordinate wanders along each branch,
    and only what lies near the plane of the slice is drawn, so that most vessels show as pieces;
    vessels that cross the plane show as dots.

    Args:
      rng: source of every random number.
      hila: two points (x, y) in [-1, 1], image left and image right.
      lung_shape: [g, g] implicit lungs, negative inside.
      size: pixels of the output.

    Returns:
      float32 [size, size] in [0, 1].
    """
    canvas = Image.new("L", (2 * size, 2 * size))
    draw = ImageDraw.Draw(canvas)
    for side, hilum in zip((-1, 1), hila, strict=True):
        start, end, width, level = _grow(rng, np.array(hilum), side)
        inside = _sample(lung_shape, end) < 0.0
        _draw_segments(draw, start[inside], end[inside], width[inside], level[inside], size)
    _draw_dots(rng, draw, hila, lung_shape, size)
    return np.asarray(canvas.reduce(2), np.float32) * np.float32(1 / 255)


def _sample(field: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Values of `field` [g, g] at points [n, 2] in [-1, 1] (nearest; clamped at the border)."""
    g = field.shape[0]
    cells = np.clip(((points + 1) * (g / 2)).astype(int), 0, g - 1)
    return field[cells[:, 1], cells[:, 0]]


def _grow(rng, hilum, side):
    """All segments of one tree: starts [n, 2], ends [n, 2], widths [n], visibility [n]."""
    roots = int(rng.integers(8, 12))
    heading = np.linspace(-1.35, 1.35, roots) + rng.normal(0, 0.12, roots)
    heading = heading if side > 0 else np.pi - heading
    position = hilum + rng.normal(0, 0.025, (roots, 2))
    width = rng.uniform(0.011, 0.02, roots)
    depth = rng.normal(0, 0.035, roots)
    slope = rng.normal(0, 0.3, roots)
    starts, ends, widths, levels = [], [], [], []
    for _ in range(STEPS):
        n = len(heading)
        heading = heading + rng.normal(0, 0.19, n)
        slope = slope * 0.9 + rng.normal(0, 0.13, n)
        reach = position + STEP * np.stack([np.cos(heading), np.sin(heading)], 1)
        depth = depth + STEP * slope
        thickness = width / 2 + 0.016
        starts.append(position)
        ends.append(reach)
        widths.append(width)
        levels.append(np.clip(1.6 - 1.6 * np.abs(depth) / thickness, 0, 1))
        position, width = reach, width * 0.945
        split = rng.random(n) < 0.16
        fork = rng.choice((-1.0, 1.0), n) * rng.uniform(0.45, 0.9, n)
        room = max(0, MAX_BRANCHES - n)
        new = np.flatnonzero(split)[:room]
        heading[new] -= 0.25 * fork[new]
        heading = np.concatenate([heading, heading[new] + fork[new]])
        position = np.concatenate([position, position[new]])
        depth = np.concatenate([depth, depth[new]])
        slope = np.concatenate([slope, -slope[new] + rng.normal(0, 0.2, len(new))])
        width = np.concatenate([width, width[new] * rng.uniform(0.5, 0.85, len(new))])
    segments = [np.concatenate(parts) for parts in (starts, ends, widths, levels)]
    visible = segments[3] > 0.05
    return tuple(part[visible] for part in segments)


def _draw_segments(draw, start, end, width, level, size):
    """Draws onto the double-sized canvas; thinner than a pixel of it becomes fainter instead."""
    pixels = width * size  # widths are in half image widths, the canvas has 2 * size pixels
    value = (255 * level * np.clip(pixels, 0.25, 1)).astype(int)
    thick = np.maximum(1, np.round(pixels)).astype(int)
    ends = np.concatenate([start, end], 1) * size + size
    order = np.argsort(value, kind="stable")
    coordinates = ends[order].tolist()
    for line, shade, w in zip(
        coordinates, value[order].tolist(), thick[order].tolist(), strict=True
    ):
        draw.line(line, fill=shade, width=w)
        if w > 4:  # round the joints of thick vessels
            r = w / 2
            for cx, cy in (line[:2], line[2:]):
                draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=shade)


def _draw_dots(rng, draw, hila, lung_shape, size):
    """Vessels that cross the slice: round or slightly long spots, larger near the hila."""
    count = int(rng.integers(120, 240))
    points = rng.uniform(-0.95, 0.95, (count, 2))
    near = np.min([np.hypot(*(points - np.array(h)).T) for h in hila], axis=0)
    keep = (_sample(lung_shape, points) < -0.01) & (rng.random(count) < np.exp(-near * 1.2) * 1.3)
    radius = (0.004 + 0.011 * np.exp(-near / 0.16)) * rng.uniform(0.6, 1.4, count)
    stretch = rng.uniform(0.8, 1.25, count)
    shade = rng.uniform(0.55, 1.0, count)
    for (px, py), r, e, v in zip(
        points[keep], radius[keep], stretch[keep], shade[keep], strict=True
    ):
        rx, ry = r * e * size, r / e * size
        cx, cy = px * size + size, py * size + size
        bright = int(255 * v * min(1.0, max(0.25, 2 * r * size)))
        draw.ellipse((cx - rx, cy - ry, cx + rx, cy + ry), fill=bright)
