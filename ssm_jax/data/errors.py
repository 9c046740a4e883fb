"""What the data part raises."""

from __future__ import annotations

from collections.abc import Iterable

SHOWN = 10  # file names in one message


class DataError(ValueError):
    """A data set can not be used as it is; the message names files and the remedy."""


class Problems:
    """Collects what is wrong with a set, kind by kind, so that one error can report all of it."""

    def __init__(self, where: str):
        """`where` names the set: a folder, or a split of it."""
        self.where = where
        self._files: dict[str, list[str]] = {}

    def add(self, kind: str, file: str) -> None:
        """Notes that `file` has the problem `kind` (what is wrong, and the remedy)."""
        self._files.setdefault(kind, []).append(file)

    def raise_if_any(self) -> None:
        """Raises DataError with every kind of problem and up to ten names of each."""
        if self._files:
            lines = [f"{kind}: {name_files(files)}" for kind, files in self._files.items()]
            raise DataError("\n  - ".join([f"the data in {self.where} can not be used:", *lines]))


def name_files(files: Iterable[str]) -> str:
    """Up to ten names of files, and how many more there are."""
    files = list(files)
    more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
    return ", ".join(files[:SHOWN]) + more
