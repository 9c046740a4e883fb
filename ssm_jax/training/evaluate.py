"""Evaluation of a model on the test splits."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from ssm_jax import visualize
from ssm_jax.classes import lesion_names, long_names, short_names
from ssm_jax.config import ModelConfig
from ssm_jax.data import Datasets, iterate_slices
from ssm_jax.data.batches import segmentation_arrays
from ssm_jax.evaluation import Evaluator
from ssm_jax.evaluation.predicted_slices import (
    Loading,
    Stopped,
    classification_slices,
    grouped,
    segmentation_slices,
)
from ssm_jax.predictor import Prediction, Predictor
from ssm_jax.training.interrupt import StopRequest
from ssm_jax.training.state import TrainState

__all__ = ["SUMMARY", "Example", "Stopped", "evaluate", "reestimated_batch_stats", "summary"]

SUMMARY = ("ap50", "ap", "coco_segm_AP50", "accuracy", "sensitivity_covid", "f1_weighted")


@dataclasses.dataclass(frozen=True)
class Example:
    """A test slice and what the model says of it, for a picture.

    Attributes:
      file: name of the slice.
      image: uint8 [H, W] or [H, W, 3].
      prediction: in pixels of this image.
      instances: uint8 [H, W] label map of the true lesions; None for a classification slice.
      label: true class; None for a segmentation slice.
    """

    file: str
    image: np.ndarray
    prediction: Prediction
    instances: np.ndarray | None = None
    label: int | None = None

    def draw(self, path: pathlib.Path) -> None:
        """Writes the picture."""
        names = long_names(len(self.prediction.class_logits))
        picture = visualize.overlay(
            self.image, self.prediction, self.instances, self.label, names, title=self.file
        )
        picture.save(path)


def evaluate(
    config: ml_collections.ConfigDict,
    datasets: Datasets,
    variables: Mapping[str, Any],
    stop: StopRequest | None = None,
    overlays: pathlib.Path | None = None,
) -> dict[str, Any]:
    """Predicts the test splits and compares with the truth.

    Args:
      config: of the run; `model`, `eval` and the loading part of `data` are read.
      datasets: of the run.
      variables: {"params": ..., "batch_stats": ...}.
      stop: looked at between batches.
      overlays: folder for pictures of `eval.overlays` slices, emptied first; None: no pictures.

    Returns:
      The metrics of `Evaluator.metrics`, and the two thresholds they hold for.

    Raises:
      Stopped: the stop was requested.
    """
    settings = config.eval
    predictor = Predictor(
        ModelConfig.from_mapping(config.model.to_dict()),
        variables,
        score_threshold=settings.score_threshold,
        nms_threshold=settings.nms_threshold,
        batch_size=settings.batch_size,
    )
    classes = config.model.image_classes
    evaluator = Evaluator(short_names(classes), lesion_names(config.data.mask_type))
    loading = Loading(
        settings.max_slices, settings.batch_size, config.data.threads, config.data.prefetch
    )
    # Half of the pictures from either split, if there are two.
    wanted = settings.overlays if overlays is not None else 0
    common = (datasets, predictor, evaluator, loading, stop)
    of_classes = wanted // 2 if classes else 0
    drawn = list(_segmentation(*common, wanted - of_classes))
    if classes:
        drawn += _classification(*common, of_classes)
    if overlays is not None and drawn:
        shutil.rmtree(overlays, ignore_errors=True)
        overlays.mkdir(parents=True)
        for index, example in enumerate(drawn):
            example.draw(overlays / f"{index:02d}_{pathlib.Path(example.file).stem}.png")
    thresholds = {
        "score_threshold": settings.score_threshold,
        "nms_threshold": settings.nms_threshold,
    }
    return evaluator.metrics() | thresholds


def reestimated_batch_stats(
    config: ml_collections.ConfigDict, datasets: Datasets, state: TrainState, estimator: Callable
) -> Any:
    """BN statistics of the weights as they are now, over `eval.bn_slices` training slices.

    The slices are those that training takes them from, segmentation slices with lesions, evenly
    spread over the split, in batches of the training's size.

    Args:
      config: of the run.
      datasets: of the run.
      state: parameters, and the running statistics to start from.
      estimator: from `steps.make_bn_estimator`.

    Returns:
      A tree like `state.batch_stats`.
    """
    source, size = datasets.seg_train, config.train.batch_size
    usable = np.flatnonzero(source.object_counts)
    # Slices are taken again where there are fewer than one batch.
    count = max(min(config.eval.bn_slices, len(usable)) // size, 1) * size
    picked = _Picked(source, [usable[k * len(usable) // count] for k in range(count)])
    slices = iterate_slices(picked, 0, config.data.threads, config.data.prefetch)
    average = state.batch_stats
    for seen, group in enumerate(grouped(slices, size)):
        arrays = [segmentation_arrays(example, datasets) for example in group]
        images, sizes = (np.stack([a[name] for a in arrays]) for name in ("image", "image_size"))
        average = estimator(state.params, average, images, sizes, np.float32(seen))
    return average


def summary(metrics: Mapping[str, Any]) -> str:
    """The main figures in one line."""
    return ", ".join(
        f"{name} {metrics[name]:.3f}" for name in SUMMARY if metrics.get(name) is not None
    )


def _segmentation(datasets, predictor, evaluator, loading, stop, wanted) -> Iterator[Example]:
    """Adds the segmentation slices; yields `wanted` examples, spread over slices with lesions."""
    source = datasets.seg_test
    with_lesions = sum(source.object_counts > 0)
    spread = _Spread(min(loading.count(source), with_lesions), wanted)
    for slice_ in segmentation_slices(source, predictor, evaluator, loading, stop):
        example = slice_.example
        if len(example.boxes) and spread.take():
            instances = example.instances
            yield Example(example.file, slice_.image, slice_.prediction, instances=instances)


def _classification(datasets, predictor, evaluator, loading, stop, wanted) -> Iterator[Example]:
    """Adds the classification slices; yields `wanted` examples, spread over all."""
    source = datasets.cls_test
    spread = _Spread(loading.count(source), wanted)
    for slice_ in classification_slices(source, predictor, evaluator, loading, stop):
        if spread.take():
            file, label = slice_.example.file, slice_.example.label
            yield Example(file, slice_.image, predictor(slice_.image), label=label)


class _Picked(Sequence):
    """Some examples of a source."""

    def __init__(self, source: Sequence, indices: Sequence[int]):
        self._source = source
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Any:
        return self._source[self._indices[index]]


class _Spread:
    """Takes `wanted` of `count` things, evenly spread."""

    def __init__(self, count: int, wanted: int):
        self._every = max(count // wanted, 1) if wanted else 0
        self._wanted = wanted
        self._seen = 0

    def take(self) -> bool:
        taken = self._wanted > 0 and self._seen % self._every == 0
        self._seen += 1
        self._wanted -= taken
        return taken
