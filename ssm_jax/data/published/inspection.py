"""Facts of picture files, each decoded once by several threads, and kept while a check goes on."""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ssm_jax.data import images
from ssm_jax.data.folders import progress
from ssm_jax.data.objects import component_areas
from ssm_jax.data.published.standard_tree import file_stamp

logger = logging.getLogger(__name__)

_VERSION = 1  # of the facts
_BATCH = 256  # files between two writes of the record
Facts = dict[str, Any]


def slice_facts(path: pathlib.Path, channels: int) -> Facts:
    """Facts of a slice: height, width, hash (of the pixels), blank; or error.

    Args:
      path: a PNG or JPEG file.
      channels: what the set has, 1 or 3.
    """
    try:
        pixels = images.slice_pixels(path.read_bytes(), channels)
    except (images.ImageError, OSError) as error:
        return {"error": _reason(error)}
    digest = hashlib.blake2b(str(pixels.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels))
    return {
        "height": pixels.shape[0],
        "width": pixels.shape[1],
        "hash": digest.hexdigest(),
        "blank": bool(pixels.min() == pixels.max()),
    }


def mask_facts(path: pathlib.Path) -> Facts:
    """Facts of a mask: height, width, values (ascending), largest (lesion, in pixels); or error."""
    try:
        mask = images.read_mask(path.read_bytes())
    except (images.ImageError, OSError) as error:
        return {"error": _reason(error)}
    areas = component_areas(mask)
    return {
        "height": mask.shape[0],
        "width": mask.shape[1],
        "values": [int(value) for value in np.unique(mask)],
        "largest": int(areas.max(initial=0)),
    }


def _reason(error: Exception) -> str:
    """Why a file is no use; PIL's reasons vary and name buffers, so they are one."""
    reason = str(error)
    return "no readable image" if reason.startswith("is no readable") else reason


class Inspector:
    """Inspects files, and remembers what it found in a file of JSON lines.

    A check that was ended half-way goes on where it was; a file that changed (by size or time) is
    inspected again, and so is one that was not readable.
    """

    def __init__(self, record: pathlib.Path, channels: int, threads: int):
        """Reads what an earlier check left.

        Args:
          record: file of the facts; made if need be, with its folder.
          channels: of the slices, 1 or 3.
          threads: files inspected at a time.
        """
        self._record, self._threads = record, threads
        self._channels = channels
        self._known: dict[str, tuple[list[int], Facts]] = {}
        header = {"version": _VERSION, "channels": channels}
        if not self._load(header):
            record.parent.mkdir(parents=True, exist_ok=True)
            record.write_text(json.dumps(header) + "\n", encoding="utf-8")

    def slices(self, paths: Sequence[pathlib.Path], text: str) -> list[Facts]:
        """`slice_facts` of every file, with a progress bar called `text`."""
        return self._all(paths, lambda path: slice_facts(path, self._channels), text)

    def masks(self, paths: Sequence[pathlib.Path], text: str) -> list[Facts]:
        """`mask_facts` of every file, with a progress bar called `text`."""
        return self._all(paths, mask_facts, text)

    def _load(self, header: Facts) -> bool:
        """Reads the record; False where there is none for this version and these channels."""
        try:
            lines = self._record.read_text(encoding="utf-8").splitlines(keepends=True)
            if not lines or json.loads(lines[0]) != header:
                return False
            whole = [line for line in lines if line.endswith("\n")]  # the last may be cut off
            for line in whole[1:]:
                path, stamp, facts = json.loads(line)
                self._known[path] = (stamp, facts)
        except (OSError, ValueError):
            self._known.clear()
            return False
        os.truncate(self._record, sum(len(line.encode()) for line in whole))
        logger.info("%d files were checked before", len(self._known))
        return True

    def _all(
        self, paths: Sequence[pathlib.Path], inspect: Callable[[pathlib.Path], Facts], text: str
    ) -> list[Facts]:
        found: dict[pathlib.Path, Facts] = {}
        stamps = {path: file_stamp(path) for path in paths}
        for path, stamp in stamps.items():
            known = self._known.get(str(path))
            if known is not None and known[0] == stamp:
                found[path] = known[1]
        left = [path for path in stamps if path not in found]
        bar = progress(range(len(left)), len(left), text)
        with (
            self._record.open("a", encoding="utf-8") as record,
            concurrent.futures.ThreadPoolExecutor(self._threads) as pool,
        ):
            for start in range(0, len(left), _BATCH):
                batch = left[start : start + _BATCH]
                for path, facts in zip(batch, pool.map(inspect, batch), strict=True):
                    found[path] = facts
                    next(bar)
                    if "error" not in facts:
                        entry = [str(path), stamps[path], facts]
                        record.write(json.dumps(entry) + "\n")
                record.flush()
        next(bar, None)
        return [found[path] for path in paths]
