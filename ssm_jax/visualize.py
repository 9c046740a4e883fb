"""Pictures of predictions: a slice, its true lesions, and what the model found, side by side.

Drawn with Pillow and its built-in font only, so that every machine draws the same picture.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ssm_jax.class_set import ClassSet
from ssm_jax.classes import PAPER
from ssm_jax.ops import rle as rle_lib

if TYPE_CHECKING:
    from ssm_jax.predictor import Prediction

# Of the best detection, the second and so on, and again from the first; or of the lesion classes.
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
    title: str = "",
) -> Image.Image:
    """Draws a slice, the contours of its true lesions and the predicted ones side by side.

    The predicted lesions are filled, each in a color of its own or, of several lesion classes, of
    its class, with box and score; below stand the class probabilities, the predicted class (green
    when right, red when wrong) and the true one. Without truth the middle panel is left out;
    without masks there are boxes only.

    Args:
      image: uint8 [H, W] or [H, W, 3], at the original size.
      prediction: detections in pixels of this image, and the classes that are named.
      truth_instances: uint8 [H, W], 0 background, k + 1 = object k; or None.
      true_label: the true class; or None.
      title: shown above the slice, such as its file name.

    Returns:
      An RGB picture; panels have a longer side of `PANEL` pixels, whatever the size of the slice.

    Raises:
      ValueError: an image that is not uint8 [H, W] or [H, W, 3]; truth or prediction of another
        size; another number of classes than probabilities.
    """
    _check(np.asarray(image), prediction, truth_instances, true_label)
    panels = slice_panels(image, prediction, truth_instances)
    panels[0] = (title or panels[0][0], panels[0][1])
    width, height = panels[0][1].size
    whole = max(len(panels) * (width + _GAP) + _GAP, 2 * PANEL)
    legend = _legend_lines(prediction, truth_instances is not None, whole)
    lowest = _HEADER + height + _CAPTION
    canvas = Image.new("RGB", (whole, lowest + len(legend) * _LEGEND), _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for index, (name, panel) in enumerate(panels):
        left = _GAP + index * (width + _GAP)
        draw.text((left, 9), _shortened(name, width, _font(15)), _TEXT, _font(15))
        canvas.paste(panel, (left, _HEADER))
    _draw_classes(draw, _HEADER + height + 12, canvas.width, prediction, true_label)
    for index, entries in enumerate(legend):
        _draw_legend(draw, lowest + index * _LEGEND + 13, entries)
    return canvas


def colored_by_class(classes: ClassSet) -> bool:
    """Whether the colors of predicted lesions tell their class; of one class they tell the rank."""
    return len(classes.lesion) > 1


def lesion_colors(classes: ClassSet) -> list[Color]:
    """Colors of predicted lesions: of each class, or by rank, see `colored_by_class`."""
    if not colored_by_class(classes):
        own = classes.lesion[0].color
        return [own] if own else [*PREDICTED_COLORS]
    usual = itertools.cycle(PREDICTED_COLORS)
    return [lesion.color or color for lesion, color in zip(classes.lesion, usual, strict=False)]


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


def _check(image, prediction, truth_instances, true_label) -> None:
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
    if len(prediction.classes.image) != classes:
        raise ValueError(
            f"{len(prediction.classes.image)} image classes for {classes} class probabilities"
        )
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
    colors = _colors(prediction)
    # Detections come in decreasing score: the best is drawn last, on top.
    drawing_order = range(len(prediction.scores) - 1, -1, -1)
    if prediction.masks is not None:
        for k in drawing_order:
            mask = _resized_mask(rle_lib.decode(prediction.masks[k]), base.size)
            fill = np.array(colors[k], float)
            mixed = (1 - _MASK_OPACITY) * pixels[mask] + _MASK_OPACITY * fill
            pixels[mask] = mixed.round().astype(np.uint8)
            pixels[contour(mask)] = colors[k]
            taken[mask] = 1
    panel = Image.fromarray(pixels)
    draw = ImageDraw.Draw(panel)
    for k in drawing_order:
        x1, y1, x2, y2 = (float(v) * scale for v in prediction.boxes[k])
        line = 2 if min(x2 - x1, y2 - y1) > 24 else 1
        corners = (x1, y1, max(x1, x2 - 1), max(y1, y2 - 1))
        draw.rectangle(corners, outline=colors[k], width=line)
    for k in reversed(drawing_order):
        box = [float(v) * scale for v in prediction.boxes[k]]
        _draw_tag(draw, box, f"{prediction.scores[k]:.2f}", colors[k], taken)
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


def _draw_classes(draw, top: int, width: int, prediction, true_label) -> None:
    """The verdict, and one bar for each class: the predicted one bright, the true one named.

    A model that only segments has no classes, and nothing is drawn.
    """
    names = prediction.classes.titles
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
        room = int(right - left) - 52  # beside the percentage
        draw.text((left, top + 28), _shortened(name, room, _font(14)), text, _font(14))
        draw.text((right, top + 28), f"{100 * share:.1f}%", text, _font(14), anchor="ra")
        bar = (left, top + 48, right, top + 56)
        draw.rounded_rectangle(bar, 4, fill=_TRACK)
        if share >= 0.005:  # less would look like more: the rounded ends take 8 pixels
            end = left + max(8.0, (right - left) * float(share))
            draw.rounded_rectangle(
                (left, bar[1], end, bar[3]), 4, fill=color if k == best else _DIM
            )


class _Key(NamedTuple):
    """An entry of the legend: colors, whether as outlines, and a text."""

    colors: Sequence[Color]
    outlined: bool
    text: str

    @property
    def width(self) -> float:
        swatches = 26.0 if self.outlined else 14.0 * len(self.colors) + 6
        return swatches + _font(13).getlength(self.text) + 24


def _legend_lines(prediction: Prediction, with_truth: bool, width: int) -> list[list[_Key]]:
    """The entries of the legend, in lines of at most this width."""
    classes, colors = prediction.classes, lesion_colors(prediction.classes)
    shape = "box" if prediction.masks is None else "mask, box"
    entries = [_Key([_TRUTH], True, "true lesion")] if with_truth else []
    if colored_by_class(classes):
        titles = classes.lesion_titles.values()
        entries += [_Key([c], False, t) for c, t in zip(colors, titles, strict=True)]
        entries[-1] = entries[-1]._replace(text=f"{entries[-1].text} ({shape} and score)")
    else:
        title = "lesions" if classes.lesion == PAPER.lesion else classes.lesion[0].title
        entries.append(_Key(colors, False, f"predicted {title} ({shape} and score)"))
    lines: list[list[_Key]] = [[]]
    for entry in entries:
        if lines[-1] and sum(e.width for e in (*lines[-1], entry)) > width - _GAP:
            lines.append([])
        lines[-1].append(entry)
    return lines


def _draw_legend(draw, middle: int, entries: Sequence[_Key]) -> None:
    x = float(_GAP)
    for entry in entries:
        end = x + entry.width
        for color in entry.colors:
            if entry.outlined:
                draw.rectangle((x, middle - 6, x + 18, middle + 6), outline=color, width=2)
                x += 20
            else:
                draw.rectangle((x, middle - 6, x + 12, middle + 6), fill=color)
                x += 14
        draw.text((x + 6, middle), entry.text, _DIM, _font(13), anchor="lm")
        x = end


def _colors(prediction: Prediction) -> list[Color]:
    """The color of every detection."""
    classes = prediction.classes
    colors, by_class = lesion_colors(classes), colored_by_class(classes)
    places = [int(k) - 1 for k in prediction.labels] if by_class else range(len(prediction.scores))
    return [colors[place % len(colors)] for place in places]


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
