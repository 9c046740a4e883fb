"""Charts as inline SVG; colors come from the style sheet of the page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ssm_jax.evaluation.calibration import Reliability
from ssm_jax.report.html import Html, element
from ssm_jax.visualize import score_color

_SIDE = 300  # of the plotting area
_LEFT, _TOP, _RIGHT, _BOTTOM = 46, 12, 14, 44
_LEFT_ALIGNED = {"preserveAspectRatio": "xMinYMid", "aria_hidden": "true"}
_TICKS = (0, 0.2, 0.4, 0.6, 0.8, 1)


def curves(
    series: Sequence[tuple[str, np.ndarray, np.ndarray]], x_label: str, y_label: str, title: str
) -> Html:
    """Lines over the unit square.

    Args:
      series: (name, x, y), coordinates in [0, 1]; the n-th gets the class "line-n". The name is
        shown in a legend below.
      x_label: below the axis.
      y_label: beside it.
      title: read to those who can not see it.

    Returns:
      A figure.
    """
    lines = [
        element("polyline", points=_points(x, y), class_=f"line line-{k}")
        for k, (_, x, y) in enumerate(series)
    ]
    legend = [
        element("li", element("span", class_=f"key key-{k}"), name)
        for k, (name, _, _) in enumerate(series)
    ]
    plot = _canvas(_SIDE, title, [*_axes(x_label, y_label), *lines])
    return element("figure", plot, element("ul", legend, class_="legend"), class_="chart")


def reliability(found: Reliability, title: str) -> Html:
    """Accuracy over confidence in bins, the diagonal, and how many slices each bin holds.

    Args:
      found: what to draw.
      title: read to those who can not see it.

    Returns:
      A figure.
    """
    marks = [element("path", d=f"M{_x(0)} {_y(0)}L{_x(1)} {_y(1)}", class_="diagonal")]
    for low, high, count, sure, right in zip(
        found.edges[:-1],
        found.edges[1:],
        found.count,
        found.confidence,
        found.accuracy,
        strict=True,
    ):
        if not count:
            continue
        left, width = _x(low) + 1, _x(high) - _x(low) - 2
        tip = element(
            "title",
            f"confidence {low:.2f} to {high:.2f}: {count} slices, mean confidence {sure:.3f}, "
            f"accuracy {right:.3f}",
        )
        low_end, high_end = _y(min(sure, right)), _y(max(sure, right))
        bar = _box(left, low_end, width, _y(0) - low_end, "bar")
        gap = _box(left, high_end, width, low_end - high_end, "over" if sure > right else "under")
        marks.append(element("g", tip, bar, gap))
    plot = _canvas(_SIDE, title, [*_axes("Confidence", "Accuracy"), *marks])
    legend = [
        element("li", element("span", class_=f"key {name}"), text)
        for name, text in (
            ("bar", "share of right slices"),
            ("over", "confidence above it"),
            ("under", "confidence below it"),
        )
    ]
    figure = [plot, element("ul", legend, class_="legend"), _counts(found)]
    return element("figure", *figure, class_="chart")


def scores(values: np.ndarray, title: str) -> Html:
    """Ranked scores as bars side by side, in the colors of the boxes.

    Args:
      values: float [N] in [0, 1], N of a few hundred at most.
      title: read to those who can not see it.

    Returns:
      A figure.
    """
    width, height = 384, 72
    step = width / max(len(values), 1)
    bars = [
        element(
            "rect",
            x=f"{34 + k * step:.2f}",
            y=f"{6 + height * (1 - value):.2f}",
            width=f"{step:.2f}",
            height=f"{max(height * value, 0.6):.2f}",
            fill="#{:02x}{:02x}{:02x}".format(*score_color(float(value))),
        )
        for k, value in enumerate(values)
    ]
    frame = [
        element("path", d=f"M34 6V{height + 6}H{34 + width}", class_="axis"),
        element("text", "1", x=28, y=12, class_="tick end"),
        element("text", "0", x=28, y=height + 6, class_="tick end"),
        element("text", "row 1", x=34, y=height + 22, class_="tick"),
        element("text", f"row {len(values)}", x=34 + width, y=height + 22, class_="tick end"),
    ]
    svg = _svg(34 + width + 4, height + 28, title, [*bars, *frame])
    return element("figure", svg, class_="chart strip")


def along(values: np.ndarray, names: Sequence[str], title: str) -> Html:
    """Shares in [0, 1] of each class along the slices of a scan, a line a class.

    Args:
      values: float [N, K]; NaN where a slice could not be read: the lines have a gap there.
      names: K names, in a legend below.
      title: read to those who can not see it.

    Returns:
      A figure of class "along". The SVG has `data-left` and `data-step`, where the first slice
      starts and how wide each is in units of its view box, and a line of class "cursor" to be
      moved to a slice.
    """
    width, height = 900, 170
    count = len(values)
    step = width / max(count, 1)

    def place(index: float, share: float) -> tuple[float, float]:
        return round(_LEFT + step * (index + 0.5), 2), round(_TOP + height * (1 - share), 2)

    base = _TOP + height
    marks = []
    for tick in (0, 0.5, 1):
        _, y = place(0, tick)
        marks.append(element("path", d=f"M{_LEFT} {y}H{_LEFT + width}", class_="grid"))
        marks.append(element("text", f"{tick:g}", x=_LEFT - 7, y=y + 4, class_="tick end"))
    every = max(1, -(-count // 15))  # at most 15 numbers below
    for index in range(0, count, every):
        x, _ = place(index, 0)
        marks.append(element("text", str(index + 1), x=x, y=base + 17, class_="tick middle"))
    label = {"x": _LEFT + width / 2, "y": base + 37, "class_": "label"}
    marks.append(element("text", "Slice", **label))
    unread = np.isnan(values).any(axis=1)
    marks += [
        _box(_LEFT + step * index, _TOP, max(step, 1), height, "gap")
        for index in np.flatnonzero(unread)
    ]
    for k in range(len(names)):
        for start, stop in _readable(unread):
            points = [place(index, float(values[index, k])) for index in range(start, stop)]
            if len(points) == 1:
                (x, y), dot = points[0], f"point point-{k}"
                marks.append(element("circle", cx=x, cy=y, r=4, class_=dot))
                continue
            listed = " ".join(f"{x:g},{y:g}" for x, y in points)
            marks.append(element("polyline", points=listed, class_=f"line line-{k}"))
    x, _ = place(0, 0)
    marks.append(element("line", x1=x, x2=x, y1=_TOP, y2=base, class_="cursor"))
    size = (_LEFT + width + _RIGHT, base + _BOTTOM)
    svg = _svg(*size, title, marks, data_left=_LEFT, data_step=f"{step:.6f}")
    legend = [
        element("li", element("span", class_=f"key key-{k}"), name) for k, name in enumerate(names)
    ]
    return element("figure", svg, element("ul", legend, class_="legend"), class_="chart along")


def _readable(unread: np.ndarray) -> list[tuple[int, int]]:
    """Runs [start, stop) of slices that were read, from bool [N]."""
    edges = np.flatnonzero(np.diff(np.concatenate([[True], unread, [True]]).astype(int)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def meter(value: float, low: float, high: float, reference: float | None = None) -> Html:
    """A figure in [0, 1] with its interval on a small scale.

    Args:
      value: the figure; NaN draws the scale alone.
      low: start of the interval; NaN leaves the interval out.
      high: its end.
      reference: another figure to mark, such as the paper's; None or NaN: no mark.

    Returns:
      An SVG that is hidden from screen readers: the numbers stand beside it.
    """
    marks = [element("rect", x=0, y=8, width=200, height=4, rx=2, class_="track")]
    if not np.isnan(low):
        span = max(200 * (high - low), 2)
        marks.append(_box(200 * low, 6, span, 8, "band", rx=3))
    if reference is not None and not np.isnan(reference):
        marks.append(_box(200 * reference - 1, 2, 2, 16, "reference"))
    if not np.isnan(value):
        marks.append(element("circle", cx=f"{200 * value:.1f}", cy=10, r=5, class_="dot"))
    return element("svg", marks, viewBox="-6 0 212 20", class_="meter", **_LEFT_ALIGNED)


def _counts(found: Reliability) -> Html:
    """A small histogram below the reliability plot."""
    most, height = max(int(found.count.max()), 1), 56
    bars = []
    for low, high, count in zip(found.edges[:-1], found.edges[1:], found.count, strict=True):
        left, width = _x(low) + 1, _x(high) - _x(low) - 2
        tall = height * count / most
        tip = element("title", f"confidence {low:.2f} to {high:.2f}: {count} slices")
        bars.append(element("g", tip, _box(left, 8 + height - tall, width, tall, "count")))
    base = 8 + height
    frame = [
        element("path", d=f"M{_x(0)} 8V{base}H{_x(1)}", class_="axis"),
        element("text", str(most), x=_LEFT - 7, y=16, class_="tick end"),
        element("text", "0", x=_LEFT - 7, y=base, class_="tick end"),
        element("text", "slices by confidence", x=_x(0.5), y=base + 22, class_="label"),
    ]
    title = f"slices by confidence, at most {most} in a bin"
    return _svg(_LEFT + _SIDE + _RIGHT, base + 32, title, [*bars, *frame])


def _axes(x_label: str, y_label: str) -> list[Html]:
    """Grid, ticks and labels of the unit square."""
    marks = []
    for tick in _TICKS:
        grid = f"M{_x(tick)} {_y(0)}V{_y(1)}M{_x(0)} {_y(tick)}H{_x(1)}"
        marks.append(element("path", d=grid, class_="grid"))
        below, text = _y(0) + 17, f"{tick:g}"
        marks.append(element("text", text, x=_x(tick), y=below, class_="tick middle"))
        marks.append(element("text", text, x=_LEFT - 7, y=_y(tick) + 4, class_="tick end"))
    marks.append(element("text", x_label, x=_x(0.5), y=_y(0) + 37, class_="label"))
    turned = f"rotate(-90 13 {_y(0.5)})"
    marks.append(element("text", y_label, x=13, y=_y(0.5), class_="label", transform=turned))
    return marks


def _canvas(side: int, title: str, marks: list[Html]) -> Html:
    return _svg(_LEFT + side + _RIGHT, _TOP + side + _BOTTOM, title, marks)


def _svg(width: float, height: float, title: str, marks: list[Html], **attributes: object) -> Html:
    box = f"0 0 {width} {height}"
    shown = {"viewBox": box, "role": "img", "aria_label": title, "width": width}
    return element("svg", marks, **shown, **attributes)


def _box(x: float, y: float, width: float, height: float, class_: str, rx: float = 0) -> Html:
    numbers = {"x": x, "y": y, "width": width, "height": max(height, 0)}
    shown = {name: f"{value:.1f}" for name, value in numbers.items()}
    return element("rect", **shown, rx=rx or None, class_=class_)


def _points(x: np.ndarray, y: np.ndarray) -> str:
    pairs = zip(x, y, strict=True)
    return " ".join(f"{_x(float(a)):g},{_y(float(b)):g}" for a, b in pairs if np.isfinite(b))


def _x(value: float) -> float:
    return round(_LEFT + _SIDE * value, 1)


def _y(value: float) -> float:
    return round(_TOP + _SIDE * (1 - value), 1)
