"""The report of one evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from ssm_jax.class_set import ClassSet
from ssm_jax.classes import PAPER, unnamed
from ssm_jax.evaluation import classification, coco
from ssm_jax.evaluation.calibration import Reliability
from ssm_jax.evaluation.predicted_slices import PredictedSlice
from ssm_jax.report import charts, paper, slices
from ssm_jax.report.page import (
    Card,
    Section,
    local,
    local_command,
    number,
    page,
    parts,
    with_interval,
)

_PARTS = parts("evaluation.html")
_KINDS = {"segm": "Masks", "bbox": "Boxes"}
AP_TITLES = {"ap50": "AP@0.5", "ap75": "AP@0.75", "ap": "AP@[0.5:0.95]"}
_INFECTION = {
    "infection_dice": "Dice",
    "infection_sensitivity": "Sensitivity",
    "infection_volume_error": "Volume error",
}


def report(result: Mapping[str, Any], shown: Sequence[PredictedSlice]) -> str:
    """The HTML page of an evaluation.

    Args:
      result: content of its metrics.json.
      shown: slices to show.

    Returns:
      The text of the file; it needs no other.
    """
    model, run = result["model"], result["run"]
    names = classes_of(model).titles
    sections = [Section("summary", "Summary", _summary(result))]
    if "ap50" in result:
        sections.append(Section("segmentation", "Segmentation", _segmentation(result)))
        sections.append(Section("curves", "Precision and recall", _curves(result)))
    if "accuracy" in result:
        sections.append(Section("classification", "Classification", _classification(result)))
    if result.get("reliability"):
        sections.append(Section("calibration", "Calibration", _calibration(result)))
    sections.append(Section("slices", "Slices", slices.section(shown, names)))
    sections.append(Section("details", "Details", _details(result)))
    lead = f"{model['name']}, step {model['step']:,}: {local(model['checkpoint'], 3)}"
    footer = f"Made by ssm_jax {run['versions']['ssm_jax']} on {run['date']}."
    return page(f"Evaluation of {model['name']}", lead, sections, footer)


def classes_of(model: Mapping[str, Any]) -> ClassSet:
    """The classes of a model, by its facts; those of an old evaluation, which names none."""
    if "classes" in model:
        return ClassSet.from_json(model["classes"])
    return unnamed(model["image_classes"], 1)


def paper_entry(model: Mapping[str, Any]) -> dict[str, Any] | None:
    """The paper's numbers of the same system; None where it has none, and for other classes."""
    if not set(classes_of(model).image) <= set(PAPER.image):
        return None
    return paper.find(model["system"], model["backbone"], model["blocks"])


def interval_note(result: Mapping[str, Any], part: str) -> str:
    """One sentence on the intervals of a part ("seg" or "cls")."""
    drawn = result["intervals"]
    units = drawn["units"].get(part)
    if not drawn["samples"] or units is None:
        return "No intervals were computed."
    if units["count"] < 2:
        kind = "patient" if units["kind"] == "patients" else "slice"
        return f"There is a single {kind}: intervals are not defined."
    few = " With so few of them, intervals tell little." if units["count"] < 10 else ""
    return (
        f"Below a figure stands its {drawn['level']:.0%} bootstrap interval: {drawn['samples']} "
        f"samples of {units['count']} {units['kind']}, seed {drawn['seed']}.{few}"
    )


def _summary(result: Mapping[str, Any]) -> Markup:
    """Cards with the main figures."""
    entry, intervals = paper_entry(result["model"]), result["intervals"]["figures"]
    last = classes_of(result["model"]).image[-1:]  # what a model is to find, see `summary`
    wanted = [
        ("ap", "AP@[0.5:0.95], per image", ".3f", "table2"),
        ("ap50", "AP@0.5, per image", ".3f", "table2"),
        ("coco_segm_AP", "COCO AP, masks", ".3f", None),
        ("infection_dice", "Infection Dice", ".3f", None),
        ("accuracy", "Accuracy", ".1%", "table3"),
        *((f"sensitivity_{one.name}", f"{one.title} sensitivity", ".1%", "table3") for one in last),
        ("f1_weighted", "F1, weighted", ".3f", "table3"),
        *((f"auc_{one.name}", f"{one.title} AUC", ".3f", None) for one in last),
    ]
    cards = []
    for name, title, form, source in wanted:
        if name not in result:
            continue
        low, high = _floats(intervals.get(name) or [None, None])
        printed = paper.as_fraction(name, entry[source][name]) if entry and source else None
        notes = [] if np.isnan(low) else [f"95% interval {low:{form}} to {high:{form}}"]
        if printed is not None:
            notes.append(f"paper: {printed:{form}}")
        value = result[name]
        meter = charts.meter(np.nan if value is None else value, low, high, printed)
        cards.append(Card(title, number(value, form), notes, meter))
    return _PARTS.summary(cards, result["model"]["name"] if entry else None)


def _segmentation(result: Mapping[str, Any]) -> Markup:
    intervals, entry = result["intervals"]["figures"], paper_entry(result["model"])

    def figures(names: Iterable[str], form: str) -> list[str]:
        return [with_interval(result[name], intervals.get(name), form) for name in names]

    per_image = [[result["model"]["name"], *figures(AP_TITLES, ".4f")]]
    if entry:
        per_image.append(
            ["paper, Table 2", *(f"{entry['table2'][name]:.4f}" for name in AP_TITLES)]
        )
    coco_rows = [
        [name, *figures((f"coco_{kind}_{figure}" for figure in coco.FIGURES), ".3f")]
        for kind, name in _KINDS.items()
    ]
    note = interval_note(result, "seg")
    tables = {
        "per_image": (["Model", *AP_TITLES.values()], per_image),
        "infection": (
            ["Model", *_INFECTION.values()],
            [[result["model"]["name"], *figures(_INFECTION, ".4f")]],
        ),
        "coco": (["", *coco.FIGURES], coco_rows),
    }
    titles = AP_TITLES | {"infection_dice": "infection Dice"}
    folders = _by_folder(result, AP_TITLES | _INFECTION)
    return _PARTS.segmentation(result, note, tables, folders, titles)


def _by_folder(
    result: Mapping[str, Any], columns: Mapping[str, str]
) -> tuple[list[str], list[list[str]]] | None:
    """Head and rows of the figures of every folder; None where slices come from one alone.

    Args:
      result: content of metrics.json.
      columns: figure -> title; the first is one that every folder of this kind has.
    """
    first = next(iter(columns))
    folders = [name.removesuffix(f"/{first}") for name in result if name.endswith(f"/{first}")]
    rows = [
        [folder, *(number(result[f"{folder}/{name}"], _form(name)) for name in columns)]
        for folder in folders
    ]
    return (["Folder", *columns.values()], rows) if rows else None


def _curves(result: Mapping[str, Any]) -> Markup:
    recall = np.linspace(0, 1, 101)
    labels = {"0.50": "IoU 0.50", "0.75": "IoU 0.75", "mean": "mean of IoU 0.50 to 0.95"}
    plots = {}
    for kind, name in _KINDS.items():
        precision = {key: _floats(result["curves"][kind][key]) for key in labels}
        if not np.isnan(precision["mean"]).all():
            series = [(label, recall, precision[key]) for key, label in labels.items()]
            title = f"Precision over recall of {name.lower()}"
            plots[name] = charts.curves(series, "Recall", "Precision", title)
    return _PARTS.curves(plots)


def _classification(result: Mapping[str, Any]) -> Markup:
    model, entry = result["model"], paper_entry(result["model"])
    classes = classes_of(model)
    short, names = classes.names, classes.titles
    intervals = result["intervals"]["figures"]
    columns = {f"sensitivity_{s}": n for s, n in zip(short[::-1], names[::-1], strict=True)}
    columns |= {"accuracy": "Overall", "f1_weighted": "F1, weighted", "f1_macro": "F1, macro"}
    figures = [with_interval(result[n], intervals.get(n), _form(n)) for n in columns]
    rows = [[model["name"], *figures]]
    if entry and len(names) == 3:
        printed = [paper.printed(name, entry["table3"].get(name)) for name in columns]
        rows.append(["paper, Table 3", *printed])
    per_class = [
        [
            name,
            number(result[f"sensitivity_{s}"], ".2%"),
            number(result[f"f1_{s}"]),
            with_interval(result.get(f"auc_{s}"), intervals.get(f"auc_{s}")),
        ]
        for s, name in zip(short, names, strict=True)
    ]
    note, head = interval_note(result, "cls"), ["Model", *columns.values()]
    areas = {
        name: f"AUC, {n}"
        for s, n in zip(short, names, strict=True)
        if (name := f"auc_{s}") in result
    }
    folders = _by_folder(result, columns | areas)
    shares = zip(classification.PAPER_SHARES, PAPER.titles, strict=True)
    weights = ", ".join(f"{share:.2f} {title}" for share, title in shares)
    return _PARTS.classification(result, note, (head, rows), names, per_class, folders, weights)


def _calibration(result: Mapping[str, Any]) -> Markup:
    bins = {name: _floats(values) for name, values in result["reliability"].items()}
    counts = bins.pop("count").astype(int)
    found = Reliability(count=counts, ece=result["ece"], **bins)
    rows = [
        [f"{low:.3f} – {high:.3f}", f"{count:,}", number(sure, ".3f"), number(right, ".3f")]
        for low, high, count, sure, right in zip(
            found.edges[:-1], found.edges[1:], counts, found.confidence, found.accuracy, strict=True
        )
        if count
    ]
    plot = charts.reliability(found, "Accuracy over confidence in bins")
    return _PARTS.calibration(result, len(counts), plot, rows)


def _details(result: Mapping[str, Any]) -> Markup:
    model, run = result["model"], result["run"]
    classes = classes_of(model)
    trained = f"{model['trainable_segmentation']:,} by the segmentation step"
    if model["trainable_classification"] is not None:
        trained += f", {model['trainable_classification']:,} by the classification step"
    minutes = model["training_minutes"]
    model_rows = {
        "System": model["name"],
        "Backbone": f"{model['backbone']}, {model['blocks']} residual blocks",
        "RoI branches": model["branches"],
        "Image classes": ", ".join(classes.titles) or "none",
        "Lesion classes": ", ".join(classes.lesion_titles.values()),
        "Slices resized to": f"{model['image_size']} pixels (short side)",
        "Parameters": f"{model['parameters']:,}",
        "Trained": trained,
        "Training time": None if minutes is None else f"{minutes:.1f} minutes",
        "Checkpoint": _code(local(model["checkpoint"], 3)),
        "Iterations": f"{model['step']:,}",
    }
    titles = {"seg": "Segmentation slices", "cls": "Classification slices"}
    data = {
        titles[part]: _data_rows(result["data"][part], model)
        for part in titles
        if result["data"].get(part)
    }
    run_rows = {
        "Command": _code(local_command(run["command"])),
        "Date": run["date"],
        "Took": f"{run['seconds']:.0f} s on {run['device']}",
        "Versions": ", ".join(f"{name} {version}" for name, version in run["versions"].items()),
        "Files": _PARTS.files(),
    }
    return _PARTS.details(model_rows, data, run_rows)


def _data_rows(data: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    slices_ = f"{data['slices']:,}"
    if data["slices"] != data["of"]:
        slices_ += f" of {data['of']:,}, evenly spread"
    rows = {
        "From": _code(local(data["source"])) if data["folder"] else data["source"],
        "Split": data["split"],
        "Slices": slices_,
        "Patients": "not told by file names" if data["patients"] is None else data["patients"],
        "Sizes": ", ".join(data["sizes"][:8]) + (", …" if len(data["sizes"]) > 8 else ""),
    }
    if "objects" in data:
        rows["Lesions"] = f"{data['objects']:,} of more than {data['min_area']} pixels of 512 × 512"
        rows["Slices without lesions"] = f"{data['slices_without_objects']:,}"
    if "classes" in data:
        names = classes_of(model).titles
        counts = [*data["classes"], *[0] * (len(names) - len(data["classes"]))]
        rows["Classes"] = ", ".join(f"{n} {c:,}" for n, c in zip(names, counts, strict=True))
    return rows


def _form(name: str) -> str:
    return ".2%" if paper.is_percentage(name) else ".4f"


def _code(text: str) -> Markup:
    return Markup("<code>{}</code>").format(text)


def _floats(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], float)
