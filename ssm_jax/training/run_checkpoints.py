"""The checkpoints of a training run: saved while training goes on, and resumed from."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import pathlib
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from ssm_jax import checkpoints, sharding
from ssm_jax.checkpoints import FOLDER, CheckpointError, metric_value
from ssm_jax.training.state import TrainState

MEGABYTE = 1 << 20

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Resumed:
    """The point that a run goes on from.

    Attributes:
      state: on the first device.
      loop: what the run saved beside it.
      seconds: of training so far; None where unknown.
    """

    state: TrainState
    loop: dict[str, Any]
    seconds: float | None


class RunCheckpoints:
    """The checkpoints of a training run: the last few, and the best by a metric.

    Saving copies the state to the host and writes it in the background; what goes wrong there is
    raised by the next call of `check`, `wait`, `save` or `close`. Of a job of several processes all
    make the same calls.
    """

    def __init__(self, workdir: str | os.PathLike, keep_last: int = 2, best_metric: str = ""):
        """Opens or creates `<workdir>/checkpoints`, and clears what killed processes left there.

        Args:
          workdir: of the run.
          keep_last: how many of the latest checkpoints are kept (at least 1).
          best_metric: name of a metric; the checkpoint where it is largest is kept too, the later
            one of equals. Checkpoints without it are never the best.
        """
        self.folder = pathlib.Path(workdir).absolute() / FOLDER
        self._keep_last, self._best_metric = max(keep_last, 1), best_metric
        self.folder.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0:
            checkpoints.clear_leftovers(self.folder)
        sharding.any_process(False)  # nobody looks before that is done
        folders = checkpoints.step_folders(self.folder)
        self._metrics = {int(folder.name): _metrics_of(folder) for folder in folders}
        self._damaged: list[int] = []  # passed over by `restore`; they go when the next is saved
        self._pool = ThreadPoolExecutor(1)
        self._writing: Future | None = None

    def latest_step(self) -> int | None:
        """Iterations done at the latest checkpoint; None if there is none."""
        return max(self._metrics, default=None)

    def metrics(self, step: int) -> dict[str, Any] | None:
        """The evaluation saved with a checkpoint; None if there was none."""
        return self._metrics.get(step)

    def save(
        self,
        state: TrainState,
        config: Mapping[str, Any],
        loop: Mapping[str, Any],
        batch_stats: Any = None,
        metrics: Mapping[str, Any] | None = None,
        seconds: float | None = None,
    ) -> None:
        """Saves a state under its step; a checkpoint of the same step is replaced.

        Args:
          state: of the run; it may be donated as soon as this returns.
          config: of the run, as nested dicts that JSON can hold, with a section `model`.
          loop: what else the run needs to go on, as JSON can hold.
          batch_stats: BN statistics for inference; None: those of the state, or of its average.
          metrics: the evaluation at this step, as JSON can hold.
          seconds: of training so far; None where unknown.

        Raises:
          CheckpointError: there is no room for it, or the one before could not be written.
        """
        self.wait()
        host = jax.tree.map(lambda array: np.array(array, copy=True), state)
        model = dict(host.evaluated)
        if batch_stats is not None:
            model["batch_stats"] = jax.tree.map(np.array, batch_stats)
        trees = {"model": model, "training": _training_item(host)}
        documents = {
            "config": checkpoints.config_item(config["model"], config),
            "loop": dict(loop),
            "time": {"seconds": seconds},
        }
        if metrics is not None:
            documents["metrics"] = dict(metrics)
        self._require_room(trees)
        if jax.process_count() == 1:
            self._writing = self._pool.submit(self._write, int(host.step), trees, documents)
        else:  # they meet while they write, where no computation may come between
            self._write(int(host.step), trees, documents)

    def restore(self, like: TrainState) -> Resumed | None:
        """Reads the latest checkpoint that is whole; the log names those that are not.

        Args:
          like: a state (or its shapes) of the same configuration.

        Returns:
          What the run goes on from; None if there is no checkpoint.

        Raises:
          CheckpointError: none of those there can be resumed from.
        """
        errors = []
        for step in sorted(self._metrics, reverse=True):
            try:
                restored = self._restore(self.folder / str(step), like)
            except CheckpointError as error:
                errors.append(error)
                self._damaged.append(step)
                continue
            for passed_over in errors:
                logger.warning("passed over: %s", passed_over)
            for damaged in self._damaged:
                del self._metrics[damaged]
            self._remove(self._surplus())
            return restored
        if errors:
            told = "\n  ".join(map(str, errors))
            raise CheckpointError(
                f"no checkpoint in {self.folder} can be resumed from. Choose another working "
                f"directory, or delete that folder to start over:\n  {told}"
            )
        return None

    def check(self) -> None:
        """Raises what went wrong in the background, if anything did."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Blocks until all that was saved is on disk."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Finishes writing and frees the background thread."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()

    def __enter__(self) -> RunCheckpoints:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _restore(self, path: pathlib.Path, like: TrainState) -> Resumed:
        if (path / "model").is_dir() and not (path / "training").is_dir():
            raise CheckpointError(
                f"{path} holds weights without a training state (imported ones, perhaps); a run "
                "cannot be resumed from it"
            )
        trees = {"model": dict(like.evaluated), "training": _training_item(like)}
        items = checkpoints.read_items(path, trees, documents=["loop"], optional=["time"])
        fields, params = items["training"], items["model"]["params"]
        if like.average is None:
            fields["params"] = params
        else:
            fields["average"] |= {"params": params}
        state = like.replace(**fields)
        state = jax.device_put(state, jax.local_devices()[0])
        return Resumed(state, items["loop"], (items["time"] or {}).get("seconds"))

    def _write(self, step: int, trees: Mapping[str, Any], documents: Mapping[str, Any]) -> None:
        checkpoints.write_step(self.folder, step, trees, documents)
        self._metrics[step] = documents.get("metrics")
        self._remove(self._surplus() | {*self._damaged} - {step})
        self._damaged.clear()

    def _surplus(self) -> set[int]:
        """Checkpoints that are neither among the latest nor the best."""
        kept = sorted(self._metrics)[-self._keep_last :]
        values = {s: metric_value(m, self._best_metric) for s, m in self._metrics.items()}
        best = max(values, key=lambda step: (values[step], step))
        return {*self._metrics} - {*kept, best if values[best] > -math.inf else kept[-1]}

    def _remove(self, steps: set[int]) -> None:
        for step in steps:
            self._metrics.pop(step, None)
            if jax.process_index() == 0:
                checkpoints.remove_step(self.folder / str(step))

    def _require_room(self, trees: Mapping[str, Any]) -> None:
        needed = sum(array.nbytes for array in jax.tree.leaves(trees)) + MEGABYTE
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            kept = self.latest_step()
            raise CheckpointError(
                f"{self.folder}: a checkpoint needs {needed / MEGABYTE:.0f} MiB, and "
                f"{free / MEGABYTE:.0f} are left on the disk; "
                + ("nothing was saved yet" if kept is None else f"step {kept} is saved")
                + ". Make room and start again to go on"
            )


def _training_item(state: TrainState) -> dict[str, Any]:
    """All of a state but the parameters for inference, which are its own or its average's."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    average = fields.pop("average")
    if average is None:
        del fields["params"]
        return fields
    return fields | {"average": {"batch_stats": average["batch_stats"]}}


def _metrics_of(step_folder: pathlib.Path) -> dict[str, Any] | None:
    try:
        return checkpoints.read_info(step_folder).metrics
    except CheckpointError:
        return None  # `restore` tells
