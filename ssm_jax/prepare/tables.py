"""Image classes: from a table with the columns file and label, or from a folder a class."""

from __future__ import annotations

import csv
import dataclasses
import io
import pathlib
from collections.abc import Iterator, Sequence

from ssm_jax.data.errors import DataError
from ssm_jax.data.findings import Findings
from ssm_jax.data.published.listing import SPLITS, SourceFiles
from ssm_jax.prepare.drafts import Contents, Draft
from ssm_jax.prepare.options import ReadOptions
from ssm_jax.prepare.pictures import SUFFIXES, picture_fields
from ssm_jax.scans.options import InputOptions


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table of pictures.

    Attributes:
      where: the table and the line, for messages.
      file: name of the picture.
      label: name of its class.
      patient: who it shows; None where the table does not say.
      split: None where the table does not say.
    """

    where: str
    file: str
    label: str
    patient: str | None
    split: str | None


def read_table(path: pathlib.Path, findings: Findings) -> list[Row]:
    """Rows of a CSV file with the columns file and label, and perhaps patient and split.

    Raises:
      DataError: no readable CSV file, or without these columns.
    """
    rows = []
    for where, cells in csv_rows(path, "--labels", ("file", "label")):
        split, empty = cells.get("split") or None, [k for k in ("file", "label") if not cells[k]]
        if empty:
            findings.add("bad_line", f"{where} (no {' and no '.join(empty)})")
        elif split not in (None, *SPLITS):
            findings.add("bad_line", f"{where} (split {split!r} is none of {', '.join(SPLITS)})")
        else:
            rows.append(
                Row(where, cells["file"], cells["label"], cells.get("patient") or None, split)
            )
    for column in ("patient", "split"):
        told = [getattr(row, column) is not None for row in rows]
        if any(told) and not all(told):
            findings.add("bad_line", f"{rows[told.index(False)].where} (no {column})")
    return rows


def csv_rows(
    path: pathlib.Path, flag: str, needed: Sequence[str]
) -> Iterator[tuple[str, dict[str, str]]]:
    """Every row of a CSV file: where it is, and its cells by the name of their column.

    Args:
      path: the file; commas between cells, names of columns in the first line.
      flag: that names it, for messages.
      needed: columns that it has to have.

    Raises:
      DataError: no readable CSV file, without these columns, or with rows of another length.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except (OSError, UnicodeError, csv.Error) as error:
        raise DataError(f"{flag}={path} cannot be read as CSV: {error}; save it as UTF-8") from None
    columns = [cell.strip().lower() for cell in rows[0]] if rows else []
    missing = [name for name in needed if columns.count(name) != 1]
    if missing:
        raise DataError(
            f"the first line of {path} has to name the columns {', '.join(needed)}, each once, "
            f"with commas between; it has {', '.join(columns) or 'nothing'}"
        )
    if not any(map(any, rows[1:])):
        raise DataError(f"{path} has no rows below the names of its columns")
    for number, row in enumerate(rows[1:], 2):
        if any(row):
            if len(row) != len(columns):
                raise DataError(
                    f"{path} line {number} has {len(row)} cells for {len(columns)} columns; put "
                    "cells with commas in quotes"
                )
            cells = (cell.strip() for cell in row)
            yield f"{path.name} line {number}", dict(zip(columns, cells, strict=True))


def read_csv(
    source: pathlib.Path, options: ReadOptions, reading: InputOptions, findings: Findings
) -> Contents:
    """Classified pictures by a table: `labels`, or the one CSV file of the source folder.

    Raises:
      DataError: a folder or table that cannot be used.
    """
    table = options.labels or _only_table(source)
    files = SourceFiles(source, SUFFIXES)
    used: dict[pathlib.Path, str] = {}
    drafts = []
    for row in without_repeats(read_table(table, findings), findings):
        path = find_picture(files, row.file, row.where, findings)
        if path is None:
            continue
        if path in used:
            findings.add("repeated_entry", f"{row.where} ({row.file}, as in {used[path]})")
            continue
        used[path] = row.where
        patient = patient_of(row.file, row.patient, options, findings)
        fields = picture_fields(path, reading)
        where = path.relative_to(source).as_posix()
        drafts.append(Draft(where, **fields, patient=patient, split=row.split, label=row.label))
    for name, path in files.paths.items():
        if path not in used:
            findings.add("unlisted", name)
    labels = class_names([draft.label or "" for draft in drafts], options, findings)
    return Contents(drafts, (), labels, {"labels": str(table)})


def read_folders(
    source: pathlib.Path, options: ReadOptions, reading: InputOptions, findings: Findings
) -> Contents:
    """Classified pictures in folders: <split>/<class>/<picture>, or <class>/<picture>.

    Raises:
      DataError: a folder of another layout.
    """
    top = _folders(source)
    if not top:
        raise DataError(f"{source} has no folders: give one with a folder a class, or a split")
    splits = [folder for folder in top if folder.name in SPLITS]
    others = [folder.name for folder in top if folder not in splits]
    if splits and others:
        raise DataError(
            f"{source} has folders of splits ({', '.join(s.name for s in splits)}) beside others "
            f"({', '.join(others[:5])}); use {', '.join(SPLITS)} alone, or classes alone"
        )
    classes = (
        [(s.name, folder) for s in splits for folder in _folders(s)]
        if splits
        else [(None, folder) for folder in top]
    )
    drafts, seen = [], []
    for split, folder in classes:
        seen.append(folder.name)
        paths = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in SUFFIXES]
        if not paths:
            findings.add("empty_class", folder.relative_to(source).as_posix())
        for path in paths:
            where = path.relative_to(source).as_posix()
            patient = patient_of(path.name, None, options, findings)
            fields = picture_fields(path, reading)
            drafts.append(Draft(where, **fields, patient=patient, split=split, label=folder.name))
    labels = class_names(seen, options, findings)
    return Contents(drafts, (), labels, {"classes": ", ".join(labels)})


def _folders(folder: pathlib.Path) -> list[pathlib.Path]:
    """Folders in a folder by name, without hidden ones."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; set --source to the folder of your data")
    return [p for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".")]


def _only_table(source: pathlib.Path) -> pathlib.Path:
    tables = sorted(source.glob("*.csv"))
    if len(tables) != 1:
        raise DataError(
            f"{source} has {len(tables) or 'no'} CSV files; say which one has the classes with "
            "--labels"
        )
    return tables[0]


def without_repeats(rows: Sequence[Row], findings: Findings) -> list[Row]:
    """The first row of every file; notes the others, and those that contradict it."""
    kept: dict[str, Row] = {}
    for row in rows:
        first = kept.setdefault(row.file, row)
        if first is row:
            continue
        text = f"{row.where} ({row.file}, as in {first.where})"
        same = (first.label, first.patient, first.split) == (row.label, row.patient, row.split)
        findings.add("listed_twice" if same else "row_conflict", text)
    return list(kept.values())


def find_picture(
    files: SourceFiles, name: str, where: str, findings: Findings, *before: str
) -> pathlib.Path | None:
    """The one file of a name; notes where there is none, or several.

    Args:
      files: of the source folder.
      name: as the set has it, perhaps with folders.
      where: the set names it, for messages.
      findings: receives what is wrong.
      *before: folders, from the source, that are looked in first.
    """
    name = name.replace("\\", "/").removeprefix("./")
    for folder in before:
        inside = str(pathlib.PurePosixPath(folder) / name)
        if inside in files.paths:
            return files.paths[inside]
    found = files.find(name)
    if len(found) == 1:
        return files.paths[found[0]]
    if found:
        findings.add("ambiguous", f"{where}: {name} ({', '.join(found[:3])})")
    else:
        findings.add("missing", f"{where}: {name}")
    return None


def patient_of(name: str, told: str | None, options: ReadOptions, findings: Findings) -> str | None:
    """The patient that the data tell, or else a picture's name; notes where that tells none."""
    if told is not None:
        return told
    try:
        return options.patient_of(pathlib.PurePosixPath(name).stem)
    except DataError as error:
        findings.add("no_patient", str(error))
        return None


def class_names(found: Sequence[str], options: ReadOptions, findings: Findings) -> tuple[str, ...]:
    """The image classes in their order: those asked for, or those that occur, by name.

    Numbers come by their size. Notes classes that are not among those asked for.
    """
    names = sorted(set(found), key=lambda name: (len(name) * name.isdecimal(), name))
    if not options.image_class:
        if len(names) == 1:
            findings.add("one_class", names[0])
        return tuple(names)
    for name in names:
        if name not in options.image_class:
            findings.add("unknown_label", name)
    return options.image_class
