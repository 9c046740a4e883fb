"""The report of one evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ssm_jax.classes import long_names, short_names
from ssm_jax.evaluation import coco
from ssm_jax.evaluation.calibration import Reliability
from ssm_jax.evaluation.predicted_slices import PredictedSlice
from ssm_jax.report import charts, paper, slices
from ssm_jax.report.html import Html, element, join, table
from ssm_jax.report.page import Section, facts, number, page, with_interval

PERCENT = ".2%"
_KINDS = {"segm": "masks", "bbox": "boxes"}
_AP = {"ap50": "AP@0.5", "ap75": "AP@0.75", "ap": "AP@[0.5:0.95]"}


def report(result: Mapping[str, Any], shown: Sequence[PredictedSlice]) -> str:
    """The HTML page of an evaluation.

    Args:
      result: content of its metrics.json.
      shown: slices to show.

    Returns:
      The text of the file; it needs no other.
    """
    model, run = result["model"], result["run"]
    names = long_names(model["image_classes"])
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
    lead = f"{model['name']}, step {model['step']:,}: {model['checkpoint']}"
    footer = f"Made by ssm_jax {run['versions']['ssm_jax']} on {run['date']}."
    return page(f"Evaluation of {model['name']}", lead, sections, footer)


def paper_entry(model: Mapping[str, Any]) -> dict[str, Any] | None:
    """The paper's numbers of the same system; None where it has none."""
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


def _summary(result: Mapping[str, Any]) -> Html:
    """Cards with the main figures."""
    entry, intervals = paper_entry(result["model"]), result["intervals"]["figures"]
    wanted = [
        ("ap", "AP@[0.5:0.95], per image", ".3f", "table2"),
        ("ap50", "AP@0.5, per image", ".3f", "table2"),
        ("coco_segm_AP", "COCO AP, masks", ".3f", None),
        ("accuracy", "Accuracy", ".1%", "table3"),
        ("sensitivity_covid", "COVID-19 sensitivity", ".1%", "table3"),
        ("f1_weighted", "F1, weighted", ".3f", "table3"),
    ]
    cards = []
    for name, title, form, source in wanted:
        if name not in result:
            continue
        value, ends = result[name], intervals.get(name) or [None, None]
        printed = paper.as_fraction(name, entry[source][name]) if entry and source else None
        low, high = (np.nan if end is None else end for end in ends)
        meter = charts.meter(np.nan if value is None else value, low, high, printed)
        text = "" if ends[0] is None else f"95% interval {ends[0]:{form}} to {ends[1]:{form}}"
        beside = None if printed is None else element("p", f"paper: {printed:{form}}")
        body = [element("h3", title), element("div", number(value, form), class_="figure")]
        cards.append(element("div", *body, meter, element("p", text), beside, class_="card"))
    note = None
    if entry:
        note = element(
            "p",
            f"The orange mark is what the paper prints for {result['model']['name']}, on other "
            "slices: an orientation, not a comparison.",
        )
    return join(element("div", cards, class_="cards"), note)


def _segmentation(result: Mapping[str, Any]) -> Html:
    intervals = result["intervals"]["figures"]
    model, entry = result["model"], paper_entry(result["model"])
    rows = [[model["name"], *(with_interval(result[n], intervals.get(n)) for n in _AP)]]
    if entry:
        printed = [element("td", f"{entry['table2'][n]:.4f}", class_="paper") for n in _AP]
        rows.append([element("th", "paper, Table 2", scope="row", class_="paper"), *printed])
    per_image = table(
        ["Model", *_AP.values()], rows, "Mean over slices of a per-image AP (Table 2)"
    )
    head = ["", *coco.FIGURES]
    rows = []
    for kind, name in _KINDS.items():
        names = {figure: f"coco_{kind}_{figure}" for figure in coco.FIGURES}
        cells = [with_interval(result[n], intervals.get(n), ".3f") for n in names.values()]
        rows.append([name.capitalize(), *cells])
    standard = table(head, rows, "COCO: one ranking over all slices")
    thresholds = f"Detections have a score above {result['score_threshold']:g}; of two with an IoU "
    thresholds += f"above {result['nms_threshold']:g} the better one stays."
    counts = f"{result['seg_slices']:,} slices, {result['objects']:,} lesions, "
    counts += f"{result['detections']:,} detections. "
    sizes = (
        "AP is the mean over the IoU thresholds 0.50 to 0.95; s, m and l are lesions of up to 32², "
        "up to 96² and more pixels; AR1, AR10 and AR100 are recall with so many detections a slice."
    )
    texts = [element("p", text) for text in (counts + thresholds, interval_note(result, "seg"))]
    return join(texts, per_image, standard, element("p", sizes))


def _curves(result: Mapping[str, Any]) -> Html:
    recall = np.linspace(0, 1, 101)
    labels = {"0.50": "IoU 0.50", "0.75": "IoU 0.75", "mean": "mean of IoU 0.50 to 0.95"}
    plots = []
    for kind, name in _KINDS.items():
        precision = {key: _floats(result["curves"][kind][key]) for key in labels}
        if np.isnan(precision["mean"]).all():
            continue
        series = [(labels[key], recall, precision[key]) for key in labels]
        title = f"Precision over recall of {name}"
        plot = charts.curves(series, "Recall", "Precision", title)
        plots.append(element("div", element("h3", name.capitalize()), plot))
    if not plots:
        return element("p", "There is no lesion to find in these slices.")
    return element("div", plots, class_="charts")


def _classification(result: Mapping[str, Any]) -> Html:
    model, entry = result["model"], paper_entry(result["model"])
    classes = model["image_classes"]
    short, names = short_names(classes), long_names(classes)
    intervals = result["intervals"]["figures"]
    columns = {f"sensitivity_{s}": n for s, n in zip(short[::-1], names[::-1], strict=True)}
    columns |= {"accuracy": "Overall", "f1_weighted": "F1, weighted", "f1_macro": "F1, macro"}
    cells = [with_interval(result[n], intervals.get(n), _form(n)) for n in columns]
    rows = [[model["name"], *cells]]
    if entry and classes == 3:
        printed = [entry["table3"].get(n) for n in columns]
        shown = [_printed(n, value) for n, value in zip(columns, printed, strict=True)]
        faint = [element("td", text, class_="paper") for text in shown]
        rows.append([element("th", "paper, Table 3", scope="row", class_="paper"), *faint])
    caption = "Sensitivity of each class, accuracy, and F1 (Table 3)"
    figures = table(["Model", *columns.values()], rows, caption)
    texts = [f"{result['cls_slices']:,} slices. {interval_note(result, 'cls')}"]
    if result.get("f1_weighted_paper") is not None:
        texts.append(
            "F1 is weighted by the classes' shares of these slices; with the paper's shares (0.45 "
            f"normal, 0.35 common pneumonia, 0.20 COVID-19) it is "
            f"{result['f1_weighted_paper']:.4f}."
        )
    per_class = [
        [name, number(result[f"sensitivity_{s}"], PERCENT), number(result[f"f1_{s}"])]
        for s, name in zip(short, names, strict=True)
    ]
    return join(
        [element("p", text) for text in texts],
        figures,
        element("h3", "Confusion matrix"),
        _confusion(np.array(result["confusion"]), names),
        element("h3", "Each class"),
        table(["Class", "Sensitivity", "F1"], per_class),
    )


def _confusion(matrix: np.ndarray, names: Sequence[str]) -> Html:
    """Counts and shares of each row, shaded by share."""
    rows = []
    for k, (name, counts) in enumerate(zip(names, matrix, strict=True)):
        total = counts.sum()
        cells = []
        for column, count in enumerate(counts):
            share = count / total if total else 0.0
            shade = f"background: rgba(var(--shade), {0.5 * share:.3f})"
            text = element("small", f"{share:.1%}" if total else "–")
            right = "right" if column == k else None
            cells.append(element("td", element("b", f"{count:,}"), text, style=shade, class_=right))
        rows.append([name, *cells])
    head = ["True class", *(f"predicted {name}" for name in names)]
    return table(head, rows, "Slices, and their share of the true class", class_="confusion")


def _calibration(result: Mapping[str, Any]) -> Html:
    bins = {name: _floats(values) for name, values in result["reliability"].items()}
    count = bins["count"].astype(int)
    found = Reliability(bins["edges"], count, bins["confidence"], bins["accuracy"], result["ece"])
    rows = [
        [f"{low:.3f} – {high:.3f}", f"{slices_:,}", number(sure, ".3f"), number(right, ".3f")]
        for low, high, slices_, sure, right in zip(
            found.edges[:-1], found.edges[1:], count, found.confidence, found.accuracy, strict=True
        )
        if slices_
    ]
    text = (
        f"Expected calibration error {number(result['ece'])}: how far the probability of the "
        "predicted class (softmax of the class logits) is from the share of right slices, averaged "
        f"over the slices, in {len(count)} equal bins. It comes out too large on few slices."
    )
    bins_table = table(["Confidence", "Slices", "Mean confidence", "Accuracy"], rows)
    plot = charts.reliability(found, "Accuracy over confidence in bins")
    return join(element("p", text), element("div", plot, bins_table, class_="charts"))


def _details(result: Mapping[str, Any]) -> Html:
    model, run = result["model"], result["run"]
    trained = f"{model['trainable_segmentation']:,} by the segmentation step"
    if model["trainable_classification"] is not None:
        trained += f", {model['trainable_classification']:,} by the classification step"
    minutes = model["training_minutes"]
    parts = [
        element("h3", "Model"),
        facts(
            {
                "System": model["name"],
                "Backbone": f"{model['backbone']}, {model['blocks']} residual blocks",
                "RoI branches": model["branches"],
                "Slices resized to": f"{model['image_size']} pixels (short side)",
                "Parameters": f"{model['parameters']:,}",
                "Trained": trained,
                "Training time": None if minutes is None else f"{minutes:.1f} minutes",
                "Checkpoint": element("code", model["checkpoint"]),
                "Iterations": f"{model['step']:,}",
            }
        ),
    ]
    for part, title in (("seg", "Segmentation slices"), ("cls", "Classification slices")):
        data = result["data"].get(part)
        if data:
            parts += [element("h3", title), facts(_data_rows(data, model))]
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    parts += [
        element("h3", "Run"),
        facts(
            {
                "Command": element("code", run["command"]),
                "Date": run["date"],
                "Took": f"{run['seconds']:.0f} s on {run['device']}",
                "Versions": versions,
                "Files": join(
                    element("code", "metrics.json"),
                    " (all figures), ",
                    element("code", "predictions.json"),
                    " and ",
                    element("code", "predictions_bbox.json"),
                    " (COCO results, masks and boxes), ",
                    element("code", "truth.json"),
                    " (COCO instances), ",
                    element("code", "classes.json"),
                    " (class probabilities)",
                ),
            }
        ),
    ]
    return join(parts)


def _data_rows(data: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, Any]:
    slices_ = f"{data['slices']:,}"
    if data["slices"] != data["of"]:
        slices_ += f" of {data['of']:,}, evenly spread"
    rows = {
        "From": element("code", data["source"]) if data["folder"] else data["source"],
        "Split": data["split"],
        "Slices": slices_,
        "Patients": "not told by file names" if data["patients"] is None else data["patients"],
        "Sizes": ", ".join(data["sizes"][:8]) + (", …" if len(data["sizes"]) > 8 else ""),
    }
    if "objects" in data:
        rows["Lesions"] = f"{data['objects']:,} of more than {data['min_area']} pixels"
        rows["Slices without lesions"] = f"{data['slices_without_objects']:,}"
    if "classes" in data:
        names = long_names(model["image_classes"])
        counts = [*data["classes"], *[0] * (len(names) - len(data["classes"]))]
        rows["Classes"] = ", ".join(f"{n} {c:,}" for n, c in zip(names, counts, strict=True))
    return rows


def _form(name: str) -> str:
    return PERCENT if name in paper.PERCENT else ".4f"


def _printed(name: str, value: float | None) -> str:
    """A figure as the paper prints it."""
    if value is None:
        return "–"
    return f"{value:.2f}%" if name in paper.PERCENT else f"{value:.4f}"


def _floats(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], float)
