"""A model on test slices: what training and the program `evaluate` share."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from ssm_jax.data.batches import iterate_slices, spread
from ssm_jax.evaluation.evaluator import Evaluator
from ssm_jax.predictor import Prediction, Predictor, softmax

T = TypeVar("T")


class Stopped(Exception):
    """A stop was requested in the middle of an evaluation."""


@dataclasses.dataclass(frozen=True)
class Loading:
    """How slices are read.

    Attributes:
      max_slices: of a split, evenly spread; 0: all.
      batch_size: slices predicted at once.
      threads: that decode.
      prefetch: slices decoded ahead.
    """

    max_slices: int = 0
    batch_size: int = 1
    threads: int = 2
    prefetch: int = 8

    def count(self, source: Sequence) -> int:
        """How many slices of a split are read."""
        return len(self.indices(source))

    def indices(self, source: Sequence) -> list[int]:
        """Which slices of a split are read, in order."""
        return spread(len(source), self.max_slices)


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """A slice that was just evaluated.

    Attributes:
      example: as the source gives it.
      image: uint8 [H, W] or [H, W, 3], what the model saw before resizing.
      prediction: of a segmentation slice; None for a classification slice.
      figures: float64 [10], per-image AP of a segmentation slice; otherwise None.
      logits: float32 [K] of a classification slice; otherwise None.
    """

    example: Any
    image: np.ndarray
    prediction: Prediction | None = None
    figures: np.ndarray | None = None
    logits: np.ndarray | None = None


def segmentation_slices(
    source: Sequence, predictor: Predictor, evaluator: Evaluator, loading: Loading, stop: Any = None
) -> Iterator[Evaluated]:
    """Predicts a segmentation split and adds it to an evaluator, slice by slice.

    Args:
      source: a segmentation split of `Datasets`.
      predictor: with masks.
      evaluator: receives the slices.
      loading: how they are read.
      stop: looked at between batches: true to stop.

    Yields:
      Every slice after it was added.

    Raises:
      Stopped: the stop was requested.
    """
    for batch in _batches(source, loading, stop, "segmentation slices"):
        images = [plain(example.image) for example in batch]
        predictions = predictor.predict_batch(images)
        for example, image, prediction in zip(batch, images, predictions, strict=True):
            figures = evaluator.add_segmentation(
                prediction, example.instances, example.boxes, example.labels, example.file
            )
            yield Evaluated(example, image, prediction, figures)


def classification_slices(
    source: Sequence, predictor: Predictor, evaluator: Evaluator, loading: Loading, stop: Any = None
) -> Iterator[Evaluated]:
    """The same for a classification split; arguments and errors as `segmentation_slices`."""
    for batch in _batches(source, loading, stop, "classification slices"):
        images = [plain(example.image) for example in batch]
        logits = predictor.class_logits(images)
        for example, image, row in zip(batch, images, logits, strict=True):
            evaluator.add_classification(row, example.label, softmax(row), example.file)
            yield Evaluated(example, image, logits=row)


def plain(image: np.ndarray) -> np.ndarray:
    """[H, W, 1] as [H, W]; three channels as they are."""
    return image[..., 0] if image.shape[-1] == 1 else image


def grouped(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items in order; the last may be shorter."""
    iterator = iter(items)
    while group := list(itertools.islice(iterator, size)):
        yield group


def _batches(source: Sequence, loading: Loading, stop: Any, name: str) -> Iterator[list]:
    """Batches of decoded slices, with a progress bar on a terminal."""
    slices = iterate_slices(source, loading.max_slices, loading.threads, loading.prefetch)
    with tqdm(
        total=loading.count(source), desc=name, unit="slice", disable=None, leave=False
    ) as bar:
        for batch in grouped(slices, loading.batch_size):
            if stop:
                raise Stopped
            yield batch
            bar.update(len(batch))
