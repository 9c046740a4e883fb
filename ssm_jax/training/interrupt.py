"""SIGTERM and Ctrl-C: finish the iteration, save, end."""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)

logger = logging.getLogger(__name__)


class StopRequest:
    """Becomes true at the first SIGTERM or SIGINT; the second ends the process at once.

    As long as nothing is trained there is nothing to save, and the first ends the process too: a
    compilation cannot be interrupted otherwise. A context manager, which puts the former handlers
    back. Outside the main thread, where Python allows no handlers, it does nothing.

    Attributes:
      at_once: whether the first signal ends the process.
    """

    def __init__(self, at_once: bool = False):
        self.at_once = at_once
        self.signal: signal.Signals | None = None
        self._former: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        name = signal.Signals(number).name
        if self.at_once:
            logger.warning("%s: ended; start again to go on", name)
        if self.at_once or self:
            os._exit(128 + number)
        self.signal = signal.Signals(number)
        logger.warning("%s: saving a checkpoint; once more to end at once", name)
