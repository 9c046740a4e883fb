"""The data sets of a run: found or prepared, checked against the config, decoded by index."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import ml_collections
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from ssm_jax.classes import FILE_CLASSES, LESION_CLASSES, LONG_NAMES
from ssm_jax.data import images
from ssm_jax.data.builders import SPLITS, CtClasses, CtLesionSeg, IndexedBuilder
from ssm_jax.data.cache import prepared
from ssm_jax.data.errors import DataError, name_files
from ssm_jax.data.objects import AREA_FIELDS, lesion_objects
from ssm_jax.data.phantom.builder import CtPhantom
from ssm_jax.data.phantom.slices import MIN_SIZE
from ssm_jax.ops.resizing import resized_shape

MAX_OBJECTS = 255  # what a uint8 label map holds
_PADDING = 32  # the canvas is a multiple of it


@dataclasses.dataclass(frozen=True)
class SegmentationExample:
    """A slice with its lesion objects, in pixels of the original.

    file: name. image: uint8 [H, W, C]. instances: uint8 [H, W], 0 background, k + 1 on object k.
    boxes: float32 [n, 4]. labels: int32 [n], lesion classes from 1.
    """

    file: str
    image: np.ndarray
    instances: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class ClassificationExample:
    """A slice with its class: file name, image uint8 [H, W, C], label (see ssm_jax.classes)."""

    file: str
    image: np.ndarray
    label: int


class _Source(Sequence):
    """A prepared split: random access to decoded examples, and the index of all of them.

    files: names. heights, widths: int arrays [n], pixels.
    """

    def __init__(self, builder: IndexedBuilder, split: str):
        index = builder.info.metadata[split]
        self.name = f"{split} split of {builder.name}"
        self.files: list[str] = index["file"]
        self.heights, self.widths = np.array(index["height"]), np.array(index["width"])
        self.channels = builder.channels
        self._index = index
        encoded = [name for name in ("image", "mask") if name in builder.info.features]
        skip = {name: tfds.decode.SkipDecoding() for name in encoded}
        self._records = builder.as_data_source(split=split, decoders=skip)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index):
        index = index.__index__()
        if not 0 <= index < len(self):
            raise IndexError(f"slice {index} of {len(self)} in the {self.name}")
        return self._decode(index)

    def _decode(self, index: int):
        raise NotImplementedError

    def _image(self, record) -> np.ndarray:
        return images.decode(record["image"])


class SegmentationSource(_Source):
    """A split with masks; `source[i]` is a SegmentationExample.

    min_area: objects are larger. mask_type: see `objects.lesion_objects`. object_counts: int array
    [n], objects of every slice.
    """

    def __init__(
        self, builder: IndexedBuilder, split: str, min_area: int, mask_type: str = "merge"
    ):
        super().__init__(builder, split)
        self.min_area = min_area
        self.mask_type = mask_type
        self.object_counts = np.zeros(len(self), int)
        for lesion in LESION_CLASSES[mask_type]:
            areas_of_slices = self._index[AREA_FIELDS[lesion.values]]
            self.object_counts += [sum(a > min_area for a in areas) for areas in areas_of_slices]

    def _decode(self, index: int) -> SegmentationExample:
        record = self._records[index]
        mask = images.decode_mask(record["mask"])
        objects = lesion_objects(mask, self.min_area, self.mask_type)
        return SegmentationExample(self.files[index], self._image(record), *objects)


class ClassificationSource(_Source):
    """A split with classes; `source[i]` is a ClassificationExample.

    Slices of another size than image_size x image_size are squashed to it (PIL bilinear, which
    antialiases), as the reference implementation does. labels: int array [n]. left_out: slices of
    the prepared split that are of none of the model's classes, and not in here.
    """

    def __init__(
        self, builder: IndexedBuilder, split: str, image_size: int, image_classes: int = 3
    ):
        super().__init__(builder, split)
        self.image_size = image_size
        numbers, classes = np.array(self._index["label"], int), FILE_CLASSES[image_classes]
        self._rows = np.flatnonzero(np.isin(numbers, classes))
        self.left_out = len(numbers) - len(self._rows)
        self.labels = np.searchsorted(classes, numbers[self._rows])
        self.files = [self.files[row] for row in self._rows]
        self.heights, self.widths = self.heights[self._rows], self.widths[self._rows]

    def _decode(self, index: int) -> ClassificationExample:
        image = self._image(self._records[self._rows[index]])
        size = (self.image_size, self.image_size)
        if image.shape[:2] != size:
            picture = Image.fromarray(image[..., 0] if self.channels == 1 else image)
            pixels = np.asarray(picture.resize(size, Image.Resampling.BILINEAR))
            image = pixels.reshape(*size, self.channels)
        return ClassificationExample(self.files[index], image, int(self.labels[index]))


@dataclasses.dataclass(frozen=True)
class Datasets:
    """The four splits of a run and the static shapes of their batches.

    seg_train, seg_test, cls_train, cls_test: sources; those of classification slices are None for
      a model of segmentation alone.
    image_size, max_size: pixels that slices are resized to (short side, bound of the long side).
    seg_canvas, cls_canvas: height and width of the padded slices.
    seg_channels, cls_channels: 1 or 3; the latter None without classification slices.
    seg_float: whether segmentation batches are float32 in [0, 1] because some slice is resized;
      otherwise they, and classification batches always, are uint8.
    max_objects: object slots of a segmentation slice.
    descriptions: lines that say what the data are.
    """

    seg_train: SegmentationSource
    seg_test: SegmentationSource
    cls_train: ClassificationSource | None
    cls_test: ClassificationSource | None
    image_size: int
    max_size: int
    seg_canvas: tuple[int, int]
    cls_canvas: tuple[int, int]
    seg_channels: int
    cls_channels: int | None
    seg_float: bool
    max_objects: int
    descriptions: tuple[str, ...]

    @property
    def epoch_slices(self) -> int:
        """Slices of an epoch: classification slices, or segmentation slices where these are all."""
        return len(self.seg_train if self.cls_train is None else self.cls_train)


def open_datasets(config: ml_collections.ConfigDict) -> Datasets:
    """Opens the data that config.data names; prepares them first where needed.

    Args:
      config: see `ssm_jax.config`; the sections data and model are read.

    Raises:
      DataError: unusable data; the message names files and the remedy.
    """
    data, model = config.data, config.model
    parts = ("seg", "cls") if model.image_classes else ("seg",)
    _check_phantom(data, parts)
    builders = {part: _builder(data, part) for part in parts}
    seg_train, seg_test = (
        SegmentationSource(builders["seg"], split, data.min_area, data.mask_type)
        for split in SPLITS
    )
    cls_train = cls_test = None
    descriptions = [_describe("segmentation", data, data.seg_dir, seg_train, seg_test)]
    if model.image_classes:
        cls_train, cls_test = (
            ClassificationSource(builders["cls"], split, model.image_size, model.image_classes)
            for split in SPLITS
        )
        _check_classes(model.image_classes, cls_train, cls_test)
        descriptions.append(_describe("classification", data, data.cls_dir, cls_train, cls_test))
    max_objects = _max_objects(data, seg_train, seg_test)

    sizes = {
        (int(height), int(width))
        for source in (seg_train, seg_test)
        for height, width in zip(source.heights, source.widths, strict=True)
    }
    shapes = {size: resized_shape(*size, model.image_size, model.max_size) for size in sizes}
    canvas = tuple(_padded(max(shape[axis] for shape in shapes.values())) for axis in (0, 1))
    return Datasets(
        seg_train=seg_train,
        seg_test=seg_test,
        cls_train=cls_train,
        cls_test=cls_test,
        image_size=model.image_size,
        max_size=model.max_size,
        seg_canvas=canvas,
        cls_canvas=(_padded(model.image_size), _padded(model.image_size)),
        seg_channels=builders["seg"].channels,
        cls_channels=builders["cls"].channels if "cls" in builders else None,
        seg_float=any(size != shape for size, shape in shapes.items()),
        max_objects=max_objects,
        descriptions=tuple(descriptions),
    )


def _padded(length: int) -> int:
    return math.ceil(length / _PADDING) * _PADDING


def _check_phantom(data, parts: Sequence[str]) -> None:
    """Raises DataError where a phantom that is needed can not be made."""
    needed = {"seed": 0, "size": MIN_SIZE}
    made = [part for part in parts if not data[f"{part}_dir"]]
    if not made:
        return
    for part in made:
        needed |= {f"{part}_train": 1, f"{part}_test": 1}
    for name, least in needed.items():
        if data.phantom[name] < least:
            raise DataError(
                f"config.data.phantom.{name}={data.phantom[name]} is not possible; the least is "
                f"{least}"
            )


def _builder(data, part: str) -> IndexedBuilder:
    phantom = data.phantom
    folder = data.seg_dir if part == "seg" else data.cls_dir
    if folder:
        builder_class = CtLesionSeg if part == "seg" else CtClasses
        builder_config = builder_class.config_of(folder, data.train_split, data.test_split)
    else:
        builder_class = CtPhantom
        train, test = phantom[f"{part}_train"], phantom[f"{part}_test"]
        builder_config = CtPhantom.config_of(part, phantom.seed, phantom.size, train, test)
    return prepared(builder_class, builder_config, data.data_dir)


def _check_classes(image_classes: int, *sources: ClassificationSource) -> None:
    """Raises DataError where slices were left out and none of some class remains."""
    for source in sources:
        missing = set(range(image_classes)) - set(source.labels.tolist())
        if source.left_out and missing:
            numbers = FILE_CLASSES[image_classes]
            names = ", ".join(f"{n} ({LONG_NAMES[n]})" for n in numbers)
            absent = ", ".join(str(numbers[k]) for k in sorted(missing))
            raise DataError(
                f"the {source.name} has no slice of class {absent}: with "
                f"config.model.image_classes={image_classes} the slices that count have names that "
                f"start with {names}; {source.left_out} others were left out"
            )


def _max_objects(data, train: SegmentationSource, test: SegmentationSource) -> int:
    """Object slots a slice needs; checks what depends on config.data."""
    limit = data.max_objects or MAX_OBJECTS
    for source, most, field in (
        (train, limit, "max_objects" if data.max_objects else "min_area"),
        (test, MAX_OBJECTS, "min_area"),
    ):
        above = np.flatnonzero(source.object_counts > most)
        if len(above):
            files = name_files(f"{source.files[i]} ({source.object_counts[i]})" for i in above)
            remedy = (
                f"a larger config.data.max_objects (255 at most), or a larger min_area than "
                f"{data.min_area}"
                if field == "max_objects"
                else f"a larger config.data.min_area than {data.min_area}"
            )
            raise DataError(
                f"the {source.name} has slices with more than {most} lesion objects; set "
                f"{remedy}: {files}"
            )
    if not train.object_counts.any():
        raise DataError(
            f"the {train.name} has no slice with a lesion of more than {data.min_area} pixels, so "
            f"there is nothing to learn from {data.seg_dir or 'it'}; check that the masks mark "
            "lesions with 2 and 3, or lower config.data.min_area"
        )
    return data.max_objects or int(train.object_counts.max())


def _describe(task: str, data, folder: str, train: _Source, test: _Source) -> str:
    phantom, splits = data.phantom, SPLITS
    source = f"phantom (drawn by this program, {phantom.size}x{phantom.size}, seed {phantom.seed})"
    if folder:
        source, splits = folder, (data.train_split, data.test_split)
    text = f"{task}: {source}, {len(train)} {splits[0]} / {len(test)} {splits[1]} slices"
    left_out = sum(getattr(split, "left_out", 0) for split in (train, test))
    return text + (f" ({left_out} of other classes left out)" if left_out else "")
