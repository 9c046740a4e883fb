"""COCO instance JSON: outlines and run lengths of objects, and image classes beside them."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ssm_jax.data.errors import DataError, name_files
from ssm_jax.data.findings import Findings
from ssm_jax.data.published.listing import SPLITS, SourceFiles
from ssm_jax.prepare import tables
from ssm_jax.prepare.drafts import Contents, Draft
from ssm_jax.prepare.options import ReadOptions
from ssm_jax.prepare.outlines import Outline, draw, wrong_shape
from ssm_jax.prepare.pictures import SUFFIXES, picture_fields
from ssm_jax.scans.options import InputOptions

_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_SECTIONS = ("images", "annotations", "categories")


@dataclasses.dataclass(frozen=True)
class _Json:
    """A COCO file.

    Attributes:
      path: the file.
      split: of its pictures; None where they are yet to be split.
      content: as read.
    """

    path: pathlib.Path
    split: str | None
    content: dict[str, Any]


def read(
    source: pathlib.Path,
    lists: Mapping[str, pathlib.Path],
    options: ReadOptions,
    reading: InputOptions,
    findings: Findings,
) -> Contents:
    """Pictures with objects, and with image classes where the data have them.

    Args:
      source: folder of the pictures.
      lists: split -> JSON file; none for those that lie in the folder.
      options: which categories are taken, and where image classes are.
      reading: how pictures are read.
      findings: receives what is wrong.

    Raises:
      DataError: a folder or file that cannot be used at all.
    """
    files = SourceFiles(source, SUFFIXES)
    jsons = _open(source, lists)
    reader = _Reader(files, options, reading, findings)
    lesions = reader.lesions(jsons)
    drafts = [draft for one in jsons for draft in reader.pictures(one, lesions)]
    drafts += reader.only_classified()
    found = [draft.label for draft in drafts if draft.label is not None]
    labels = tables.class_names(found, options, findings) if found or options.image_class else ()
    facts = {"annotations": ", ".join(str(one.path) for one in jsons)}
    if options.labels:
        facts["labels"] = str(options.labels)
    return Contents(drafts, lesions, labels, facts)


def _open(source: pathlib.Path, lists: Mapping[str, pathlib.Path]) -> list[_Json]:
    """The JSON files given, or those of the folder.

    Raises:
      DataError: none of them is a COCO file, or it is not clear which is of which split.
    """
    flags = ", ".join(f"--{split}_list" for split in SPLITS)
    if lists:
        return [_Json(path, split, _checked(path, _parsed(path))) for split, path in lists.items()]
    found = []
    for path in sorted(source.rglob("*.json")):
        if not any(part.startswith(".") for part in path.relative_to(source).parts):
            content = _parsed(path)
            if isinstance(content, dict) and "annotations" in content:
                found.append(_Json(path, _split_of(path, source), _checked(path, content)))
    if not found:
        raise DataError(f"no JSON file in {source} has annotations; name COCO files with {flags}")
    if len(found) == 1:
        return [dataclasses.replace(found[0], split=None)]
    splits = [one.split for one in found]
    if None in splits or len(set(splits)) < len(splits):
        listed = name_files(str(one.path.relative_to(source)) for one in found)
        raise DataError(f"several COCO files ({listed}); say which is of which split with {flags}")
    return found


def _split_of(path: pathlib.Path, source: pathlib.Path) -> str | None:
    """The split that a file's name or its folder tells, as in instances_val2017.json."""
    for name in (path.stem, *path.relative_to(source).parts[-2:-1]):
        words = "".join(c if c.isalpha() else " " for c in name.lower()).split()
        told = {_NAMES[word] for word in words if word in _NAMES}
        if len(told) == 1:
            return told.pop()
    return None


def _parsed(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path} cannot be read as JSON: {error}; export it again, or remove it"
        ) from None


def _checked(path: pathlib.Path, content: Any) -> dict[str, Any]:
    """The content of a COCO file, which has three lists of objects.

    Raises:
      DataError: it has not.
    """
    for name in _SECTIONS:
        section = content.get(name) if isinstance(content, dict) else None
        if not (isinstance(section, list) and all(isinstance(entry, dict) for entry in section)):
            raise DataError(
                f"{path} has no list of objects {name!r}; a COCO file has {', '.join(_SECTIONS)}"
            )
    return content


class _Reader:
    """Makes drafts of the pictures of COCO files, and of a table of image classes."""

    def __init__(
        self, files: SourceFiles, options: ReadOptions, reading: InputOptions, findings: Findings
    ):
        """Reads the table, if there is one; see `read`."""
        self._files, self._findings = files, findings
        self._options, self._reading = options, reading
        rows = tables.read_table(options.labels, findings) if options.labels else []
        self._rows = {row.file: row for row in tables.without_repeats(rows, findings)}
        self._used: dict[pathlib.Path, str] = {}
        self._names: dict[pathlib.Path, dict[int, str]] = {}

    def lesions(self, jsons: Sequence[_Json]) -> tuple[str, ...]:
        """Names of the categories that are taken, in order."""
        names: dict[str, None] = {}
        for one in jsons:
            by_key = self._names[one.path] = self._categories(one)
            names |= dict.fromkeys(by_key[key] for key in sorted(by_key))
        unknown = [name for name in self._options.lesion if name not in names]
        if unknown:
            raise DataError(f"--lesion={unknown[0]} is no category; there are {name_files(names)}")
        return self._options.lesion or tuple(names)

    def pictures(self, one: _Json, lesions: Sequence[str]) -> list[Draft]:
        """The pictures of a file, each with its objects and what the table says of it."""
        entries = self._by_id(one, "images")
        outlines = self._outlines(one, entries, lesions)
        folder, root, drafts = one.path.parent, self._files.root, []
        beside = folder.relative_to(root).as_posix() if folder.is_relative_to(root) else "."
        for key, entry in entries.items():
            where, name = f"{one.path.name} image {key}", entry.get("file_name")
            if not isinstance(name, str) or not name:
                self._findings.add("bad_entry", f"{where} (no file_name)")
                continue
            path = tables.find_picture(self._files, name, where, self._findings, beside)
            if path is None or not self._is_new(path, where):
                continue
            row = self._rows.pop(name, None) or self._rows.pop(pathlib.PurePath(name).name, None)
            draft = Draft(
                path.relative_to(root).as_posix(),
                **picture_fields(path, self._reading),
                size=self._size(entry, where),
                patient=self._agreed(where, "patient", entry.get("patient"), row),
                split=self._agreed(where, "split", one.split, row),
                label=self._agreed(where, "label", entry.get("label"), row),
                truth=functools.partial(draw, outlines.get(key, [])),
            )
            if draft.patient is None:
                patient = tables.patient_of(name, None, self._options, self._findings)
                draft = dataclasses.replace(draft, patient=patient)
            drafts.append(draft)
        return drafts

    def only_classified(self) -> list[Draft]:
        """Pictures of the table alone; notes those of the folder that nothing names."""
        drafts = []
        for row in self._rows.values():
            path = tables.find_picture(self._files, row.file, row.where, self._findings)
            if path is not None and self._is_new(path, row.where):
                where = path.relative_to(self._files.root).as_posix()
                patient = tables.patient_of(row.file, row.patient, self._options, self._findings)
                fields = picture_fields(path, self._reading)
                drafts.append(
                    Draft(where, **fields, patient=patient, split=row.split, label=row.label)
                )
        for name, path in self._files.paths.items():
            if path not in self._used:
                self._findings.add("unlisted", name)
        return drafts

    def _is_new(self, path: pathlib.Path, where: str) -> bool:
        """Whether nothing named a file before; notes where something did."""
        first = self._used.setdefault(path, where)
        if first != where:
            self._findings.add("repeated_entry", f"{where} ({path.name}, as in {first})")
        return first == where

    def _agreed(self, where: str, field: str, told: Any, row: tables.Row | None) -> str | None:
        """The statement of JSON and table on a picture; notes where they contradict each other."""
        own, other = None, getattr(row, field) if row else None
        if isinstance(told, str | int | float):
            own = str(told).strip() or None
        elif told is not None:
            self._findings.add("bad_entry", f"{where} ({field} {told!r:.40} is no text)")
        if row and own and other and own != other:
            self._findings.add(
                "row_conflict", f"{where} ({field} {own}, but {other} in {row.where})"
            )
        return own or other

    def _categories(self, one: _Json) -> dict[int, str]:
        """Number of a category -> name; notes entries without one, and names that come twice."""
        names: dict[int, str] = {}
        for key, entry in self._by_id(one, "categories").items():
            name = entry.get("name")
            if not isinstance(name, str) or not name.strip():
                self._findings.add("bad_entry", f"{one.path.name} category {key} (no name)")
            elif name in names.values():
                self._findings.add("repeated_entry", f"{one.path.name} category {key} ({name})")
            else:
                names[key] = name
        return names

    def _by_id(self, one: _Json, section: str) -> dict[int, dict[str, Any]]:
        """Entries of a section by their number; notes those without one, and repeated ones."""
        found: dict[int, dict[str, Any]] = {}
        for place, entry in enumerate(one.content[section], 1):
            key = entry.get("id")
            if type(key) is not int:
                self._findings.add("bad_entry", f"{one.path.name} {section} {place} (no whole id)")
            elif found.setdefault(key, entry) is not entry:
                self._findings.add("repeated_entry", f"{one.path.name} {section} id {key}")
        return found

    def _size(self, entry: Mapping[str, Any], where: str) -> tuple[int, int] | None:
        """Height and width that a file says of a picture; notes what is none."""
        height, width = entry.get("height"), entry.get("width")
        if height is None and width is None:
            return None
        if isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0:
            return height, width
        self._findings.add("bad_entry", f"{where} (height {height}, width {width})")
        return None

    def _outlines(
        self, one: _Json, images: Mapping[int, Mapping], lesions: Sequence[str]
    ) -> dict[int, list[Outline]]:
        """Number of a picture -> its objects; notes annotations that are none."""
        names = self._names[one.path]
        found: dict[int, list[Outline]] = {}
        for place, entry in enumerate(one.content["annotations"], 1):
            where = f"{one.path.name} annotation {entry.get('id', f'number {place}')}"
            keys = {field: entry.get(field) for field in ("image_id", "category_id")}
            known = {"image_id": images, "category_id": names}
            unknown = [f for f, key in keys.items() if type(key) is not int or key not in known[f]]
            if unknown:
                text = f"{unknown[0]} {keys[unknown[0]]!r:.40} is unknown"
                self._findings.add("bad_entry", f"{where} ({text})")
                continue
            image, name = keys["image_id"], names[keys["category_id"]]
            if entry.get("iscrowd"):
                self._findings.add("crowd", where)
            elif name in lesions:
                wrong = wrong_shape(entry.get("segmentation"), images[image])
                if wrong:
                    self._findings.add(wrong[0], f"{where} ({wrong[1]})")
                else:
                    outline = Outline(lesions.index(name) + 1, entry["segmentation"])
                    found.setdefault(image, []).append(outline)
        return found
