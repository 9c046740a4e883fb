"""The data sets of a run: found or prepared, and checked against the config."""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Sequence

import ml_collections
import numpy as np

from ssm_jax.class_set import ClassSet
from ssm_jax.config import class_set
from ssm_jax.data.augment import Augmentation
from ssm_jax.data.builders import CtClasses, CtLesionSeg
from ssm_jax.data.cache import prepared
from ssm_jax.data.class_files import folder_classes, folder_paths, named_classes
from ssm_jax.data.errors import DataError, name_files
from ssm_jax.data.indexed import SPLITS, IndexedBuilder
from ssm_jax.data.phantom.builder import CtPhantom
from ssm_jax.data.phantom.slices import MIN_SIZE
from ssm_jax.data.sources import ClassificationSource, SegmentationSource, Source
from ssm_jax.ops.resizing import resized_shape

MAX_OBJECTS = 255  # the most that a uint8 label map holds
_PADDING = 32  # the canvas is a multiple of it


@dataclasses.dataclass(frozen=True)
class Datasets:
    """The four splits of a run and the static shapes of their batches.

    Attributes:
      seg_train: segmentation slices to train on.
      seg_test: segmentation slices to evaluate on.
      cls_train: classification slices to train on; None for a model of segmentation alone.
      cls_test: classification slices to evaluate on; None for a model of segmentation alone.
      seg_shares: share of every folder in the segmentation slices of training; None: every slice
        comes as often as another.
      cls_shares: share of every folder in the classification slices of training, or None.
      image_size: pixels of the short side that slices are resized to.
      max_size: pixels that the long side has at most.
      seg_canvas: height and width of the padded segmentation slices.
      cls_canvas: height and width of the padded classification slices.
      seg_float: whether segmentation batches are float32 in [0, 1] because some slice is resized;
        otherwise they, and classification batches always, are uint8.
      max_objects: object slots of a segmentation slice.
      augmentation: how training slices are changed.
      descriptions: lines that say what the data are.
    """

    seg_train: SegmentationSource
    seg_test: SegmentationSource
    cls_train: ClassificationSource | None
    cls_test: ClassificationSource | None
    seg_shares: tuple[float, ...] | None
    cls_shares: tuple[float, ...] | None
    image_size: int
    max_size: int
    seg_canvas: tuple[int, int]
    cls_canvas: tuple[int, int]
    seg_float: bool
    max_objects: int
    augmentation: Augmentation
    descriptions: tuple[str, ...]

    @property
    def epoch_slices(self) -> int:
        """Slices of an epoch: classification slices, or segmentation slices where these are all."""
        return len(self.seg_train if self.cls_train is None else self.cls_train)


def open_datasets(config: ml_collections.ConfigDict) -> Datasets:
    """Opens the data that config.data names; prepares them first where needed.

    Args:
      config: see `ssm_jax.config`; the sections data, model and classes are read. Classes that it
        does not name are those of the data, see `class_files.named_classes`.

    Raises:
      DataError: unusable data; the message names files and the remedy.
    """
    config = named_classes(config)
    data, model, classes = config.data, config.model, class_set(config)
    parts = ("seg", "cls") if model.image_classes else ("seg",)
    _check_phantom(data, parts)
    sets = {part: _sets(data, part, classes) for part in parts}
    seg_train, seg_test = (
        SegmentationSource(sets["seg"], split, data.min_area, classes.lesion) for split in SPLITS
    )
    cls_train = cls_test = None
    descriptions = [_describe("segmentation", data, "seg", seg_train, seg_test)]
    if model.image_classes:
        cls_train, cls_test = (
            ClassificationSource(sets["cls"], split, model.image_size, classes.numbers)
            for split in SPLITS
        )
        _check_classes(classes, cls_train, cls_test)
        descriptions.append(_describe("classification", data, "cls", cls_train, cls_test))
    shapes = _shapes(model, seg_train, seg_test)
    height, width = (max(shape[axis] for shape in shapes.values()) for axis in (0, 1))
    return Datasets(
        seg_train=seg_train,
        seg_test=seg_test,
        cls_train=cls_train,
        cls_test=cls_test,
        seg_shares=_shares(data, "seg", seg_train),
        cls_shares=None if cls_train is None else _shares(data, "cls", cls_train),
        image_size=model.image_size,
        max_size=model.max_size,
        seg_canvas=(_padded(height), _padded(width)),
        cls_canvas=(_padded(model.image_size), _padded(model.image_size)),
        seg_float=any(size != shape for size, shape in shapes.items()),
        max_objects=_max_objects(data, seg_train, seg_test),
        augmentation=Augmentation(**data.augment),
        descriptions=tuple(descriptions),
    )


def _folder_names(paths: Sequence[str]) -> list[str]:
    """Short names that differ: the folders' own, with a number where several have the same."""
    own = [pathlib.Path(path).expanduser().resolve().name for path in paths]
    return [
        name if own.count(name) == 1 else f"{name}_{own[: k + 1].count(name)}"
        for k, name in enumerate(own)
    ]


def _sets(
    data: ml_collections.ConfigDict, part: str, classes: ClassSet
) -> dict[str, IndexedBuilder]:
    """Name -> slices, prepared, of the folders of a part, or of the phantom."""
    paths = folder_paths(data[f"{part}_dir"])
    if not paths:
        phantom = data.phantom
        folder_classes(None, classes, part)  # refuses what it does not draw
        train, test = phantom[f"{part}_train"], phantom[f"{part}_test"]
        drawn = CtPhantom.config_of(part, phantom.seed, phantom.size, train, test)
        return {"phantom": prepared(CtPhantom, drawn, data.data_dir)}
    kind = CtLesionSeg if part == "seg" else CtClasses
    configs = [
        kind.config_of(
            path,
            data.train_split,
            data.test_split,
            data.dev_share,
            data.dev_seed,
            folder_classes(path, classes, part),
            classes.lesion,
        )
        for path in paths
    ]
    if len({config.channels for config in configs}) > 1:
        listed = ", ".join(
            f"{path} ({'gray' if config.channels == 1 else 'colored'})"
            for path, config in zip(paths, configs, strict=True)
        )
        raise DataError(
            f"the folders of config.data.{part}_dir are not all gray or all colored: {listed}; "
            "save all slices alike"
        )
    builders = (prepared(kind, config, data.data_dir) for config in configs)
    return dict(zip(_folder_names(paths), builders, strict=True))


def _shares(data: ml_collections.ConfigDict, part: str, source: Source) -> tuple[float, ...] | None:
    """The share of every folder in training by config.data.<part>_weights; None without weights."""
    field, text = f"config.data.{part}_weights", data[f"{part}_weights"]
    if not text:
        return None
    try:
        weights = np.array([float(word) for word in text.split(",")])
    except ValueError:
        weights = np.array([-1.0])
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
        raise DataError(f"{field}={text} has to be numbers from 0, separated by commas, not all 0")
    if len(weights) != len(source.folders):
        raise DataError(
            f"{field}={text} has {len(weights)} weights for {len(source.folders)} folders "
            f"({', '.join(source.folders)}); give one for each"
        )
    empty = np.flatnonzero((source.folder_counts == 0) & (weights > 0))
    if len(empty):
        raise DataError(
            f"{field}={text}: {source.folders[empty[0]]} has no slice to train on; give it the "
            "weight 0"
        )
    return tuple((weights / weights.sum()).tolist()) if len(weights) > 1 else None


def _shapes(
    model: ml_collections.ConfigDict, *sources: Source
) -> dict[tuple[int, int], tuple[int, int]]:
    """Height and width of slices -> those that they are resized to."""
    sizes = {
        (int(height), int(width))
        for source in sources
        for height, width in zip(source.heights, source.widths, strict=True)
    }
    return {size: resized_shape(*size, model.image_size, model.max_size) for size in sizes}


def _padded(length: int) -> int:
    return math.ceil(length / _PADDING) * _PADDING


def _check_phantom(data: ml_collections.ConfigDict, parts: Sequence[str]) -> None:
    """Raises DataError where a phantom that is needed can not be made."""
    made = [part for part in parts if not data[f"{part}_dir"]]
    least = {f"{part}_{split}": 1 for part in made for split in SPLITS}
    least |= {"seed": 0, "size": MIN_SIZE} if made else {}
    for name, bound in least.items():
        if data.phantom[name] < bound:
            raise DataError(
                f"config.data.phantom.{name}={data.phantom[name]} is not possible; the least is "
                f"{bound}"
            )


def _check_classes(classes: ClassSet, *sources: ClassificationSource) -> None:
    """Raises DataError where slices were left out and none of some class remains."""
    for source in sources:
        missing = set(range(len(classes.image))) - set(source.labels.tolist())
        if source.left_out and missing:
            names = ", ".join(f"{one.number} ({one.title})" for one in classes.image)
            absent = ", ".join(str(classes.numbers[k]) for k in sorted(missing))
            raise DataError(
                f"the {source.name} has no slice of class {absent}: with "
                f"config.model.image_classes={len(classes.image)} the slices that count have names "
                f"that start with {names}; {source.left_out} others were left out"
            )


def _max_objects(
    data: ml_collections.ConfigDict, train: SegmentationSource, test: SegmentationSource
) -> int:
    """Object slots a slice needs; checks that there are objects, and no slice has too many."""
    smaller = f"a larger config.data.min_area than {data.min_area}"
    more = "a larger config.data.max_objects (255 at most), or " if data.max_objects else ""
    _check_count(train, data.max_objects or MAX_OBJECTS, more + smaller)
    _check_count(test, MAX_OBJECTS, smaller)
    if not train.object_counts.any():
        values = " and ".join(str(v) for lesion in train.lesions for v in lesion.values)
        raise DataError(
            f"the {train.name} has no slice with a lesion of more than {data.min_area} pixels of "
            f"512x512, so there is nothing to learn from {data.seg_dir or 'it'}; check that the "
            f"masks mark lesions with {values}, or lower config.data.min_area"
        )
    return data.max_objects or int(train.object_counts.max())


def _check_count(source: SegmentationSource, most: int, remedy: str) -> None:
    """Raises DataError where a slice has more than `most` objects."""
    above = np.flatnonzero(source.object_counts > most)
    if len(above):
        files = name_files(f"{source.files[i]} ({source.object_counts[i]})" for i in above)
        raise DataError(
            f"the {source.name} has slices with more than {most} lesion objects; set {remedy}: "
            f"{files}"
        )


def _describe(
    task: str, data: ml_collections.ConfigDict, part: str, train: Source, test: Source
) -> str:
    """A line on the slices of a part: where they come from, and how many there are."""
    phantom, splits = data.phantom, SPLITS
    source = f"phantom (drawn by this program, {phantom.size}x{phantom.size}, seed {phantom.seed})"
    paths = folder_paths(data[f"{part}_dir"])
    if paths:
        source, splits = ", ".join(paths), (data.train_split, data.test_split)
    text = f"{task}: {source}, {len(train)} {splits[0]} / {len(test)} {splits[1]} slices"
    if len(paths) > 1:
        parts = zip(train.folders, train.folder_counts, test.folder_counts, strict=True)
        text += f" ({', '.join(f'{name} {a} / {b}' for name, a, b in parts)})"
    left_out = train.left_out + test.left_out
    return text + (f" ({left_out} of other classes left out)" if left_out else "")
