"""Splits of prepared sets as sequences of decoded slices."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from ssm_jax.class_set import LesionClass
from ssm_jax.classes import PAPER
from ssm_jax.data import images
from ssm_jax.data.errors import DataError
from ssm_jax.data.indexed import IndexedBuilder
from ssm_jax.data.objects import area_field, exceeds, lesion_objects, lesion_pixels


@dataclasses.dataclass(frozen=True)
class SegmentationExample:
    """A slice with its lesion objects, in pixels of the original.

    Attributes:
      file: its name; "<folder>/<name>" where the slices come from several folders.
      image: uint8 [H, W, C].
      instances: uint8 [H, W], 0 background, k + 1 on object k.
      boxes: float32 [n, 4], XYXY.
      labels: int32 [n], lesion classes from 1.
      lesion: uint8 [H, W], 1 on all lesions, those too small to be an object included.
      folder: name of the folder that it comes from; "" where there is one alone.
    """

    file: str
    image: np.ndarray
    instances: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    lesion: np.ndarray
    folder: str = ""


@dataclasses.dataclass(frozen=True)
class ClassificationExample:
    """A slice with its class.

    Attributes:
      file: its name; "<folder>/<name>" where the slices come from several folders.
      image: uint8 [H, W, C].
      label: image class of the model, from 0.
      folder: name of the folder that it comes from; "" where there is one alone.
    """

    file: str
    image: np.ndarray
    label: int
    folder: str = ""


class Source(Sequence):
    """A split of one or several prepared sets: random access to examples, and their index.

    Attributes:
      name: for messages.
      folders: names of the sets.
      folder_numbers: int [n], the set of every slice, ascending.
      folder_counts: int [number of sets], slices of every set.
      folder_starts: int [number of sets], index of its first slice.
      files: names of the slices, as the examples have them.
      heights: int [n], pixels.
      widths: int [n], pixels.
      channels: 1 or 3.
      left_out: slices of the sets that are not in here.
    """

    def __init__(
        self, sets: Mapping[str, IndexedBuilder], split: str, classes: Sequence[int] | None = None
    ):
        """Reads the index.

        Args:
          sets: name of a folder -> its slices, prepared.
          split: "train" or "test".
          classes: numbers of image classes, whose slices alone are taken; None: all are.
        """
        self.name = f"{split} split of {' and '.join(one.name for one in sets.values())}"
        self.folders = tuple(sets)
        self.channels = next(iter(sets.values())).channels
        stored = [(builder, *builder.rows(split)) for builder in sets.values()]
        self._records = [_records(builder, name) for builder, name, _ in stored]
        self._places_on_disk = [str(builder.data_dir) for builder in sets.values()]
        self._indices = [builder.info.metadata[name] for builder, name, _ in stored]
        places = [(number, row) for number, (_, _, rows) in enumerate(stored) for row in rows]
        self._places = [
            (number, row)
            for number, row in places
            if classes is None or self._indices[number]["label"][row] in classes
        ]
        self.left_out = len(places) - len(self._places)
        self.folder_numbers = np.array([number for number, _ in self._places], int)
        self.folder_counts = np.bincount(self.folder_numbers, minlength=len(sets))
        self.folder_starts = np.cumsum(self.folder_counts) - self.folder_counts
        self.heights, self.widths = np.array(self._all("height")), np.array(self._all("width"))
        self.files: list[str] = self._all("file")
        if len(sets) > 1:
            named = zip(self.folder_numbers, self.files, strict=True)
            self.files = [f"{self.folders[number]}/{file}" for number, file in named]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index):
        index = index.__index__()
        if not 0 <= index < len(self):
            raise IndexError(f"slice {index} of {len(self)} in the {self.name}")
        number, row = self._places[index]
        try:
            record = self._records[number][row]
        except (OSError, RuntimeError) as error:  # the latter is how records tell it
            raise DataError(
                f"the prepared data in {self._places_on_disk[number]} can not be read any more "
                f"({error}); delete what is left of them and start again"
            ) from error
        folder = self.folders[number] if len(self.folders) > 1 else ""
        return self._example(index, record, images.decode(record["image"]), folder)

    def _example(self, index: int, record: Mapping, image: np.ndarray, folder: str):
        raise NotImplementedError

    def _all(self, field: str) -> list:
        """A field of the index, of all slices."""
        return [self._indices[number][field][row] for number, row in self._places]


def _records(builder: IndexedBuilder, split: str) -> Sequence[Mapping]:
    """Random access to the records of a split, with the pictures still encoded."""
    encoded = [name for name in ("image", "mask", "numbers") if name in builder.info.features]
    skip = {name: tfds.decode.SkipDecoding() for name in encoded}
    return builder.as_data_source(split=split, decoders=skip)


class SegmentationSource(Source):
    """A split with masks; `source[i]` is a SegmentationExample.

    Attributes:
      min_area: that objects exceed, see `objects.exceeds`.
      lesions: classes of the objects, see `objects.lesion_objects`.
      object_counts: int [n], objects of every slice.
    """

    def __init__(
        self,
        sets: Mapping[str, IndexedBuilder],
        split: str,
        min_area: int,
        lesions: Sequence[LesionClass] = PAPER.lesion,
    ):
        super().__init__(sets, split)
        self.min_area = min_area
        self.lesions = tuple(lesions)
        self.object_counts = np.zeros(len(self), int)
        for lesion in self.lesions:
            areas = self._all(area_field(lesion.values))
            slices = zip(areas, self.heights, self.widths, strict=True)
            self.object_counts += [exceeds(found, min_area, h, w).sum() for found, h, w in slices]

    def _example(self, index, record, image, folder):
        mask = images.decode_mask(record["mask"])
        numbers = images.read_numbers(record["numbers"], mask) if "numbers" in record else None
        objects = lesion_objects(mask, self.min_area, self.lesions, numbers)
        lesion = lesion_pixels(mask, self.lesions)
        return SegmentationExample(self.files[index], image, *objects, lesion, folder)


class ClassificationSource(Source):
    """A split with classes; `source[i]` is a ClassificationExample.

    Slices of another size than image_size x image_size are squashed to it (PIL bilinear, which
    antialiases), as the reference implementation does. Slices of none of the model's classes are
    left out.

    Attributes:
      labels: int [n], classes of the model.
    """

    def __init__(
        self,
        sets: Mapping[str, IndexedBuilder],
        split: str,
        image_size: int,
        numbers: Sequence[int] = PAPER.numbers,
    ):
        super().__init__(sets, split, numbers)
        self.image_size = image_size
        place = {number: label for label, number in enumerate(numbers)}
        self.labels = np.array([place[number] for number in self._all("label")], int)

    def _example(self, index, record, image, folder):
        size = (self.image_size, self.image_size)
        if image.shape[:2] != size:
            picture = Image.fromarray(image[..., 0] if self.channels == 1 else image)
            pixels = np.asarray(picture.resize(size, Image.Resampling.BILINEAR))
            image = pixels.reshape(*size, self.channels)
        return ClassificationExample(self.files[index], image, int(self.labels[index]), folder)
