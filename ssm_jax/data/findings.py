"""Everything that is wrong, or odd, with a data set: collected whole, shown briefly."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Collection
from typing import Any

from ssm_jax.class_set import ClassSet
from ssm_jax.classes import PAPER_DATA
from ssm_jax.data.errors import DataError, name_files


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of finding.

    Attributes:
      error: whether a set with it can not be used.
      text: what is wrong, and the remedy.
    """

    error: bool
    text: str

    def of(self, classes: ClassSet) -> str:
        """The text for a set of these classes."""
        return self.text.format(
            classes=classes.numbered_classes(), values=classes.numbered_values()
        )


def _error(text: str) -> Kind:
    return Kind(True, text)


def _warning(text: str) -> Kind:
    return Kind(False, text)


KINDS = {
    "bad_line": _error("line of a list that can not be understood (correct or remove it)"),
    "bad_name": _error(
        "slice whose name has not the form <class>_<patient>_<scan>_<slice>.png (rename it)"
    ),
    "unknown_class": _error("class other than {classes} (correct the list or the name)"),
    "class_conflict": _error(
        "class that contradicts the name of the file or another line (correct the list; if all "
        "lines of a list are here, its classes have another order: set --class_order)"
    ),
    "missing": _error(
        "listed file that is not in the source folder (add it, or remove it from the list)"
    ),
    "missing_mask": _error(
        "slice without a mask of its name (add the mask as a PNG file, or remove the slice)"
    ),
    "missing_numbers": _error(
        "slice without a file in instances, which others have (add the numbers of its objects as a "
        "PNG file, or remove the folders instances: objects are connected components then)"
    ),
    "ambiguous": _error(
        "name that several files of the source folder have (point --source at one of them)"
    ),
    "collision": _error("different slices that would get the same name (rename one)"),
    "unreadable": _error("slice not readable as a picture of 8 bits (replace or remove it)"),
    "unreadable_mask": _error("mask not readable as one integer channel (replace it)"),
    "mask_size": _error("mask of another size than its slice (export both at the same size)"),
    "mask_values": _error("mask with values outside {values}"),
    "missing_label": _error(
        "image without labels, or labels that are not there (add them, or remove the image)"
    ),
    "missing_split": _error(
        "no train split, or nothing beside it (a run needs train and test, or train and val: add "
        "lists, or change --split)"
    ),
    "split_untold": _error(
        "picture without a split beside others with one (give every picture a split, or none)"
    ),
    "bad_entry": _error("entry of a JSON file that makes no sense (correct or remove it)"),
    "repeated_entry": _error(
        "entry or file that comes twice where it may be there once (remove one of them)"
    ),
    "row_conflict": _error("rows or entries that contradict each other (correct one of them)"),
    "no_outline": _error(
        "object without an outline: a box alone teaches no mask (draw it, or remove the object)"
    ),
    "no_patient": _error(
        "name in which --patient finds nobody (correct the expression or the name)"
    ),
    "picture_size": _error(
        "picture of another size than the data say (use the picture that was annotated)"
    ),
    "unreadable_volume": _error("volume that cannot be read as one scan (replace or remove it)"),
    "unreadable_labels": _error(
        "labels that cannot be used (correct them as it says, or remove the image)"
    ),
    "mixed_depth": _error(
        "pictures of more than 8 bits that would not be shown alike, by the values they have (say "
        "what is black and white with --values=hu --window=CENTER,WIDTH; 32767.5,65535 takes 16 "
        "bits as they are)"
    ),
    "unknown_label": _error("class that no --image_class names (add it, or correct the data)"),
    "one_class": _error("image class without another one (a model tells two or more apart)"),
    "empty_class": _error("image class without a picture (add some, or remove the class)"),
    "empty_category": _error(
        "category without an object (remove it from the file, or name those to take with --lesion)"
    ),
    "untrained_class": _error(
        "class of which the train split has nothing (change --seed or --split, or leave it out)"
    ),
    "patient_overlap": _error(
        "patient in more than one split (correct the lists, or --allow_patient_overlap)"
    ),
    "split_duplicate": _error(
        "same picture in more than one split (correct the lists, or --allow_split_duplicates)"
    ),
    "duplicate": _warning("same picture more than once in a split"),
    "duplicate_class": _warning("same picture in different classes"),
    "listed_twice": _warning("slice listed more than once in a split (taken once)"),
    "size_outlier": _warning("slice of another size than most"),
    "no_lesion": _warning("slice without a lesion larger than --min_area (skipped in training)"),
    "crowd": _warning("annotation of a crowd (left out)"),
    "no_pixels": _warning("picture with objects of which no pixel is seen (these are left out)"),
    "covered": _warning("picture with objects of which others cover more than half"),
    "unjudged": _warning("slice with pixels that nobody judged, of the label ignore (left out)"),
    "without_lesion": _warning("slice without a lesion (left out, by --lesions_only)"),
    "not_square": _warning(
        "volume whose pixels are not square (training sees them as stored, prediction evened out)"
    ),
    "volume_warning": _warning("volume with something to know of it"),
    "blank": _warning("slice of one gray value (not searched for duplicates)"),
    "unlisted": _warning("picture of the source folder that is in no list (left out)"),
}


class Findings:
    """Everything found in a set, by kind."""

    def __init__(self, tolerated: Collection[str] = (), classes: ClassSet = PAPER_DATA):
        """Starts empty.

        Args:
          tolerated: kinds of error that are only warned of here.
          classes: all that files and masks of the set can be of.
        """
        self.classes = classes
        self._tolerated = frozenset(tolerated)
        self._items: dict[str, list[str]] = {}

    def add(self, kind: str, item: str) -> None:
        """Notes one finding; `kind` is a key of KINDS, `item` says where (a file, with a split)."""
        if kind not in KINDS:
            raise KeyError(f"no kind of finding is called {kind!r}")
        self._items.setdefault(kind, []).append(item)

    def any_error(self) -> bool:
        """Whether the set can not be used."""
        return any(map(self._is_error, self._items))

    def raise_if_any_error(self, where: str) -> None:
        """Raises DataError with a line for every kind of error; `where` names the set."""
        if self.any_error():
            title = f"the data in {where} can not be used:"
            raise DataError("\n  - ".join([title, *lines(self.as_json(errors=True))]))

    def as_json(self, errors: bool) -> dict[str, Any]:
        """All errors or warnings: {kind: {"text", "count", "items"}}, complete."""
        return {
            kind: {"text": KINDS[kind].of(self.classes), "count": len(found), "items": found}
            for kind in KINDS
            if (found := self._items.get(kind)) and self._is_error(kind) == errors
        }

    def _is_error(self, kind: str) -> bool:
        return KINDS[kind].error and kind not in self._tolerated


def lines(section: dict[str, Any]) -> list[str]:
    """A line a kind, from `Findings.as_json`: name, count, text, up to ten items."""
    return [
        f"{kind} ({found['count']}): {found['text']}: {name_files(found['items'])}"
        for kind, found in section.items()
    ]


def describe_kinds() -> str:
    """The kinds as text for the help of a program, for sets of the paper's classes."""
    text = []
    for title, errors in (("Errors (nothing is prepared)", True), ("Warnings", False)):
        text.append(f"{title}:")
        text += [
            textwrap.fill(
                f"{name}: {kind.of(PAPER_DATA)}", 96, initial_indent="  ", subsequent_indent=" " * 4
            )
            for name, kind in KINDS.items()
            if kind.error == errors
        ]
    return "\n".join(text)
