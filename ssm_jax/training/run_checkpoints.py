"""The checkpoints of a training run: saved while training goes on, and resumed from."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from ssm_jax.checkpoints import (
    FOLDER,
    CheckpointError,
    arrays_like,
    config_item,
    open_manager,
    read_items,
)
from ssm_jax.training.state import TrainState


class RunCheckpoints:
    """The checkpoints of a training run: the last few, and the best by a metric.

    Saving copies the state to the host and writes it in the background; `close` waits for that.
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
        self._manager = open_manager(self.folder, keep_last, best_metric)

    def latest_step(self) -> int | None:
        """Iterations done at the latest checkpoint; None if there is none."""
        return self._manager.latest_step()

    def metrics(self, step: int) -> dict[str, Any] | None:
        """The evaluation saved with a checkpoint; None if there was none."""
        return self._manager.metrics(step)

    def save(
        self,
        state: TrainState,
        config: Mapping[str, Any],
        loop: Mapping[str, Any],
        batch_stats: Any = None,
        metrics: Mapping[str, Any] | None = None,
    ) -> None:
        """Saves a state under its step; a checkpoint of the same step is replaced.

        Args:
          state: of the run; it may be donated as soon as this returns.
          config: of the run, as nested dicts that JSON can hold, with a section `model`.
          loop: what else the run needs to go on, as JSON can hold.
          batch_stats: BN statistics for inference; None: those of the state.
          metrics: the evaluation at this step, as JSON can hold.
        """
        host = jax.tree.map(lambda array: np.array(array, copy=True), state)
        step = int(host.step)
        stats = host.batch_stats if batch_stats is None else jax.tree.map(np.array, batch_stats)
        training = {
            field.name: getattr(host, field.name)
            for field in dataclasses.fields(host)
            if field.name != "params"
        }
        if step in self._manager.all_steps():
            self._manager.wait_until_finished()
            self._manager.delete(step)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                model=ocp.args.StandardSave({"params": host.params, "batch_stats": stats}),
                training=ocp.args.StandardSave(training),
                config=ocp.args.JsonSave(config_item(config["model"], config)),
                loop=ocp.args.JsonSave(dict(loop)),
            ),
            metrics=None if metrics is None else dict(metrics),
            force=True,
        )

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Reads the latest checkpoint.

        Args:
          like: a state (or its shapes) of the same configuration.

        Returns:
          The state on the first device, and the `loop` it was saved with.

        Raises:
          CheckpointError: none there, without a training state, damaged, or of another model.
        """
        step = self.latest_step()
        if step is None:
            raise CheckpointError(f"{self.folder} holds no checkpoint")
        path = self.folder / str(step)
        if not (path / "training").is_dir():
            raise CheckpointError(
                f"{path} holds weights without a training state (imported ones, perhaps); a run "
                "cannot be resumed from it. Choose another working directory"
            )
        fields = [f.name for f in dataclasses.fields(like) if f.name != "params"]
        items = read_items(
            path,
            model=arrays_like({"params": like.params, "batch_stats": like.batch_stats}),
            training=arrays_like({name: getattr(like, name) for name in fields}),
            loop=ocp.args.JsonRestore(),
        )
        state = like.replace(params=items.model["params"], **items.training)
        return jax.device_put(state, jax.local_devices()[0]), items.loop

    def wait(self) -> None:
        """Blocks until all that was saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finishes writing and frees the background threads."""
        self._manager.close()

    def __enter__(self) -> RunCheckpoints:
        return self

    def __exit__(self, *_) -> None:
        self.close()
