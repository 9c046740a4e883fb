"""The names and numbers of image classes, lesion classes and mask values, once."""

from __future__ import annotations

import dataclasses

NORMAL, CP, COVID = 0, 1, 2  # image classes, as the numbers that file names start with
SHORT_NAMES = ("normal", "cp", "covid")  # by number: in metric names, files and options
LONG_NAMES = ("Normal", "Common pneumonia", "COVID-19")
NUMBERED_CLASSES = "0 (normal), 1 (common pneumonia), 2 (COVID-19)"

# Image classes of a model -> their numbers in file names. A model of segmentation alone has none;
# one of two classes tells COVID-19 from control.
FILE_CLASSES = {0: (), 2: (NORMAL, COVID), 3: (NORMAL, CP, COVID)}

BACKGROUND, LUNG, GROUND_GLASS, CONSOLIDATION = 0, 1, 2, 3  # values of masks
LESION_VALUES = (GROUND_GLASS, CONSOLIDATION)
NUMBERED_VALUES = "0 background, 1 lung, 2 ground glass, 3 consolidation"


def short_names(image_classes: int) -> tuple[str, ...]:
    """Names of a model's image classes as they stand in metric names, by the model's number."""
    return tuple(SHORT_NAMES[number] for number in FILE_CLASSES[image_classes])


def long_names(image_classes: int) -> tuple[str, ...]:
    """Names of a model's image classes for people, by the model's number."""
    return tuple(LONG_NAMES[number] for number in FILE_CLASSES[image_classes])


def class_number(text: str) -> int | None:
    """The image class that a text at the start of a file name is; None for anything else."""
    return int(text) if text in map(str, FILE_CLASSES[3]) else None


@dataclasses.dataclass(frozen=True)
class LesionClass:
    """A class of lesions.

    Attributes:
      name: for people and in COCO files.
      values: of the masks.
    """

    name: str
    values: tuple[int, ...]


# The lesion classes 1, 2, ... of each mask type; what no class names is background.
LESION_CLASSES = {
    "merge": (LesionClass("lesion", LESION_VALUES),),
    "both": (
        LesionClass("ground glass", (GROUND_GLASS,)),
        LesionClass("consolidation", (CONSOLIDATION,)),
    ),
    "ggo": (LesionClass("ground glass", (GROUND_GLASS,)),),
}


def lesion_names(mask_type: str) -> dict[int, str]:
    """Lesion class (from 1) -> name."""
    return {k: lesion.name for k, lesion in enumerate(LESION_CLASSES[mask_type], 1)}
