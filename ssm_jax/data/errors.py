"""The error of unusable data."""

from __future__ import annotations

from collections.abc import Iterable

SHOWN = 10  # file names in one message


class DataError(ValueError):
    """A data set can not be used as it is; the message names files and the remedy."""


def name_files(files: Iterable[str]) -> str:
    """Up to ten names of files, and how many more there are."""
    files = list(files)
    more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
    return ", ".join(files[:SHOWN]) + more
