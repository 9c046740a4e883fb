"""Several evaluations side by side: Tables 1 to 3 of the paper, beside the paper's own numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from ssm_jax.report import paper
from ssm_jax.report.evaluation import AP_TITLES, classes_of, paper_entry
from ssm_jax.report.page import Section, local, local_command, number, page, parts
from ssm_jax.report.tables import escaped, markdown_table

_PARTS = parts("comparison.html")
_SPLITS = {
    "training": "Training",
    "validation": "Validation",
    "test": "Test",
    "ratio_test_train": "Test/train",
}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """An evaluation under a name that tells it from the others.

    name: such as the folder it came from. result: content of its metrics.json.
    """

    name: str
    result: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
      id: such as "table-2".
      title: as a heading.
      head: names of the columns.
      rows: (whether the paper's, cells) in order.
      note: below it.
    """

    id: str
    title: str
    head: Sequence[str]
    rows: Sequence[tuple[bool, Sequence[str]]]
    note: str


def tables(evaluations: Sequence[Evaluation]) -> list[Table]:
    """Tables 1 to 3: after each model the paper's row of the same system, if there is one.

    Args:
      evaluations: in the order of the rows.
    """
    return [_sizes(evaluations), _segmentation(evaluations), _classification(evaluations)]


def markdown(evaluations: Sequence[Evaluation]) -> str:
    """The tables in Markdown."""
    parts = ["# Models side by side", "", f"Paper: {paper.results()['source']}."]
    for item in tables(evaluations):
        rows = [
            [f"*{escaped(text)}*" if of_paper and text else escaped(text) for text in cells]
            for of_paper, cells in item.rows
        ]
        head = [escaped(name) for name in item.head]
        parts += ["", f"## {item.title}", "", *markdown_table(head, rows), "", item.note]
    parts += ["", *(f"- {escaped(line)}" for line in _sources(evaluations)), ""]
    return "\n".join(parts)


def html(evaluations: Sequence[Evaluation], command: str, date: str) -> str:
    """The tables as a self-contained page.

    Args:
      evaluations: in the order of the rows.
      command: the command line.
      date: of the comparison.
    """
    sections = []
    for item in tables(evaluations):
        rows = [[first, *map(_split_interval, rest)] for _, (first, *rest) in item.rows]
        faint = [k for k, (of_paper, _) in enumerate(item.rows) if of_paper]
        figures = _PARTS.figures(item.head, rows, faint, item.note)
        sections.append(Section(item.id, item.title, figures))
    sources = _PARTS.sources(
        paper.results()["source"], _sources(evaluations), local_command(command)
    )
    sections.append(Section("sources", "Sources", sources))
    lead = ", ".join(evaluation.name for evaluation in evaluations)
    return page("Models side by side", lead, sections, f"Made by ssm_jax on {date}.")


def _sizes(evaluations: Sequence[Evaluation]) -> Table:
    head = ["Model", "Parameters", "Trained: seg / cls", *_SPLITS.values(), "Minutes"]
    facts = paper.results()["tables"]["table1"]
    rows: list[tuple[bool, Sequence[str]]] = []
    for evaluation in evaluations:
        result = evaluation.result
        model = result["model"]
        trained = [model["trainable_segmentation"], model["trainable_classification"]]
        shown = " / ".join("–" if count is None else _millions(count) for count in trained)
        minutes = number(model["training_minutes"], ".1f")
        splits = _split_cells(result["data"])
        rows.append(
            (False, [_name(evaluation), _millions(model["parameters"]), shown, *splits, minutes])
        )
        entry = paper_entry(model)
        if entry:
            printed = entry["table1"]
            both = f"{printed['trainable_segmentation']} / {printed['trainable_classification']}"
            splits = [facts["split"][name] for name in _SPLITS]
            cells = [printed["total_parameters"], both, *splits, str(printed["training_minutes"])]
            rows.append((True, ["paper", *cells]))
    note = (
        "Slices as segmentation/classification; Test: those evaluated here. Trained: parameters "
        "that either step updates; the paper counts all of them for segmentation. Minutes of "
        "training, pretraining included, where they were noted. The paper's row is as printed; "
        "with three blocks the classification step (rule 2) in fact trains 4.03M (ResNet-18) or "
        "9.42M (ResNet-34) parameters."
    )
    return Table("table-1", "Table 1: sizes and training", head, rows, note)


def _split_cells(data: Mapping[str, Any]) -> list[str]:
    """Slices to train and to test on and their ratio; there is no validation split."""

    def both(name: str) -> list[int | None]:
        return [data.get(part, {}).get(name) for part in ("seg", "cls")]

    def shown(values: Sequence[float | None], form: str) -> str:
        texts = ["-" if value is None else format(value, form) for value in values]
        return "/".join(texts) if set(texts) != {"-"} else "–"

    train, test = both("training_slices"), both("slices")
    ratios = [b / a if a and b else None for a, b in zip(train, test, strict=True)]
    return [shown(train, ","), "–", shown(test, ","), shown(ratios, ".2f")]


def _segmentation(evaluations: Sequence[Evaluation]) -> Table:
    beside = {
        "coco_segm_AP": "COCO AP, masks",
        "coco_bbox_AP": "COCO AP, boxes",
        "infection_dice": "Infection Dice",
        "infection_sensitivity": "Infection sensitivity",
        "infection_volume_error": "Infection volume error",
    }
    note = (
        "AP is the mean over slices of a per-image AP, ranked by its mean over thresholds; the two "
        "COCO columns are pycocotools' AP. Infection figures take all lesions of a patient "
        "together (of a slice where file names do not tell patients). With 95% bootstrap "
        "intervals. The paper's test slices are others than ours, unless Sources says so."
    )
    head = ["Model", *AP_TITLES.values(), *beside.values(), "Rank"]
    rows = _ranked(evaluations, "table2", AP_TITLES, beside, "ap")
    return Table("table-2", "Table 2: average precision", head, rows, note)


def _classification(evaluations: Sequence[Evaluation]) -> Table:
    sets = [classes_of(evaluation.result["model"]).image for evaluation in evaluations]
    titles = {one.name: one.title for image in sets for one in image[::-1]}
    names = {
        f"sensitivity_{name}": paper.SENSITIVITIES.get(f"sensitivity_{name}", title)
        for name, title in titles.items()
    }
    names |= {"accuracy": "Overall", "f1_weighted": "F1 score"}
    last = {image[-1].name: image[-1].title for image in sets if image}
    note = (
        "Sensitivity of each class, overall accuracy, and F1 weighted by the classes' shares, by "
        "which models are ranked; AUC of a class against all other slices. With 95% bootstrap "
        "intervals."
    )
    beside = {"f1_macro": "F1, macro"}
    beside |= {f"auc_{name}": f"AUC, {title}" for name, title in last.items()}
    head = ["Model", *names.values(), *beside.values(), "Rank"]
    rows = _ranked(evaluations, "table3", names, beside, "f1_weighted")
    return Table("table-3", "Table 3: classification", head, rows, note)


def _ranked(
    evaluations: Sequence[Evaluation],
    table: str,
    names: Collection[str],
    beside: Collection[str],
    by: str,
) -> list[tuple[bool, Sequence[str]]]:
    """Rows of figures and a rank.

    Args:
      evaluations: in the order of the rows.
      table: of the paper.
      names: figures of it.
      beside: figures that the paper does not print.
      by: figure that ranks are of.
    """
    rows: list[tuple[bool, Sequence[str]]] = []
    for evaluation, rank in zip(evaluations, _ranks(evaluations, by), strict=True):
        figures = [_figure(evaluation, name) for name in (*names, *beside)]
        rows.append((False, [_name(evaluation), *figures, rank]))
        entry = paper_entry(evaluation.result["model"])
        if entry:
            printed = [paper.printed(name, entry[table].get(name)) for name in names]
            place = f"{entry[table]['rank']} of 12"
            rows.append((True, ["paper", *printed, *[""] * len(beside), place]))
    return rows


def _figure(evaluation: Evaluation, name: str) -> str:
    """A figure with its interval in brackets."""
    value = evaluation.result.get(name)
    if value is None:
        return "–"
    form = ".2%" if paper.is_percentage(name) else ".4f"
    low, high = evaluation.result["intervals"]["figures"].get(name) or (None, None)
    if low is None or high is None:
        return format(value, form)
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def _ranks(evaluations: Sequence[Evaluation], name: str) -> list[str]:
    """Places by a figure, the largest first; models without it have none."""
    values = [evaluation.result.get(name) for evaluation in evaluations]
    known = [value for value in values if value is not None]
    return ["–" if v is None else str(1 + sum(other > v for other in known)) for v in values]


def _sources(evaluations: Sequence[Evaluation]) -> list[str]:
    """The data and the model behind each evaluation."""
    lines = []
    for evaluation in evaluations:
        result = evaluation.result
        data = [
            f"{d['slices']:,} {name} slices of {local(d['source'])} ({d['split']})"
            for name, d in (
                ("segmentation", result["data"].get("seg")),
                ("classification", result["data"].get("cls")),
            )
            if d
        ]
        threshold = f"score threshold {result['score_threshold']:g}"
        model, run = result["model"], result["run"]
        origin = f"{local(model['checkpoint'], 3)}, step {model['step']:,}"
        lines.append(f"{evaluation.name}: {origin}; {'; '.join(data)}; {threshold}; {run['date']}")
    return lines


def _name(evaluation: Evaluation) -> str:
    return f"{evaluation.result['model']['name']}, {evaluation.name}"


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f}M"


def _split_interval(text: str) -> Markup | str:
    """A figure with its interval on a line of its own."""
    value, bracket, rest = text.partition(" [")
    if not bracket:
        return text
    return Markup("{}<small>{}</small>").format(value, rest.rstrip("]").replace(", ", " – "))
