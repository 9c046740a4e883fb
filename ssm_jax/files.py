"""Files that are never seen half-written, JSON, and locks between processes."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Any

import numpy as np


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Has an error of the operating system, such as a full disk, tell the file."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Gives a path beside `path` to write to; the file that is written there takes its place.

    The old file stays, and the new one goes, if the block raises. The content is on the disk
    before the name is changed, so that a machine that fails leaves the old file or the new one.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with naming(path):
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomically(path: str | os.PathLike, text: str) -> None:
    """Replaces a text file (UTF-8) at once; its old content stays if writing fails."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, value: Any, indent: int | None = 2) -> None:
    """Replaces a JSON file at once.

    Args:
      path: the file; its folder is made if need be.
      value: see `json_ready`.
      indent: spaces a level; None: everything on one line.

    Raises:
      TypeError: the value holds something that JSON cannot.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(json_ready(value), indent=indent, allow_nan=False)
    write_text_atomically(path, text + "\n")


def json_ready(value: Any) -> Any:
    """A copy that JSON can hold: NaN and infinite numbers become None, NumPy becomes plain."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: json_ready(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def lock(path: str | os.PathLike, waiting: Callable[[], None] | None = None) -> IO[str]:
    """Takes a lock file for this process; it is freed when the process ends, however that ends.

    Args:
      path: the lock file; made if need be.
      waiting: called before this process waits for another one that has the file; None: it does
        not wait.

    Returns:
      The open file: leaving a `with` block of it, or closing it, frees the lock.

    Raises:
      BlockingIOError: another process has the file, and `waiting` is None.
      OSError: the file cannot be written.
    """
    handle = pathlib.Path(path).open("w")  # noqa: SIM115
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting is None:
                raise
            waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)
    except BaseException:
        handle.close()
        raise
    return handle


def digests(folder: pathlib.Path, items: Iterable[str]) -> dict[str, str]:
    """Path below a folder -> digest of every file in the subfolders `items`."""
    paths = sorted(path for item in items for path in (folder / item).rglob("*") if path.is_file())
    found = {}
    for path in paths:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
        found[path.relative_to(folder).as_posix()] = digest.hexdigest()
    return found
