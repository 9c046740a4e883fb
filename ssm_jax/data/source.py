"""The data sets of a run: found or prepared, checked against the config, decoded by index."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import ml_collections
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from ssm_jax.data import images
from ssm_jax.data.classes import CtClasses
from ssm_jax.data.errors import DataError, name_files
from ssm_jax.data.indexed import SPLITS, IndexedBuilder
from ssm_jax.data.lesion_seg import CtLesionSeg
from ssm_jax.data.objects import lesion_objects
from ssm_jax.data.phantom import MIN_SIZE
from ssm_jax.data.phantom_builder import CtPhantom
from ssm_jax.data.prepare import prepared
from ssm_jax.preprocessing import resized_shape

MAX_OBJECTS = 255  # what a uint8 label map holds
_PADDING = 32  # the canvas is a multiple of it


@dataclasses.dataclass(frozen=True)
class SegmentationExample:
    """A slice with its lesion objects, in pixels of the original.

    file: name. image: uint8 [H, W, C]. instances: uint8 [H, W], 0 background, k + 1 on object k.
    boxes: float32 [n, 4].
    """

    file: str
    image: np.ndarray
    instances: np.ndarray
    boxes: np.ndarray


@dataclasses.dataclass(frozen=True)
class ClassificationExample:
    """A slice with its class: file name, image uint8 [H, W, C], label 0, 1 or 2."""

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

    min_area: objects are larger. object_counts: int array [n], objects of every slice.
    """

    def __init__(self, builder: IndexedBuilder, split: str, min_area: int):
        super().__init__(builder, split)
        self.min_area = min_area
        self.object_counts = np.array(
            [sum(area > min_area for area in areas) for areas in self._index["areas"]], int
        )

    def _decode(self, index: int) -> SegmentationExample:
        record = self._records[index]
        instances, boxes = lesion_objects(images.decode_mask(record["mask"]), self.min_area)
        return SegmentationExample(self.files[index], self._image(record), instances, boxes)


class ClassificationSource(_Source):
    """A split with classes; `source[i]` is a ClassificationExample.

    Slices of another size than image_size x image_size are squashed to it (PIL bilinear, which
    antialiases), as the reference implementation does. labels: int array [n].
    """

    def __init__(self, builder: IndexedBuilder, split: str, image_size: int):
        super().__init__(builder, split)
        self.image_size = image_size
        self.labels = np.array(self._index["label"], int)

    def _decode(self, index: int) -> ClassificationExample:
        image = self._image(self._records[index])
        size = (self.image_size, self.image_size)
        if image.shape[:2] != size:
            picture = Image.fromarray(image[..., 0] if self.channels == 1 else image)
            pixels = np.asarray(picture.resize(size, Image.Resampling.BILINEAR))
            image = pixels.reshape(*size, self.channels)
        return ClassificationExample(self.files[index], image, int(self.labels[index]))


@dataclasses.dataclass(frozen=True)
class Datasets:
    """The four splits of a run and the static shapes of their batches.

    seg_train, seg_test, cls_train, cls_test: sources.
    image_size, max_size: pixels that slices are resized to (short side, bound of the long side).
    seg_canvas, cls_canvas: height and width of the padded slices.
    seg_channels, cls_channels: 1 or 3.
    seg_float: whether segmentation batches are float32 in [0, 1] because some slice is resized;
      otherwise they, and classification batches always, are uint8.
    max_objects: object slots of a segmentation slice.
    descriptions: lines that say what the data are.
    """

    seg_train: SegmentationSource
    seg_test: SegmentationSource
    cls_train: ClassificationSource
    cls_test: ClassificationSource
    image_size: int
    max_size: int
    seg_canvas: tuple[int, int]
    cls_canvas: tuple[int, int]
    seg_channels: int
    cls_channels: int
    seg_float: bool
    max_objects: int
    descriptions: tuple[str, ...]

    @property
    def epoch_slices(self) -> int:
        """Classification slices of an epoch."""
        return len(self.cls_train)


def open_datasets(config: ml_collections.ConfigDict) -> Datasets:
    """Opens the data that config.data names; prepares them first where needed.

    Args:
      config: see `ssm_jax.config`; the sections data and model are read.

    Raises:
      DataError: unusable data; the message names files and the remedy.
    """
    data, model = config.data, config.model
    _check_phantom(data)
    builders = {part: _builder(data, part) for part in ("seg", "cls")}
    seg_train, seg_test = (
        SegmentationSource(builders["seg"], split, data.min_area) for split in SPLITS
    )
    cls_train, cls_test = (
        ClassificationSource(builders["cls"], split, model.image_size)
        for split in ("train", "test")
    )
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
        cls_channels=builders["cls"].channels,
        seg_float=any(size != shape for size, shape in shapes.items()),
        max_objects=max_objects,
        descriptions=(
            _describe("segmentation", data, data.seg_dir, seg_train, seg_test, data.phantom),
            _describe("classification", data, data.cls_dir, cls_train, cls_test, data.phantom),
        ),
    )


def _padded(length: int) -> int:
    return math.ceil(length / _PADDING) * _PADDING


def _check_phantom(data) -> None:
    """Raises DataError where a phantom that is needed can not be made."""
    needed = {"seed": 0, "size": MIN_SIZE}
    for part, folder in (("seg", data.seg_dir), ("cls", data.cls_dir)):
        if not folder:
            needed |= {f"{part}_train": 1, f"{part}_test": 1}
    if data.seg_dir and data.cls_dir:
        return
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


def _describe(task: str, data, folder: str, train: _Source, test: _Source, phantom) -> str:
    counts = f"{len(train)} {data.train_split} / {len(test)} {data.test_split} slices"
    if folder:
        return f"{task}: {folder}, {counts}"
    return (
        f"{task}: phantom (drawn by this program, {phantom.size}x{phantom.size}, seed "
        f"{phantom.seed}), {len(train)} train / {len(test)} test slices"
    )
