"""The paper's classes, and what old configurations and checkpoints without names mean by theirs.

`PAPER` is what this project's own configurations train; `PAPER_DATA` tells apart all that the
paper's files and masks do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ssm_jax.class_set import (
    ClassSet,
    Code,
    ImageClass,
    LesionClass,
    background_values,
    image_classes,
    lesion_classes,
)

METHOD = "COVID-19 Single-Shot Model"  # as the paper calls it
NORMAL, CP, COVID = 0, 1, 2
BACKGROUND, LUNG, GROUND_GLASS, CONSOLIDATION = 0, 1, 2, 3  # values of masks
LESION_VALUES = (GROUND_GLASS, CONSOLIDATION)
LESION_CODE = Code("SCT", "52988006", "Lesion")

_IMAGE = (
    ImageClass("normal", "Normal", NORMAL),
    ImageClass("cp", "Common pneumonia", CP),
    ImageClass("covid", "COVID-19", COVID),
)
_LESION = LesionClass("lesion", "lesion", LESION_VALUES, code=LESION_CODE)
_GROUND_GLASS = LesionClass("ground_glass", "ground glass", (GROUND_GLASS,), code=LESION_CODE)
_CONSOLIDATION = LesionClass("consolidation", "consolidation", (CONSOLIDATION,), code=LESION_CODE)
_OTHER = (("background", BACKGROUND), ("lung", LUNG))
# Mask values together -> the field of a prepared slice with the areas of their components.
AREA_FIELDS = {
    LESION_VALUES: "areas",
    (GROUND_GLASS,): "ground_glass_areas",
    (CONSOLIDATION,): "consolidation_areas",
}

# Image classes of a model -> numbers. A model of segmentation alone has none; one of two classes
# tells COVID-19 from control.
FILE_CLASSES = {0: (), 2: (NORMAL, COVID), 3: (NORMAL, CP, COVID)}
# config.data.mask_type -> the lesion classes that it makes of the paper's masks, and the rest.
MASK_TYPES = {
    "merge": ((_LESION,), _OTHER),
    "both": ((_GROUND_GLASS, _CONSOLIDATION), _OTHER),
    "ggo": ((_GROUND_GLASS,), (*_OTHER, ("consolidation", CONSOLIDATION))),
}


def paper(image_classes: int = 3, mask_type: str = "merge") -> ClassSet:
    """The paper's classes.

    Args:
      image_classes: a key of `FILE_CLASSES`.
      mask_type: a key of `MASK_TYPES`.
    """
    chosen = tuple(_IMAGE[number] for number in FILE_CLASSES[image_classes])
    return ClassSet(chosen, *MASK_TYPES[mask_type])


PAPER = paper()
PAPER_DATA = paper(mask_type="both")


def unnamed(image_count: int, lesion_count: int) -> ClassSet:
    """The classes of a model that came without names: the paper's where they can be, or numbers.

    Args:
      image_count: how many.
      lesion_count: how many.
    """
    images = tuple(ImageClass(f"class_{k}", f"class {k}", k) for k in range(image_count))
    if image_count in FILE_CLASSES:
        images = paper(image_count).image
    mask_type = {1: "merge", 2: "both"}.get(lesion_count)
    if mask_type:
        return ClassSet(images, *MASK_TYPES[mask_type])
    numbers = range(1, lesion_count + 1)
    return ClassSet(images, tuple(LesionClass(f"lesion_{k}", f"lesion {k}", (k,)) for k in numbers))


def of_run(run: Mapping[str, Any]) -> ClassSet:
    """The classes of a run's configuration, nested mappings.

    Args:
      run: where its section `classes` names none, as in old ones, they are the paper's by the
        numbers of classes in the section `model`.

    Raises:
      ValueError: unusable ones.
    """
    named, model = run.get("classes") or {}, run["model"]
    image, lesion = (named.get(part, ()) for part in ("image", "lesion"))
    images = image_classes(image) if image and model["image_classes"] else ()
    if not image:
        images = unnamed(model["image_classes"], 1).image
    if not lesion:
        return ClassSet(images, *MASK_TYPES[run["data"]["mask_type"]])
    background = background_values(named.get("background", ()))
    return ClassSet(images, lesion_classes(lesion), background)


def of_checkpoint(config: Mapping[str, Any]) -> ClassSet:
    """The classes of a checkpoint, by its item `config`; of an old one the paper's, or numbers.

    Raises:
      KeyError, TypeError, ValueError: unusable ones.
    """
    if config["run"]:
        return of_run(config["run"])
    if config.get("classes"):
        return ClassSet.from_json(config["classes"])
    model = config["model"]
    return unnamed(model["image_classes"], model["num_classes"] - 1)


def class_number(text: str) -> int | None:
    """The paper's image class that a text is the number of; None for anything else."""
    return int(text) if text in map(str, PAPER.numbers) else None
