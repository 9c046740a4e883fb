"""The numbers that the paper prints in its Tables 1 to 3 (`paper_results.json`), and whose they are.

Percentages are kept as printed; `as_fraction` turns them into the fractions of our metrics.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Mapping
from typing import Any

# Branches and how they come about: as the paper writes them, and for people who have not read it.
SYSTEMS = {"SSM": "SSM", "SSM2": "SSM²", "SSMS": "SSM^S"}
PERCENT = ("sensitivity_normal", "sensitivity_cp", "sensitivity_covid", "accuracy")


@functools.cache
def results() -> dict[str, Any]:
    """The whole data file: "source", "tables" (captions and notes) and "models", 12 entries with
    "system" (SSM, SSM2 or SSMS), "backbone", "blocks", "table1", "table2" and "table3".
    """
    text = importlib.resources.files(__package__).joinpath("paper_results.json").read_text("utf-8")
    return json.loads(text)


def system_of(model: Mapping[str, Any], run: Mapping[str, Any] | None) -> str | None:
    """Which of the paper's three approaches a model is.

    Args:
      model: section `model` of a configuration.
      run: configuration of the run that trained it; None for imported weights.

    Returns:
      "SSM" (one branch), "SSM2" (two branches, started from a segmentation checkpoint), "SSMS"
      (two branches from scratch); None with two branches of unknown origin.
    """
    if model["branches"] == 1:
        return "SSM"
    if run is None:
        return None
    return "SSM2" if run.get("init_from") else "SSMS"


def find(system: str | None, backbone: str, blocks: int) -> dict[str, Any] | None:
    """The paper's entry of a model; None where it has none."""
    wanted = (system, backbone, blocks)
    for model in results()["models"]:
        if (model["system"], model["backbone"], model["blocks"]) == wanted:
            return model
    return None


def as_fraction(name: str, value: float) -> float:
    """A printed figure on the scale of our metrics: percentages become fractions."""
    return value / 100 if name in PERCENT else value


def label(system: str | None, backbone: str, blocks: int) -> str:
    """A model's name in the paper's notation: "SSM^S (ResNet18+FPN)**"."""
    name = SYSTEMS.get(system or "", "SSM, two branches")
    body = backbone.replace("resnet", "ResNet")
    return f"{name} ({body}+FPN){'*' * (blocks - 1)}"
