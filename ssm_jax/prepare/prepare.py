"""From a set as people have it to a checked one in the standard layout, with a report."""

from __future__ import annotations

import collections
import csv
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ssm_jax.class_set import ClassSet, image_classes, lesion_classes
from ssm_jax.classes import PAPER
from ssm_jax.config import ModelConfig
from ssm_jax.data.checks import SPLITS, check_patients, check_set, counts_of
from ssm_jax.data.class_files import CLASSES_FILE
from ssm_jax.data.errors import DataError
from ssm_jax.data.findings import Findings
from ssm_jax.data.folders import locked
from ssm_jax.data.inspection import Inspected, Inspector, Slice, check_files, file_stamp
from ssm_jax.data.objects import Values
from ssm_jax.data.published import standard_tree
from ssm_jax.data.published.prepare import Options, Result, read_report
from ssm_jax.data.splits import split_by_patient
from ssm_jax.files import write_json
from ssm_jax.prepare import anchors, coco, nnunet, tables, volumes
from ssm_jax.prepare.drafts import Contents, Draft
from ssm_jax.prepare.options import ReadOptions
from ssm_jax.prepare.render import Rendered, render
from ssm_jax.scans.options import InputOptions

SOURCES_FILE = "sources.csv"  # of a prepared folder: which file every picture comes from


def prepare(options: Options, own: ReadOptions, reading: InputOptions) -> Result:
    """Checks a set whole, reports, and makes the prepared folder if there is no error.

    A set that was prepared from the same files with the same options is left alone. Defects of
    files raise nothing: they are in `report["errors"]`, and nothing is prepared.

    Args:
      options: those of all sets.
      own: those of sets of one's own.
      reading: how pictures and volumes are shown to the model.

    Raises:
      DataError: the folder or its lists can not be used at all.
      OSError: the disk does not allow it.
    """
    name = options.name or options.dataset
    data_dir, source = (path.expanduser().absolute() for path in (options.data_dir, options.source))
    tree, state = data_dir / name, data_dir / f".{name}"
    report_file = data_dir / f"{name}.report.json"
    if not source.is_dir():
        raise DataError(f"there is no folder {source}; set --source to the folder of your data")
    if data_dir.resolve().is_relative_to(source.resolve()):
        raise DataError(f"--data_dir={data_dir} lies in --source={source}; set it to another place")
    if own.labels is not None:
        own = dataclasses.replace(own, labels=own.labels.expanduser().absolute())
    key = _fingerprint(source, options, own, reading)
    standard_tree.check_owned(tree)
    with locked(state, "--data_dir"):
        if standard_tree.is_complete(tree, key):
            report = read_report(report_file)
            if report.get("fingerprint") == key:
                return Result(tree, report, report_file, True)
        findings = Findings(options.tolerated)
        contents = _read(source, options, own, reading, findings)
        if not contents.drafts and not findings.any_error():
            raise DataError(f"{source} holds no picture for --dataset={options.dataset}")
        findings.classes = classes = _classes(contents)
        splits = _splits(contents.drafts, own, findings)
        rendered = render(
            contents.drafts,
            splits,
            classes,
            contents.labels,
            options.min_area,
            state / "rendered",
            findings,
        )
        parts = _check(rendered, classes, options, findings)
        written = not findings.any_error() and not options.check_only
        report = {
            "dataset": options.dataset,
            "source": str(source),
            "facts": dict(contents.facts),
            "classes": _classes_file(contents, classes),
            "prepared": str(tree) if written else None,
            "fingerprint": key,
            "patients_known": any(item.patient for item in rendered.slices),
            "shares": None if any(d.split for d in contents.drafts) else list(own.split),
            "parts": parts,
            "anchors": _anchors(rendered, own.image_size),
            "errors": findings.as_json(errors=True),
            "warnings": findings.as_json(errors=False),
        }
        if written:
            wanted = standard_tree.tree_files(rendered.slices)
            wanted |= _own_files(state / "rendered", rendered.slices, report["classes"])
            standard_tree.write(tree, state, wanted, key, options.link)
        write_json(report_file, report)
        shutil.rmtree(state / "rendered", ignore_errors=True)
    return Result(tree, report, report_file, False)


def _read(
    source: pathlib.Path,
    options: Options,
    own: ReadOptions,
    reading: InputOptions,
    findings: Findings,
) -> Contents:
    if options.dataset == "coco":
        lists = {split: path.expanduser().absolute() for split, path in options.lists.items()}
        return coco.read(source, lists, own, reading, findings)
    readers = {
        "nnunet": nnunet.read,
        "volumes": volumes.read,
        "csv": tables.read_csv,
        "class_folders": tables.read_folders,
    }
    return readers[options.dataset](source, own, reading, findings)


def _fingerprint(
    source: pathlib.Path, options: Options, own: ReadOptions, reading: InputOptions
) -> str:
    """Hex digits that change when a file of the source is another, or how it is read."""
    files = [*options.lists.values(), *([own.labels] if own.labels else [])]
    entered: set[pathlib.Path] = set()
    for folder, inner, names in os.walk(source, followlinks=True):
        here = pathlib.Path(folder).resolve()
        if here in entered:  # a link to where we have been
            inner.clear()
            continue
        entered.add(here)
        files += [pathlib.Path(folder, name) for name in names]
    stamps = sorted([str(path), *file_stamp(path)] for path in files)
    chosen = [options.dataset, options.link, options.min_area, sorted(options.tolerated)]
    text = json.dumps([stamps, chosen, repr(own), repr(reading)])
    return hashlib.sha256(text.encode()).hexdigest()


def _classes(contents: Contents) -> ClassSet:
    """The classes of a set, and the paper's in place of those that it has not."""
    return ClassSet(
        image_classes(contents.labels) if len(contents.labels) > 1 else PAPER.image,
        lesion_classes(contents.lesions) if contents.lesions else PAPER.lesion,
    )


def _classes_file(contents: Contents, classes: ClassSet) -> dict[str, Any]:
    """The content of `classes.json`: what the set has."""
    whole = classes.to_json()
    absent = {"image"} if not contents.labels else set()
    absent |= {"lesion", "background"} if not contents.lesions else set()
    return {part: value for part, value in whole.items() if part not in absent}


def _splits(drafts: Sequence[Draft], own: ReadOptions, findings: Findings) -> list[str]:
    """The split of every picture: as the set has it, or by patient."""
    told = [draft.split for draft in drafts]
    if not any(told) and drafts:
        patients = [draft.patient or f"\0{draft.where}" for draft in drafts]
        try:
            return [SPLITS[k] for k in split_by_patient(patients, own.split, own.seed)]
        except DataError:
            if not findings.any_error():
                raise
            return [SPLITS[0]] * len(drafts)  # where pictures are missing, say that instead
    for draft in drafts:
        if draft.split is None:
            findings.add("split_untold", draft.where)
    return [split or SPLITS[0] for split in told]


def _check(
    rendered: Rendered,
    classes: ClassSet,
    options: Options,
    findings: Findings,
) -> dict[str, Any]:
    """Checks the files that were made as any other set; says what each part holds."""
    groups: tuple[Values, ...] = tuple(lesion.values for lesion in classes.lesion)
    channels = 3 if rendered.colored else 1
    parts = {}
    for part, wanted in (("seg", True), ("cls", False)):
        slices = [item for item in rendered.slices if (item.mask is not None) == wanted]
        if not slices:
            continue
        inspected = Inspector(channels, options.threads, groups=groups).inspect(slices)
        check_files(inspected, findings)
        check_patients(slices, findings)
        readable = [found for found in inspected if found.readable]
        check_set(readable, findings, options.min_area, groups)
        _check_train(readable, classes, findings)
        parts[part] = counts_of(readable, classes, options.min_area, groups)
    return parts


def _check_train(inspected: Sequence[Inspected], classes: ClassSet, findings: Findings) -> None:
    """Notes classes of which the train split has nothing, and splits that are not there."""
    counts: dict[str, collections.Counter] = {split: collections.Counter() for split in SPLITS}
    for found in inspected:
        values = [found.item.label] if found.mask is None else found.mask["values"]
        counts[found.item.split].update(values)
    present = [split for split in SPLITS if counts[split]]
    if present and ("train" not in present or len(present) == 1):
        findings.add("missing_split", f"only {', '.join(present)}")
    kind = "empty_category"
    named: dict[str, Values] = {one.title: one.values for one in classes.lesion}
    if inspected and inspected[0].mask is None:
        kind, named = "empty_class", {one.title: (one.number,) for one in classes.image}
    for title, values in named.items():
        of_split = [split for split in SPLITS if any(counts[split][value] for value in values)]
        if "train" not in of_split:
            findings.add("untrained_class" if of_split else kind, title)


def _anchors(rendered: Rendered, image_size: int) -> dict[str, Any] | None:
    """Anchor sizes for the objects of the set, for 3 and 2 blocks; None without objects."""
    model = ModelConfig()
    boxes = [
        anchors.resized_boxes(own, height, width, image_size, max(model.max_size, image_size))
        for own, height, width in rendered.boxes
    ]
    together = np.concatenate(boxes) if boxes else np.zeros((0, 4))
    if not len(together):
        return None
    found = {
        blocks: anchors.suggest(
            together,
            model.anchor_sizes,
            model.anchor_ratios,
            dataclasses.replace(model, blocks=blocks).stride,
        )
        for blocks in (3, 2)
    }
    return {
        "image_size": image_size,
        "objects": len(together),
        "blocks": {str(blocks): dataclasses.asdict(one) for blocks, one in found.items()},
    }


def _own_files(
    folder: pathlib.Path, slices: Sequence[Slice], classes: Mapping[str, Any]
) -> dict[str, pathlib.Path]:
    """The files beside the splits: the classes, and where pictures come from."""
    write_json(folder / CLASSES_FILE, classes)
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(["file", "split", "source", "patient"])
    for item in slices:
        table.writerow([item.name, item.split, item.listed, item.patient or ""])
    (folder / SOURCES_FILE).write_text(stream.getvalue(), encoding="utf-8")
    return {name: folder / name for name in (CLASSES_FILE, SOURCES_FILE)}
