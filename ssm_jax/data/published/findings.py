"""What is wrong, or odd, with a data set: collected whole, told briefly, kept in full."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Collection
from typing import Any

from ssm_jax.data.errors import name_files


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of finding.

    error: whether it stops the preparation. text: what is wrong, and the remedy.
    """

    error: bool
    text: str


KINDS = {
    "bad_line": Kind(True, "line of a list that can not be understood (correct or remove it)"),
    "unknown_class": Kind(
        True, "class other than 0 (normal), 1 (common pneumonia), 2 (COVID-19) (correct the list)"
    ),
    "class_conflict": Kind(
        True,
        "class that contradicts the name of the file or another line (correct the list; if all "
        "lines of a COVIDx-CT list are here, its classes have another order: set --class_order)",
    ),
    "missing": Kind(
        True, "listed file that is not in the source folder (add it, or remove it from the list)"
    ),
    "missing_mask": Kind(True, "slice without its mask in the source folder (add the mask)"),
    "ambiguous": Kind(
        True, "name that several files of the source folder have (point --source at one of them)"
    ),
    "collision": Kind(True, "different slices that would get the same name (rename one)"),
    "unreadable": Kind(True, "slice not readable as a picture of 8 bits (replace or remove it)"),
    "unreadable_mask": Kind(True, "mask not readable as one integer channel (replace it)"),
    "mask_size": Kind(True, "mask of another size than its slice (export both at the same size)"),
    "mask_values": Kind(
        True, "mask with values outside 0 background, 1 lung, 2 ground glass, 3 consolidation"
    ),
    "patient_overlap": Kind(
        True, "patient in more than one split (correct the lists, or --allow_patient_overlap)"
    ),
    "split_duplicate": Kind(
        True, "same picture in more than one split (correct the lists, or --allow_split_duplicates)"
    ),
    "duplicate": Kind(False, "same picture more than once in a split"),
    "duplicate_class": Kind(False, "same picture in different classes"),
    "listed_twice": Kind(False, "slice listed more than once in a split (taken once)"),
    "size_outlier": Kind(False, "slice of another size than most"),
    "no_lesion": Kind(
        False, "slice without a lesion of more than --min_area pixels (skipped in training)"
    ),
    "blank": Kind(False, "slice of one grey value (not searched for duplicates)"),
    "unlisted": Kind(False, "picture of the source folder that is in no list (left out)"),
}


class Findings:
    """Everything found in a set, by kind."""

    def __init__(self, tolerated: Collection[str] = ()):
        """`tolerated`: kinds of error that are only warned of here."""
        self._tolerated = frozenset(tolerated)
        self._items: dict[str, list[str]] = {}

    def add(self, kind: str, item: str) -> None:
        """Notes one finding; `kind` is a key of KINDS, `item` says where (a file, with a split)."""
        if kind not in KINDS:
            raise KeyError(f"no kind of finding is called {kind!r}")
        self._items.setdefault(kind, []).append(item)

    def is_error(self, kind: str) -> bool:
        """Whether findings of the kind stop the preparation."""
        return KINDS[kind].error and kind not in self._tolerated

    def any_error(self) -> bool:
        """Whether something found stops the preparation."""
        return any(map(self.is_error, self._items))

    def as_json(self, errors: bool) -> dict[str, Any]:
        """All errors or warnings: {kind: {"text", "count", "items"}}, complete."""
        return {
            kind: {"text": KINDS[kind].text, "count": len(found), "items": found}
            for kind in KINDS
            if (found := self._items.get(kind)) and self.is_error(kind) == errors
        }


def lines(section: dict[str, Any]) -> list[str]:
    """A line a kind, from `Findings.as_json`: name, count, text, up to ten items."""
    return [
        f"{kind} ({found['count']}): {found['text']}: {name_files(found['items'])}"
        for kind, found in section.items()
    ]


def describe_kinds() -> str:
    """The kinds as text for the help of a program: errors first, then warnings."""
    text = []
    for title, errors in (("Errors (nothing is prepared)", True), ("Warnings", False)):
        text.append(f"{title}:")
        text += [
            textwrap.fill(
                f"{name}: {kind.text}", 96, initial_indent="  ", subsequent_indent=" " * 4
            )
            for name, kind in KINDS.items()
            if kind.error == errors
        ]
    return "\n".join(text)
