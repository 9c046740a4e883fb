"""The main job: trains a model, evaluates it now and then, and keeps what is needed to go on.

A run is determined by its configuration. Interrupted at any point, by whatever means, and started
again, it ends with the same parameters, optimizer state and metrics, bit by bit, as a run that was
never interrupted (on the same machine and backend).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import logging
import math
import os
import pathlib
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grain
import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from ssm_jax import memory, sharding
from ssm_jax.config import ModelConfig, check_values, class_set, validate
from ssm_jax.data import Datasets, TrainBatches, make_train_iterator, open_datasets
from ssm_jax.data.class_files import named_classes
from ssm_jax.evaluation.evaluator import summary
from ssm_jax.evaluation.predicted_slices import Stopped
from ssm_jax.files import json_ready, write_json
from ssm_jax.training import first_lines, initialize, patterns
from ssm_jax.training import workdir as workdir_lib
from ssm_jax.training.averaging import make_averaging, make_bn_estimator, with_average
from ssm_jax.training.evaluate import (
    check_best_metric,
    evaluate_variables,
    reestimated_batch_stats,
)
from ssm_jax.training.interrupt import StopRequest
from ssm_jax.training.metrics import METRICS_FILE, MetricsWindow, MetricsWriter, SilentWriter
from ssm_jax.training.plan import Plan
from ssm_jax.training.progress import Progress
from ssm_jax.training.run_checkpoints import RunCheckpoints
from ssm_jax.training.state import TrainState, create_state
from ssm_jax.training.steps import make_steps
from ssm_jax.training.tracking import Tracker

# Of LLVM, for a program that runs once: half of the usual time to compile, and the same bits.
COMPILED_ONCE = {"xla_backend_optimization_level": 1}

logger = logging.getLogger(__name__)


class TrainingError(RuntimeError):
    """A loss or a gradient that is not finite."""


def train(config: ml_collections.ConfigDict, workdir: str | os.PathLike) -> dict[str, Any]:
    """Runs, or goes on with, the training that a configuration describes.

    Args:
      config: see `ssm_jax.config.default_config`.
      workdir: folder of the run; created. Receives checkpoints, metrics and pictures.

    Returns:
      The latest evaluation, as in metrics.json; empty if the run was stopped before the first.

    Raises:
      ValueError: a configuration, working directory, data set or checkpoint that cannot be used,
        or no room for a checkpoint.
      TrainingError: a loss or gradient norm was not finite; the last good checkpoint stays.
    """
    with contextlib.ExitStack() as stack:
        run, state = _set_up(config, pathlib.Path(workdir).expanduser().absolute(), stack)
        steps = run.compiled_steps()
        step = saved = int(state.step)
        if run.plan.evaluates(step) and run.checkpoints.metrics(step) is None:
            run.evaluate_and_save(state, step)  # it was stopped in the middle of that
        pending: _Iteration | None = None
        while step < run.plan.total and not run.stopped(step):
            batch = next(run.loader)
            seg_metrics, cls_metrics = {}, {}
            if run.plan.segments(step):
                seg_batch = sharding.split_batch(batch["seg"], run.mesh)
                state, seg_metrics = steps["seg"](state, seg_batch)
            if run.plan.classifies(step):
                cls_batch = sharding.split_batch(batch["cls"], run.mesh)
                state, cls_metrics = steps["cls"](state, cls_batch)
            else:
                state = state.replace(step=state.step + 1)
            state = run.averaged(state)
            step += 1
            # Metrics are looked at one iteration late: the device is never left without work.
            run.settle(pending)
            pending = _Iteration(
                step, seg_metrics, cls_metrics, batch["seg_files"], batch["cls_files"]
            )
            if run.plan.saves(step):
                run.settle(pending)  # a state is saved only when it is known to be sound
                pending = None
                run.evaluate_and_save(state, step)
                saved = step
        run.settle(pending)
        if step > saved:
            run.save(state)
        run.checkpoints.wait()
        run.progress.pause()
        if run.stop:
            logger.info("stopped at step %d; start again to go on", step)
        path = run.workdir / METRICS_FILE
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _set_up(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, stack: contextlib.ExitStack
) -> tuple[_Run, TrainState]:
    """Opens all that a run works with, and the state that it starts from or goes on from.

    Args:
      config: of the run.
      workdir: its folder; created.
      stack: closes what was opened.
    """
    started = time.monotonic()
    check_values(config)
    config = named_classes(config)
    model = validate(config)
    patterns.chosen(model, config.train)  # refuses what names no parameter
    check_best_metric(config.checkpoint.best_metric, class_set(config).names)
    initialize.require_pretrained(config)
    mesh = sharding.training_mesh(config.train.batch_size)
    first = jax.process_index() == 0
    workdir.mkdir(parents=True, exist_ok=True)
    if first:  # the other processes of a job write nothing but their share of checkpoints
        stack.enter_context(workdir_lib.locked(workdir))
    settings = json.loads(config.to_json_best_effort())
    workdir_lib.check_config(workdir, settings)
    first_lines.log_sources(config, workdir)
    checkpoints = stack.enter_context(
        RunCheckpoints(workdir, config.checkpoint.keep_last, config.checkpoint.best_metric)
    )
    scale = config.train.module_s_output_scale
    make_state = functools.partial(create_state, model, module_s_output_scale=scale)
    key, decay = jax.random.key(config.seed), config.train.ema_decay
    shapes = jax.eval_shape(lambda: with_average(make_state(key), decay))
    resumed = checkpoints.restore(shapes)
    step = 0 if resumed is None else int(resumed.state.step)
    if resumed is None:
        weights, seconds = initialize.initial_weights(config, model)
    datasets = open_datasets(config)
    for line in datasets.descriptions:
        logger.info("%s", line)
    loader = make_train_iterator(datasets, config, (jax.process_index(), jax.process_count()))
    window = MetricsWindow()
    plan = Plan.of(config, datasets.epoch_slices)
    first_lines.log_model(model, shapes, step, plan, mesh)
    stop = stack.enter_context(StopRequest(at_once=True))
    complete = step >= plan.total
    compiling = {} if complete else _start_compiling(config, model, plan, datasets, shapes, mesh)
    if resumed is None:
        fresh = jax.jit(make_state, compiler_options=COMPILED_ONCE)(key)
        state = with_average(initialize.take_over(fresh, weights), decay)
    else:
        state, seconds = resumed.state, resumed.seconds
        loader.set_state(resumed.loop["loader"])
        window.set_state(resumed.loop["window"])
    writer: MetricsWriter | SilentWriter = SilentWriter()
    if first:
        workdir_lib.store_config(workdir, settings)
        evaluated = checkpoints.metrics(step) is not None
        tracker = Tracker(workdir, settings) if config.log.tracking else None
        writer = stack.enter_context(MetricsWriter(workdir, step, evaluated, tracker))
    run = _Run(
        config=config,
        model=model,
        settings=settings,
        workdir=workdir,
        plan=plan,
        mesh=mesh,
        datasets=datasets,
        loader=loader,
        compiling=compiling,
        checkpoints=checkpoints,
        writer=writer,
        window=window,
        progress=Progress(plan.total, None if first else io.StringIO()),
        stop=stop,
        started=None if seconds is None else started - seconds,
        best_seg_loss=float(state.best_seg_loss),
    )
    stack.callback(run.progress.pause)
    return run, sharding.replicate(state, mesh)


@dataclasses.dataclass
class _Run:
    """The parts of a run, and what is done in its iterations beside the steps.

    `started` is the reading of the monotonic clock at which the run would have started, had it
    never been interrupted; None where the time of the run that it started from is not known.
    `best_seg_loss` is that of the latest segmentation step.
    """

    config: ml_collections.ConfigDict
    model: ModelConfig
    settings: dict[str, Any]
    workdir: pathlib.Path
    plan: Plan
    mesh: Mesh | None
    datasets: Datasets
    loader: grain.DatasetIterator
    compiling: dict[str, Future]
    checkpoints: RunCheckpoints
    writer: MetricsWriter | SilentWriter
    window: MetricsWindow
    progress: Progress
    stop: StopRequest
    started: float | None
    best_seg_loss: float

    def __post_init__(self):
        self.reestimated = None
        if self.config.eval.bn_slices:
            estimator = make_bn_estimator(self.model, self.config.train)
            self.reestimated = functools.partial(
                reestimated_batch_stats, self.config, self.datasets, estimator=estimator
            )
        self.averaged = make_averaging(self.config.train.ema_decay, self.mesh)
        self.agreed = False  # among several processes, to stop

    def compiled_steps(self) -> dict[str, Callable]:
        """The steps that the run takes by part ("seg", "cls"), once they are compiled.

        A complete run takes none.
        """
        steps = {part: future.result() for part, future in self.compiling.items()}
        self.stop.at_once = False  # from here on there is something to save
        return steps

    def stopped(self, step: int) -> bool:
        """Whether to end here. Of several processes all do, soon after one was asked to."""
        if jax.process_count() == 1:
            return bool(self.stop)
        if step % self.config.log.every_steps == 0:
            self.agreed = sharding.any_process(bool(self.stop))
        return self.agreed

    def settle(self, iteration: _Iteration | None) -> None:
        """Checks and records an iteration, once its metrics are there."""
        self.checkpoints.check()
        if iteration is None:
            return
        metrics = iteration.checked_metrics(self.checkpoints)
        step = iteration.step
        self.window.add(metrics)
        self.best_seg_loss = metrics.get("best_seg_loss", self.best_seg_loss)
        copied = bool(metrics.get("copied"))
        self.progress.update(step, metrics["loss_seg"], metrics["loss_cls"], copied)
        if step % self.config.log.every_steps == 0:
            means = self.window.means() | {"best_seg_loss": self.best_seg_loss}
            self.writer.write(step, "train", means)
            self.writer.write_scalars(step, "speed", {"iterations_per_second": self.progress.rate})
            self.window.clear()

    def evaluate_and_save(self, state: TrainState, step: int) -> None:
        """Saves a state, after evaluating it if that is due."""
        batch_stats = metrics = None
        if self.plan.evaluates(step):
            self.progress.pause()
            with contextlib.suppress(Stopped):
                batch_stats, metrics = self.evaluate(state, step)
        self.save(state, batch_stats, metrics)

    def evaluate(self, state: TrainState, step: int) -> tuple[Any, dict[str, Any]]:
        """Evaluates a state, and tells of it everywhere but in its checkpoint.

        Returns:
          The BN statistics it was evaluated with, and the metrics.
        """
        logger.info("step %d: evaluating", step)
        # Every process evaluates for itself: all have to know the metrics, which rank checkpoints.
        weights = dict(sharding.local_copy(state.evaluated, self.mesh))
        first, alone = jax.process_index() == 0, jax.process_count() == 1
        if self.reestimated is not None:
            weights["batch_stats"] = self.reestimated(weights)
        metrics = evaluate_variables(
            self.config,
            self.model,
            self.datasets,
            weights,
            stop=self.stop if alone else None,
            overlays=self.workdir / "overlays" if first and step == self.plan.total else None,
        )
        self.writer.write(step, "evaluation", metrics)
        metrics = json_ready({"step": step, **metrics})
        if first:
            write_json(self.workdir / METRICS_FILE, metrics)
        memory.give_back()  # the first time, of the compiler as well
        logger.info("step %d: %s", step, summary(metrics))
        return weights["batch_stats"], metrics

    def save(
        self, state: TrainState, batch_stats: Any = None, metrics: dict[str, Any] | None = None
    ) -> None:
        """Saves a state that is known to be sound."""
        self.writer.flush()  # no checkpoint is newer than the events
        self.checkpoints.save(
            state,
            self.settings,
            loop={"loader": self.loader.get_state(), "window": self.window.get_state()},
            batch_stats=batch_stats,
            metrics=metrics,
            seconds=None if self.started is None else time.monotonic() - self.started,
        )


@dataclasses.dataclass(frozen=True)
class _Iteration:
    """The metrics of one iteration, on the device still; empty for a step that it left out."""

    step: int
    seg_metrics: Mapping[str, jax.Array]
    cls_metrics: Mapping[str, jax.Array]
    seg_files: list[str]
    cls_files: list[str]

    def checked_metrics(self, checkpoints: RunCheckpoints) -> dict[str, float]:
        """Fetches the metrics; raises TrainingError if one that counts is not finite."""
        seg, cls = jax.device_get((self.seg_metrics, self.cls_metrics))
        metrics = {name: float(np.asarray(value)) for name, value in (seg | cls).items()}
        # A segmentation step that was skipped has no losses: NaN says so.
        relevant = cls if metrics.get("skipped") else metrics
        bad = [name for name in relevant if not math.isfinite(metrics[name])]
        metrics = {"loss_seg": math.nan, "loss_cls": math.nan} | metrics
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
) -> dict[str, Future]:
    """Compiles the steps of the parts ("seg", "cls") that the run takes, in the background.

    One after another: side by side they would take a gigabyte more.
    """
    example = TrainBatches(datasets, config.seed, plan.batch_size, (0, jax.process_count()))[0]
    pool = ThreadPoolExecutor(1)

    def of_all_processes(rows):
        return jax.ShapeDtypeStruct((plan.batch_size, *rows.shape[1:]), rows.dtype)

    def compiled(step, batch):
        program = step.lower(shapes, jax.tree.map(of_all_processes, batch)).compile()
        memory.give_back()
        return program

    steps = make_steps(model, config.train, plan.total, mesh)
    futures = {
        part: pool.submit(compiled, step, example[part])
        for part, step in zip(("seg", "cls"), steps, strict=True)
        if part in example and (part == "cls" or plan.segments(0))
    }
    pool.shutdown(wait=False)
    return futures
