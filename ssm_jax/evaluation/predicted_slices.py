"""A model on test slices: figures of all of them, and some of them to look at."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Float64, UInt8
from tqdm import tqdm

from ssm_jax.data.batches import iterate_slices, spread
from ssm_jax.evaluation.evaluator import Evaluator
from ssm_jax.predictor import Prediction, Predictor, softmax

PARTS = {"seg": "segmentation slices", "cls": "classification slices"}
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

    def indices(self, source: Sequence) -> list[int]:
        """Which slices of a split are read, in order."""
        return spread(len(source), self.max_slices)


@dataclasses.dataclass(frozen=True)
class PredictedSlice:
    """A slice to show: its truth, and what the model says.

    Attributes:
      part: "seg" or "cls".
      file: its name.
      image: uint8 [H, W] or [H, W, 3].
      prediction: in pixels of this image.
      instances: label map of the true lesions; None for a classification slice.
      label: true class; None for a segmentation slice.
      figures: its AP at IoU 0.50, 0.55, ..., 0.95; None for a classification slice.
      group: which slices of a report it is shown with, such as "best".
    """

    part: str
    file: str
    image: np.ndarray
    prediction: Prediction
    instances: UInt8[np.ndarray, "H W"] | None = None
    label: int | None = None
    figures: Float64[np.ndarray, "10"] | None = None
    group: str = ""


def evaluate(
    sources: Mapping[str, Sequence],
    predictor: Predictor,
    loading: Loading,
    stop: object = None,
) -> Evaluator:
    """Predicts slices and compares with the truth.

    Args:
      sources: part ("seg", "cls") -> a split of `Datasets`.
      predictor: with masks.
      loading: how slices are read.
      stop: looked at between batches: true to stop.

    Returns:
      The evaluator, which holds the slices `loading.indices(source)` of every part in this order.

    Raises:
      Stopped: the stop was requested.
    """
    evaluator = Evaluator(predictor.classes.names, predictor.classes.lesion_titles)
    for part, source in sources.items():
        for batch in slice_batches(source, loading, stop, PARTS[part]):
            images = [plain(example.image) for example in batch]
            if part == "seg":
                for example, found in zip(batch, predictor.predict_batch(images), strict=True):
                    evaluator.add_segmentation(
                        found,
                        example.instances,
                        example.boxes,
                        example.labels,
                        example.file,
                        example.folder,
                        example.lesion,
                    )
            else:
                for example, row in zip(batch, predictor.class_logits(images), strict=True):
                    evaluator.add_classification(
                        row, example.label, softmax(row), example.file, example.folder
                    )
    return evaluator


def predicted_slice(
    part: str, source: Sequence, index: int, predictor: Predictor
) -> PredictedSlice:
    """Predicts one slice of a split, to show it.

    Args:
      part: "seg" or "cls".
      source: a split of `Datasets`.
      index: of the slice.
      predictor: with masks.
    """
    example = source[index]
    image = plain(example.image)
    truth = {"instances": example.instances} if part == "seg" else {"label": example.label}
    return PredictedSlice(part, example.file, image, predictor(image), **truth)


def plain(image: np.ndarray) -> np.ndarray:
    """[H, W, 1] as [H, W]; three channels as they are."""
    return image[..., 0] if image.shape[-1] == 1 else image


def grouped(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items in order; the last may be shorter."""
    iterator = iter(items)
    while group := list(itertools.islice(iterator, size)):
        yield group


def slice_batches(source: Sequence, loading: Loading, stop: object, name: str) -> Iterator[list]:
    """Batches of decoded slices, with a progress bar of that name on a terminal.

    Raises:
      Stopped: `stop` became true.
    """
    indices = loading.indices(source)
    slices = iterate_slices(source, indices, loading.threads, loading.prefetch)
    with tqdm(total=len(indices), desc=name, unit="slice", disable=None, leave=False) as bar:
        for batch in grouped(slices, loading.batch_size):
            if stop:
                raise Stopped
            yield batch
            bar.update(len(batch))
