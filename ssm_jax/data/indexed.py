"""TensorFlow-free writing of prepared sets with an index.

The index (sizes, labels, areas of lesion components of every slice) lies in the data set's
metadata file, so that a start needs to open no record.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from ssm_jax.class_set import ClassSet
from ssm_jax.classes import PAPER_DATA
from ssm_jax.data.objects import PAPER_GROUPS, Values, area_field

SHARD = 256  # slices a file: bounds the memory that writing takes
SPLITS = ("train", "test")
_COMMON = ("file", "height", "width", "channels")


def features(
    part: str, channels: int, labels: int, groups: Sequence[Values], numbered: bool = False
) -> tfds.features.FeaturesDict:
    """Features of a segmentation ("seg") or classification ("cls") set.

    file: name; image: [H, W, channels] uint8; height, width, channels; and label below `labels`, or
    mask [H, W, 1] uint8 with `objects.area_field` int32 [n] of every group of mask values: pixels
    of every component of these values. Where objects are `numbered`, numbers [H, W, 1] uint16 has
    the number of each pixel's object, and areas are those of the objects.
    """
    common = {
        "file": tfds.features.Text(),
        "image": tfds.features.Image(shape=(None, None, channels)),
        "height": np.int32,
        "width": np.int32,
        "channels": np.int32,
    }
    if part == "cls":
        own = {"label": tfds.features.ClassLabel(num_classes=labels)}
    else:
        areas = tfds.features.Tensor(shape=(None,), dtype=np.int32)
        mask = tfds.features.Image(shape=(None, None, 1), encoding_format="png")
        own = {"mask": mask} | dict.fromkeys(map(area_field, groups), areas)
        if numbered:
            own["numbers"] = tfds.features.Image(
                shape=(None, None, 1), dtype=np.uint16, encoding_format="png"
            )
    return tfds.features.FeaturesDict(common | own)


class _Info(tfds.core.DatasetInfo):
    """Facts of a set of this machine."""

    def initialize_from_bucket(self) -> None:
        """Asks no server for a set that none has; asking leaves a temporary folder each time."""


class IndexedBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Base of the builders: subclasses say which examples a split has.

    A subclass gives `part`, `channels`, `split_sizes()` and `examples(split, start, stop)`.
    """

    VERSION = tfds.core.Version("1.1.0")

    @property
    def split_names(self) -> tuple[str, ...]:
        """The splits that records are written of."""
        return SPLITS

    @property
    def part(self) -> str:
        """ "seg" or "cls"."""
        raise NotImplementedError

    @property
    def channels(self) -> int:
        """Channels of the slices, 1 or 3."""
        raise NotImplementedError

    @property
    def classes(self) -> ClassSet:
        """All that slices and masks can be of."""
        return PAPER_DATA

    @property
    def groups(self) -> Sequence[Values]:
        """Mask values that make objects together, of every lesion class that may be asked for."""
        return PAPER_GROUPS

    @property
    def numbered(self) -> bool:
        """Whether objects have numbers of their own, beside masks."""
        return False

    @property
    def index_fields(self) -> tuple[str, ...]:
        """Fields of the index."""
        own = ("label",) if self.part == "cls" else map(area_field, self.groups)
        return (*_COMMON, *own)

    def split_sizes(self) -> Mapping[str, int]:
        """Slices of each split; called when the set is prepared, before `examples`."""
        raise NotImplementedError

    def rows(self, split: str) -> tuple[str, Sequence[int]]:
        """The split of the records that hold the slices of a split, and their places in it."""
        return split, range(len(self.info.metadata[split]["file"]))

    def examples(self, split: str, start: int, stop: int) -> Iterator[dict[str, Any]]:
        """Slices start to stop - 1: dicts of the features, images as encoded bytes."""
        raise NotImplementedError

    def estimated_bytes(self) -> int:
        """Room that the records take, about; known once `split_sizes` was called."""
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        return _Info(
            builder=self,
            description=type(self).__doc__,
            features=features(
                self.part,
                self.channels,
                max(self.classes.numbers, default=0) + 1,
                self.groups,
                self.numbered,
            ),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _shard_iterators_per_split(self, dl_manager) -> dict[str, Sequence[Callable]]:
        del dl_manager
        plan: dict[str, Sequence[Callable]] = {}
        for split, size in self.split_sizes().items():
            self.info.metadata[split] = {field: [] for field in self.index_fields}
            starts = range(0, size, SHARD)
            plan[split] = [
                functools.partial(self._shard, split, start, min(size, start + SHARD))
                for start in starts
            ]
        return plan

    def _shard(self, split: str, start: int, stop: int) -> Iterator[tuple[int, dict[str, Any]]]:
        index = self.info.metadata[split]
        for key, example in enumerate(self.examples(split, start, stop), start):
            for field, values in index.items():
                values.append(example[field])
            yield key, example
