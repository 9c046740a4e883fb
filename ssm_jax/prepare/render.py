"""Drafts become files: pictures that have to be written anew, masks and numbers of objects."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import re
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ssm_jax.class_set import ClassSet
from ssm_jax.data import images
from ssm_jax.data.findings import Findings
from ssm_jax.data.folders import progress
from ssm_jax.data.inspection import Slice
from ssm_jax.data.objects import lesion_objects
from ssm_jax.prepare.drafts import Draft, Truth
from ssm_jax.prepare.pictures import depth_of

_MOST_LETTERS = 100  # of a patient in a file name


@dataclasses.dataclass
class Rendered:
    """The pictures of a set as files.

    Attributes:
      slices: those with objects, and those with an image class; a picture may be in both.
      boxes: of a picture with objects: its objects as float32 [n, 4], its height and width.
      colored: whether pictures have colors.
    """

    slices: list[Slice] = dataclasses.field(default_factory=list)
    boxes: list[tuple[np.ndarray, int, int]] = dataclasses.field(default_factory=list)
    colored: bool = False


def render(
    drafts: Sequence[Draft],
    splits: Sequence[str],
    classes: ClassSet,
    labels: Sequence[str],
    min_area: int,
    folder: pathlib.Path,
    findings: Findings,
) -> Rendered:
    """Reads every picture once and writes what the prepared set needs besides files as they are.

    Args:
      drafts: of the pictures.
      splits: of every picture.
      classes: of the set.
      labels: names of the image classes as drafts have them, in the order of `classes`.
      min_area: see `objects.exceeds`.
      folder: that receives the files; what was in it goes.
      findings: receives what is wrong.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    work = _Work(folder, classes, labels, min_area, findings)
    names = list(_names(drafts))
    turns = zip(drafts, splits, names, strict=True)
    for draft, split, name in progress(turns, len(drafts), "reading pictures"):
        work.add(draft, split, name)
        draft.release()
    work.note_depths()
    return work.result()


def _names(drafts: Sequence[Draft]) -> Iterator[tuple[str, int]]:
    """(patient, number) of every picture, as file names have them: nobody shares a name.

    A picture of nobody known is taken for a patient of its own.
    """
    plain: dict[str, str] = {}
    taken: set[str] = set()
    counts: collections.Counter = collections.Counter()
    for draft in drafts:
        patient = draft.patient or str(pathlib.PurePath(draft.where).with_suffix(""))
        key = f"{draft.patient is None} {patient}"
        if key not in plain:
            short = re.sub(r"[^\w.-]+|_", "-", patient).strip("-.")[-_MOST_LETTERS:] or "patient"
            name, more = short, 1
            while name.lower() in taken:  # file systems that take A for a
                more += 1
                name = f"{short}-{more}"
            taken.add(name.lower())
            plain[key] = name
        yield plain[key], counts[key]
        counts[key] += 1


class _Work:
    """Writes the files of one picture after another."""

    def __init__(
        self,
        folder: pathlib.Path,
        classes: ClassSet,
        labels: Sequence[str],
        min_area: int,
        findings: Findings,
    ):
        self._folder, self._classes, self._labels = folder, classes, labels
        self._min_area, self._findings = min_area, findings
        self._found = Rendered()
        self._gray: list[tuple[int, pathlib.Path]] = []
        self._depths: dict[str, list[str]] = {}

    def add(self, draft: Draft, split: str, name: tuple[str, int]) -> None:
        """Reads a picture and its objects; notes what is wrong with them."""
        where = f"{split}/{draft.where}"
        try:
            if draft.deep:
                self._depths.setdefault(depth_of(draft.deep), []).append(where)
            image = draft.read()
        except (ValueError, OSError) as error:
            self._findings.add("unreadable", f"{where} ({error})")
            return
        self._found.colored |= image.ndim == 3
        height, width = image.shape[:2]
        if draft.size not in (None, (height, width)):
            wanted = f"{draft.size[1]}x{draft.size[0]}"
            self._findings.add("picture_size", f"{where} ({width}x{height}, not {wanted})")
            return
        truth = self._truth(draft, where, height, width)
        if truth is not None and truth.skip:
            self._findings.add(truth.skip, where)
            return
        patient, number = name
        stem = f"{patient}_{number:04d}"
        path = draft.plain or self._save(f"{split}_{stem}.png", image)
        suffix = path.suffix.lower()
        common: dict[str, Any] = {
            "split": split,
            "listed": draft.where,
            "path": path,
            "patient": draft.patient,
        }
        if truth is not None:
            mask = self._save(f"{split}_{stem}.mask.png", truth.mask)
            numbers = None
            if truth.instances is not None:
                numbers = self._save(f"{split}_{stem}.numbers.png", truth.instances)
            self._keep(Slice(**common, name=f"{stem}{suffix}", mask=mask, numbers=numbers), image)
        if draft.label in self._labels:
            label = self._classes.image[self._labels.index(draft.label)].number
            file = f"{label}_{patient}_0_{number:04d}{suffix}"
            self._keep(Slice(**common, name=file, label=label), image)

    def _truth(self, draft: Draft, where: str, height: int, width: int) -> Truth | None:
        """The objects of a picture; notes what is wrong with them, and how many there are."""
        if draft.truth is None:
            return None
        try:
            truth = draft.truth(height, width)
            objects = lesion_objects(
                truth.mask, self._min_area, self._classes.lesion, truth.instances
            )
        except (ValueError, OSError) as error:
            self._findings.add("unreadable_labels", f"{where} ({error})")
            return None
        for kind, text in truth.notes:
            self._findings.add(kind, f"{where} ({text})")
        self._found.boxes.append((objects[1], height, width))
        return truth

    def _keep(self, item: Slice, image: np.ndarray) -> None:
        if image.ndim == 2:
            self._gray.append((len(self._found.slices), item.path))
        self._found.slices.append(item)

    def _save(self, name: str, pixels: np.ndarray) -> pathlib.Path:
        path = self._folder / name
        path.write_bytes(images.encode(pixels, level=4))
        return path

    def note_depths(self) -> None:
        """Notes pictures of more than 8 bits that would not all be shown alike."""
        if len(self._depths) > 1:
            for depth, names in self._depths.items():
                for name in names:
                    self._findings.add("mixed_depth", f"{name} (as {depth})")

    def result(self) -> Rendered:
        """All pictures; where some have colors, the gray ones are written with three channels."""
        if self._found.colored:
            for place, path in self._gray:
                gray = images.slice_pixels(images.read_file(path), 1)
                item = self._found.slices[place]
                colored = self._save(f"{place}.colored.png", np.repeat(gray, 3, axis=2))
                name = str(pathlib.PurePath(item.name).with_suffix(".png"))
                self._found.slices[place] = dataclasses.replace(item, path=colored, name=name)
        return self._found
