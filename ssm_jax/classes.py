"""What the numbers of image classes and lesion classes mean, by configuration."""

from __future__ import annotations

import dataclasses

# The image classes of a model, as the numbers that file names start with: 0 normal (control),
# 1 common pneumonia, 2 COVID-19. A model of segmentation alone has none; one of two classes tells
# COVID-19 from control.
FILE_CLASSES = {0: (), 2: (0, 2), 3: (0, 1, 2)}
SHORT_NAMES = ("normal", "cp", "covid")  # as in metric names, by number in file names
LONG_NAMES = ("Normal", "Common pneumonia", "COVID-19")


def short_names(image_classes: int) -> tuple[str, ...]:
    """Names of a model's image classes as they stand in metric names, by the model's number."""
    return tuple(SHORT_NAMES[number] for number in FILE_CLASSES[image_classes])


def long_names(image_classes: int) -> tuple[str, ...]:
    """Names of a model's image classes for people, by the model's number."""
    return tuple(LONG_NAMES[number] for number in FILE_CLASSES[image_classes])


@dataclasses.dataclass(frozen=True)
class LesionClass:
    """A class of lesions.

    Attributes:
      name: for people and in COCO files.
      values: of the masks: 2 ground glass, 3 consolidation.
    """

    name: str
    values: tuple[int, ...]


# The lesion classes 1, 2, ... of each mask type; what no class names is background.
LESION_CLASSES = {
    "merge": (LesionClass("lesion", (2, 3)),),
    "both": (LesionClass("ground glass", (2,)), LesionClass("consolidation", (3,))),
    "ggo": (LesionClass("ground glass", (2,)),),
}


def lesion_names(mask_type: str) -> dict[int, str]:
    """Lesion class (from 1) -> name."""
    return {k: lesion.name for k, lesion in enumerate(LESION_CLASSES[mask_type], 1)}
