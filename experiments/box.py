"""Puts a trained model into the box: the file that comes with the package, and its model card.

Takes a run that was evaluated on patients that it was not trained on. Kernels are rounded to
float16. The card's figures, and the score threshold, are those of the run's own evaluation, which
the checkpoint holds, or those of `ssm-jax evaluate`, which have intervals.

Examples:

    python -m experiments.box --checkpoint=runs/box
    python -m experiments.box --checkpoint=runs/box --evaluation=out/box --failures=failures.md
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import jax

import ssm_jax
from ssm_jax import box
from ssm_jax.checkpoints import CheckpointInfo, load_model
from ssm_jax.cli import common
from ssm_jax.config import ModelConfig, default_config, variant_of
from ssm_jax.files import json_ready, write_text_atomically
from ssm_jax.report.comparison import read_evaluation
from ssm_jax.report.page import number
from ssm_jax.report.tables import markdown_table
from ssm_jax.training.workdir import flatten

# What the model in the box is not good for; told wherever it is used without being asked for.
LIMITS = (
    "Research software, not a medical device: not for diagnosis, triage or treatment.",
    "Its lesions were learned from slices of ten patients with COVID-19 of two public collections, "
    "whose gray values were windowed or equalized beforehand: on other diseases, healthy lungs, "
    "other windows and other scanners it marks what is none and misses what is there.",
    "Its figures are of a few development patients; nobody measured it in a clinic.",
)
NO_CLASS = "It marks lesions and tells no image class."
PICTURES_LIMIT = (
    "Its two image classes, COVID-19 and other, were learned from pictures cut out of publications "
    "(COVID-CT), whose sources differ between the classes: on slices of a scanner the class may "
    "follow the look of the picture and not the lung. A high probability is no evidence."
)
CLASS_DATA = (
    "| COVID-CT, training and validation pictures (Yang et al., 2020) | image class | "
    "research use, cite |\n"
)
# Figures of the card: name in metrics.json -> title.
FIGURES = {
    "infection_dice": "Infection Dice, mean over patients",
    "infection_sensitivity": "Infection sensitivity, mean over patients",
    "infection_volume_error": "Infection volume error, mean over patients",
    "ap50": "AP@0.5, mean over slices",
    "ap": "AP@[0.5:0.95], mean over slices",
    "accuracy": "Accuracy of the image class",
    "f1_macro": "F1 of the image class, mean over classes",
    "auc_covid": "AUC of COVID-19",
    "seg_patients": "Patients with lesion masks",
    "seg_slices": "Slices with lesion masks",
    "cls_slices": "Pictures with an image class",
}

CARD = pathlib.Path(__file__).with_name("model_card.md")  # a form, to be filled in


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of the program.

    Attributes:
      checkpoint: Working directory of a run, or the folder of one step.
      evaluation: Output folder of `ssm-jax evaluate` of this checkpoint. Default: the run's own.
      output: File of the weights; the card goes beside it.
      name: Of the model, for people. Default: by its backbone.
      failures: Markdown file with the text on known failures, pictures perhaps among it.
    """

    checkpoint: str
    evaluation: pathlib.Path | None = None
    output: pathlib.Path = box.FILE
    name: str = ""
    failures: pathlib.Path | None = None


def main(flags: Flags) -> None:
    """The program."""
    model, variables, info = load_model(flags.checkpoint)
    if flags.evaluation:
        evaluated = read_evaluation(flags.evaluation)
        if evaluated is None:
            raise ValueError(f"{flags.evaluation} is no output folder of ssm-jax evaluate")
        info = dataclasses.replace(info, metrics=evaluated)
    if not info.config or not info.metrics:
        raise ValueError(f"{info.path} holds no evaluation of a run; its figures make the card")
    name = flags.name or f"SSM {model.backbone}, {model.blocks} blocks"
    failures = "See the figures: what is not found, and what is marked in vain, was not sorted yet."
    if flags.failures:
        failures = flags.failures.read_text(encoding="utf-8").strip()
    flags.output.parent.mkdir(parents=True, exist_ok=True)
    numbers = {k: v for k, v in info.metrics.items() if isinstance(v, int | float)}
    kept = dataclasses.replace(info, metrics=numbers)
    size = box.write(flags.output, model, variables, kept, name, limits(model))
    path = flags.output.with_name(box.CARD.name)
    write_text_atomically(path, card(model, variables, info, name, failures))
    print(f"{info.path} -> {flags.output} ({size / 1e6:.1f} MB), {path}")


def limits(model: ModelConfig) -> tuple[str, ...]:
    """The limits of a model, a sentence each."""
    return (*LIMITS, PICTURES_LIMIT if model.image_classes else NO_CLASS)


def card(
    model: ModelConfig,
    variables: Mapping[str, Any],
    info: CheckpointInfo,
    name: str,
    failures: str,
) -> str:
    """The model card in Markdown, for the arguments of `box.write` and a text on failures."""
    metrics, run = info.metrics or {}, info.config or {}
    chosen = bool(metrics.get("threshold_choice"))
    chosen |= run.get("eval", {}).get("choose_threshold", "none") != "none"
    minutes = "" if info.seconds is None else f" ({info.seconds / 60:.0f} minutes)"
    return CARD.read_text(encoding="utf-8").format(
        name=name,
        version=ssm_jax.__version__,
        backbone=model.backbone,
        blocks=model.blocks,
        parameters=sum(array.size for array in jax.tree.leaves(variables["params"])),
        step=info.step,
        minutes=minutes,
        size=model.image_size,
        returns=" and probabilities of two image classes: COVID-19 and other (a healthy lung or\n"
        "another disease)"
        if model.image_classes
        else "",
        class_data=CLASS_DATA if model.image_classes else "",
        limits="\n".join(f"- {line}" for line in limits(model)),
        threshold=f"{metrics['score_threshold']:g}{', chosen on training slices' * chosen}",
        branches=model.branches,
        figures=figures(metrics),
        failures=failures,
        license=box.LICENSE,
        settings=settings(run, model),
    )


def figures(metrics: Mapping[str, Any]) -> str:
    """A table of `FIGURES`, of all slices (with 95% intervals) and of every folder."""
    folders = ["", *sorted({name.rpartition("/")[0] for name in metrics if "/" in name})]
    intervals, rows = metrics.get("intervals", {}).get("figures", {}), []
    for name, title in FIGURES.items():
        values = [metrics.get(f"{folder}/{name}" if folder else name) for folder in folders]
        if values[0] is not None:
            form = "," if isinstance(values[0], int) else ".3f"
            cells = [number(value, form) for value in values]
            low, high = intervals.get(name) or (None, None)
            if low is not None and high is not None:
                cells[0] += f" [{low:.3f}, {high:.3f}]"
            rows.append([title, *cells])
    return "\n".join(markdown_table(["", "all", *folders[1:]], rows))


def settings(run: Mapping[str, Any], model: ModelConfig) -> str:
    """A list of the fields of a run that are not the defaults, without folders."""
    usual = flatten(json_ready(default_config().to_dict()))
    changed = {
        name: value
        for name, value in flatten(json_ready(box.without_folders(run))).items()
        if value not in ("", usual.get(name))
    }
    listed = [f"- `{name}`: {value}" for name, value in changed.items()]
    return "\n".join([f"Backbone variant `{variant_of(model)}`.", "", *listed])


if __name__ == "__main__":
    common.run("python -m experiments.box", __doc__, Flags, main, sys.argv[1:])
