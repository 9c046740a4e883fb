"""The server's side of the process that reads uploads, see `reader`."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from ssm_jax.scans.options import ScanError
from ssm_jax.scans.result import ScanResult
from ssm_jax.scans.source import Scan, Slice
from ssm_jax.serve.limits import Limits

_MOST_BYTES = 1 << 28  # of an answer
_TRIES = 3  # processes that an upload may take
_WAIT = 0.1  # seconds between looks at the clock


class Process:
    """A process that reads, and the connection to it."""

    def __init__(self, limits: Limits, identity: bool) -> None:
        """Starts it; it is ready after about a second.

        Args:
          limits: its memory.
          identity: whether facts of scans may name the patient.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "ssm_jax.serve.reader", str(theirs.fileno())]
            self._process = subprocess.Popen(
                [*command, str(limits.read_mib), str(int(identity))],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # libraries quote headers of patients
                start_new_session=True,  # Ctrl-C is not for it
                # Threads of linear algebra take address space, which is limited.
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )
        self._connection = Connection(ours.detach())

    def ask(
        self, request: dict[str, Any], seconds: float, stop: Callable[[], bool]
    ) -> tuple[dict[str, Any], bytes]:
        """Sends a request and waits for the answer.

        Raises:
          TimeoutError: it took longer than `seconds`.
          InterruptedError: `stop` said so.
          EOFError, OSError: the process died.
        """
        until = time.monotonic() + seconds
        self._connection.send_bytes(json.dumps(request).encode())
        while not self._connection.poll(_WAIT):
            if stop():
                raise InterruptedError
            if time.monotonic() > until:
                raise TimeoutError
        line, _, rest = self._connection.recv_bytes(_MOST_BYTES).partition(b"\n")
        return json.loads(line), rest

    def end(self) -> None:
        """Ends it at once."""
        self._connection.close()
        self._process.kill()
        self._process.wait()


class Readers:
    """Gives each upload a process of its own; the next one is started ahead."""

    def __init__(self, limits: Limits, identity: bool = False) -> None:
        """Starts the first process; see `Process`."""
        self._limits, self._identity = limits, identity
        self._spare: Process | None = self._started()

    def _started(self) -> Process:
        return Process(self._limits, self._identity)

    def take(self) -> Process:
        """A process that nobody uses."""
        taken, self._spare = self._spare or self._started(), None
        return taken

    def reading(self, stop: Callable[[], bool]) -> Reading:
        """Reads one upload; a context manager.

        Args:
          stop: whether to end in the middle.
        """
        return Reading(self, self._limits.read_seconds, stop)

    def prepare(self) -> None:
        """Starts the next process."""
        self._spare = self._spare or self._started()

    def close(self) -> None:
        """Ends the process that waits."""
        if self._spare is not None:
            self._spare.end()
            self._spare = None


class Reading:
    """Reads one upload. A process that dies or takes too long is replaced, a few times."""

    def __init__(self, readers: Readers, seconds: float, stop: Callable[[], bool]) -> None:
        self._readers, self._seconds, self._stop = readers, seconds, stop
        self._process: Process | None = None
        self._paths: list[str] = []
        self._tries = 0
        self._lock = threading.Lock()  # slices are read ahead in a thread

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._readers.prepare()

    def open_scans(self, paths: list[str]) -> list[Scan]:
        """Opens an upload, see `ssm_jax.scans.open.open_scans`.

        Raises:
          ScanError: it cannot be opened.
        """
        self._paths = paths
        with self._lock:
            return [self._scan(k, told) for k, told in enumerate(self._opened()[1])]

    def write_masks(
        self, result: ScanResult, number: int, kind: str, folder: pathlib.Path
    ) -> list[pathlib.Path]:
        """Writes masks of a scan, see `ssm_jax.scans.masks.write_masks`.

        Args:
          result: of the scan.
          number: of the scan.
          kind: of the files.
          folder: that exists.

        Raises:
          ScanError: they cannot be written.
        """
        slices = [
            found
            and {
                "height": found.height,
                "width": found.width,
                "labels": found.labels.tolist(),
                "masks": found.masks,
            }
            for found in (slice_.prediction for slice_ in result.slices)
        ]
        request = {"scan": number, "kind": kind, "folder": str(folder), "slices": slices}
        request["classes"] = result.classes.to_json()
        content, _ = self._asked("masks", **request)
        # Files elsewhere are none of the upload's, whatever the process says.
        paths = [pathlib.Path(path) for path in content["paths"]]
        return [path for path in paths if path.parent == folder and not path.is_symlink()]

    def _opened(self) -> tuple[Process, list[dict[str, Any]]]:
        """A process that has opened the upload, and its scans."""
        if self._tries == _TRIES:
            raise ScanError("is not read: other parts of the upload took too much time or memory")
        self._tries += 1
        self._process = process = self._readers.take()
        return process, self._ask(process, {"call": "open", "paths": self._paths})[0]["scans"]

    def _scan(self, number: int, told: dict[str, Any]) -> Scan:
        slices = [
            Slice(read=functools.partial(self._read, number, index), **known)
            for index, known in enumerate(told.pop("slices"))
        ]
        spacing = told.pop("spacing")
        return Scan(**told, slices=slices, spacing=spacing and tuple(spacing))

    def _read(self, scan: int, index: int) -> np.ndarray:
        """uint8 [H, W] or [H, W, 3] of a slice."""
        content, pixels = self._asked("read", scan=scan, index=index)
        return np.frombuffer(pixels, np.uint8).reshape(content["shape"])

    def _asked(self, call: str, **request: Any) -> tuple[dict[str, Any], bytes]:
        with self._lock:
            process = self._process or self._opened()[0]
            return self._ask(process, {"call": call, **request})

    def _ask(self, process: Process, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Asks the process; one that fails is ended.

        Raises:
          ScanError: what was asked for cannot be had.
          RuntimeError: an error of the program.
        """
        try:
            content, rest = process.ask(request, self._seconds, self._stop)
        except TimeoutError:
            self._end()
            raise ScanError(f"takes longer to read than {self._seconds} s") from None
        except InterruptedError:
            self._end()
            raise ScanError("was stopped") from None
        except (EOFError, OSError, ValueError):
            self._end()
            raise ScanError("cannot be read: it took too much memory, or is damaged") from None
        if "error" in content:
            raise ScanError(content["error"])
        if "bug" in content:
            raise RuntimeError(content["bug"])
        return content, rest

    def _end(self) -> None:
        if self._process is not None:
            self._process.end()
            self._process = None
