"""Writes the tables of the benchmarks from what runs and evaluations left in their metrics.json.

Each folder is a run's working directory or the output folder of `ssm-jax evaluate`; the latter has
intervals. A folder with figures of lesions has a row in the first table, one with figures of the
image class a row in the second. The tables replace what stands between two lines of the file
--table.

Examples:

    python -m experiments.benchmarks_table runs/covid19_ct_seg out/covid19_ct_seg_1 runs/covid_ct
    python -m experiments.benchmarks_table --table=docs/results.md runs/*
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from ssm_jax.checkpoints import CheckpointError, read_info
from ssm_jax.cli import common
from ssm_jax.files import write_text_atomically
from ssm_jax.report.comparison import names_of
from ssm_jax.report.evaluate import METRICS_FILE
from ssm_jax.report.page import number
from ssm_jax.report.tables import escaped, markdown_table

BEGIN, END = "<!-- tables of the benchmarks: begin -->", "<!-- tables of the benchmarks: end -->"
# Figures of the tables -> titles.
LESIONS = {
    "infection_dice": "Infection Dice",
    "infection_sensitivity": "Sensitivity",
    "infection_volume_error": "Volume error",
    "ap50": "AP@0.5",
    "ap": "AP",
}
CLASSES = {"accuracy": "Accuracy", "f1_macro": "F1, macro", "auc_covid": "AUC, COVID-19"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of the program.

    Attributes:
      folders: Working directory of a run, or output folder of an evaluation.
      table: File with the two lines.
    """

    folders: tuple[str, ...] = dataclasses.field(
        metadata={"positional": True, "shown": "DIR DIR ..."}
    )
    table: pathlib.Path = pathlib.Path("docs/results.md")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A row of the tables.

    Attributes:
      name: of the folder.
      metrics: content of metrics.json.
      step: iterations of the training.
      minutes: of the training; None where unknown.
    """

    name: str
    metrics: Mapping[str, Any]
    step: int
    minutes: float | None


def read(name: str, folder: pathlib.Path) -> Entry:
    """The figures of a run or an evaluation.

    Raises:
      ValueError: it has none, or they cannot be read.
    """
    path = folder / METRICS_FILE
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if "model" in metrics:  # an evaluation's
        model = metrics["model"]
        return Entry(name, metrics, model["step"], model["training_minutes"])
    step, seconds = metrics["step"], None
    with contextlib.suppress(CheckpointError):  # it may have been removed
        seconds = read_info((folder / "checkpoints" / str(step)).absolute()).seconds
    return Entry(name, metrics, step, None if seconds is None else seconds / 60)


def tables(entries: Sequence[Entry]) -> str:
    """Both tables in Markdown; one without rows is left out."""
    parts = []
    for title, figures, counts in (
        ("Lesions", LESIONS, ("seg_patients", "seg_slices")),
        ("Image class", CLASSES, ("cls_slices",)),
    ):
        known = [entry for entry in entries if next(iter(figures)) in entry.metrics]
        if known:
            head = ["Run", *figures.values(), *map(_title, counts)]
            head += ["Score threshold", "Iterations", "Minutes"]
            rows = [_row(entry, figures, counts) for entry in known]
            parts.append("\n".join([f"{title}:", "", *markdown_table(head, rows)]))
    note = (
        "In brackets 95% bootstrap intervals over patients (documents of COVID-CT), where the "
        "folder is that of an evaluation."
    )
    return "\n\n".join([*parts, note]) + "\n"


def _row(entry: Entry, figures: Mapping[str, str], counts: Sequence[str]) -> list[str]:
    metrics = entry.metrics
    cells = [_figure(metrics, name) for name in figures]
    cells += [number(metrics.get(name), ",") for name in counts]
    threshold = number(metrics.get("score_threshold"), "g")
    return [
        escaped(entry.name),
        *cells,
        threshold,
        f"{entry.step:,}",
        number(entry.minutes, ".0f"),
    ]


def _figure(metrics: Mapping[str, Any], name: str) -> str:
    """A figure with its interval, if it has one."""
    low, high = metrics.get("intervals", {}).get("figures", {}).get(name) or (None, None)
    shown = number(metrics.get(name), ".3f")
    return shown if low is None or high is None else f"{shown} [{low:.3f}, {high:.3f}]"


def _title(count: str) -> str:
    return {"seg_patients": "Patients", "seg_slices": "Slices", "cls_slices": "Pictures"}[count]


def main(flags: Flags) -> None:
    """The program."""
    names = names_of(flags.folders)
    entries = [
        read(name, pathlib.Path(folder).expanduser())
        for name, folder in zip(names, flags.folders, strict=True)
    ]
    try:
        text = flags.table.read_text(encoding="utf-8")
        text = common.with_marked(text, BEGIN, END, tables(entries))
    except (OSError, ValueError) as error:
        raise ValueError(f"{flags.table}: {error}") from error
    write_text_atomically(flags.table, text)
    print(f"{len(entries)} folders -> {flags.table}")


if __name__ == "__main__":
    common.run("python -m experiments.benchmarks_table", __doc__, Flags, main, sys.argv[1:])
