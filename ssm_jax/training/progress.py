"""One line that tells how a run is doing."""

from __future__ import annotations

import math
import sys
from typing import Any, TextIO

from tqdm import tqdm
from tqdm.std import EMA

FORMAT = "{percentage:5.1f}% {n_fmt}/{total_fmt} | ETA {remaining} | {rate_fmt}{postfix}"
SMOOTHING = 0.02  # weight of the newest of the losses
RATE_SMOOTHING = 0.1  # weight of the newest rate
TERMINAL_SECONDS, PLAIN_SECONDS = 0.5, 60.0  # between two lines


class Progress:
    """The progress line: percentage, iterations, time left, rate, both losses, copies.

    On a terminal it is rewritten in place; elsewhere a line is written once a minute. Time between
    `pause` and the next update (an evaluation) does not count for the rate.
    """

    def __init__(self, total: int, stream: TextIO | None = None):
        """Writes nothing before the first iteration.

        Args:
          total: iterations of the run.
          stream: where to write; default standard error.
        """
        self._total, self._stream = total, stream or sys.stderr
        self._losses = {"L_SEG": EMA(SMOOTHING), "L_CLS": EMA(SMOOTHING)}
        self._copies = 0
        self._bar: tqdm | None = None

    def update(self, done: int, loss_seg: float, loss_cls: float, copied: bool) -> None:
        """Tells of one iteration.

        Args:
          done: iterations done by now.
          loss_seg: segmentation loss; NaN if the step was skipped.
          loss_cls: classification loss; NaN if the step was left out.
          copied: whether the branch was copied.
        """
        for mean, loss in zip(self._losses.values(), (loss_seg, loss_cls), strict=True):
            if not math.isnan(loss):
                mean(loss)
        self._copies += bool(copied)
        shown = [
            f"{n} {mean():.3f}" if mean.calls else f"{n} -" for n, mean in self._losses.items()
        ]
        text = ", ".join([*shown, f"copies {self._copies}"])
        if self._bar is None:
            self._bar = self._start(done, text)
        else:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(done - self._bar.n)

    @property
    def rate(self) -> float:
        """Iterations a second lately; NaN as long as it is unknown."""
        known: dict[str, Any] = {} if self._bar is None else dict(self._bar.format_dict)
        if known.get("rate") is not None:
            return known["rate"]
        if not known.get("elapsed"):
            return math.nan
        return (known["n"] - known["initial"]) / known["elapsed"]

    def pause(self) -> None:
        """Ends the line, so that other output starts on its own."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _start(self, done: int, text: str) -> tqdm:
        terminal = self._stream.isatty()
        return tqdm(
            total=self._total,
            initial=done,
            postfix=text,
            bar_format=FORMAT,
            smoothing=RATE_SMOOTHING,
            mininterval=TERMINAL_SECONDS if terminal else PLAIN_SECONDS,
            miniters=1,
            position=0,
            file=self._stream if terminal else Lines(self._stream),
        )


class Lines:
    """A file for tqdm that is no terminal: every state of the line is a line of its own."""

    def __init__(self, stream: TextIO):
        """Takes the stream that receives the lines."""
        self._stream = stream

    def write(self, text: str) -> None:
        """Writes a state; text that only moves the cursor is left out."""
        text = text.strip("\r\n ")
        if text:
            self._stream.write(text + "\n")

    def flush(self) -> None:
        """Flushes the stream."""
        self._stream.flush()
