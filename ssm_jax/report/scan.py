"""The page of predicted scans: a viewer of slices, what is said of the scan, and of what."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

import ssm_jax
from ssm_jax.classes import long_names
from ssm_jax.report import charts
from ssm_jax.report.html import Html, data_uri, details, element, join, jpeg
from ssm_jax.report.page import Section, page, resource
from ssm_jax.report.page import facts as fact_table
from ssm_jax.scans.result import ScanResult, ScanSummary, SliceResult
from ssm_jax.visualize import PREDICTED_COLORS

IMAGE_BYTES = 18_000_000  # of all JPEG files of a page; a third more as text
SLICE_BYTES = 80_000  # at most, however few the slices are
SIDE = 512  # longer side of a picture at most, pixels
_QUALITIES = (85, 70, 55)
_NO_SCRIPT = "The slices are shown by a script inside this page; this browser runs none."
_HINT = (
    "Over the slice the mouse wheel goes through the scan; so do the arrow keys, by ten with Page "
    "Up and Page Down. “o” switches the overlay."
)


def scan_report(
    results: Sequence[ScanResult],
    facts: Mapping[str, str],
    score_threshold: float,
    downloads: Mapping[str, str] | None = None,
) -> str:
    """The HTML page of predicted scans.

    Pictures of slices are JPEG files in the page, which all together take at most about
    `IMAGE_BYTES`; masks are drawn by the page from their run lengths, at full resolution.

    Args:
      results: the scans, in order.
      facts: what is known of the model and of the run, in reading order: label and value.
      score_threshold: that the detections were found with, in [0, 1]; the viewer can raise it.
      downloads: text and relative address of files beside the page; none for a page by itself.

    Returns:
      The text of the file; it needs no other and asks for none.
    """
    slices = sum(len(result.slices) for result in results)
    limit = min(SLICE_BYTES, IMAGE_BYTES // max(slices, 1))
    sections = []
    if downloads:
        sections.append(Section("downloads", "Downloads", _downloads(downloads)))
    for number, result in enumerate(results, 1):
        alone = len(results) == 1
        name = f"scan-{number}"
        title = "Scan" if alone else result.name
        sections.append(Section(name, title, _scan(result, name, score_threshold, limit)))
    if not results:
        sections.append(Section("scan-1", "Scan", element("p", "There was no scan.")))
    sections.append(Section("model", "Model", _facts(facts)))
    lead = results[0].name if len(results) == 1 else f"{len(results)} scans, {slices} slices"
    today = datetime.date.today().isoformat()
    footer = f"Made by ssm_jax {ssm_jax.__version__} on {today}. Not a medical device."
    parts = (resource("viewer.css"), resource("viewer.js"))
    return page("Predicted CT scans", lead, sections, footer, *parts)


def viewer_data(result: ScanResult, limit: int) -> dict[str, Any]:
    """What the script of the viewer reads.

    Args:
      result: a scan.
      limit: bytes of a slice's picture at most.

    Returns:
      JSON-ready: `classes`, names; `colors`, RGB of the detections by rank; `first`, the slice to
      start with; `slices`, each with name, position, error, image (a data URI), size (height,
      width), probabilities, predicted, and detections (box, score, label, and the run lengths of
      the mask, or null, as counts).
    """
    telling = result.summary.telling if result.summary else []
    return {
        "classes": _classes(result),
        "colors": PREDICTED_COLORS,
        "first": telling[0] if telling else 0,
        "slices": [_slice_data(slice_, limit) for slice_ in result.slices],
    }


def small_jpeg(image: np.ndarray, limit: int) -> bytes:
    """A slice as a JPEG file of bounded size: first at lower quality, then with fewer pixels.

    Args:
      image: uint8 [H, W] or [H, W, 3].
      limit: bytes at most; a picture of 32 pixels a side is taken whatever its bytes are.

    Returns:
      The file; its longer side has at most `SIDE` pixels.
    """
    whole = Image.fromarray(np.ascontiguousarray(image))
    side = min(SIDE, max(whole.size))
    while True:
        scale = side / max(whole.size)
        size = tuple(max(1, round(length * scale)) for length in whole.size)
        shown = whole if size == whole.size else whole.resize(size, Image.Resampling.LANCZOS)
        for quality in _QUALITIES:
            data = jpeg(shown, quality)
            if len(data) <= limit:
                return data
        if side <= 32:
            return data
        side = max(32, side * 3 // 4)


def _slice_data(slice_: SliceResult, limit: int) -> dict[str, Any]:
    common = {"name": slice_.name, "position": slice_.position, "error": slice_.error}
    prediction = slice_.prediction
    if prediction is None or slice_.image is None:
        common["error"] = slice_.error or "no reason was given"
        empty = {"image": None, "size": None, "probabilities": [], "predicted": None}
        return {**common, **empty, "detections": []}
    masks = prediction.masks or [None] * len(prediction.scores)
    found = zip(prediction.boxes, prediction.scores, prediction.labels, masks, strict=True)
    detections = [
        {
            "box": [round(float(v), 2) for v in box],
            "score": float(score),
            "label": int(label),
            "counts": mask["counts"] if mask else None,
        }
        for box, score, label, mask in found
    ]
    return {
        **common,
        "image": data_uri(small_jpeg(slice_.image, limit)),
        "size": [prediction.height, prediction.width],
        "probabilities": [round(float(p), 6) for p in prediction.class_probabilities],
        "predicted": prediction.predicted_class,
        "detections": detections,
    }


def _classes(result: ScanResult) -> tuple[str, ...]:
    """Names of the classes; none if the model only segments or no slice was read."""
    counts = [len(s.prediction.class_probabilities) for s in result.slices if s.prediction]
    return long_names(counts[0]) if counts else ()


def _scan(result: ScanResult, name: str, score_threshold: float, limit: int) -> Html:
    """All of one scan."""
    data = viewer_data(result, limit)
    unread = [(k, s) for k, s in enumerate(data["slices"]) if s["error"] is not None]
    content = [
        _summary(result, data["classes"]),
        _warnings(result.warnings),
    ]
    if data["slices"]:
        # What closes a script or opens a comment in it starts with "<".
        text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
        content += [
            element("script", Html(text), type="application/json"),
            element("noscript", element("p", _NO_SCRIPT, class_="warnings")),
            _telling(result),
            _viewer(data, name, score_threshold),
            _chart(data),
        ]
    if unread:
        count = f"{len(unread)} of {len(data['slices'])} slices could not be read"
        listed = [
            element("li", _to_slice(k, s["name"], "to-slice"), f": {s['error']}") for k, s in unread
        ]
        content.append(details(count, element("ul", listed, class_="unread"), open_=True))
    known = {"Source": result.name, "Kind": result.kind, "Slices": len(result.slices)}
    content += [element("h3", "Input"), fact_table({**known, **result.facts})]
    return element("div", content, class_="scan scan-viewer")


def _summary(result: ScanResult, classes: Sequence[str]) -> Html:
    """Cards with what is said of the whole scan."""
    summary = result.summary
    if summary is None:
        return element("p", "No slice of this scan could be read.", class_="warnings")
    cards = []
    if classes and summary.predicted_class is not None:
        shares = zip(classes, summary.class_probabilities, strict=True)
        listed = ", ".join(f"{name} {share:.1%}" for name, share in shares)
        rule = f"Rule “{summary.rule}” over the slices: {listed}"
        cards.append(_card("Class of the scan", classes[summary.predicted_class], rule))
        cards.append(_slices_card(summary, classes))
    if summary.lesion_ml is not None:
        text = "All lesion masks, at the score threshold of the prediction"
        cards.append(_card("Lesion volume", f"{summary.lesion_ml:.1f} ml", text))
    if summary.lung_share is not None:
        text = "Lesions within the lung mask that was given, by volume"
        cards.append(_card("Share of the lung", f"{summary.lung_share:.1%}", text))
    found = [len(s.prediction.scores) for s in result.slices if s.prediction is not None]
    with_lesions = sum(count > 0 for count in found)
    text = f"{sum(found)} lesions in all"
    cards.append(_card("Slices with lesions", f"{with_lesions} of {len(found)}", text))
    return element("div", cards, class_="cards")


def _slices_card(summary: ScanSummary, classes: Sequence[str]) -> Html:
    total = int(np.sum(summary.slices_per_class))
    counts = [int(count) for count in summary.slices_per_class]
    figure = " / ".join(str(count) for count in counts)
    shares = [
        f"{name} {count / max(total, 1):.0%}" for name, count in zip(classes, counts, strict=True)
    ]
    return _card("Slices by their own class", figure, ", ".join(shares))


def _card(title: str, figure: str, text: str) -> Html:
    shown = element("div", figure, class_="figure")
    return element("div", element("h3", title), shown, element("p", text), class_="card")


def _warnings(lines: Sequence[str]) -> Html | None:
    if not lines:
        return None
    listed = [element("li", line) for line in lines]
    return element("ul", listed, class_="warnings", aria_label="Warnings")


def _telling(result: ScanResult) -> Html | None:
    """Buttons for the slices that say most."""
    telling = result.summary.telling if result.summary else []
    if not telling:
        return None
    buttons = [_to_slice(index, str(index + 1)) for index in telling]
    return element("div", element("span", "Most telling slices:"), buttons, class_="jumps")


def _to_slice(index: int, text: str, class_: str | None = None) -> Html:
    label = f"show slice {index + 1}"
    attributes = {"type": "button", "data_slice": index, "class_": class_, "title": label}
    return element("button", text, **attributes)


def _viewer(data: Mapping[str, Any], name: str, score_threshold: float) -> Html:
    """The stage and its controls, empty: the script fills them."""
    count = len(data["slices"])
    stage = element(
        "div",
        element("img", alt="", hidden=True),
        element("canvas", hidden=True),
        element("svg", aria_hidden="true", preserveAspectRatio="none"),
        element("p", class_="unreadable", hidden=True),
        class_="stage",
        tabindex=0,
        role="group",
        aria_label="Slice; arrow keys go through the scan",
    )
    slider = element(
        "input",
        type="range",
        class_="slice-slider",
        min=1,
        max=count,
        value=1,
        aria_label="Slice",
        disabled=count < 2,
    )
    steps = element(
        "div",
        element("button", "‹", type="button", class_="back", aria_label="slice before"),
        slider,
        element("button", "›", type="button", class_="on", aria_label="slice after"),
        class_="steps",
    )
    shown = element("div", stage, steps, element("p", _HINT, class_="hint"))
    return element("div", shown, _panel(data["classes"], name, score_threshold), class_="viewer")


def _panel(classes: Sequence[str], name: str, score_threshold: float) -> Html:
    """What stands beside the stage: the slice, its class, the controls and the lesions."""
    shares = []
    for title in classes:
        bar = element("meter", min=0, max=1, value=0, aria_label=title)
        shares += [element("span", title), bar, element("span", "–", class_="percent")]
    toggles = [
        element("label", element("input", type="checkbox", class_=class_, checked=True), f" {text}")
        for class_, text in (("overlay", "Overlay"), ("outlines", "Boxes and scores"))
    ]
    controls = [element("div", toggles, class_="toggles")]
    for class_, text, low, step, value in (
        ("opacity", "Opacity", 0, 0.05, 0.45),
        ("threshold", "Score above", f"{score_threshold:g}", 0.01, f"{score_threshold:g}"),
    ):
        place = f"{name}-{class_}"
        controls += [
            element("label", text, for_=place),
            element(
                "input",
                type="range",
                id=place,
                class_=class_,
                min=low,
                max=1,
                step=step,
                value=value,
            ),
            element("output", class_=f"{class_}-value", for_=place),
        ]
    head = [element("th", text, scope="col") for text in ("Rank", "Score", "Label", "Box")]
    lesions = element("table", element("thead", element("tr", head)), element("tbody"))
    return element(
        "div",
        element("h4", class_="name"),
        element("p", class_="where", aria_live="polite"),
        element("div", shares, class_="shares") if shares else None,
        element("div", controls, class_="controls"),
        element("p", class_="found"),
        element("div", lesions, class_="lesions", hidden=True),
        class_="panel",
    )


def _chart(data: Mapping[str, Any]) -> Html | None:
    """Class probabilities along the scan."""
    classes, slices = data["classes"], data["slices"]
    if not classes:
        return None
    missing = [np.nan] * len(classes)
    values = np.array([s["probabilities"] or missing for s in slices], float)
    title = f"class probabilities of {len(slices)} slices, in order"
    hint = "Click to see a slice. Shaded: slices that could not be read."
    drawn = charts.along(values, classes, title)
    heading = element("h3", "Class probabilities per slice")
    return join(heading, drawn, element("p", hint, class_="hint"))


def _downloads(files: Mapping[str, str]) -> Html:
    listed = [element("li", element("a", text, href=address)) for text, address in files.items()]
    return element("ul", listed)


def _facts(known: Mapping[str, str]) -> Html:
    return fact_table(known) if known else element("p", "Nothing is known of the model.")
