"""From a publisher's folder to a checked one in the standard layout, with a report."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ssm_jax.data.checks import check_patients, check_set, counts_of
from ssm_jax.data.errors import DataError
from ssm_jax.data.findings import Findings
from ssm_jax.data.folders import channels_of, locked
from ssm_jax.data.inspection import Inspector, Slice, check_files
from ssm_jax.data.published import cncb_seg, covid_classes, ictcf, listing, standard_tree
from ssm_jax.files import write_json

logger = logging.getLogger(__name__)

DATASETS = ("cncb_seg", "covidx_ct", "ct_classes", "ictcf")
FORMATS = ("coco", "nnunet", "volumes", "csv", "class_folders")  # that `ssm_jax.prepare` reads


@dataclasses.dataclass(frozen=True)
class Options:
    """How a data set is prepared.

    Attributes:
      dataset: Which it is.
      source: Folder of the data, as downloaded or as you have them.
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

    dataset: str = dataclasses.field(metadata={"choices": (*DATASETS, *FORMATS)})
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
        if standard_tree.is_complete(tree, key):
            report = read_report(report_file)
            if report.get("fingerprint") == key and not findings.any_error():
                return Result(tree, report, report_file, True)
        record = state / "checked.jsonl"
        inspected = Inspector(_channels(slices), options.threads, record).inspect(slices)
        check_files(inspected, findings)
        check_patients(slices, findings)
        readable = [found for found in inspected if found.readable]
        check_set(readable, findings, options.min_area)
        written = not findings.any_error() and not options.check_only
        report = {
            "dataset": options.dataset,
            "source": str(source),
            "lists": {split: str(path) for split, path in lists.items()},
            "prepared": str(tree) if written else None,
            "fingerprint": key,
            "patients_known": any(found.item.patient for found in readable),
            "splits": counts_of(readable, findings.classes, options.min_area),
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


def read_report(path: pathlib.Path) -> dict[str, Any]:
    """The report of an earlier run; empty where it is absent or spoiled."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
