"""Result of a whole scan: its slices in order, and their summary."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ssm_jax.class_set import ClassSet
from ssm_jax.classes import PAPER

if TYPE_CHECKING:  # reading an upload takes no JAX
    from ssm_jax.predictor import Prediction


@dataclasses.dataclass(frozen=True)
class SliceResult:
    """One slice of a scan.

    Attributes:
      name: what the user knows it by: the file, with the frame or index in it where it has several.
      image: [H, W] or [H, W, 3] uint8, the slice as the model saw it (windowed); None if unread.
      prediction: None if the slice could not be read.
      error: what was wrong with it, in one line; None if it was predicted.
      position: millimeters along the slice normal; None where the source does not tell.
    """

    name: str
    image: np.ndarray | None
    prediction: Prediction | None
    error: str | None = None
    position: float | None = None


@dataclasses.dataclass(frozen=True)
class ScanSummary:
    """A scan's slices taken together.

    Attributes:
      rule: name of the rule that made `class_probabilities` from those of the slices.
      class_probabilities: [K] float32; none if the model only segments.
      predicted_class: index of the largest; None if the model only segments.
      slices_per_class: [K] int, slices whose own largest probability is that class.
      lesion_ml: volume of all lesion masks, milliliters; None without spacing or masks.
      lung_share: lesion volume within the lung mask by that of the lung, in [0, 1]; None without.
      telling: indices of the (at most five) slices that say most, the most telling first.
      body_share: lesion volume inside of the body by all of it, in [0, 1]; None where the body
        cannot be told from air, or without lesions.
    """

    rule: str
    class_probabilities: np.ndarray
    predicted_class: int | None
    slices_per_class: np.ndarray
    lesion_ml: float | None
    lung_share: float | None
    telling: list[int]
    body_share: float | None = None


@dataclasses.dataclass(frozen=True)
class ScanResult:
    """A scan as predicted.

    Attributes:
      name: what the user knows it by: a path, or a path and a series number.
      kind: "pictures", "dicom" or "nifti".
      facts: what is known of the source, in reading order: label and value, both for people.
      warnings: what was assumed or left out, a line each.
      slices: in order of position (pictures: in order of name).
      summary: None if no slice could be read.
      classes: of the model, which name image and lesion classes.
    """

    name: str
    kind: str
    facts: dict[str, str]
    warnings: list[str]
    slices: list[SliceResult]
    summary: ScanSummary | None
    classes: ClassSet = PAPER


def renamed(result: ScanResult, text: Callable[[str], str]) -> ScanResult:
    """A result whose texts are other ones: names of slices, errors, facts and warnings.

    Args:
      result: of a scan.
      text: from a text to what takes its place.
    """
    slices = [
        dataclasses.replace(s, name=text(s.name), error=None if s.error is None else text(s.error))
        for s in result.slices
    ]
    return dataclasses.replace(
        result,
        name=text(result.name),
        facts={label: text(value) for label, value in result.facts.items()},
        warnings=[text(line) for line in result.warnings],
        slices=slices,
    )
