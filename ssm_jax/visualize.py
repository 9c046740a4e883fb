"""Pictures of predictions: a slice, its true lesions, and what the model found, side by side.

Drawn with Pillow and its built-in font only, so that every machine draws the same picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ssm_jax.classes import LONG_NAMES
from ssm_jax.ops import rle as rle_lib

if TYPE_CHECKING:
    from ssm_jax.predictor import Prediction

# Of the best detection, the second and so on, and again from the first.
PREDICTED_COLORS = ((255, 176, 46), (66, 186, 255), (255, 96, 152), (178, 140, 255), (255, 236, 92))
PANEL = 448  # pixels of a panel's longer side
_GAP = 12
_HEADER = 34  # title line above the panels
_CAPTION = 76  # class bars below them
_LEGEND = 30  # last line
_BACKGROUND = (18, 20, 26)
_TRACK = (44, 48, 58)
_TEXT = (236, 238, 242)
_DIM = (160, 166, 178)
_RIGHT = (94, 214, 130)
_WRONG = (255, 107, 107)
_TRUTH = (80, 235, 120)
_MASK_OPACITY = 0.42
_SCORES = ((72, 118, 255), (56, 200, 230), (250, 215, 70), (255, 72, 60))

Color = tuple[int, int, int]


def overlay(
    image: np.ndarray,
    prediction: Prediction,
    truth_instances: np.ndarray | None = None,
    true_label: int | None = None,
    class_names: Sequence[str] = LONG_NAMES,
    title: str = "",
) -> Image.Image:
    """Draws a slice, the contours of its true lesions and the predicted ones side by side.

    The predicted lesions are filled, each in a color of its own, with box and score; below stand
    the class probabilities, the predicted class (green when right, red when wrong) and the true
    one. Without truth the middle panel is left out; without masks there are boxes only.

    Args:
      image: uint8 [H, W] or [H, W, 3], at the original size.
      prediction: detections in pixels of this image.
      truth_instances: uint8 [H, W], 0 background, k + 1 = object k; or None.
      true_label: the true class; or None.
      class_names: K names for the K class probabilities; none where there are none.
      title: shown above the slice, such as its file name.

    Returns:
      An RGB picture; panels have a longer side of `PANEL` pixels, whatever the size of the slice.

    Raises:
      ValueError: an image that is not uint8 [H, W] or [H, W, 3]; truth or prediction of another
        size; another number of class names than probabilities.
    """
    _check(np.asarray(image), prediction, truth_instances, true_label, class_names)
    panels = slice_panels(image, prediction, truth_instances)
    panels[0] = (title or panels[0][0], panels[0][1])
    width, height = panels[0][1].size
    canvas_size = (
        max(len(panels) * (width + _GAP) + _GAP, 2 * PANEL),
        _HEADER + height + _CAPTION + _LEGEND,
    )
    canvas = Image.new("RGB", canvas_size, _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for index, (name, panel) in enumerate(panels):
        left = _GAP + index * (width + _GAP)
        draw.text((left, 9), _shortened(name, width, _font(15)), _TEXT, _font(15))
        canvas.paste(panel, (left, _HEADER))
    _draw_classes(draw, _HEADER + height + 12, canvas.width, prediction, true_label, class_names)
    _draw_legend(draw, canvas.height - _LEGEND, prediction, truth_instances is not None)
    return canvas


def slice_panels(
    image: np.ndarray, prediction: Prediction, truth_instances: np.ndarray | None = None
) -> list[tuple[str, Image.Image]]:
    """The panels of `overlay` by themselves.

    Args:
      image: uint8 [H, W] or [H, W, 3].
      prediction: in pixels of this image.
      truth_instances: uint8 [H, W], 0 background, k + 1 = object k; or None.

    Returns:
      (caption, RGB picture): the slice, its true lesions (where given), and the predicted ones.
    """
    image = np.asarray(image)
    scale = PANEL / max(image.shape[:2])
    base = _resized(image, scale)
    panels = [("Slice", base)]
    if truth_instances is not None:
        truth_instances = np.asarray(truth_instances)
        objects = [truth_instances == k for k in np.unique(truth_instances) if k > 0]
        panels.append((f"Truth: {_lesions(len(objects))}", _truth_panel(base, objects)))
    found = _lesions(len(prediction.scores))
    panels.append((f"Prediction: {found}", _prediction_panel(base, prediction, scale)))
    return panels


def roi_batch_panel(image: np.ndarray, boxes: np.ndarray, scores: np.ndarray) -> Image.Image:
    """Draws the boxes that module S reads, from blue (score 0) to red (1), the best on top.

    Args:
      image: uint8 [H, W] or [H, W, 3].
      boxes: [S, 4] XYXY, pixels of this image.
      scores: float [S] in [0, 1].

    Returns:
      An RGB picture whose longer side has `PANEL` pixels; the slice is darkened.
    """
    image = np.asarray(image)
    scale = PANEL / max(image.shape[:2])
    base = np.asarray(_resized(image, scale))
    panel = Image.fromarray((base * 0.55).astype(np.uint8))
    draw = ImageDraw.Draw(panel)
    for k in np.argsort(scores, kind="stable"):
        x1, y1, x2, y2 = (float(v) * scale for v in boxes[k])
        corners = (x1, y1, max(x1, x2 - 1), max(y1, y2 - 1))
        draw.rectangle(corners, outline=score_color(float(scores[k])))
    return panel


def score_color(score: float) -> Color:
    """Blue, cyan, yellow, red: the color of a score from 0 to 1."""
    position = min(max(score, 0.0), 1.0) * (len(_SCORES) - 1)
    low = min(int(position), len(_SCORES) - 2)
    share = position - low
    mixed = [(1 - share) * a + share * b for a, b in zip(*_SCORES[low : low + 2], strict=True)]
    return round(mixed[0]), round(mixed[1]), round(mixed[2])


def contour(mask: np.ndarray, thickness: int = 1) -> np.ndarray:
    """The rim of a mask: its pixels within `thickness` steps (up, down, left, right) of outside.

    Args:
      mask: bool [H, W]; what lies beyond the image counts as outside.
      thickness: pixels.

    Returns:
      bool [H, W].
    """
    from scipy import ndimage  # takes half a second to import

    return mask & ~ndimage.binary_erosion(mask, iterations=thickness)


def _check(image, prediction, truth_instances, true_label, class_names) -> None:
    """Raises the errors of `overlay`."""
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)):
        raise ValueError(
            f"image must be uint8 [H, W] or [H, W, 3], not {image.dtype} {list(image.shape)}"
        )
    size = image.shape[:2]
    if (prediction.height, prediction.width) != size:
        raise ValueError(
            f"the prediction is for {prediction.height}x{prediction.width} pixels, the image has "
            f"{size[0]}x{size[1]}"
        )
    if truth_instances is not None and np.shape(truth_instances) != size:
        raise ValueError(
            f"truth_instances has the shape {list(np.shape(truth_instances))}, the image has "
            f"{list(size)}"
        )
    classes = len(prediction.class_probabilities)
    if len(class_names) != classes:
        raise ValueError(f"{len(class_names)} class names for {classes} class probabilities")
    if true_label is not None and not 0 <= true_label < classes:
        raise ValueError(f"true_label {true_label} is none of the classes 0 to {classes - 1}")


def _resized(array: np.ndarray, scale: float) -> Image.Image:
    """An RGB picture from uint8 [H, W] or [H, W, 3]."""
    picture = Image.fromarray(array).convert("RGB")
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def _resized_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """bool [H, W] -> bool [size[1], size[0]], with smooth edges."""
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(picture.resize(size, Image.Resampling.BILINEAR)) > 127


def _truth_panel(base: Image.Image, objects: Sequence[np.ndarray]) -> Image.Image:
    pixels = np.array(base)
    for mask in objects:
        pixels[contour(_resized_mask(mask, base.size), 2)] = _TRUTH
    return Image.fromarray(pixels)


def _prediction_panel(base: Image.Image, prediction: Prediction, scale: float) -> Image.Image:
    pixels = np.array(base)
    taken = np.zeros(pixels.shape[:2], np.float32)  # how much a score should keep off a pixel
    # Detections come in decreasing score: the best is drawn last, on top.
    drawing_order = range(len(prediction.scores) - 1, -1, -1)
    if prediction.masks is not None:
        for k in drawing_order:
            mask = _resized_mask(rle_lib.decode(prediction.masks[k]), base.size)
            fill = np.array(_color(k), float)
            mixed = (1 - _MASK_OPACITY) * pixels[mask] + _MASK_OPACITY * fill
            pixels[mask] = mixed.round().astype(np.uint8)
            pixels[contour(mask)] = _color(k)
            taken[mask] = 1
    panel = Image.fromarray(pixels)
    draw = ImageDraw.Draw(panel)
    for k in drawing_order:
        x1, y1, x2, y2 = (float(v) * scale for v in prediction.boxes[k])
        line = 2 if min(x2 - x1, y2 - y1) > 24 else 1
        corners = (x1, y1, max(x1, x2 - 1), max(y1, y2 - 1))
        draw.rectangle(corners, outline=_color(k), width=line)
    for k in reversed(drawing_order):
        box = [float(v) * scale for v in prediction.boxes[k]]
        _draw_tag(draw, box, f"{prediction.scores[k]:.2f}", _color(k), taken)
    return panel


def _draw_tag(
    draw: ImageDraw.ImageDraw, box: Sequence[float], text: str, color: Color, taken: np.ndarray
) -> None:
    """Writes a score at the corner of its box where it hides least; marks it in `taken` [H, W]."""
    font = _font(11)
    width, height = int(draw.textlength(text, font)) + 5, 14
    right, bottom = max(0, taken.shape[1] - width), max(0, taken.shape[0] - height)
    x1, y1, x2, y2 = box
    corners = (
        *((x1, y1 - height), (x2 - width, y1 - height), (x1, y2), (x2 - width, y2)),  # above, below
        *((x2, y1), (x1 - width, y1), (x2, y2 - height), (x1 - width, y2 - height)),  # beside
        (x1, y1),  # inside
    )
    places = [(int(min(max(x, 0), right)), int(min(max(y, 0), bottom))) for x, y in corners]
    left, top = min(places, key=lambda p: taken[p[1] : p[1] + height, p[0] : p[0] + width].sum())
    taken[top : top + height, left : left + width] += 4  # another score is worse than a mask
    draw.rectangle((left, top, left + width - 1, top + height - 1), fill=color)
    draw.text((left + 3, top + height / 2), text, (0, 0, 0), font, anchor="lm")


def _draw_classes(draw, top: int, width: int, prediction, true_label, names) -> None:
    """The verdict, and one bar for each class: the predicted one bright, the true one named.

    A model that only segments has no classes, and nothing is drawn.
    """
    if not names:
        return
    best = int(prediction.predicted_class)
    color = _TEXT if true_label is None else _RIGHT if best == true_label else _WRONG
    verdict = f"Predicted class: {names[best]}"
    draw.text((_GAP, top), verdict, color, _font(16))
    if true_label is not None:
        x = _GAP + draw.textlength(verdict, _font(16)) + 24
        draw.text((x, top), f"True class: {names[true_label]}", _TEXT, _font(16))
    cell = (width - _GAP) / len(names)
    for k, (name, share) in enumerate(zip(names, prediction.class_probabilities, strict=True)):
        left, right = _GAP + k * cell, (k + 1) * cell
        text = _TEXT if k == best else _DIM
        draw.text((left, top + 28), name, text, _font(14))
        draw.text((right, top + 28), f"{100 * share:.1f}%", text, _font(14), anchor="ra")
        bar = (left, top + 48, right, top + 56)
        draw.rounded_rectangle(bar, 4, fill=_TRACK)
        if share >= 0.005:  # less would look like more: the rounded ends take 8 pixels
            end = left + max(8.0, (right - left) * float(share))
            draw.rounded_rectangle(
                (left, bar[1], end, bar[3]), 4, fill=color if k == best else _DIM
            )


def _draw_legend(draw, top: int, prediction, with_truth: bool) -> None:
    x, middle = float(_GAP), top + 13
    if with_truth:
        draw.rectangle((x, middle - 6, x + 18, middle + 6), outline=_TRUTH, width=2)
        x = _legend_text(draw, x + 26, middle, "true lesion")
    for color in PREDICTED_COLORS:
        draw.rectangle((x, middle - 6, x + 12, middle + 6), fill=color)
        x += 14
    shape = "box" if prediction.masks is None else "mask, box"
    _legend_text(draw, x + 6, middle, f"predicted lesions ({shape} and score)")


def _legend_text(draw, x: float, middle: float, text: str) -> float:
    """Writes text from x; returns where the next entry may start."""
    draw.text((x, middle), text, _DIM, _font(13), anchor="lm")
    return x + draw.textlength(text, _font(13)) + 24


def _color(index: int) -> Color:
    return PREDICTED_COLORS[index % len(PREDICTED_COLORS)]


def _lesions(count: int) -> str:
    return {0: "no lesion", 1: "1 lesion"}.get(count, f"{count} lesions")


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _shortened(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text, or as much of its end (where file names differ) as fits into so many pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength("..." + text) > width:
        text = text[1:]
    return "..." + text
