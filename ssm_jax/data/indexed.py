"""What the three builders share: TensorFlow-free sharded writing, and an index beside the records.

The index (sizes, labels, areas of lesion components of every slice) lies in the data set's
metadata file, so that a start needs to open no record.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from ssm_jax.data.folders import CLASS_NAMES
from ssm_jax.data.objects import AREA_FIELDS

SHARD = 256  # slices a file: bounds the memory that writing takes
SPLITS = ("train", "test")
_COMMON = ("file", "height", "width", "channels")
FIELDS = {"seg": (*_COMMON, *AREA_FIELDS.values()), "cls": (*_COMMON, "label")}


def features(part: str, channels: int) -> tfds.features.FeaturesDict:
    """Features of a segmentation ("seg") or classification ("cls") set.

    file: name; image: [H, W, channels] uint8; height, width, channels; and mask [H, W, 1] uint8
    with areas int32 [n] (pixels of every lesion component), ground_glass_areas and
    consolidation_areas (the same of these mask values alone), or label (0, 1, 2).
    """
    common = {
        "file": tfds.features.Text(),
        "image": tfds.features.Image(shape=(None, None, channels)),
        "height": np.int32,
        "width": np.int32,
        "channels": np.int32,
    }
    if part == "seg":
        return tfds.features.FeaturesDict(
            common
            | {
                "mask": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
            }
            | {
                name: tfds.features.Tensor(shape=(None,), dtype=np.int32)
                for name in AREA_FIELDS.values()
            }
        )
    return tfds.features.FeaturesDict(
        common | {"label": tfds.features.ClassLabel(names=list(CLASS_NAMES))}
    )


class IndexedBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """Base of the builders: subclasses say which examples a split has.

    A subclass gives `part`, `channels`, `split_sizes()` and `examples(split, start, stop)`.
    """

    VERSION = tfds.core.Version("1.1.0")

    @property
    def part(self) -> str:
        """ "seg" or "cls"."""
        raise NotImplementedError

    @property
    def channels(self) -> int:
        """Channels of the slices, 1 or 3."""
        raise NotImplementedError

    def split_sizes(self) -> Mapping[str, int]:
        """Slices of each split; called when the set is prepared, before `examples`."""
        raise NotImplementedError

    def examples(self, split: str, start: int, stop: int) -> Iterator[dict[str, Any]]:
        """Slices start to stop - 1: dicts of the features, images as encoded bytes."""
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=features(self.part, self.channels),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _shard_iterators_per_split(self, dl_manager) -> dict[str, Sequence[Callable]]:
        del dl_manager
        plan = {}
        for split, size in self.split_sizes().items():
            self.info.metadata[split] = {field: [] for field in FIELDS[self.part]}
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
