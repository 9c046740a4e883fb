"""The one form that every format is read into: pictures with what is known of them."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Truth:
    """The objects of a picture.

    Attributes:
      mask: uint8 [H, W], k + 1 on lesion class k of the source's list, 0 elsewhere.
      instances: uint16 [H, W], k + 1 on object k, where the source tells objects apart; None where
        an object is a connected component of the mask.
      notes: kinds of finding, each with what to add to the name of the picture.
      skip: kind of finding for which the picture is left out; "" where it is taken.
    """

    mask: np.ndarray
    instances: np.ndarray | None = None
    notes: tuple[tuple[str, str], ...] = ()
    skip: str = ""


@dataclasses.dataclass(frozen=True)
class Draft:
    """A picture, or a slice of a volume, of a source.

    Attributes:
      where: the picture in messages.
      read: gives uint8 [H, W] or [H, W, 3]; raises ValueError or OSError for a damaged file.
      plain: a PNG or JPEG file of 8 bits that holds just what `read` gives; None where the picture
        has to be written anew.
      deep: a file of more than 8 bits a pixel whose values decide how it is shown; or None.
      size: (height, width) that the source says it has; None where it says nothing.
      patient: who it shows; None where nobody tells.
      split: "train", "val" or "test"; None where the source does not say.
      label: name of its image class; None where it has none.
      truth: gives the objects of a picture of a height and a width; raises as `read` does. None
        where the source has none.
      volume: name of the volume that it is a slice of; "" for a picture.
      number: of the slice in its volume, from 0.
      release: frees what reading holds; called after the picture and its objects were read.
    """

    where: str
    read: Callable[[], np.ndarray]
    plain: pathlib.Path | None = None
    deep: pathlib.Path | None = None
    size: tuple[int, int] | None = None
    patient: str | None = None
    split: str | None = None
    label: str | None = None
    truth: Callable[[int, int], Truth] | None = None
    volume: str = ""
    number: int = 0
    release: Callable[[], None] = lambda: None


@dataclasses.dataclass(frozen=True)
class Contents:
    """All that a source holds.

    Attributes:
      drafts: its pictures; those of a volume follow one another.
      lesions: names of the lesion classes, by their value in masks from 1.
      labels: names of the image classes, in order; empty where pictures have none.
      facts: what was found and how it was read: label and value, both for people.
    """

    drafts: Sequence[Draft]
    lesions: Sequence[str] = ()
    labels: Sequence[str] = ()
    facts: dict[str, str] = dataclasses.field(default_factory=dict)
