"""The process that reads an upload: what is in it can take no more memory and time than it may.

Requests are JSON. An answer is a line of JSON and, of a slice, its pixels after it. Nothing that
this process sends is trusted: it is never unpickled.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import resource
import sys
import traceback
import types
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from ssm_jax.class_set import ClassSet
from ssm_jax.scans.masks import write_masks
from ssm_jax.scans.open import open_scans
from ssm_jax.scans.options import InputOptions, ScanError
from ssm_jax.scans.result import ScanResult, SliceResult
from ssm_jax.scans.source import Scan

_CPU_SECONDS = 3600  # should nobody be left to end this process
_FILE_BYTES = 4 << 30


class Reader:
    """The scans of one upload."""

    def __init__(self, options: InputOptions) -> None:
        """Takes how inputs are read."""
        self._options = options
        self._scans: list[Scan] = []

    def answer(self, request: dict[str, Any]) -> bytes:
        """The answer: JSON with "error" where the request cannot be met.

        Args:
          request: "call", the name of one of the methods below, and its arguments.
        """
        methods: dict[str, Callable[..., tuple[dict[str, Any], bytes]]]
        methods = {"open": self.open, "read": self.read, "masks": self.masks}
        try:
            content, pixels = methods[request.pop("call")](**request)
        except (ScanError, OSError, ImportError) as error:
            content, pixels = {"error": str(error)}, b""
        except MemoryError:
            content, pixels = {"error": "takes more memory than an upload may"}, b""
        except Exception as error:
            # Messages of libraries quote headers, which tell who the patient is; a place does not.
            place = traceback.extract_tb(error.__traceback__)[-1]
            file = pathlib.Path(place.filename).name
            bug = f"{type(error).__name__} in {file}, line {place.lineno}"
            content, pixels = {"bug": bug}, b""
        return json.dumps(content).encode() + b"\n" + pixels

    def open(self, paths: list[str]) -> tuple[dict[str, Any], bytes]:
        """Opens an upload: what is known of its scans and slices, fields of `Scan` and `Slice`."""
        self._scans = open_scans(paths, self._options)
        return {"scans": [_told(scan) for scan in self._scans]}, b""

    def read(self, scan: int, index: int) -> tuple[dict[str, Any], bytes]:
        """Reads a slice: its "shape", and its pixels, uint8."""
        image = np.ascontiguousarray(self._scans[scan].slices[index].read(), np.uint8)
        return {"shape": image.shape}, image.tobytes()

    def masks(
        self,
        scan: int,
        kind: str,
        folder: str,
        slices: Sequence[dict[str, Any] | None],
        classes: dict[str, Any],
    ) -> tuple[dict[str, Any], bytes]:
        """Writes masks of a scan: the "paths" of the files.

        Args:
          scan: its number.
          kind: see `write_masks`.
          folder: that exists.
          slices: of each slice height, width, labels and masks; None: it could not be read.
          classes: of the model, see `ClassSet.to_json`.
        """
        source = self._scans[scan]
        results = [
            SliceResult(slice_.name, None, _prediction(found))
            for slice_, found in zip(source.slices, slices, strict=True)
        ]
        named = ClassSet.from_json(classes)
        result = ScanResult(source.name, source.kind, {}, [], results, None, named)
        paths = write_masks(result, source, kind, pathlib.Path(folder))
        return {"paths": [str(path) for path in paths]}, b""


def _prediction(found: dict[str, Any] | None) -> Any:
    """A prediction as far as masks need it, without JAX, which the class of predictions takes."""
    return found and types.SimpleNamespace(**found)


def _told(scan: Scan) -> dict[str, Any]:
    names = ("name", "kind", "facts", "warnings", "spacing", "tissue", "error")
    slices = [
        {name: getattr(s, name) for name in ("name", "position", "aspect")} for s in scan.slices
    ]
    return {**{name: getattr(scan, name) for name in names}, "slices": slices}


def restrict(mib: int) -> None:
    """Limits this process: its memory, its files, and the time that it may compute."""
    limits = {
        resource.RLIMIT_AS: mib << 20,
        resource.RLIMIT_CPU: _CPU_SECONDS,
        resource.RLIMIT_FSIZE: _FILE_BYTES,
        resource.RLIMIT_CORE: 0,
    }
    for what, most in limits.items():
        _, hard = resource.getrlimit(what)
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        with contextlib.suppress(ValueError, OSError):  # macOS knows no limit of memory
            resource.setrlimit(what, (least, least))


def main() -> None:
    """The program: descriptor of the connection, MiB of memory, and whether to tell identities."""
    descriptor, mib, identity = map(int, sys.argv[1:])
    restrict(mib)
    connection = Connection(descriptor)
    reader = Reader(InputOptions(identity=bool(identity)))
    with contextlib.suppress(EOFError, OSError):  # the server is gone, or done with it
        while True:
            connection.send_bytes(reader.answer(json.loads(connection.recv_bytes())))


if __name__ == "__main__":
    main()
