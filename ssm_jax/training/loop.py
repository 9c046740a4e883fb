"""The main job: trains a model, evaluates it now and then, and keeps what is needed to go on.

A run is determined by its configuration. Interrupted at any point, by whatever means, and started
again, it ends with the same parameters, optimiser state and metrics, bit by bit, as a run that was
never interrupted (on the same machine and backend).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from ssm_jax import sharding
from ssm_jax.checkpoints import saved_steps
from ssm_jax.config import ModelConfig, validate
from ssm_jax.data import Datasets, TrainBatches, make_train_iterator, open_datasets
from ssm_jax.evaluation.evaluator import summary
from ssm_jax.evaluation.predicted_slices import Stopped
from ssm_jax.files import json_ready, write_json
from ssm_jax.training import initialize
from ssm_jax.training import workdir as workdir_lib
from ssm_jax.training.evaluate import evaluate_variables, reestimated_batch_stats
from ssm_jax.training.interrupt import StopRequest
from ssm_jax.training.metrics import (
    METRICS_FILE,
    MetricsWindow,
    MetricsWriter,
    SilentWriter,
)
from ssm_jax.training.progress import Progress
from ssm_jax.training.run_checkpoints import RunCheckpoints
from ssm_jax.training.state import TrainState, create_state
from ssm_jax.training.steps import make_bn_estimator, make_steps

logger = logging.getLogger(__name__)


class TrainingError(RuntimeError):
    """A loss or a gradient that is not finite."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """When a run does what; steps are iterations done.

    Attributes:
      total: iterations of the run.
      batch_size: pairs of slices an iteration.
      epoch_slices: classification slices of an epoch; segmentation slices where these are all.
      evaluation_interval: iterations between evaluations; 0: at the end of every epoch.
      checkpoint_interval: iterations between checkpoints; 0: only where evaluated and at the end.
    """

    total: int
    batch_size: int
    epoch_slices: int
    evaluation_interval: int
    checkpoint_interval: int

    @classmethod
    def of(cls, config: ml_collections.ConfigDict, epoch_slices: int) -> Plan:
        """The plan of a configuration, given the number of slices of an epoch."""
        train = config.train
        by_epochs = -(-train.epochs * epoch_slices // train.batch_size)
        return cls(
            total=train.max_steps or by_epochs,
            batch_size=train.batch_size,
            epoch_slices=epoch_slices,
            evaluation_interval=config.eval.every_steps,
            checkpoint_interval=config.checkpoint.every_steps,
        )

    def evaluates(self, step: int) -> bool:
        """Whether the model is evaluated after so many iterations."""
        if step == 0 or step == self.total:
            return step > 0
        if self.evaluation_interval:
            return step % self.evaluation_interval == 0
        return self._epochs(step) > self._epochs(step - 1)

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is due after so many iterations."""
        regular = self.checkpoint_interval and step % self.checkpoint_interval == 0
        return bool(regular) or step == self.total or self.evaluates(step)

    def _epochs(self, step: int) -> int:
        return step * self.batch_size // self.epoch_slices


def train(config: ml_collections.ConfigDict, workdir: str | os.PathLike) -> dict[str, Any]:
    """Runs, or goes on with, the training that a configuration describes.

    Args:
      config: see `ssm_jax.config.default_config`.
      workdir: folder of the run; created. Receives checkpoints, metrics and pictures.

    Returns:
      The latest evaluation, as in metrics.json; empty if the run was stopped before the first.

    Raises:
      ValueError: a configuration, working directory, data set or checkpoint that cannot be used.
      TrainingError: a loss or gradient norm was not finite; the last good checkpoint stays.
    """
    model_config = validate(config)
    initialize.require_pretrained(config)
    mesh = sharding.training_mesh(config.train.batch_size)
    process = (jax.process_index(), jax.process_count())
    first = process[0] == 0
    workdir = pathlib.Path(workdir).expanduser().absolute()
    workdir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if first:  # the other processes of a job write nothing but their share of checkpoints
            stack.enter_context(workdir_lib.locked(workdir))
        settings = json.loads(config.to_json_best_effort())
        workdir_lib.check_config(workdir, settings)
        _log_sources(config, workdir)
        weights = {} if saved_steps(workdir) else initialize.initial_weights(config, model_config)
        datasets = open_datasets(config)
        for line in datasets.descriptions:
            logger.info("%s", line)
        loader = make_train_iterator(datasets, config, process)
        plan = Plan.of(config, datasets.epoch_slices)

        args = (config.checkpoint.keep_last, config.checkpoint.best_metric)
        checkpoints = stack.enter_context(RunCheckpoints(workdir, *args))
        make_state = functools.partial(create_state, model_config, jax.random.key(config.seed))
        shapes = jax.eval_shape(make_state)
        window = MetricsWindow()
        resumed = checkpoints.latest_step()
        complete = (resumed or 0) >= plan.total
        _log_model(model_config, shapes, resumed or 0, plan, mesh)
        compiling = (
            [] if complete else _start_compiling(config, model_config, plan, datasets, shapes, mesh)
        )
        if resumed is None:
            state = initialize.take_over(make_state(), weights)
        else:
            state, loop_state = checkpoints.restore(shapes)
            loader.set_state(loop_state["loader"])
            window.set_state(loop_state["window"])
        state = sharding.replicate(state, mesh)
        step = int(state.step)
        evaluated = step > 0 and checkpoints.metrics(step) is not None
        writer: MetricsWriter | SilentWriter = SilentWriter()
        if first:
            workdir_lib.store_config(workdir, settings)
            writer = stack.enter_context(MetricsWriter(workdir, step, evaluated))
        stream = None if first else stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
        progress = Progress(plan.total, step, stream)
        stack.callback(progress.pause)
        steps = [future.result() for future in compiling]
        # From here on there is something to save; before, a signal just ends the process.
        stop = stack.enter_context(StopRequest())
        parts = (plan, datasets, checkpoints, writer, window, stop, progress, mesh)
        _Run(config, model_config, settings, workdir, *parts).iterate(state, loader, steps)
        return _latest_metrics(workdir)


@dataclasses.dataclass
class _Run:
    """The parts of a run that its iterations share."""

    config: ml_collections.ConfigDict
    model: ModelConfig
    settings: dict[str, Any]
    workdir: pathlib.Path
    plan: Plan
    datasets: Datasets
    checkpoints: RunCheckpoints
    writer: MetricsWriter | SilentWriter
    window: MetricsWindow
    stop: StopRequest
    progress: Progress
    mesh: Mesh | None

    def __post_init__(self):
        self.estimator = make_bn_estimator(self.model) if self.config.eval.bn_slices else None
        self.agreed = False  # among several processes, to stop

    def iterate(self, state: TrainState, loader, steps: Sequence[Callable]) -> None:
        """Trains from a state to the end of the run, or until a stop is requested."""
        step = saved = int(state.step)
        if self.plan.evaluates(step) and self.checkpoints.metrics(step) is None:
            self.evaluate_and_save(state, step, loader)  # it was stopped in the middle of that
        first = self.config.train.classification_from
        if not self.config.model.image_classes:
            first = self.plan.total
        if step < self.plan.total:
            segmentation_step = steps[0]
        pending: _Iteration | None = None
        while step < self.plan.total and not self.stopped(step):
            batch = next(loader)
            state, seg_metrics = segmentation_step(
                state, sharding.split_batch(batch["seg"], self.mesh)
            )
            if step < first:
                state, cls_metrics = state.replace(step=state.step + 1), {}
            else:
                state, cls_metrics = steps[1](state, sharding.split_batch(batch["cls"], self.mesh))
            step += 1
            # Metrics are looked at one iteration late: the device is never left without work.
            self.settle(pending)
            files = (batch["seg_files"], batch["cls_files"])
            pending = _Iteration(step, seg_metrics, cls_metrics, *files)
            if self.plan.saves(step):
                self.settle(pending)  # a state is saved only when it is known to be sound
                pending = None
                self.evaluate_and_save(state, step, loader)
                saved = step
        self.settle(pending)
        if step > saved:
            self.save(state, loader)
        self.checkpoints.wait()
        self.progress.pause()
        if self.stop:
            logger.info("stopped at step %d; start again to go on", step)

    def stopped(self, step: int) -> bool:
        """Whether to end here. Of several processes all do, soon after one was asked to."""
        if jax.process_count() == 1:
            return bool(self.stop)
        if step % self.config.log.every_steps == 0:
            self.agreed = sharding.any_process(bool(self.stop))
        return self.agreed

    def settle(self, iteration: _Iteration | None) -> None:
        """Checks and records an iteration, once its metrics are there."""
        if iteration is None:
            return
        metrics = iteration.checked_metrics(self.checkpoints)
        step = iteration.step
        self.window.add(metrics)
        copied = bool(metrics["copied"])
        self.progress.update(step, metrics["loss_seg"], metrics["loss_cls"], copied)
        if step % self.config.log.every_steps == 0:
            means = self.window.means() | {"best_seg_loss": metrics["best_seg_loss"]}
            self.writer.write(step, "train", means)
            self.writer.write_scalars(step, "speed", {"iterations_per_second": self.progress.rate})
            self.window.clear()

    def evaluate_and_save(self, state: TrainState, step: int, loader) -> None:
        """Saves a state, after evaluating it if that is due."""
        self.progress.pause()
        batch_stats = metrics = None
        if self.plan.evaluates(step):
            with contextlib.suppress(Stopped):
                batch_stats, metrics = self.evaluate(state, step)
        self.save(state, loader, batch_stats, metrics)

    def evaluate(self, state: TrainState, step: int) -> tuple[Any, dict[str, Any]]:
        """Evaluates a state, and tells of it everywhere but in its checkpoint.

        Returns:
          The BN statistics it was evaluated with, and the metrics.
        """
        logger.info("step %d: evaluating", step)
        # Every process evaluates for itself: all have to know the metrics, which rank checkpoints.
        state = sharding.local_copy(state, self.mesh)
        first, alone = jax.process_index() == 0, jax.process_count() == 1
        batch_stats = state.batch_stats
        if self.estimator is not None:
            batch_stats = reestimated_batch_stats(self.config, self.datasets, state, self.estimator)
        variables = {"params": state.params, "batch_stats": batch_stats}
        overlays = self.workdir / "overlays" if first and step == self.plan.total else None
        stop = self.stop if alone else None
        metrics = evaluate_variables(
            self.config, self.model, self.datasets, variables, stop, overlays
        )
        self.writer.write(step, "evaluation", metrics)
        metrics = json_ready({"step": step, **metrics})
        if first:
            write_json(self.workdir / METRICS_FILE, metrics)
        logger.info("step %d: %s", step, summary(metrics))
        return batch_stats, metrics

    def save(self, state: TrainState, loader, batch_stats=None, metrics=None) -> None:
        """Saves a state that is known to be sound."""
        loop_state = {"loader": loader.get_state(), "window": self.window.get_state()}
        self.checkpoints.save(state, self.settings, loop_state, batch_stats, metrics)


@dataclasses.dataclass(frozen=True)
class _Iteration:
    """What one iteration reported, on the device still; nothing for a step that it left out."""

    step: int
    seg_metrics: Mapping[str, jax.Array]
    cls_metrics: Mapping[str, jax.Array]
    seg_files: list[str]
    cls_files: list[str]

    def checked_metrics(self, checkpoints: RunCheckpoints) -> dict[str, float]:
        """Fetches the metrics; raises TrainingError if one that counts is not finite."""
        seg, cls = jax.device_get((self.seg_metrics, self.cls_metrics))
        metrics = {name: float(np.asarray(value)) for name, value in (seg | cls).items()}
        # A skipped segmentation step has no losses: NaN says so.
        relevant = cls if metrics["skipped"] else metrics
        bad = [name for name in relevant if not math.isfinite(metrics[name])]
        metrics.setdefault("loss_cls", math.nan)
        if bad:
            checkpoints.wait()
            values = ", ".join(f"{name} is {metrics[name]}" for name in bad)
            kept = checkpoints.latest_step()
            raise TrainingError(
                f"step {self.step}: {values}. Segmentation slices: {', '.join(self.seg_files)}. "
                f"Classification slices: {', '.join(self.cls_files) or 'none'}. "
                + ("No checkpoint was saved yet" if kept is None else f"Step {kept} is saved")
                + ". A lower learning rate may help"
            )
        return metrics


def _start_compiling(
    config: ml_collections.ConfigDict,
    model: ModelConfig,
    plan: Plan,
    datasets: Datasets,
    shapes: TrainState,
    mesh: Mesh | None,
) -> list[Future]:
    """Compiles the steps in the background, one after another: side by side they would take a
    gigabyte more.
    """
    example = TrainBatches(datasets, config.seed, plan.batch_size, (0, jax.process_count()))[0]
    pool = ThreadPoolExecutor(1)

    def of_all_processes(rows):
        return jax.ShapeDtypeStruct((plan.batch_size, *rows.shape[1:]), rows.dtype)

    def compiled(step, batch):
        return step.lower(shapes, jax.tree.map(of_all_processes, batch)).compile()

    steps = zip(make_steps(model, config.train, plan.total, mesh), ("seg", "cls"), strict=True)
    futures = [
        pool.submit(compiled, step, example[part]) for step, part in steps if part in example
    ]
    pool.shutdown(wait=False)
    return futures


def _log_sources(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """The first lines of a run: what it learns from, and where its files go."""
    kinds = (("segmentation", "seg_dir"), ("classification", "cls_dir"))
    for kind, field in kinds if config.model.image_classes else kinds[:1]:
        phantom = f"phantom slices made by this program; for your own set config.data.{field}"
        logger.info("%s data: %s", kind, config.data[field] or phantom)
    logger.info("working directory: %s", workdir)


def _log_model(
    model: ModelConfig, shapes: TrainState, step: int, plan: Plan, mesh: Mesh | None
) -> None:
    """Devices, size of the model, and what is left of the run."""
    device = jax.local_devices()[0]
    used, there = 1 if mesh is None else mesh.size, jax.device_count()
    logger.info(
        "%s: %s (%s)%s%s",
        "device" if there == 1 else f"{used} of {there} devices",
        device.device_kind,
        device.platform,
        f" in {jax.process_count()} processes" if jax.process_count() > 1 else "",
        "" if used == there else "; a batch_size that is a multiple of their number uses all",
    )
    logger.info(
        "model: %s, %d blocks, %d RoI branches%s, %s parameters",
        model.backbone,
        model.blocks,
        model.branches,
        "" if model.image_classes else ", segmentation alone",
        f"{sum(array.size for array in jax.tree.leaves(shapes.params)):,}",
    )
    if step >= plan.total:
        logger.info("the run is complete: %d of %d iterations", step, plan.total)
    else:
        start = f"resumed at step {step} of" if step else "training for"
        logger.info("%s %d iterations; compiling first", start, plan.total)


def _latest_metrics(workdir: pathlib.Path) -> dict[str, Any]:
    path = workdir / METRICS_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
