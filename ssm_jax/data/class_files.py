"""The classes of data sets: `classes.json` at the top of a folder, and how they meet a run's."""

from __future__ import annotations

import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections

from ssm_jax.class_set import ClassSet, background_values, image_classes, lesion_classes, plain
from ssm_jax.classes import PAPER_DATA
from ssm_jax.config import ModelConfig, class_set
from ssm_jax.data.errors import DataError

CLASSES_FILE = "classes.json"
Known = dict[str, Any]  # part of a class set -> its value, of the parts that a file names

logger = logging.getLogger(__name__)


def folder_paths(folders: str) -> list[str]:
    """The folders that config.data.seg_dir or cls_dir names, separated by commas.

    A folder that is there and has a comma in its name is one.
    """
    if folders and pathlib.Path(folders).expanduser().is_dir():
        return [folders]
    return [path.strip() for path in folders.split(",") if path.strip()]


def read_classes(folder: str | pathlib.Path) -> Known:
    """The classes that a folder names.

    Args:
      folder: of a data set.

    Returns:
      Fields of a ClassSet: "image" where its file names image classes, and "lesion" and
      "background" where it names lesion classes; nothing where there is no file.

    Raises:
      DataError: the file cannot be used; the message says why.
    """
    path = pathlib.Path(folder).expanduser() / CLASSES_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    try:
        return _parsed(json.loads(text))
    except ValueError as error:
        raise DataError(f"{path}: {error}; correct it, or remove it") from error


def _parsed(content: Any) -> Known:
    if not isinstance(content, Mapping):
        raise ValueError("it has to hold an object with image, lesion and background")
    if not (content.get("image") or content.get("lesion")):
        raise ValueError("it names neither image nor lesion classes")
    # A whole set, with the paper's in place of what is not named: each part is possible.
    some = content if content.get("lesion") else {**PAPER_DATA.to_json(), **_images_of(content)}
    ClassSet.from_json(some)
    known: Known = {}
    if content.get("image"):
        known["image"] = image_classes(content["image"])
    if content.get("lesion"):
        known["lesion"] = lesion_classes(content["lesion"])
        known["background"] = background_values(content.get("background", ()))
    return known


def _images_of(content: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name not in ("lesion", "background")}


def with_classes(config: ml_collections.ConfigDict, classes: ClassSet) -> ml_collections.ConfigDict:
    """A copy of a configuration that names all its classes, and whose model has as many.

    Counts of the model that nobody changed follow the classes; `validate` refuses others.
    """
    config, usual = config.copy_and_resolve_references(), ModelConfig()
    for name, entries in classes.to_json().items():
        config.classes[name] = tuple(entries)
    counts = {"image_classes": len(classes.image), "num_classes": len(classes.lesion) + 1}
    for name, count in counts.items():
        if config.model[name] == getattr(usual, name):
            config.model[name] = count
    return config


def named_classes(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A copy of a configuration that names all its classes.

    Those that it does not name are those of `classes.json` in the folders of config.data, or else
    the paper's. Where such a file names no image class and there is no folder of classification
    slices, the model is one of lesions alone.

    Raises:
      ValueError: impossible classes in the configuration.
      DataError: an unusable file, or folders that name different classes.
    """
    config, data = config.copy_and_resolve_references(), config.data
    paths = dict.fromkeys(folder_paths(data.cls_dir) + folder_paths(data.seg_dir))
    files = {path: known for path in paths if (known := read_classes(path))}
    if not config.classes.lesion and (lesion := _agreed(files, "lesion")):
        config.classes.lesion = plain(lesion)
        config.classes.background = _agreed(files, "background") or ()
    if not config.classes.image and config.model.image_classes:
        if image := _agreed(files, "image"):
            config.classes.image = plain(image)
        elif files and not data.cls_dir:
            logger.info("%s: no image classes are named: lesions alone", ", ".join(files))
            config.model.image_classes, config.model.branches = 0, 1
    return with_classes(config, class_set(config))


def _agreed(files: Mapping[str, Known], part: str) -> Any:
    """A part of the class set as all folders that name it do; None where none does."""
    named = {path: known[part] for path, known in files.items() if part in known}
    for path, value in named.items():
        first = next(iter(named))
        if value != named[first]:
            raise DataError(
                f"{first}/{CLASSES_FILE} and {path}/{CLASSES_FILE} name different {part} classes; "
                "train on folders of the same classes, or correct the files"
            )
    return next(iter(named.values()), None)


def folder_classes(folder: str | None, classes: ClassSet, part: str) -> ClassSet:
    """All that the files of a folder can be of, beside what a model is to tell apart.

    Args:
      folder: of a data set; None: the phantom.
      classes: of the model.
      part: "seg" or "cls", what is read of the folder.

    Returns:
      The classes that the folder names; where it names none, the paper's if the model's are some
      of them, or else the model's.

    Raises:
      DataError: the folder's classes are others than the model's.
    """
    known = read_classes(folder) if folder else {}
    named = known.get("image" if part == "cls" else "lesion")
    found = ClassSet(
        known.get("image", PAPER_DATA.image),
        known.get("lesion", PAPER_DATA.lesion),
        known.get("background", PAPER_DATA.background),
    )
    misfits = (_image_misfits if part == "cls" else _lesion_misfits)(classes, found)
    if not misfits:
        return found
    if folder and not named:
        return classes
    place = f"{folder}/{CLASSES_FILE}" if folder else "the phantom"
    where = f"config.data.{part}_dir"
    remedy = f"give other slices with {where}" if folder else f"give slices with {where}"
    raise DataError(
        f"the classes of {place} are not the model's: {'; '.join(misfits)}; {remedy}, name the "
        "classes as the data do, or name none (config.classes) to train a model of the data's"
    )


def _image_misfits(classes: ClassSet, found: ClassSet) -> list[str]:
    there = {one.number: one.name for one in found.image}
    return [
        f"number {one.number} is {there.get(one.number, 'none')} there and {one.name} here"
        for one in classes.image
        if there.get(one.number) != one.name
    ]


def _lesion_misfits(classes: ClassSet, found: ClassSet) -> list[str]:
    """Misfits; a class of the model may be several of the data's together."""
    there = {lesion.values: lesion.name for lesion in found.lesion}
    misfits = []
    for lesion in classes.lesion:
        absent = [value for value in lesion.values if value not in found.lesion_values]
        if absent:
            misfits.append(f"mask value {absent[0]} is {lesion.name} here and no lesion there")
        elif there.get(lesion.values, lesion.name) != lesion.name:
            same = there[lesion.values]
            misfits.append(f"{lesion.name} here has the mask values of {same} there")
    return misfits
