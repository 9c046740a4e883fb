"""Folders of slices as people have them: their files, their fingerprint, and locking one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import pathlib
import sys
from collections.abc import Iterable, Iterator
from typing import IO

from tqdm import tqdm

from ssm_jax import files
from ssm_jax.data import images
from ssm_jax.data.errors import DataError

logger = logging.getLogger(__name__)


def list_images(folder: pathlib.Path) -> list[pathlib.Path]:
    """PNG and JPEG files right in a folder, by name; hidden files are left out.

    Raises:
      DataError: no such folder, or none of these files in it.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; check config.data and the name of the split")
    found = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in images.SUFFIXES and not path.name.startswith(".")
    ]
    if not found:
        raise DataError(f"{folder} has no PNG or JPEG file: the split is empty")
    return sorted(found, key=lambda path: path.name)


def folder_key(folders: Iterable[pathlib.Path], salt: str) -> str:
    """Twelve hex digits that change when a file is added, removed, resized or written again."""
    listing: list = [salt]
    for folder in folders:
        listing.append(str(folder))
        if folder.is_dir():
            for path in sorted(folder.iterdir()):
                stat = path.stat() if path.exists() else path.lstat()  # a dangling link
                listing.append((path.name, stat.st_size, stat.st_mtime_ns))
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:12]


def channels_of(paths: Iterable[pathlib.Path]) -> int:
    """1 (gray) or 3, by the header of the first readable file; 1 where none is readable."""
    for path in paths:
        with contextlib.suppress(images.ImageError, OSError):
            return images.channels_of(images.read_file(path))
    return 1


def locked(folder: pathlib.Path, option: str) -> IO[str]:
    """Holds `folder` (made if need be) for this process, until a `with` block of the result ends.

    Waits while another process holds it.

    Args:
      folder: where the lock file lies.
      option: what the user sets to choose another folder, for the message.

    Raises:
      DataError: the folder can not be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return files.lock(
            folder / "lock",
            lambda: logger.info("another process is preparing %s; waiting for it", folder),
        )
    except OSError as error:
        raise DataError(
            f"can not write prepared data to {folder} ({error}); set {option} to a folder that can "
            "be written"
        ) from error


def progress(iterable: Iterable, total: int, text: str) -> Iterator:
    """`iterable` with a line on stderr: share done, time left, rate."""
    pause = 0.5 if sys.stderr.isatty() else 10.0  # a log file needs no moving line
    return iter(tqdm(iterable, desc=text, total=total, unit=" slices", mininterval=pause))
