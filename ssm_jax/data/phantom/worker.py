"""Makes phantom slices in several processes.

The workers are plain interpreters that run this module and send encoded slices through a pipe.
Unlike a process pool they neither fork a process with threads nor import the caller's main module,
so that they work from scripts, notebooks and tests alike; a worker whose parent is gone ends.
"""

from __future__ import annotations

import json
import os
import pathlib
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

# Each slice takes many arrays of a megabyte; glibc would hand each back to the system at once,
# which costs a third of the time.
_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "268435456",
    "MALLOC_TRIM_THRESHOLD_": "268435456",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}
_AHEAD = 16  # finished slices a worker may have waiting


def encoded_slice(seed: int, part: str, split: str, index: int, size: int) -> dict[str, Any]:
    """One slice of a phantom set as an example of the builder; images are PNG bytes."""
    from ssm_jax.data import images, objects
    from ssm_jax.data.phantom import slices

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
    seed: int, part: str, split: str, start: int, stop: int, size: int, processes: int
) -> Iterator[dict[str, Any]]:
    """Slices start to stop - 1 in order, made by `processes` interpreters.

    Raises:
      RuntimeError: a worker ended early; its traceback is on stderr.
    """
    processes = max(1, min(processes, stop - start))
    jobs = [(seed, part, split, start + k, stop, processes, size) for k in range(processes)]
    workers = [_Worker(job) for job in jobs]
    try:
        for index in range(start, stop):
            yield workers[(index - start) % processes].next()
    finally:
        for worker in workers:
            worker.close()


class _Worker:
    """A process, and a thread that keeps its pipe empty."""

    def __init__(self, job):
        paths = [path for path in sys.path if path]
        root = str(pathlib.Path(__file__).resolve().parents[3])
        environment = os.environ | _ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([root, *paths])}
        command = [sys.executable, "-m", "ssm_jax.data.phantom.worker", json.dumps(job)]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment
        )
        self._done: queue.Queue = queue.Queue(_AHEAD)
        self._stopped = False
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        try:
            while not self._stopped:
                self._done.put(pickle.load(self._process.stdout))
        except (EOFError, pickle.UnpicklingError, ValueError, OSError):
            self._done.put(None)

    def next(self):
        example = self._done.get()
        if example is None:
            code = self._process.wait()
            raise RuntimeError(f"a process that makes phantom slices ended with status {code}")
        return example

    def close(self):
        self._stopped = True
        self._process.kill()
        while not self._done.empty():  # lets the reading thread leave a full queue
            self._done.get_nowait()
        self._process.wait()


def _work(seed, part, split, start, stop, step, size) -> None:
    stream = sys.stdout.buffer
    try:
        for index in range(start, stop, step):
            pickle.dump(encoded_slice(seed, part, split, index, size), stream)
            stream.flush()
    except BrokenPipeError:
        os._exit(1)  # the parent is gone: nothing to flush, nobody to tell


if __name__ == "__main__":
    _work(*json.loads(sys.argv[1]))
