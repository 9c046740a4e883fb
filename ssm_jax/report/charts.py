"""Charts as inline SVG; colors come from the style sheet of the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from markupsafe import Markup, escape

from ssm_jax.evaluation.calibration import Reliability
from ssm_jax.visualize import score_color

_SIDE = 300  # of the plotting area
_LEFT, _TOP, _RIGHT, _BOTTOM = 46, 12, 14, 44
_TICKS = (0, 0.2, 0.4, 0.6, 0.8, 1)


def curves(
    series: Sequence[tuple[str, np.ndarray, np.ndarray]], x_label: str, y_label: str, title: str
) -> Markup:
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
    lines = []
    for k, (_, x, y) in enumerate(series):
        pairs = zip(x.tolist(), y.tolist(), strict=True)
        points = " ".join(f"{_x(a):g},{_y(b):g}" for a, b in pairs if np.isfinite(b))
        lines.append(_tag("polyline", points=points, class_=f"line line-{k}"))
    plot = _square(title, [*_axes(x_label, y_label), *lines])
    return _figure([plot, _legend({f"key-{k}": name for k, (name, _, _) in enumerate(series)})])


def reliability(found: Reliability, title: str) -> Markup:
    """Accuracy over confidence in bins, the diagonal, and how many slices each bin holds.

    Args:
      found: what to draw.
      title: read to those who can not see it.

    Returns:
      A figure.
    """
    marks = [_tag("path", d=f"M{_x(0)} {_y(0)}L{_x(1)} {_y(1)}", class_="diagonal")]
    bins = zip(found.count, found.confidence, found.accuracy, _bins(found), strict=True)
    for count, sure, right, (tip, left, width) in bins:
        if not count:
            continue
        tip += f", mean confidence {sure:.3f}, accuracy {right:.3f}"
        low_end, high_end = _y(min(sure, right)), _y(max(sure, right))
        bar = _box(left, low_end, width, _y(0) - low_end, "bar")
        gap = _box(left, high_end, width, low_end - high_end, "over" if sure > right else "under")
        marks.append(_tag("g", _tag("title", tip), bar, gap))
    plot = _square(title, [*_axes("Confidence", "Accuracy"), *marks])
    keys = {
        "bar": "share of right slices",
        "over": "confidence above it",
        "under": "confidence below it",
    }
    return _figure([plot, _legend(keys), _counts(found)])


def scores(values: np.ndarray, title: str) -> Markup:
    """Ranked scores as bars side by side, in the colors of the boxes.

    Args:
      values: float [N] in [0, 1], N of a few hundred at most.
      title: read to those who can not see it.

    Returns:
      A figure.
    """
    width, height, left = 384, 72, 34
    step = width / max(len(values), 1)
    bars = [
        _tag(
            "rect",
            x=f"{left + k * step:.2f}",
            y=f"{6 + height * (1 - value):.2f}",
            width=f"{step:.2f}",
            height=f"{max(height * value, 0.6):.2f}",
            fill="#{:02x}{:02x}{:02x}".format(*score_color(value)),
        )
        for k, value in enumerate(values.tolist())
    ]
    frame = [
        _tag("path", d=f"M{left} 6V{height + 6}H{left + width}", class_="axis"),
        _text("1", 28, 12, "tick end"),
        _text("0", 28, height + 6, "tick end"),
        _text("row 1", left, height + 22, "tick"),
        _text(f"row {len(values)}", left + width, height + 22, "tick end"),
    ]
    return _figure([_svg(left + width + 4, height + 28, title, [*bars, *frame])], "chart strip")


def along(values: np.ndarray, names: Sequence[str], title: str) -> Markup:
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
    width, height, count = 900, 170, len(values)
    step, base = width / max(count, 1), _TOP + height
    unread = np.isnan(values).any(axis=1)
    xs = (_LEFT + step * (np.arange(count) + 0.5)).round(2).tolist()
    ys = (_TOP + height * (1 - values)).round(2).tolist()
    marks = []
    for tick in (0, 0.5, 1):
        y = round(_TOP + height * (1 - tick), 2)
        marks.append(_tag("path", d=f"M{_LEFT} {y}H{_LEFT + width}", class_="grid"))
        marks.append(_text(f"{tick:g}", _LEFT - 7, y + 4, "tick end"))
    every = max(1, -(-count // 15))  # at most 15 numbers below
    marks += [_text(str(k + 1), xs[k], base + 17, "tick middle") for k in range(0, count, every)]
    marks.append(_text("Slice", _LEFT + width / 2, base + 37, "label"))
    marks += [
        _box(_LEFT + step * index, _TOP, max(step, 1), height, "gap")
        for index in np.flatnonzero(unread)
    ]
    for k in range(len(names)):
        for start, stop in _readable(unread):
            if stop - start == 1:
                place = {"cx": xs[start], "cy": ys[start][k], "r": 4}
                marks.append(_tag("circle", **place, class_=f"point point-{k}"))
                continue
            points = " ".join(f"{xs[i]:g},{ys[i][k]:g}" for i in range(start, stop))
            marks.append(_tag("polyline", points=points, class_=f"line line-{k}"))
    x = round(_LEFT + step / 2, 2)
    marks.append(_tag("line", x1=x, x2=x, y1=_TOP, y2=base, class_="cursor"))
    data = {"data_left": _LEFT, "data_step": f"{step:.6f}"}
    svg = _svg(_LEFT + width + _RIGHT, base + _BOTTOM, title, marks, **data)
    legend = _legend({f"key-{k}": name for k, name in enumerate(names)})
    return _figure([svg, legend], "chart along")


def _readable(unread: np.ndarray) -> list[tuple[int, int]]:
    """Runs [start, stop) of slices that were read, from bool [N]."""
    edges = np.flatnonzero(np.diff(np.concatenate([[True], unread, [True]]).astype(int)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def meter(value: float, low: float, high: float, reference: float | None = None) -> Markup:
    """A figure in [0, 1] with its interval on a small scale.

    Args:
      value: the figure; NaN draws the scale alone.
      low: start of the interval; NaN leaves the interval out.
      high: its end.
      reference: another figure to mark, such as the paper's; None or NaN: no mark.

    Returns:
      An SVG that is hidden from screen readers: the numbers stand beside it.
    """
    marks = [_tag("rect", x=0, y=8, width=200, height=4, rx=2, class_="track")]
    if not np.isnan(low):
        marks.append(_box(200 * low, 6, max(200 * (high - low), 2), 8, "band", rx=3))
    if reference is not None and not np.isnan(reference):
        marks.append(_box(200 * reference - 1, 2, 2, 16, "reference"))
    if not np.isnan(value):
        marks.append(_tag("circle", cx=f"{200 * value:.1f}", cy=10, r=5, class_="dot"))
    shown = {"viewBox": "-6 0 212 20", "preserveAspectRatio": "xMinYMid", "aria_hidden": "true"}
    return _tag("svg", *marks, class_="meter", **shown)


def _counts(found: Reliability) -> Markup:
    """A small histogram below the reliability plot."""
    most, height = max(int(found.count.max()), 1), 56
    base = 8 + height
    bars = []
    for count, (tip, left, width) in zip(found.count, _bins(found), strict=True):
        tall = height * count / most
        bar = _box(left, base - tall, width, tall, "count")
        bars.append(_tag("g", _tag("title", tip), bar))
    frame = [
        _tag("path", d=f"M{_x(0)} 8V{base}H{_x(1)}", class_="axis"),
        _text(str(most), _LEFT - 7, 16, "tick end"),
        _text("0", _LEFT - 7, base, "tick end"),
        _text("slices by confidence", _x(0.5), base + 22, "label"),
    ]
    title = f"slices by confidence, at most {most} in a bin"
    return _svg(_LEFT + _SIDE + _RIGHT, base + 32, title, [*bars, *frame])


def _bins(found: Reliability) -> Iterable[tuple[str, float, float]]:
    """A text for each bin, and where its bar starts and how wide it is."""
    for low, high, count in zip(found.edges[:-1], found.edges[1:], found.count, strict=True):
        tip = f"confidence {low:.2f} to {high:.2f}: {count} slices"
        yield tip, _x(low) + 1, _x(high) - _x(low) - 2


def _axes(x_label: str, y_label: str) -> list[Markup]:
    """Grid, ticks and labels of the unit square."""
    marks = []
    for tick in _TICKS:
        grid = f"M{_x(tick)} {_y(0)}V{_y(1)}M{_x(0)} {_y(tick)}H{_x(1)}"
        marks.append(_tag("path", d=grid, class_="grid"))
        marks.append(_text(f"{tick:g}", _x(tick), _y(0) + 17, "tick middle"))
        marks.append(_text(f"{tick:g}", _LEFT - 7, _y(tick) + 4, "tick end"))
    marks.append(_text(x_label, _x(0.5), _y(0) + 37, "label"))
    turned = f"rotate(-90 13 {_y(0.5)})"
    marks.append(_text(y_label, 13, _y(0.5), "label", transform=turned))
    return marks


def _figure(parts: Iterable[Markup], class_: str = "chart") -> Markup:
    return _tag("figure", *parts, class_=class_)


def _legend(keys: Mapping[str, str]) -> Markup:
    """A legend, from the CSS class of each key."""
    items = [_tag("li", _tag("span", class_=f"key {key}"), text) for key, text in keys.items()]
    return _tag("ul", *items, class_="legend")


def _square(title: str, marks: Iterable[Markup]) -> Markup:
    return _svg(_LEFT + _SIDE + _RIGHT, _TOP + _SIDE + _BOTTOM, title, marks)


def _svg(
    width: float, height: float, title: str, marks: Iterable[Markup], **attributes: object
) -> Markup:
    shown = {"viewBox": f"0 0 {width} {height}", "role": "img", "aria_label": title}
    return _tag("svg", *marks, **shown, width=width, **attributes)


def _box(x: float, y: float, width: float, height: float, class_: str, **more: object) -> Markup:
    numbers = {"x": x, "y": y, "width": width, "height": max(height, 0)}
    shown = {name: f"{value:.1f}" for name, value in numbers.items()}
    return _tag("rect", **shown, class_=class_, **more)


def _text(text: str, x: float, y: float, class_: str, **more: object) -> Markup:
    return _tag("text", text, x=x, y=y, class_=class_, **more)


def _tag(name: str, *children: str, **attributes: object) -> Markup:
    """An element; "_" in names of attributes stands for "-", and at their end for nothing."""
    pairs = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    shown = "".join(f' {key}="{escape(value)}"' for key, value in pairs)
    return Markup(f"<{name}{shown}>{''.join(map(escape, children))}</{name}>")


def _x(value: float) -> float:
    return round(_LEFT + _SIDE * value, 1)


def _y(value: float) -> float:
    return round(_TOP + _SIDE * (1 - value), 1)
