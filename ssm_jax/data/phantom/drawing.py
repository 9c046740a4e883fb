"""Draws the slices of a phantom set, those of a larger set in several processes."""

from __future__ import annotations

import collections
import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from ssm_jax import memory
from ssm_jax.data import images, objects
from ssm_jax.data.phantom import slices

SMALL_SET = 64  # slices; drawing fewer takes less time than starting processes
_AHEAD = 16  # slices a process that may wait to be asked for


def encoded_slice(seed: int, part: str, split: str, size: int, index: int) -> dict[str, Any]:
    """One slice of a phantom set as an example of the builder; images are PNG bytes."""
    image, mask, label = slices.set_slice(seed, part, split, index, size)
    example = {
        "image": images.encode(image),
        "height": size,
        "width": size,
        "channels": 1,
    }
    if part == "cls":
        return example | {"file": f"{label}_{split}{index:05d}_0_0.png", "label": label}
    return example | {
        "file": f"{split}{index:05d}_0.png",
        "mask": images.encode(mask, level=6),
        **objects.area_fields(mask),
    }


def encoded_slices(
    seed: int, part: str, split: str, size: int, count: int, processes: int
) -> Iterator[dict[str, Any]]:
    """Slices 0 to count - 1 of a phantom set in order, as `encoded_slice` makes them.

    Args:
      seed: of the set.
      part: "seg" or "cls".
      split: "train" or "test".
      size: pixels of either side.
      count: slices.
      processes: that draw, if the set is not small.

    Raises:
      RuntimeError: a process was ended from outside.
    """
    draw = functools.partial(encoded_slice, seed, part, split, size)
    return map(draw, range(count)) if count < SMALL_SET else _in_processes(draw, count, processes)


def _in_processes(draw: Callable[[int], Any], count: int, processes: int) -> Iterator[Any]:
    """`draw(0)` to `draw(count - 1)` in order, drawn ahead by several processes."""
    spawn = multiprocessing.get_context("spawn")  # forking a process with threads can hang it
    pool = ProcessPoolExecutor(processes, spawn, initializer=_start_worker)
    waiting: collections.deque[Future] = collections.deque()
    try:
        for index in range(count):
            with _without_main_module():
                waiting.append(pool.submit(draw, index))
            if len(waiting) > processes * _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a process that draws phantom slices was ended from outside, perhaps for want of "
            "memory; start again"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _without_main_module() -> Iterator[None]:
    """Hides the main module from processes that are started meanwhile.

    They would import it, which runs a script that has no `if __name__ == "__main__"` once more.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _start_worker() -> None:
    """Makes a process of the pool end with its parent alone, and spare with system calls."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends the pool
    threading.Thread(target=_end_with_parent, daemon=True).start()
    memory.keep_freed()  # each slice takes many arrays of a megabyte


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
