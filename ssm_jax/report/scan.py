"""The page of predicted scans: a viewer of slices, what is said of the scan, and of what."""

from __future__ import annotations

import datetime
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

import ssm_jax
from ssm_jax.report import charts
from ssm_jax.report.page import Card, Section, page, parts
from ssm_jax.report.pictures import bounded_jpeg, data_uri
from ssm_jax.scans.options import visible
from ssm_jax.scans.result import ScanResult, SliceResult, renamed
from ssm_jax.visualize import colored_by_class, lesion_colors

IMAGE_BYTES = 18_000_000  # of all JPEG files of a page; a third more as text
SLICE_BYTES = 80_000  # at most, however few the slices are
_PARTS = parts("scan.html")


def scan_report(
    results: Sequence[ScanResult],
    facts: Mapping[str, str],
    score_threshold: float,
    downloads: Mapping[str, str] | None = None,
) -> str:
    """The HTML page of predicted scans.

    Names of files are told without the folders of this machine that they lie in, and with control
    characters and undecodable bytes escaped, as all texts of the scans are. Pictures of slices
    are JPEG files in the page, which all together take at most about `IMAGE_BYTES`; masks are drawn
    by the page from their run lengths, at full resolution.

    Args:
      results: the scans, in order.
      facts: what is known of the model and of the run, in reading order: label and value.
      score_threshold: that the detections were found with, in [0, 1]; the viewer can raise it.
      downloads: text and relative address of files beside the page; none for a page by itself.

    Returns:
      The text of the file; it needs no other and asks for none.
    """
    results = [renamed(_without_folders(result), visible) for result in results]
    slices = sum(len(result.slices) for result in results)
    limit = min(SLICE_BYTES, IMAGE_BYTES // max(slices, 1))
    sections = []
    if downloads:
        sections.append(Section("downloads", "Downloads", _PARTS.downloads(downloads)))
    for number, result in enumerate(results, 1):
        name = f"scan-{number}"
        title = "Scan" if len(results) == 1 else result.name
        sections.append(Section(name, title, _scan(result, name, score_threshold, limit)))
    if not results:
        sections.append(Section("scan-1", "Scan", Markup("<p>There was no scan.</p>")))
    sections.append(Section("model", "Model", _PARTS.model(facts)))
    lead = results[0].name if len(results) == 1 else f"{len(results)} scans, {slices} slices"
    today = datetime.date.today().isoformat()
    footer = f"Made by ssm_jax {ssm_jax.__version__} on {today}. Not a medical device."
    return page("Predicted CT scans", lead, sections, footer, ["viewer.css"], ["viewer.js"])


def viewer_data(result: ScanResult, limit: int) -> dict[str, Any]:
    """The data that the script of the viewer reads.

    Args:
      result: a scan.
      limit: bytes of a slice's picture at most.

    Returns:
      JSON-ready: `classes`, titles (none if the model only segments or no slice was read);
      `lesions`, titles of the lesion classes; `colors`, RGB of the detections by rank, or, where
      `by_class`, of the lesion classes; `first`, the slice to start with; `slices`, each with
      index, name, position, error, image (a data URI), size (height, width), probabilities,
      predicted, and detections (box, score, label, and the run lengths of the mask, or null, as
      counts).
    """
    telling = result.summary.telling if result.summary else []
    known, read = result.classes, any(slice_.prediction for slice_ in result.slices)
    return {
        "classes": known.titles if read else (),
        "lesions": [*known.lesion_titles.values()],
        "by_class": colored_by_class(known),
        "colors": lesion_colors(known),
        "first": telling[0] if telling else 0,
        "slices": [_slice_data(k, slice_, limit) for k, slice_ in enumerate(result.slices)],
    }


def _without_folders(result: ScanResult) -> ScanResult:
    """A result that does not tell in which folder of this machine its files lie."""
    folders: list[str] = []
    # That of the scan first: what lies in it keeps its place there.
    for name in (result.name, *(slice_.name for slice_ in result.slices)):
        known = any(name.startswith(folder) for folder in folders)
        if os.path.isabs(name) and name.count("/") > 1 and not known:
            folders.append(f"{os.path.dirname(name)}/")
    longest_first = sorted(map(re.escape, folders), key=len, reverse=True)
    found = re.compile("|".join(longest_first))
    return renamed(result, lambda text: found.sub("", text)) if folders else result


def _slice_data(index: int, slice_: SliceResult, limit: int) -> dict[str, Any]:
    known: dict[str, Any] = {"index": index, "name": slice_.name, "position": slice_.position}
    prediction = slice_.prediction
    if prediction is None or slice_.image is None:
        known["error"] = slice_.error or "no reason was given"
        known |= {"image": None, "size": None, "probabilities": [], "predicted": None}
        return {**known, "detections": []}
    no_masks: list[Any] = [None] * len(prediction.scores)
    masks = prediction.masks or no_masks
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
    picture = Image.fromarray(np.ascontiguousarray(slice_.image))
    return {
        **known,
        "error": slice_.error,
        "image": data_uri(bounded_jpeg(picture, limit)),
        "size": [prediction.height, prediction.width],
        "probabilities": [round(float(p), 6) for p in prediction.class_probabilities],
        "predicted": prediction.predicted_class,
        "detections": detections,
    }


def _scan(result: ScanResult, name: str, score_threshold: float, limit: int) -> Markup:
    """All of one scan."""
    data = viewer_data(result, limit)
    # What closes a script or opens a comment in it starts with "<".
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    cards = list(_cards(result, data["classes"]))
    threshold = f"{score_threshold:g}"
    return _PARTS.scan(name, result, cards, data, Markup(text), threshold, _chart(data))


def _cards(result: ScanResult, classes: Sequence[str]) -> Iterator[Card]:
    """The summary of the whole scan."""
    summary = result.summary
    if summary is None:
        return
    if classes and summary.predicted_class is not None:
        shares = zip(classes, summary.class_probabilities, strict=True)
        listed = ", ".join(f"{name} {share:.1%}" for name, share in shares)
        rule = f"Rule “{summary.rule}” over the slices: {listed}"
        yield Card("Class of the scan", classes[summary.predicted_class], [rule])
        counts = [int(count) for count in summary.slices_per_class]
        pairs, total = zip(classes, counts, strict=True), max(sum(counts), 1)
        listed = ", ".join(f"{name} {count / total:.0%}" for name, count in pairs)
        yield Card("Slices by their own class", " / ".join(map(str, counts)), [listed])
    if summary.lesion_ml is not None:
        text = "All lesion masks, at the score threshold of the prediction"
        yield Card("Lesion volume", f"{summary.lesion_ml:.1f} ml", [text])
    if summary.lung_share is not None:
        text = "Lesions within the lung mask that was given, by volume"
        yield Card("Share of the lung", f"{summary.lung_share:.1%}", [text])
    found = [len(s.prediction.scores) for s in result.slices if s.prediction is not None]
    figure = f"{sum(count > 0 for count in found)} of {len(found)}"
    yield Card("Slices with lesions", figure, [f"{sum(found)} lesions in all"])


def _chart(data: Mapping[str, Any]) -> Markup | None:
    """Class probabilities along the scan; none without classes."""
    classes, slices = data["classes"], data["slices"]
    if not classes:
        return None
    missing = [np.nan] * len(classes)
    values = np.array([s["probabilities"] or missing for s in slices], float)
    return charts.along(values, classes, f"class probabilities of {len(slices)} slices, in order")
