"""Batches for the training steps, and slices for the evaluation, decoded ahead in threads."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import grain
import ml_collections
import numpy as np

from ssm_jax.data import augment
from ssm_jax.data.datasets import Datasets
from ssm_jax.data.sources import ClassificationExample, SegmentationExample, Source
from ssm_jax.ops.resizing import resize_bilinear, resize_nearest, resized_shape

_STEPS = 2**62  # a training iterator does not end
# Streams of random numbers: single draws, orders of epochs, orders of the slices of a folder.
_DRAWS, _EPOCHS, _FOLDERS = 1, 2, 3
_CHANGES = {"seg": 4, "cls": 5}  # and changes of single slices
T = TypeVar("T")


class TrainBatches:
    """Random access to training batches: `batches[i]` is a pure function of (seed, i).

    Segmentation slices are drawn uniformly with replacement, those without lesions included;
    classification slices follow one permutation an epoch. Without classification slices the
    segmentation slices follow one permutation an epoch. Where folders have weights, a drawn slice
    is of a folder with the probability of its share, and a folder has its share of every epoch, in
    which its slices take turns. See `__getitem__` for the fields.
    """

    def __init__(
        self, datasets: Datasets, seed: int, batch_size: int, part: tuple[int, int] = (0, 1)
    ):
        """Takes what determines the batches.

        Args:
          datasets: from `open_datasets`.
          seed: not negative.
          batch_size: pairs of slices a batch.
          part: (k, n): of every batch, the k-th of n equal parts alone is loaded.
        """
        self.datasets, self.seed, self.batch_size = datasets, seed, batch_size
        index, count = part
        self._rows = slice(index * batch_size // count, (index + 1) * batch_size // count)
        self._order = functools.lru_cache(maxsize=4)(self._make_order)

    def __len__(self) -> int:
        return _STEPS

    def indices(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the segmentation and of the classification slices of a batch, [B] each.

        Without classification slices the second array is empty.
        """
        first = step * self.batch_size
        in_turn = _from_rounds(
            self._order, self.datasets.epoch_slices, first, first + self.batch_size
        )
        if self.datasets.cls_train is None:
            return in_turn, np.zeros(0, int)
        return self._drawn(step), in_turn

    def _drawn(self, step: int) -> np.ndarray:
        """Indices [B] of segmentation slices, drawn with replacement."""
        rng = np.random.default_rng([self.seed, _DRAWS, step])
        source, shares = self.datasets.seg_train, self.datasets.seg_shares
        if shares is None:
            return rng.integers(len(source), size=self.batch_size)
        folders = rng.choice(len(shares), size=self.batch_size, p=shares)
        return source.folder_starts[folders] + rng.integers(source.folder_counts[folders])

    def _make_order(self, epoch: int) -> np.ndarray:
        """Indices of the slices of an epoch in their order."""
        rng = np.random.default_rng([self.seed, _EPOCHS, epoch])
        datasets, count = self.datasets, self.datasets.epoch_slices
        source: Source = datasets.seg_train if datasets.cls_train is None else datasets.cls_train
        shares = datasets.seg_shares if datasets.cls_train is None else datasets.cls_shares
        if shares is None:
            return rng.permutation(count)
        quotas = np.diff(np.rint(np.cumsum([0.0, *shares]) * count).astype(int)).tolist()
        turns = [
            self._folder_turns(source, folder, epoch * quota, (epoch + 1) * quota)
            for folder, quota in enumerate(quotas)
            if quota
        ]
        return rng.permutation(np.concatenate(turns))

    def _folder_turns(self, source: Source, folder: int, start: int, stop: int) -> np.ndarray:
        """Indices of turns `start` to `stop` - 1 of a folder, whose slices come once a round."""
        count = source.folder_counts[folder]

        def order(turn: int) -> np.ndarray:
            return np.random.default_rng([self.seed, _FOLDERS, folder, turn]).permutation(count)

        return source.folder_starts[folder] + _from_rounds(order, count, start, stop)

    def __getitem__(self, step: int) -> dict[str, Any]:
        """The batch of iteration `step` (from 0).

        Returns:
          "seg": {"image" uint8 or float32 [B, H, W, C], "image_size" int32 [B, 2], "instances"
          uint8 [B, H, W], "boxes" float32 [B, M, 4], "labels" int32 [B, M], "valid" bool [B, M]};
          "cls": {"image" uint8 [B, H, W, C], "image_size" int32 [B, 2], "label" int32 [B]};
          "seg_files", "cls_files": lists of names. Sizes are (height, width) without padding,
          boxes pixels of the resized slice; float images lie in [0, 1]. "cls" is missing and
          "cls_files" empty without classification slices.
        """
        rows = range(self.batch_size)[self._rows]
        segmentation, classification = self.indices(int(step))
        seg = [self._segmentation(int(step), row, segmentation[row]) for row in rows]
        cls_train = self.datasets.cls_train
        cls = [
            self._classification(cls_train, int(step), row, classification[row])
            for row in rows
            if cls_train is not None
        ]
        batch = {
            "seg": _stack([segmentation_arrays(example, self.datasets) for example in seg]),
            "seg_files": [example.file for example in seg],
            "cls_files": [example.file for example in cls],
        }
        if cls:
            arrays = [classification_arrays(example, self.datasets) for example in cls]
            batch["cls"] = _stack(arrays)
        return batch

    def _segmentation(self, step: int, row: int, index: int) -> SegmentationExample:
        """The segmentation slice of a row of a batch."""
        augmentation, source = self.datasets.augmentation, self.datasets.seg_train
        if not augmentation.active:
            return source[index]
        rng = np.random.default_rng([self.seed, _CHANGES["seg"], step, row])
        example = _fitted(source[index], self.datasets)
        return augment.segmentation(augmentation, rng, example, source.min_area)

    def _classification(
        self, source: Source, step: int, row: int, index: int
    ) -> ClassificationExample:
        """The classification slice of a row of a batch."""
        augmentation = self.datasets.augmentation
        if not augmentation.active:
            return source[index]
        rng = np.random.default_rng([self.seed, _CHANGES["cls"], step, row])
        return augment.classification(augmentation, rng, source[index])


def _from_rounds(
    order: Callable[[int], np.ndarray], count: int, start: int, stop: int
) -> np.ndarray:
    """Entries `start` to `stop` - 1 of the orders 0, 1, ..., each of `count` indices, in a row."""
    rounds = range(start // count, -(-stop // count))
    entries = np.concatenate([order(turn) for turn in rounds])
    return entries[start - rounds.start * count : stop - rounds.start * count]


def _stack(examples: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def segmentation_arrays(example: SegmentationExample, datasets: Datasets) -> dict[str, np.ndarray]:
    """One segmentation slice resized and padded, without the batch axis; see TrainBatches."""
    height, width = example.image.shape[:2]
    shape = resized_shape(height, width, datasets.image_size, datasets.max_size)
    image, instances, boxes = example.image, example.instances, example.boxes
    if datasets.seg_float:
        image = image.astype(np.float32) / np.float32(255)
    if shape != (height, width):
        image = resize_bilinear(image, *shape)
        instances = resize_nearest(instances, *shape)
        boxes = boxes * _ratio(shape, (height, width))
    count, slots = len(boxes), datasets.max_objects
    valid = np.arange(slots) < count
    padded = np.zeros((slots, 4), np.float32)
    padded[:count] = boxes
    labels = np.zeros(slots, np.int32)
    labels[:count] = example.labels
    return {
        "image": _pad(image, datasets.seg_canvas),
        "image_size": np.array(shape, np.int32),
        "instances": _pad(instances, datasets.seg_canvas),
        "boxes": padded,
        "labels": labels,
        "valid": valid,
    }


def _fitted(example: SegmentationExample, datasets: Datasets) -> SegmentationExample:
    """A slice at the size of training, in whole gray values: less to augment than the original."""
    height, width = example.image.shape[:2]
    shape = resized_shape(height, width, datasets.image_size, datasets.max_size)
    if shape == (height, width):
        return example
    image = resize_bilinear(example.image.astype(np.float32), *shape)
    return dataclasses.replace(
        example,
        image=np.rint(image).astype(np.uint8),
        instances=resize_nearest(example.instances, *shape),
        boxes=example.boxes * _ratio(shape, (height, width)),
    )


def _ratio(new: tuple[int, int], old: tuple[int, int]) -> np.ndarray:
    """Factors [4] of boxes between two sizes (height, width)."""
    return np.array([new[1] / old[1], new[0] / old[0]] * 2, np.float32)


def classification_arrays(
    example: ClassificationExample, datasets: Datasets
) -> dict[str, np.ndarray]:
    """One classification slice padded, without the batch axis; see TrainBatches."""
    return {
        "image": _pad(example.image, datasets.cls_canvas),
        "image_size": np.array(example.image.shape[:2], np.int32),
        "label": np.array(example.label, np.int32),
    }


def _pad(array: np.ndarray, canvas: tuple[int, int]) -> np.ndarray:
    """Zeros at the bottom and on the right up to `canvas` (height, width)."""
    missing = [(0, canvas[axis] - array.shape[axis]) for axis in (0, 1)]
    if not any(after for _, after in missing):
        return array
    return np.pad(array, missing + [(0, 0)] * (array.ndim - 2))


def make_train_iterator(
    datasets: Datasets, config: ml_collections.ConfigDict, part: tuple[int, int] = (0, 1)
) -> grain.DatasetIterator:
    """An endless iterator over training batches, decoded ahead in background threads.

    `get_state()` gives a JSON-able dict, with which `set_state` makes any iterator of the same
    datasets and config go on exactly there.

    Args:
      datasets: from `open_datasets`.
      config: seed, train.batch_size, data.threads and data.prefetch are read.
      part: see TrainBatches.
    """
    batches = TrainBatches(datasets, config.seed, config.train.batch_size, part)
    options = grain.ReadOptions(
        num_threads=config.data.threads, prefetch_buffer_size=max(1, config.data.prefetch)
    )
    return iter(grain.MapDataset.source(batches).to_iter_dataset(options))


def spread(count: int, limit: int) -> list[int]:
    """Indices below `count`: all, or `limit` of them, evenly spread, if it is above 0 and below."""
    if 0 < limit < count:
        return [k * count // limit for k in range(limit)]
    return list(range(count))


def iterate_slices(
    source: Sequence[T], indices: Iterable[int], threads: int = 2, ahead: int = 8
) -> Iterator[T]:
    """Examples of a split, decoded ahead in background threads.

    Args:
      source: a split of Datasets, or any sequence.
      indices: of the examples, in the order in which they are wanted.
      threads: decoding threads.
      ahead: examples decoded before they are asked for.
    """
    with concurrent.futures.ThreadPoolExecutor(max(1, threads)) as pool:
        waiting: collections.deque = collections.deque()
        for index in indices:
            waiting.append(pool.submit(source.__getitem__, index))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
