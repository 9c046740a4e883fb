"""Evaluates a checkpoint on a split and writes figures, predictions and a report."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from ssm_jax import box
from ssm_jax.checkpoints import CheckpointInfo
from ssm_jax.config import ModelConfig, default_config
from ssm_jax.data import DataError, open_datasets, patients
from ssm_jax.data.class_files import folder_paths, with_classes
from ssm_jax.evaluation import coco
from ssm_jax.evaluation.evaluator import Evaluator
from ssm_jax.evaluation.intervals import intervals
from ssm_jax.evaluation.predicted_slices import (
    Loading,
    PredictedSlice,
    evaluate,
    predicted_slice,
)
from ssm_jax.evaluation.thresholds import GRID, choose_threshold
from ssm_jax.files import json_ready, write_json, write_text_atomically
from ssm_jax.predictor import Predictor, thresholds
from ssm_jax.report import facts, selection
from ssm_jax.report.evaluation import report
from ssm_jax.report.options import Options

FORMAT, VERSION = "ssm_jax evaluation", 1
METRICS_FILE = "metrics.json"
PREDICTIONS_FILE = "predictions.json"
BOXES_FILE = "predictions_bbox.json"
TRUTH_FILE = "truth.json"
PROBABILITIES_FILE = "image_probabilities.json"
REPORT_FILE = "report.html"
UNREAD_SLICES = 16  # of the phantom's training split, where only its test split is wanted


def evaluate_checkpoint(
    checkpoint: str | None, output: pathlib.Path, options: Options, command: str = ""
) -> dict[str, Any]:
    """Evaluates a model and writes what came out.

    Writes metrics.json (what is returned), predictions.json and predictions_bbox.json (COCO
    results: masks, and boxes; one list of both would make pycocotools measure masks by their
    boxes), truth.json (COCO instances), image_probabilities.json (the classes of every slice that
    has one) and report.html.

    Args:
      checkpoint: a run's working directory, its folder of checkpoints, or the folder of one step;
        None: the model that comes with the package, which needs `options.seg_dir`.
      output: folder, created.
      options: how.
      command: the command line, for the report.

    Returns:
      The metrics of `Evaluator.metrics`, "intervals", "reliability", "curves", and what
      `evaluation.facts` tells of model, data and run.

    Raises:
      CheckpointError: no checkpoint there, not ours, or damaged.
      DataError: unusable data, or a split that is not there.
      ValueError: an unusable option.
    """
    started = time.monotonic()
    model_config, variables, info = _open(checkpoint, options)
    output.mkdir(parents=True, exist_ok=True)
    config = config_of(model_config, info, options)
    sources, trained_on = sources_of(config, options)
    most = max(map(len, sources.values()))
    # A batch is filled up, so that one of more slices than there are is a waste.
    batch_size = min(options.batch_size, most) or (1 if jax.default_backend() == "cpu" else 8)
    loading = Loading(options.max_slices, batch_size, config.data.threads, config.data.prefetch)
    make = functools.partial(
        Predictor,
        model_config,
        variables,
        nms_threshold=config.eval.nms_threshold,
        batch_size=batch_size,
        classes=info.classes,
    )
    choice = None
    if options.choose_threshold != "none":
        seen = dataclasses.replace(loading, max_slices=options.threshold_slices)
        predictor = make(score_threshold=GRID[0])
        choice = choose_threshold(trained_on["seg"], predictor, options.choose_threshold, seen)
        config.eval.score_threshold = choice.score_threshold
    score = config.eval.score_threshold
    predictor = make(score_threshold=score, roi_batch=model_config.image_classes > 0)
    evaluator = evaluate(sources, predictor, loading)
    shown: list[PredictedSlice] = []
    data: dict[str, Any] = {}
    for part, source in sources.items():
        shown += _shown(part, source, predictor, evaluator, loading, options)
        chosen = loading.indices(source)
        data[part] = facts.data_facts(source, config.data, part, options.split, chosen)
        known = info.config is not None and not getattr(options, f"{part}_dir")
        data[part]["training_slices"] = len(trained_on[part]) if known else None
    result = {
        "format": FORMAT,
        "version": VERSION,
        **all_figures(evaluator, options),
        "score_threshold": predictor.score_threshold,
        "nms_threshold": predictor.nms_threshold,
        "threshold_choice": None if choice is None else dataclasses.asdict(choice),
        "model": facts.model_facts(model_config, variables, info),
        "data": data,
        "run": facts.run_facts(command, time.monotonic() - started),
    }
    result = json_ready(result)
    _write(output, result, evaluator, shown)
    return result


def _open(
    checkpoint: str | None, options: Options
) -> tuple[ModelConfig, dict[str, Any], CheckpointInfo]:
    """The model that is evaluated."""
    if checkpoint is None and not options.seg_dir:
        raise ValueError(
            "without --checkpoint the model that comes with the package is evaluated, on slices of "
            "yours: name their folder by --seg_dir, or a model by --checkpoint"
        )
    model, variables, info = box.open_model(checkpoint)
    if checkpoint is None:  # how its run split its own slices says nothing of others
        info = dataclasses.replace(info, config=(info.config or {}) | {"data": {}})
    return model, variables, info


def config_of(
    model: ModelConfig, info: CheckpointInfo, options: Options
) -> ml_collections.ConfigDict:
    """The configuration that an evaluation goes by.

    Args:
      model: of the checkpoint.
      info: of the checkpoint.
      options: data, split and thresholds are read.

    Returns:
      The run's configuration, or the default one for imported weights, with the options.
    """
    config, run = default_config(), info.config
    for section in ("data", "eval"):
        config[section].update((run or {}).get(section, {}))
    config.model.update(dataclasses.asdict(model))
    config = with_classes(config, info.classes)
    config.eval.score_threshold, config.eval.nms_threshold = thresholds(info)
    if run is None and options.split != "train" and options.choose_threshold == "none":
        # Nothing was trained on the phantom, and what opens it wants two splits.
        for part in ("seg", "cls"):
            config.data.phantom[f"{part}_train"] = UNREAD_SLICES
    for name in ("seg_dir", "cls_dir", "data_dir"):
        if getattr(options, name):
            config.data[name] = getattr(options, name)
    config.data.seg_weights = config.data.cls_weights = ""  # of training, of other folders perhaps
    for name in ("score_threshold", "nms_threshold"):
        if getattr(options, name) is not None:
            config.eval[name] = getattr(options, name)
    return config


def sources_of(
    config: ml_collections.ConfigDict, options: Options
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The slices that an evaluation is about.

    Args:
      config: from `config_of`; names of splits may be changed.
      options: split and parts are read.

    Returns:
      By part ("seg", "cls"): the split to evaluate; and by part: the split to train on.

    Raises:
      DataError: unusable data, or a split that is not there.
      ValueError: no part that the model has, or no training slices to choose a threshold on.
    """
    data, split = config.data, options.split
    wanted = [part for part in options.parts if part == "seg" or config.model.image_classes]
    if options.choose_threshold != "none" and "seg" not in wanted:
        raise ValueError("--choose_threshold is for segmentation slices; evaluate these too")
    if not wanted:
        raise ValueError("the model only segments; there are no classes to evaluate")
    which = "train" if split in ("train", data.train_split) else "test"
    if split not in ("train", "test", data.train_split, data.test_split):
        if not any(data[f"{part}_dir"] for part in wanted):
            raise DataError(f"the phantom has no split {split!r}; choose train or test")
        data.test_split = split
    folders = [path for part in ("seg", "cls") for path in folder_paths(data[f"{part}_dir"])]
    if which == "test" and not all(
        (pathlib.Path(folder).expanduser() / data.train_split).is_dir() for folder in folders
    ):
        if options.choose_threshold != "none":
            raise DataError(
                f"--choose_threshold needs training slices, and there is no folder "
                f"{data.train_split!r} in {', '.join(folders)}"
            )
        # Slices to train on are not needed here, but what opens data wants two splits.
        data.train_split = data.test_split
    datasets = open_datasets(config)
    evaluated, trained_on = (
        {part: getattr(datasets, f"{part}_{name}") for part in wanted} for name in (which, "train")
    )
    return evaluated, trained_on


def _shown(
    part: str,
    source: Any,
    predictor: Predictor,
    evaluator: Evaluator,
    loading: Loading,
    options: Options,
) -> list[PredictedSlice]:
    """The slices of a part that the report shows, in groups; only those with lesions are ranked."""
    indices = np.array(loading.indices(source))
    if part == "seg":
        values = [float(row.mean()) for row in evaluator.per_image]
        ranked = source.object_counts[indices] > 0
    else:
        pairs = zip(evaluator.probabilities, evaluator.labels, strict=True)
        values, ranked = [float(p[label]) for p, label in pairs if p is not None], None
    chosen = selection.choose(values, options.overlays, options.seed, ranked)
    shown = []
    for group, members in chosen.items():
        for k in members:
            slice_ = predicted_slice(part, source, indices[k], predictor)
            figures = evaluator.per_image[k] if part == "seg" else None
            shown.append(dataclasses.replace(slice_, group=group, figures=figures))
    return shown


def all_figures(evaluator: Evaluator, options: Options) -> dict[str, Any]:
    """Metrics, intervals, calibration and curves of an evaluator, as metrics.json holds them.

    Args:
      evaluator: holds the slices.
      options: `samples`, `seed` and `unit` are read.

    Returns:
      The metrics of `Evaluator.metrics`, "intervals" (fields of `Intervals`), and, of what was
      evaluated, "reliability" (fields of `Reliability` but "ece") and "curves" (kind -> "0.50",
      "0.75" and "mean" -> precision at recall 0, 0.01, ..., 1).
    """
    figures = evaluator.metrics()
    if options.samples:
        drawn = intervals(evaluator, options.samples, options.seed, options.unit)
        figures["intervals"] = dataclasses.asdict(drawn)
    else:
        figures["intervals"] = {"figures": {}, "samples": 0, "units": {}}
    reliability = evaluator.reliability()
    if reliability is not None:
        bins = dataclasses.asdict(reliability)
        figures["reliability"] = {name: bins[name] for name in bins if name != "ece"}
    if evaluator.per_image:
        figures["curves"] = {kind: _curves(evaluator, kind) for kind in coco.KINDS}
    return figures


def _curves(evaluator: Evaluator, kind: str) -> dict[str, list[float]]:
    """Precision at recall 0, 0.01, ..., 1, rounded for the page they are drawn on."""
    curves = coco.precision_curves(evaluator.coco_run(kind)).round(5)
    mean = curves.mean(axis=0).round(5)
    return {"0.50": curves[0].tolist(), "0.75": curves[5].tolist(), "mean": mean.tolist()}


def _write(
    output: pathlib.Path,
    result: Mapping[str, Any],
    evaluator: Evaluator,
    shown: Sequence[PredictedSlice],
) -> None:
    """Writes all files; those of a part that was not evaluated are removed."""
    recorder = evaluator.recorder
    coco_files: dict[str, Callable[[], Any]] = {
        PREDICTIONS_FILE: lambda: recorder.results("segm"),
        BOXES_FILE: lambda: recorder.results("bbox"),
        TRUTH_FILE: lambda: recorder.truth,
    }
    for name, content in coco_files.items():
        if evaluator.per_image:
            write_json(output / name, content(), indent=None)
        else:
            (output / name).unlink(missing_ok=True)
    if evaluator.labels:
        write_json(output / PROBABILITIES_FILE, _image_probabilities(evaluator))
    else:
        (output / PROBABILITIES_FILE).unlink(missing_ok=True)
    write_text_atomically(output / REPORT_FILE, report(result, shown))
    # Last: where it is, everything is.
    write_json(output / METRICS_FILE, result)


def _image_probabilities(evaluator: Evaluator) -> list[dict[str, Any]]:
    """One entry a classification slice."""
    names = evaluator.image_classes
    columns = (evaluator.cls_files, evaluator.labels, evaluator.predicted, evaluator.probabilities)
    return [
        {
            "file": file,
            "patient": patients.classification_patient(file),
            "class": names[label],
            "predicted": names[predicted],
            "probabilities": dict(zip(names, np.asarray(shares, float).tolist(), strict=True)),
        }
        for file, label, predicted, shares in zip(*columns, strict=True)
    ]
