"""Metrics of a run on disk: JSON lines for programs, TensorBoard events for people."""

from __future__ import annotations

import json
import math
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from ssm_jax.files import json_ready, naming, write_text_atomically
from ssm_jax.training.tracking import Tracker

METRICS_LINES = "metrics.jsonl"
METRICS_FILE = "metrics.json"
EVENTS_FOLDER = "tensorboard"
FLUSH_SECONDS = 30.0  # events wait no longer than this for others


class MetricsWriter:
    """Appends to `<workdir>/metrics.jsonl` and to TensorBoard events in `<workdir>/tensorboard`.

    A line is {"step": ..., "kind": "train" or "evaluation", and the metrics}; NaN and infinite
    numbers are null. Lines hold nothing that depends on time or machine load, so that a resumed
    run writes the same file as one that was never interrupted.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        resumed_step: int = 0,
        evaluated: bool = True,
        tracker: Tracker | None = None,
    ):
        """Opens both; what a killed run wrote after its last checkpoint is dropped.

        Args:
          workdir: of the run.
          resumed_step: step of the checkpoint the run goes on from; 0 starts over.
          evaluated: whether that checkpoint has an evaluation; if not, a line that tells of one
            at this step is dropped too.
          tracker: that gets what TensorBoard gets; closed with this.
        """
        workdir = pathlib.Path(workdir)
        self._path = workdir / METRICS_LINES
        lines = _drop_lines_after(self._path, resumed_step, evaluated)
        self._file = self._path.open("a", encoding="utf-8")
        self._events_path = workdir / EVENTS_FOLDER
        self._events_path.mkdir(exist_ok=True)
        self._events = EventsWriter(str(self._events_path / "events"), f".{time.time_ns()}")
        self._flushed = time.monotonic()
        self._tracker: Tracker | None = None  # has the lines of the file already
        # TensorBoard forgets what it knows of this step and later ones.
        self._add(resumed_step, session_log=SessionLog(status=SessionLog.START))
        for line in lines:
            if line["step"] == resumed_step:
                self.write_scalars(line.pop("step"), line.pop("kind"), line)
        self._tracker = tracker
        self.flush()

    def write(self, step: int, kind: str, metrics: Mapping[str, Any]) -> None:
        """Appends one line, which is handed to the operating system before this returns.

        Args:
          step: iterations done.
          kind: "train" or "evaluation"; also the group of the TensorBoard tags.
          metrics: flat; numbers go to both files, anything else to the JSON line only.
        """
        line = {"step": step, "kind": kind} | json_ready(metrics)
        with naming(self._path):
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self._file.flush()
        self.write_scalars(step, kind, metrics)

    def write_scalars(self, step: int, kind: str, metrics: Mapping[str, Any]) -> None:
        """Writes the finite numbers among the metrics to TensorBoard, and to a tracker, only."""
        numbers = {
            f"{kind}/{name}": value
            for name, value in json_ready(metrics).items()
            if isinstance(value, int | float)
        }
        for name, value in numbers.items():
            self._add(step, summary=scalar(name, value))
        if self._tracker is not None and numbers:
            self._tracker.log(step, numbers)
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes to the disk what TensorBoard is to show."""
        with naming(self._events_path):
            self._events.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Closes both files."""
        self.flush()
        self._file.close()
        self._events.close()
        if self._tracker is not None:
            self._tracker.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _add(self, step: int, **content: Any) -> None:
        self._events.write_event(Event(step=step, wall_time=time.time(), **content))


class SilentWriter:
    """Takes what a MetricsWriter takes, and writes nothing: one process of several does."""

    def write(self, step: int, kind: str, metrics: Mapping[str, Any]) -> None:
        """Does nothing."""

    def write_scalars(self, step: int, kind: str, metrics: Mapping[str, Any]) -> None:
        """Does nothing."""

    def flush(self) -> None:
        """Does nothing."""


def _drop_lines_after(path: pathlib.Path, step: int, evaluated: bool) -> list[dict[str, Any]]:
    """Rewrites the file without what follows a checkpoint, and without a half-written line.

    Returns:
      The lines that stay.
    """
    if not path.exists():
        return []

    def stays(line: str) -> bool:
        try:
            entry = json.loads(line)
            earlier = entry["step"] < step
            same = step > 0 and entry["step"] == step
            return earlier or (same and (evaluated or entry["kind"] != "evaluation"))
        except (ValueError, KeyError, TypeError):
            return False

    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and stays(line)]
    write_text_atomically(path, "".join(kept))
    return [json.loads(line) for line in kept]


def read_lines(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """All lines of `<workdir>/metrics.jsonl`, oldest first."""
    text = (pathlib.Path(workdir) / METRICS_LINES).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


class MetricsWindow:
    """Means of scalars between two lines of metrics; NaN (a skipped step) takes no part.

    Its content is plain JSON, and part of a checkpoint: a run resumed in the middle of a window
    writes the line that it would have written.
    """

    def __init__(self):
        """Starts empty."""
        self.totals: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def add(self, metrics: Mapping[str, float]) -> None:
        """Adds the scalars of one iteration."""
        for name, value in metrics.items():
            known = not math.isnan(value)
            self.totals[name] = self.totals.get(name, 0.0) + (float(value) if known else 0.0)
            self.counts[name] = self.counts.get(name, 0) + known

    def means(self) -> dict[str, float]:
        """Mean of every scalar, in order of appearance; NaN where every value was NaN."""
        return {
            name: total / self.counts[name] if self.counts[name] else math.nan
            for name, total in self.totals.items()
        }

    def clear(self) -> None:
        """Empties the window."""
        self.totals.clear()
        self.counts.clear()

    def get_state(self) -> dict[str, Any]:
        """The content, as JSON can hold."""
        return {"totals": dict(self.totals), "counts": dict(self.counts)}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Takes over the content of another window."""
        self.totals = dict(state["totals"])
        self.counts = dict(state["counts"])
