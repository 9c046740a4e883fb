"""Folders of slices as people have them: listing, checking, and reading for preparation."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import logging
import pathlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO

import numpy as np
from tqdm import tqdm

from ssm_jax import files
from ssm_jax.data import images
from ssm_jax.data.errors import DataError, Problems
from ssm_jax.data.objects import area_fields

logger = logging.getLogger(__name__)

CLASS_NAMES = ("normal", "pneumonia", "covid")
MASK_VALUES = 3  # the largest: 0 background, 1 lung, 2 ground glass, 3 consolidation
THREADS = 2
_CLASS_FILE = re.compile(r"(\d+)_([^_]+)_([^_]+)_([^_]+)")

_MASK_MISSING = "no mask in masks/ with the same name and .png (add it, or remove the slice)"
_MASK_SIZE = "the mask has another size than its slice (export both at the same size)"
_MASK_VALUES = (
    "the mask has values outside 0 to 3 (0 background, 1 lung, 2 ground glass, 3 consolidation)"
)
_CLASS_NAME = "the name has not the form <class>_<patient>_<scan>_<slice>.png (rename it)"
_CLASS_PREFIX = (
    "the class at the start of the name is not 0 (normal), 1 (common pneumonia) or 2 (COVID-19)"
)


@dataclasses.dataclass(frozen=True)
class SliceFile:
    """A slice of a checked folder.

    name: file name. path: the slice. mask: its mask, or None. height, width: pixels. label: class,
    -1 in a segmentation set. areas: pixels of every lesion component, see `objects.area_fields`.
    """

    name: str
    path: pathlib.Path
    mask: pathlib.Path | None
    height: int
    width: int
    label: int = -1
    areas: dict[str, list[int]] = dataclasses.field(default_factory=dict)


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
    """1 (grey) or 3, by the header of the first readable file; 1 where none is readable."""
    for path in paths:
        with contextlib.suppress(images.ImageError, OSError):
            return images.channels_of(path.read_bytes())
    return 1


def check_segmentation(split: pathlib.Path, channels: int) -> list[SliceFile]:
    """Reads every slice and mask of <split>/{imgs,masks}, in two threads, with a progress bar.

    Args:
      split: folder of the split.
      channels: what the set has, 1 or 3.

    Raises:
      DataError: everything that is wrong, by kind.
    """
    folder = split / "masks"
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; masks go beside imgs, as PNG files")
    return _check(split, list_images(split / "imgs"), lambda p: _segmentation_file(p, channels))


def check_classes(split: pathlib.Path, channels: int) -> list[SliceFile]:
    """Reads every slice <class>_<patient>_<scan>_<slice>.png of a split; as check_segmentation."""
    return _check(split, list_images(split), lambda path: _class_file(path, channels))


def _check(
    split: pathlib.Path,
    paths: Sequence[pathlib.Path],
    check: Callable[[pathlib.Path], SliceFile | list[tuple[str, str]]],
) -> list[SliceFile]:
    """Applies `check` to all files; it returns the slice or (kind, file) problems."""
    problems, good = Problems(str(split)), []
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        results = pool.map(check, paths)
        for result in progress(results, len(paths), f"checking {split.parent.name}/{split.name}"):
            if isinstance(result, SliceFile):
                good.append(result)
            else:
                for kind, file in result:
                    problems.add(kind, file)
    problems.raise_if_any()
    return good


def _segmentation_file(path: pathlib.Path, channels: int) -> SliceFile | list[tuple[str, str]]:
    mask_path = path.parent.parent / "masks" / f"{path.stem}.png"
    found: list[tuple[str, str]] = []
    height = width = 0
    try:
        _, height, width = images.read_slice(path.read_bytes(), channels)
    except (images.ImageError, OSError) as error:
        found.append(_unreadable(error, path.name))
    if not mask_path.is_file():
        return [*found, (_MASK_MISSING, path.name)]
    try:
        mask = images.read_mask(mask_path.read_bytes())
    except (images.ImageError, OSError) as error:
        return [*found, _unreadable(error, f"masks/{mask_path.name}")]
    name = f"masks/{mask_path.name}"
    if height and mask.shape != (height, width):
        sizes = f"{mask.shape[1]}x{mask.shape[0]} for {width}x{height}"
        found.append((_MASK_SIZE, f"{name} ({sizes})"))
    if int(mask.max()) > MASK_VALUES or int(mask.min()) < 0:
        outside = np.unique(mask[(mask > MASK_VALUES) | (mask < 0)])[:5]
        found.append((_MASK_VALUES, f"{name} ({', '.join(map(str, outside))})"))
    if found:
        return found
    return SliceFile(path.name, path, mask_path, height, width, areas=area_fields(mask))


def _class_file(path: pathlib.Path, channels: int) -> SliceFile | list[tuple[str, str]]:
    found = []
    match = _CLASS_FILE.fullmatch(path.stem)
    if match is None:
        found.append((_CLASS_NAME, path.name))
    elif match[1] not in ("0", "1", "2"):
        found.append((_CLASS_PREFIX, path.name))
    try:
        _, height, width = images.read_slice(path.read_bytes(), channels)
    except (images.ImageError, OSError) as error:
        found.append(_unreadable(error, path.name))
    if found:
        return found
    return SliceFile(path.name, path, None, height, width, label=int(match[1]))


def _unreadable(error: Exception, name: str) -> tuple[str, str]:
    """One kind for all unreadable files (PIL's reason varies), one for each other defect."""
    reason = str(error)
    if isinstance(error, OSError) or reason.startswith("is no readable"):
        return "not readable as an image (replace or remove it)", name
    return f"the file {reason}", name


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
