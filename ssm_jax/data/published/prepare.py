"""From a publisher's folder to a checked one in the standard layout, with a report."""

from __future__ import annotations

import collections
import dataclasses
import json
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ssm_jax.classes import PAPER
from ssm_jax.data.errors import DataError
from ssm_jax.data.findings import Findings
from ssm_jax.data.folders import channels_of, locked
from ssm_jax.data.inspection import Facts, Inspected, Inspector, Slice, check_files, size_of
from ssm_jax.data.objects import exceeds
from ssm_jax.data.published import cncb_seg, covid_classes, ictcf, listing, standard_tree
from ssm_jax.data.published.listing import SPLITS
from ssm_jax.files import write_json

logger = logging.getLogger(__name__)

DATASETS = ("cncb_seg", "covidx_ct", "ct_classes", "ictcf")


@dataclasses.dataclass(frozen=True)
class Options:
    """How a data set is prepared.

    Attributes:
      dataset: Which it is.
      source: Folder of the downloaded data.
      data_dir: Folder that receives the prepared folder and the report.
      name: Name of the prepared folder. Default: the data set's.
      lists: Split -> list of its slices; none for the lists that COVIDx-CT ships.
      order: See `covid_classes.class_order`.
      min_area: Pixels of a slice of 512 x 512 that a lesion exceeds, as config.data.min_area.
      link: How files get there; auto: hard links, or else copies.
      threads: Files read at a time.
      tolerated: Kinds of error that are only warned of.
      check_only: Check and report, prepare nothing.
    """

    dataset: str = dataclasses.field(metadata={"choices": DATASETS})
    source: pathlib.Path
    data_dir: pathlib.Path
    name: str = ""
    lists: Mapping[str, pathlib.Path] = dataclasses.field(default_factory=dict)
    order: tuple[int, ...] = (0, 1, 2)
    min_area: int = dataclasses.field(default=100, metadata={"least": 0})
    link: str = dataclasses.field(default="auto", metadata={"choices": standard_tree.LINKS})
    threads: int = dataclasses.field(default=min(8, os.cpu_count() or 1), metadata={"least": 1})
    tolerated: tuple[str, ...] = ()
    check_only: bool = False


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a preparation.

    Attributes:
      tree: the prepared folder.
      report: the content of the report's file.
      report_file: that JSON file.
      done_before: whether an earlier run had prepared the same, so that this one did nothing.
    """

    tree: pathlib.Path
    report: dict[str, Any]
    report_file: pathlib.Path
    done_before: bool


def prepare(options: Options) -> Result:
    """Checks a set whole, reports, and makes the prepared folder if there is no error.

    A set that was prepared from the same files with the same options is left alone. Defects of
    files and lists raise nothing: they are in `report["errors"]`, and nothing is prepared.

    Raises:
      DataError: the folder or the lists can not be used at all.
      OSError: the disk does not allow it.
    """
    name = options.name or options.dataset
    data_dir = options.data_dir.expanduser().absolute()
    tree, state = data_dir / name, data_dir / f".{name}"
    report_file = data_dir / f"{name}.report.json"
    standard_tree.check_owned(tree)
    findings = Findings(options.tolerated)
    source = options.source.expanduser().absolute()
    files = listing.SourceFiles(source)
    lists = _lists(options, source)
    slices = listing.without_repeats(_read(options, files, lists, findings), findings)
    with locked(state, "--data_dir"):
        wanted = standard_tree.tree_files(slices)
        key = standard_tree.fingerprint(wanted, _key_options(options))
        if standard_tree.is_complete(tree, wanted, key):
            report = _read_json(report_file)
            if report.get("fingerprint") == key and not findings.any_error():
                return Result(tree, report, report_file, True)
        record = state / "checked.jsonl"
        inspected = Inspector(_channels(slices), options.threads, record).inspect(slices)
        check_files(inspected, findings)
        _check_patients(slices, findings)
        readable = [found for found in inspected if found.readable]
        _check_set(readable, findings, options.min_area)
        written = not findings.any_error() and not options.check_only
        report = {
            "dataset": options.dataset,
            "source": str(source),
            "lists": {split: str(path) for split, path in lists.items()},
            "prepared": str(tree) if written else None,
            "fingerprint": key,
            "patients_known": any(found.item.patient for found in readable),
            "splits": _counts(readable, options.min_area),
            "errors": findings.as_json(errors=True),
            "warnings": findings.as_json(errors=False),
        }
        if written:
            standard_tree.write(tree, state, wanted, key, options.link)
        write_json(report_file, report)
        if written:
            record.unlink()
    return Result(tree, report, report_file, False)


def _lists(options: Options, source: pathlib.Path) -> dict[str, pathlib.Path]:
    """The lists given, or those that lie in the folder of a COVIDx-CT set."""
    if options.lists or options.dataset != "covidx_ct":
        return {split: path.expanduser().absolute() for split, path in options.lists.items()}
    return covid_classes.find_lists(source)


def _read(options, files, lists, findings) -> list[Slice]:
    if options.dataset == "cncb_seg":
        return cncb_seg.read(files, lists, findings)
    if options.dataset == "ictcf":
        return ictcf.read(files, lists, findings)
    if options.dataset in ("covidx_ct", "ct_classes"):
        return covid_classes.read(files, lists, findings, options.order)
    raise DataError(f"no data set is called {options.dataset!r}; there are {', '.join(DATASETS)}")


def _key_options(options: Options) -> list[str]:
    """The options that change the report or the folder made of the same files."""
    return [options.dataset, options.link, str(options.min_area), *sorted(options.tolerated)]


def _channels(slices: Sequence[Slice]) -> int:
    """The channels of the first training slice by name, which the builder takes for the set's."""
    train = [item for item in slices if item.split == "train"]
    return channels_of(item.path for item in sorted(train, key=lambda item: item.name))


def _check_set(inspected: Sequence[Inspected], findings: Findings, min_area: int) -> None:
    """Notes what readable slices have in common, or have not."""
    sizes = collections.Counter(size_of(found.picture) for found in inspected)
    common = sizes.most_common(1)[0][0] if sizes else ""
    alike: dict[str, list[Slice]] = {}
    for found in inspected:
        where, size = found.item.where, size_of(found.picture)
        if size != common:
            findings.add("size_outlier", f"{where} ({size}, most are {common})")
        # Where values are wrong, nobody knows which of them is a lesion.
        if (
            found.mask
            and not found.foreign_values(findings.classes)
            and not _has_lesion(found.mask, min_area)
        ):
            findings.add("no_lesion", where)
        if found.picture["blank"]:
            findings.add("blank", where)
        else:
            alike.setdefault(found.picture["hash"], []).append(found.item)
    for items in alike.values():
        if len(items) > 1:
            _note_duplicates(items, findings)


def _has_lesion(mask: Facts, min_area: int) -> bool:
    return bool(exceeds(mask["areas"], min_area, mask["height"], mask["width"]).any())


def _check_patients(slices: Sequence[Slice], findings: Findings) -> None:
    """Notes patients in more than one split."""
    counts: dict[str, collections.Counter] = {}
    for item in slices:
        if item.patient is not None:
            counts.setdefault(item.patient, collections.Counter())[item.split] += 1
    for patient, splits in counts.items():
        if len(splits) > 1:
            shares = ", ".join(f"{splits[split]} in {split}" for split in SPLITS if splits[split])
            findings.add("patient_overlap", f"{patient} ({shares})")


def _note_duplicates(items: Sequence[Slice], findings: Findings) -> None:
    """Notes slices with equal pixels, under every kind that holds."""
    names = " = ".join(item.where for item in items)
    splits = collections.Counter(item.split for item in items)
    if len(splits) > 1:
        findings.add("split_duplicate", names)
    if max(splits.values()) > 1:
        findings.add("duplicate", names)
    if len({item.label for item in items}) > 1:
        findings.add("duplicate_class", names)


def _counts(inspected: Sequence[Inspected], min_area: int) -> dict[str, dict[str, Any]]:
    """How many slices, sizes, patients, and classes or lesions every split has."""
    result = {}
    for split in SPLITS:
        chosen = [found for found in inspected if found.item.split == split]
        if not chosen:
            continue
        sizes = collections.Counter(size_of(found.picture) for found in chosen)
        counts: dict[str, Any] = {"slices": len(chosen), "sizes": dict(sizes.most_common())}
        patients = {found.item.patient for found in chosen} - {None}
        if patients:
            counts["patients"] = len(patients)
        if chosen[0].mask is None:
            labels = collections.Counter(found.item.label for found in chosen)
            counts["classes"] = {name: labels[k] for k, name in enumerate(PAPER.names)}
        else:
            masks = [found.mask for found in chosen if found.mask]
            values = collections.Counter(v for mask in masks for v in mask["values"])
            counts["with_lesions"] = sum(_has_lesion(mask, min_area) for mask in masks)
            counts["mask_values"] = {str(k): values[k] for k in sorted(values)}
        result[split] = counts
    return result


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON file; empty where it is absent or spoiled."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
