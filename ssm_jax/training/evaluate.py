"""The evaluation of a state while it is trained."""

from __future__ import annotations

import functools
import logging
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from ssm_jax import visualize
from ssm_jax.config import ModelConfig, class_set
from ssm_jax.data import Datasets
from ssm_jax.data.batches import iterate_slices, segmentation_arrays, spread
from ssm_jax.evaluation.evaluator import ranking_figures
from ssm_jax.evaluation.predicted_slices import Loading, evaluate, grouped, predicted_slice
from ssm_jax.evaluation.thresholds import GRID, choose_threshold
from ssm_jax.predictor import Predictor
from ssm_jax.training.interrupt import StopRequest

logger = logging.getLogger(__name__)


def check_best_metric(name: str, image_classes: Sequence[str]) -> None:
    """Raises ValueError for a metric that no evaluation of these classes gives; "" is none."""
    possible = ranking_figures(image_classes)
    if name and name not in possible:
        raise ValueError(
            f"config.checkpoint.best_metric={name!r} is not possible; choose from "
            f"{', '.join(possible)}, or '' for none"
        )


def evaluate_variables(
    config: ml_collections.ConfigDict,
    model: ModelConfig,
    datasets: Datasets,
    variables: Mapping[str, Any],
    stop: StopRequest | None = None,
    overlays: pathlib.Path | None = None,
) -> dict[str, Any]:
    """Predicts the test splits and compares with the truth.

    Args:
      config: of the run; `eval` and the loading part of `data` are read.
      model: its model.
      datasets: of the run.
      variables: {"params": ..., "batch_stats": ...}.
      stop: looked at between batches.
      overlays: folder for pictures of `eval.overlays` slices, emptied first; None: no pictures.

    Returns:
      The metrics of `Evaluator.metrics`, and "score_threshold" and "nms_threshold", which they hold
      for.

    Raises:
      Stopped: the stop was requested.
    """
    data, settings = config.data, config.eval
    nms = {"nms_threshold": settings.nms_threshold}
    score = {"score_threshold": settings.score_threshold}
    make = functools.partial(
        Predictor,
        model,
        variables,
        **nms,
        batch_size=settings.batch_size,
        classes=class_set(config),
    )
    if settings.choose_threshold != "none":
        seen = Loading(settings.threshold_slices, settings.batch_size, data.threads, data.prefetch)
        chosen = choose_threshold(
            datasets.seg_train, make(score_threshold=GRID[0]), settings.choose_threshold, seen, stop
        )
        logger.info("%s", chosen)
        score = {"score_threshold": chosen.score_threshold}
    predictor = make(**score)
    loading = Loading(settings.max_slices, settings.batch_size, data.threads, data.prefetch)
    sources = {"seg": datasets.seg_test}
    if datasets.cls_test is not None:
        sources["cls"] = datasets.cls_test
    evaluator = evaluate(sources, predictor, loading, stop)
    if overlays is not None and settings.overlays:
        _draw(overlays, sources, predictor, loading, settings.overlays)
    return evaluator.metrics() | score | nms


def _draw(
    folder: pathlib.Path,
    sources: Mapping[str, Any],
    predictor: Predictor,
    loading: Loading,
    wanted: int,
) -> None:
    """Pictures of slices of either part, evenly spread over those with lesions or a class."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    indices = {part: np.array(loading.indices(source)) for part, source in sources.items()}
    indices["seg"] = indices["seg"][sources["seg"].object_counts[indices["seg"]] > 0]
    counts = {"cls": wanted // 2 if "cls" in sources else 0}
    counts["seg"] = wanted - counts["cls"]
    drawn = [
        (part, indices[part][k])
        for part in sources
        if counts[part]
        for k in spread(len(indices[part]), counts[part])
    ]
    for number, (part, index) in enumerate(drawn):
        shown = predicted_slice(part, sources[part], index, predictor)
        picture = visualize.overlay(
            shown.image, shown.prediction, shown.instances, shown.label, title=shown.file
        )
        picture.save(folder / f"{number:02d}_{pathlib.Path(shown.file).stem}.png")


def reestimated_batch_stats(
    config: ml_collections.ConfigDict,
    datasets: Datasets,
    weights: Mapping[str, Any],
    estimator: Callable,
) -> Any:
    """BN statistics of the weights as they are now, over `eval.bn_slices` training slices.

    The slices are those that training takes them from, segmentation slices with lesions, evenly
    spread over the split, in batches of the training's size.

    Args:
      config: of the run.
      datasets: of the run.
      weights: "params", and the running "batch_stats" to start from.
      estimator: from `averaging.make_bn_estimator`.

    Returns:
      A tree like these "batch_stats".
    """
    source, size = datasets.seg_train, config.train.batch_size
    usable = np.flatnonzero(source.object_counts)
    # Slices are taken again where there are fewer than one batch.
    count = max(min(config.eval.bn_slices, len(usable)) // size, 1) * size
    chosen = np.resize(usable[spread(len(usable), count)], count)
    slices = iterate_slices(source, chosen, config.data.threads, config.data.prefetch)
    average = weights["batch_stats"]
    for seen, group in enumerate(grouped(slices, size)):
        arrays = [segmentation_arrays(example, datasets) for example in group]
        images, sizes = (np.stack([a[name] for a in arrays]) for name in ("image", "image_size"))
        average = estimator(weights["params"], average, images, sizes, np.float32(seen))
    return average
