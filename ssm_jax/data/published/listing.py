"""Shared by the readers of publishers' layouts: slices, split lists, and the files of a folder."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

from ssm_jax.data import images
from ssm_jax.data.checks import SPLITS
from ssm_jax.data.errors import DataError, name_files
from ssm_jax.data.findings import Findings
from ssm_jax.data.inspection import Slice

REQUIRED = ("train", "test")
MARK = "prepared.json"  # in a folder that `standard_tree` finished


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of the list of a split.

    Attributes:
      split: "train", "val" or "test".
      number: of the line, from 1.
      words: of the line.
    """

    split: str
    number: int
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.split} line {self.number}: {' '.join(self.words)[:100]}"


class SourceFiles:
    """The pictures under a folder, found once, looked up by name.

    Attributes:
      root: the folder.
      paths: relative path -> file.
    """

    def __init__(self, root: pathlib.Path, suffixes: Sequence[str] = images.SUFFIXES):
        """Lists `root` with all subfolders, without hidden ones and those that were prepared.

        Args:
          root: the folder.
          suffixes: of the pictures, small letters.

        Raises:
          DataError: no such folder, or no picture in it.
        """
        if not root.is_dir():
            raise DataError(f"there is no folder {root}; set --source to the downloaded data")
        self.root = root
        self.paths: dict[str, pathlib.Path] = {}
        # Number of parts -> last parts -> paths.
        self._by_tail: dict[int, dict[str, list[str]]] = {}
        for relative in sorted(_walk(root, tuple(suffixes))):
            self.paths[relative] = root / relative
        if not self.paths:
            kinds = "PNG or JPEG" if tuple(suffixes) == images.SUFFIXES else "PNG, JPEG or TIFF"
            raise DataError(f"{root} and its subfolders have no {kinds} file; check --source")

    def find(self, *names: str) -> list[str]:
        """Relative paths that the first of `names` to be found has: as a path, or as a file name.

        A name with slashes is a path from `root`, or from one of its subfolders.
        """
        for name in names:
            if name in self.paths:
                return [name]
            found = self._tails(name.count("/") + 1).get(name)
            if found:
                return found
        return []

    def _tails(self, parts: int) -> dict[str, list[str]]:
        """Paths by their last `parts` parts."""
        if parts not in self._by_tail:
            tails = self._by_tail[parts] = {}
            for path in self.paths:
                tails.setdefault("/".join(path.split("/")[-parts:]), []).append(path)
        return self._by_tail[parts]


def _walk(root: pathlib.Path, suffixes: tuple[str, ...]) -> Iterator[str]:
    """Relative paths of pictures; links to folders are followed, none is entered twice."""
    entered: set[pathlib.Path] = set()
    for folder, subfolders, files in os.walk(root, followlinks=True):
        here = pathlib.Path(folder).resolve()
        if here in entered or (entered and MARK in files):
            subfolders.clear()
            continue
        entered.add(here)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        relative = pathlib.Path(folder).relative_to(root).as_posix()
        prefix = "" if relative == "." else f"{relative}/"
        for name in files:
            if name.lower().endswith(suffixes) and not name.startswith("."):
                yield prefix + name


def read_lists(lists: Mapping[str, pathlib.Path]) -> list[Line]:
    """Lines of the split lists, split by split, without empty ones and those that start with #.

    Raises:
      DataError: a list is missing where one is needed, unreadable, or empty.
    """
    absent = [f"--{split}_list" for split in REQUIRED if split not in lists]
    if absent:
        raise DataError(
            f"no list of the slices of a split: set {' and '.join(absent)} to text files with a "
            "file name a line"
        )
    lines = []
    for split in SPLITS:
        if split not in lists:
            continue
        try:
            text = lists[split].read_text(encoding="utf-8-sig")
        except (OSError, UnicodeError) as error:
            raise DataError(f"can not read --{split}_list={lists[split]}: {error}") from error
        found = [
            Line(split, number, tuple(line.split()))
            for number, line in enumerate(text.splitlines(), 1)
            if line.strip() and not line.lstrip().startswith("#")
        ]
        if not found:
            raise DataError(f"--{split}_list={lists[split]} has no lines: the split is empty")
        lines += found
    return lines


def look_up(line: Line, found: list[str], findings: Findings, kind: str = "missing") -> bool:
    """Whether exactly one file was found for a line; notes what else is the case."""
    if not found:
        findings.add(kind, f"{line.split}/{line.words[0]}")
    elif len(found) > 1:
        findings.add("ambiguous", f"{line.split}/{line.words[0]} ({name_files(found)})")
    return len(found) == 1


@dataclasses.dataclass(frozen=True)
class Entry:
    """A line of a list of classified slices, understood.

    Attributes:
      listed: the slice in messages.
      label: number of its class.
      rest: its name in the prepared folder, without the class at the start and the suffix.
      patient: who it shows; None where nobody tells.
      names: that its file may have, the likeliest first.
    """

    listed: str
    label: int
    rest: str
    patient: str | None
    names: tuple[str, ...]


def read_classes(
    files: SourceFiles,
    lists: Mapping[str, pathlib.Path],
    findings: Findings,
    understand: Callable[[Line], Entry | None],
) -> list[Slice]:
    """Slices of lists with classes; notes lines without a file, and files without a line.

    Args:
      files: pictures of the source folder.
      lists: split -> list.
      findings: receives what is wrong.
      understand: the entry of a line; None, after noting why, where it makes no sense.

    Raises:
      DataError: lists that can not be read.
    """
    used, result = set(), []
    for line in read_lists(lists):
        entry = understand(line)
        if entry is None:
            continue
        found = files.find(*entry.names)
        if not look_up(line, found, findings):
            continue
        used.add(found[0])
        path = files.paths[found[0]]
        name = f"{entry.label}_{entry.rest}{path.suffix.lower()}"
        item = Slice(line.split, entry.listed, name, path, None, entry.label, entry.patient)
        result.append(item)
    for relative in sorted(files.paths.keys() - used):
        findings.add("unlisted", relative)
    return result


def without_repeats(slices: list[Slice], findings: Findings) -> list[Slice]:
    """Slices with repeated lines left out; notes repeats, contradictions and name collisions."""
    kept: dict[tuple[str, str], Slice] = {}
    labels: dict[pathlib.Path, int | None] = {}
    for item in slices:
        if labels.setdefault(item.path, item.label) != item.label:
            findings.add("class_conflict", f"{item.where} (also listed as {labels[item.path]})")
        earlier = kept.setdefault((item.split, pathlib.PurePath(item.name).stem), item)
        if earlier is item:
            continue
        if earlier.path == item.path:
            findings.add("listed_twice", item.where)
        elif earlier.label == item.label:
            findings.add("collision", f"{item.where} and {earlier.listed} ({item.name})")
    return list(kept.values())
