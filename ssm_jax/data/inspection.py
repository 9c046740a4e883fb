"""The check of slices and masks as files: each is decoded once, by several threads."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ssm_jax.class_set import ClassSet
from ssm_jax.data import images
from ssm_jax.data.findings import Findings
from ssm_jax.data.folders import progress
from ssm_jax.data.objects import PAPER_GROUPS, Values, area_fields

logger = logging.getLogger(__name__)

NUMBERS = "instances"  # subfolder of a split with the numbers of objects
_VERSION = 2  # of the facts
_BATCH = 256  # files handed to the threads at a time
Facts = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Slice:
    """A slice as a file.

    Attributes:
      split: where it belongs, for messages.
      listed: its name for messages.
      name: its file name in the prepared set.
      path: its file.
      mask: file of its mask; None in a classification set.
      numbers: file with the numbers of its objects; None: they are components of the mask.
      label: number of its image class; None in a segmentation set.
      patient: who it shows; None where nobody tells.
    """

    split: str
    listed: str
    name: str
    path: pathlib.Path
    mask: pathlib.Path | None = None
    label: int | None = None
    patient: str | None = None
    numbers: pathlib.Path | None = None

    @property
    def where(self) -> str:
        """The slice in a message."""
        return f"{self.split}/{self.listed}"


@dataclasses.dataclass(frozen=True)
class Inspected:
    """A slice with the facts of its files: see `slice_facts` and `mask_facts`."""

    item: Slice
    picture: Facts
    mask: Facts | None

    @property
    def readable(self) -> bool:
        """Whether both files are."""
        return "error" not in self.picture and "error" not in (self.mask or {})

    def foreign_values(self, classes: ClassSet) -> list[int]:
        """Values of the mask that stand for nothing in a set of these classes."""
        known = classes.values
        return [v for v in (self.mask["values"] if self.mask else []) if v not in known]


def slice_facts(path: pathlib.Path, channels: int) -> Facts:
    """Facts of a slice: height, width, hash (of the pixels), blank; or error.

    Args:
      path: a PNG or JPEG file.
      channels: those of the set, 1 or 3.
    """
    try:
        pixels = images.slice_pixels(images.read_file(path), channels)
    except (images.ImageError, OSError) as error:
        return {"error": _reason(error)}
    digest = hashlib.blake2b(str(pixels.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return {
        "height": pixels.shape[0],
        "width": pixels.shape[1],
        "hash": digest.hexdigest(),
        "blank": bool(pixels.min() == pixels.max()),
    }


def mask_facts(
    path: pathlib.Path,
    groups: Sequence[Values] = PAPER_GROUPS,
    numbers: pathlib.Path | None = None,
) -> Facts:
    """Facts of a mask: height, width, values (ascending), `objects.area_fields`; or error.

    Args:
      path: a file of one integer channel.
      groups: mask values that make objects together.
      numbers: file of the same kind and size with the number of the object of each pixel; None:
        objects are components.
    """
    try:
        mask = images.read_mask(images.read_file(path))
        own = None if numbers is None else images.read_numbers(images.read_file(numbers), mask)
    except (images.ImageError, OSError) as error:
        return {"error": _reason(error)}
    return {
        "height": mask.shape[0],
        "width": mask.shape[1],
        "values": [int(value) for value in np.unique(mask)],
        **area_fields(mask, groups, own),
    }


def _reason(error: Exception) -> str:
    """Why a file is no use; PIL's reasons vary and name buffers, so they are one."""
    reason = str(error)
    return "no readable image" if reason.startswith("is no readable") else reason


def size_of(facts: Facts) -> str:
    """The size of a slice or mask, as <width>x<height>."""
    return f"{facts['width']}x{facts['height']}"


def check_files(inspected: Sequence[Inspected], findings: Findings) -> None:
    """Notes everything that is wrong with single files."""
    for found in inspected:
        where, picture, mask = found.item.where, found.picture, found.mask
        if "error" in picture:
            findings.add("unreadable", f"{where} ({picture['error']})")
        if mask is None:
            continue
        if "error" in mask:
            findings.add("unreadable_mask", f"{where} ({mask['error']})")
            continue
        foreign = found.foreign_values(findings.classes)
        if foreign:
            shown = ", ".join(map(str, foreign[:5])) + ("..." if len(foreign) > 5 else "")
            findings.add("mask_values", f"{where} ({shown})")
        if "error" not in picture and size_of(picture) != size_of(mask):
            findings.add("mask_size", f"{where} ({size_of(mask)} for {size_of(picture)})")


class Inspector:
    """Inspects files, and can remember the facts in a file of JSON lines.

    A check that was ended half-way then goes on where it was; a file that changed (by size or time)
    is inspected again, and so is one that was not readable.
    """

    def __init__(
        self,
        channels: int,
        threads: int,
        record: pathlib.Path | None = None,
        groups: Sequence[Values] = PAPER_GROUPS,
    ):
        """Reads what an earlier check left.

        Args:
          channels: of the slices, 1 or 3.
          threads: files inspected at a time.
          record: file of the facts; made if need be, with its folder. None: nothing is remembered.
          groups: mask values that make objects together.
        """
        self._record, self._threads = record, threads
        self._channels, self._groups = channels, groups
        self._known: dict[str, tuple[list[int], Facts]] = {}
        header = {"version": _VERSION, "channels": channels, "groups": [*map(list, groups)]}
        if record is not None and not self._load(record, header):
            record.parent.mkdir(parents=True, exist_ok=True)
            record.write_text(json.dumps(header) + "\n", encoding="utf-8")

    def inspect(self, slices: Sequence[Slice]) -> list[Inspected]:
        """Inspects slices, and the masks of those that have one, with progress bars."""
        pictures = self._all(
            [item.path for item in slices],
            lambda path: slice_facts(path, self._channels),
            "checking slices",
        )
        masked = [item.mask for item in slices if item.mask is not None]
        masks = {}
        numbers = {item.mask: item.numbers for item in slices}
        if masked:
            masks = self._all(
                masked, lambda path: mask_facts(path, self._groups, numbers[path]), "checking masks"
            )
        return [
            Inspected(item, pictures[item.path], masks[item.mask] if item.mask else None)
            for item in slices
        ]

    def _load(self, record: pathlib.Path, header: Facts) -> bool:
        """Reads the record; False where there is none for this version and these channels."""
        try:
            lines = record.read_text(encoding="utf-8").splitlines(keepends=True)
            if not lines or json.loads(lines[0]) != header:
                return False
            whole = [line for line in lines if line.endswith("\n")]  # the last may be cut off
            for line in whole[1:]:
                path, stamp, facts = json.loads(line)
                self._known[path] = (stamp, facts)
        except (OSError, ValueError):
            self._known.clear()
            return False
        os.truncate(record, sum(len(line.encode()) for line in whole))
        logger.info("%d files were checked before", len(self._known))
        return True

    def _all(
        self, paths: Sequence[pathlib.Path], facts_of: Callable[[pathlib.Path], Facts], text: str
    ) -> dict[pathlib.Path, Facts]:
        stamps = {path: file_stamp(path) for path in paths}
        found = {
            path: self._known[str(path)][1]
            for path, stamp in stamps.items()
            if self._known.get(str(path), (None,))[0] == stamp
        }
        left = [path for path in stamps if path not in found]
        # Line by line, so that a killed check leaves what it found.
        with open(self._record or os.devnull, "a", buffering=1, encoding="utf-8") as record:
            results = self._in_batches(left, facts_of)
            for path, facts in progress(results, len(left), text):
                found[path] = facts
                if "error" not in facts:
                    record.write(json.dumps([str(path), stamps[path], facts]) + "\n")
        return found

    def _in_batches(
        self, paths: Sequence[pathlib.Path], facts_of: Callable[[pathlib.Path], Facts]
    ) -> Iterator[tuple[pathlib.Path, Facts]]:
        """Files with their facts, in order; batches bound how many wait at a time."""
        with concurrent.futures.ThreadPoolExecutor(self._threads) as pool:
            for start in range(0, len(paths), _BATCH):
                batch = paths[start : start + _BATCH]
                yield from zip(batch, pool.map(facts_of, batch), strict=True)


def file_stamp(path: pathlib.Path) -> list[int]:
    """Size and time of a file; zeros where it can not be had, as of a dangling link."""
    try:
        stat = path.stat()
    except OSError:
        return [0, 0]
    return [stat.st_size, stat.st_mtime_ns]
