"""One line that tells how a run is doing."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import TextIO

SMOOTHING = 0.98  # weight of the past in the smoothed losses
RATE_SMOOTHING = 0.9  # of the past in the iteration rate, measured twice a second


class Smoothed:
    """Exponential mean of a noisy number, without the pull of its start; NaN is left out."""

    def __init__(self, decay: float):
        """Starts empty.

        Args:
          decay: weight of the past, in [0, 1).
        """
        self._decay, self._total, self._weight = decay, 0.0, 0.0

    def add(self, value: float) -> None:
        """Adds a value."""
        if not math.isnan(value):
            self._total = self._decay * self._total + (1 - self._decay) * value
            self._weight = self._decay * self._weight + 1 - self._decay

    @property
    def value(self) -> float:
        """The mean so far; NaN before the first value."""
        return self._total / self._weight if self._weight else math.nan


class Progress:
    """The progress line: percentage, iterations, time left, rate, both losses, copies.

    On a terminal it is rewritten in place; elsewhere a plain line appears every few seconds. Time
    between `pause` and the next update (an evaluation, a checkpoint) does not count for the rate.
    """

    def __init__(
        self,
        total: int,
        done: int = 0,
        stream: TextIO | None = None,
        plain_interval: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Starts the line.

        Args:
          total: iterations of the run.
          done: iterations done before.
          stream: where to write; default standard error.
          plain_interval: seconds between plain lines.
          clock: seconds; for tests.
        """
        self._total, self._done = total, done
        self._stream = stream or sys.stderr
        self._in_place = self._stream.isatty()
        self._interval = 0.5 if self._in_place else plain_interval
        self._clock = clock
        self._seconds = Smoothed(RATE_SMOOTHING)  # per iteration
        self._losses = {"seg": Smoothed(SMOOTHING), "cls": Smoothed(SMOOTHING)}
        self._copies = 0
        self._measured: tuple[float, int] | None = None
        self._shown: float | None = None
        self._line_open = False

    def update(self, done: int, loss_seg: float, loss_cls: float, copied: bool) -> None:
        """Tells of one iteration.

        Args:
          done: iterations done by now.
          loss_seg: segmentation loss; NaN if the step was skipped.
          loss_cls: classification loss; NaN if the step was left out.
          copied: whether the branch was copied.
        """
        self._done = done
        self._losses["seg"].add(loss_seg)
        self._losses["cls"].add(loss_cls)
        self._copies += bool(copied)
        now = self._clock()
        if self._measured is None:
            self._measured = (now, done)
        elapsed, count = now - self._measured[0], done - self._measured[1]
        if count and elapsed >= 0.5:
            self._seconds.add(elapsed / count)
            self._measured = (now, done)
        if self._shown is None or now - self._shown >= self._interval or done >= self._total:
            self._shown = now
            self._show()

    @property
    def rate(self) -> float:
        """Iterations a second lately; NaN as long as it is unknown."""
        return 1 / self._seconds.value

    def pause(self) -> None:
        """Ends a line that is rewritten in place, so that other output starts on its own line."""
        self._measured = None
        if self._line_open:
            self._stream.write("\n")
            self._stream.flush()
            self._line_open = False

    def text(self) -> str:
        """The line as it stands."""
        share = self._done / max(self._total, 1)
        left = (self._total - self._done) * self._seconds.value
        parts = [
            f"{share:6.1%} {self._done}/{self._total}",
            f"ETA {_duration(left)}",
            _rate(self._seconds.value),
            f"L_SEG {_loss(self._losses['seg'].value)}",
            f"L_CLS {_loss(self._losses['cls'].value)}",
            f"copies {self._copies}",
        ]
        return " | ".join(parts)

    def _show(self) -> None:
        if self._in_place:
            self._stream.write(f"\r\x1b[K{self.text()}")
            self._line_open = True
        else:
            self._stream.write(self.text() + "\n")
        self._stream.flush()


def _duration(seconds: float) -> str:
    """Seconds as h:mm:ss; "?" if unknown."""
    if math.isnan(seconds):
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def _loss(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _rate(seconds_per_iteration: float) -> str:
    if math.isnan(seconds_per_iteration):
        return "? it/s"
    if seconds_per_iteration > 1:
        return f"{seconds_per_iteration:.1f} s/it"
    return f"{1 / max(seconds_per_iteration, 1e-9):.1f} it/s"
