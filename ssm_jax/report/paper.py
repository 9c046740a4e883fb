"""The numbers that the paper prints in its Tables 1 to 3, from `paper_results.json`.

Percentages are kept as printed; `as_fraction` turns them into the fractions of our metrics.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Mapping
from typing import Any

# As the paper writes them.
SYSTEMS = {"SSM": "SSM", "SSM2": "SSM²", "SSMS": "SSMˢ"}
# Columns of Table 3, as it prints them.
SENSITIVITIES = {"sensitivity_covid": "COVID-19", "sensitivity_cp": "CP"}


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
      "SSM" (one branch), "SSM2" (two branches, the second a copy of pretrained weights), "SSMS"
      (two branches, the second copied again and again); None for a model of segmentation alone,
      and with two branches of unknown origin.
    """
    if not model["image_classes"]:
        return None
    if model["branches"] == 1:
        return "SSM"
    if run is None:
        return None
    return "SSM2" if run["train"]["copy_rule"] == "never" else "SSMS"


def find(system: str | None, backbone: str, blocks: int) -> dict[str, Any] | None:
    """The paper's entry of a model; None where it has none."""
    wanted = (system, backbone, blocks)
    for model in results()["models"]:
        if (model["system"], model["backbone"], model["blocks"]) == wanted:
            return model
    return None


def as_fraction(name: str, value: float) -> float:
    """A printed figure on the scale of our metrics: percentages become fractions."""
    return value / 100 if is_percentage(name) else value


def is_percentage(name: str) -> bool:
    """Whether a figure is printed in percent."""
    return name == "accuracy" or name.startswith("sensitivity_")


def printed(name: str, value: float | None) -> str:
    """A figure of Tables 2 and 3 as the paper prints it; a dash where it prints none."""
    if value is None:
        return "–"
    return f"{value:.2f}%" if is_percentage(name) else f"{value:.4f}"


def label(system: str | None, backbone: str, blocks: int, other: str = "") -> str:
    """A model's name in the paper's notation: "SSMˢ (ResNet18+FPN)**".

    Args:
      system: SSM, SSM2, SSMS or None.
      backbone: resnet18 or resnet34.
      blocks: 2 or 3.
      other: stands where the paper has no name, for None.
    """
    name = SYSTEMS.get(system or "", other)
    body = backbone.replace("resnet", "ResNet")
    return f"{name} ({body}+FPN){'*' * (blocks - 1)}"
