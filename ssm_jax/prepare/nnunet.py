"""Raw data sets of nnU-Net: dataset.json, imagesTr and labelsTr, as volumes or as pictures."""

from __future__ import annotations

import functools
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ssm_jax.data import images
from ssm_jax.data.errors import DataError, name_files
from ssm_jax.data.findings import Findings
from ssm_jax.prepare import volumes
from ssm_jax.prepare.drafts import Contents, Draft, Truth
from ssm_jax.prepare.labels import BACKGROUND, LabelValues, taken_of
from ssm_jax.prepare.options import ReadOptions
from ssm_jax.prepare.pictures import SUFFIXES, picture_fields
from ssm_jax.scans.find import NIFTIS
from ssm_jax.scans.options import InputOptions, ScanError

_IGNORE = "ignore"


def read(
    source: pathlib.Path, options: ReadOptions, reading: InputOptions, findings: Findings
) -> Contents:
    """The slices of a set's volumes, or its pictures; a case is a patient.

    Both forms of dataset.json are read: that of nnU-Net 2 (channel_names, labels by name, files
    <case>_0000), and that of nnU-Net 1 and the Medical Segmentation Decathlon (modality, labels by
    value, files with and without _0000). Where labelsTs has labels, they are the test split.

    Raises:
      DataError: a folder that is no such set, or one with several channels of which none is chosen.
    """
    content = _content(source)
    named, ignored = _labels(content)
    ending = _ending(content, source)
    pictures = ending.lower() in SUFFIXES
    if not pictures and ending.lower() not in NIFTIS:
        raise DataError(f"{source} has {ending} files; convert them to .nii.gz or .png")
    cases = _cases(source, ending, _channel(content, options, pictures), findings)
    if pictures:
        values = LabelValues(named, taken_of([*named], options), ignored)
        return _pictures(cases, values, source, reading)
    return volumes.contents(cases, named, options, reading, findings, ignored)


def _content(source: pathlib.Path) -> dict[str, Any]:
    path = source / "dataset.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise DataError(
            f"there is no {path}; set --source to a folder with dataset.json, imagesTr and labelsTr"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}; correct it") from None
    if not isinstance(content, dict) or not isinstance(content.get("labels"), dict):
        raise DataError(f"{path} has no labels; nnU-Net wants names and values of all labels there")
    return content


def _labels(content: Mapping[str, Any]) -> tuple[dict[str, tuple[int, ...]], int | None]:
    """Name -> values of all labels but the background, and the value to be ignored."""
    named: dict[str, tuple[int, ...]] = {}
    ignored = None
    for key, value in content["labels"].items():
        # nnU-Net 1 and the decathlon: {"1": "tumor"}; nnU-Net 2: {"tumor": 1}, or several values.
        name, values = (value, key) if isinstance(value, str) else (key, value)
        try:
            numbers = tuple(int(v) for v in (values if isinstance(values, list) else [values]))
        except (TypeError, ValueError):
            numbers = ()
        if not numbers or not isinstance(name, str) or not all(0 <= n < 1 << 31 for n in numbers):
            raise DataError(
                f"dataset.json has the label {key!r}: {value!r}, not a name and a value"
            )
        if name == _IGNORE:
            (ignored,) = numbers
        elif name != BACKGROUND and numbers != (0,):
            named[name] = numbers
    if not named:
        raise DataError("dataset.json names no label but the background")
    return named, ignored


def _channel(content: Mapping[str, Any], options: ReadOptions, pictures: bool) -> int:
    """The number of the channel that is taken; pictures hold all of theirs in the first file.

    Raises:
      DataError: there are several, and none of them is chosen.
    """
    names = content.get("channel_names") or content.get("modality") or {"0": "image"}
    if not isinstance(names, dict) or not all(str(key).isdecimal() for key in names):
        raise DataError("dataset.json has channel_names that are no numbers with names")
    by_number = {int(key): str(name) for key, name in names.items()}
    if pictures or (len(by_number) == 1 and not options.channel):
        return min(by_number)
    for number, name in by_number.items():
        if options.channel in (name, str(number)):
            return number
    listed = ", ".join(f"{number} ({name})" for number, name in by_number.items())
    given = f"--channel={options.channel} is none of them" if options.channel else "it reads one"
    raise DataError(f"the set has the channels {listed}, and {given}; choose one with --channel")


def _ending(content: Mapping[str, Any], source: pathlib.Path) -> str:
    """How the names of files end: as the set says, or as all of its labels do."""
    told = content.get("file_ending")
    if isinstance(told, str):
        return told
    folder = source / "labelsTr"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    known = [end for end in (*NIFTIS, *SUFFIXES) if any(name.endswith(end) for name in names)]
    # ".nii.gz" and ".nii" do not end the same names.
    if len(known) != 1:
        raise DataError(
            f"dataset.json has no file_ending, and labelsTr has {name_files(known) or 'no'} files; "
            "add file_ending"
        )
    return known[0]


def _cases(
    source: pathlib.Path, ending: str, channel: int, findings: Findings
) -> list[volumes.Case]:
    """All cases with labels; those of imagesTs are the test split where labelsTs has labels."""
    parts = {"Tr": None, "Ts": "test"}
    present = {part for part in parts if (source / f"labels{part}").is_dir()}
    if "Tr" not in present:
        raise DataError(f"there is no folder {source / 'labelsTr'}; nnU-Net wants labels there")
    if "Ts" in present and any((source / "labelsTs").glob(f"[!.]*{ending}")):
        parts["Tr"] = "train"
    else:
        present.discard("Ts")
    cases = []
    for part in sorted(present):
        pictures = source / f"images{part}"
        labels = source / f"labels{part}"
        by_case = _images(pictures, ending, channel)
        with_label = {
            path.name.removesuffix(ending): path for path in sorted(labels.glob(f"[!.]*{ending}"))
        }
        for name in sorted(by_case.keys() | with_label.keys()):
            if name not in with_label:
                findings.add("missing_label", f"images{part}/{by_case[name].name}")
            elif name not in by_case:
                findings.add("missing", f"images{part}/{name}_{channel:04d}{ending}")
            else:
                cases.append(volumes.Case(name, by_case[name], with_label[name], name, parts[part]))
    return cases


def _images(folder: pathlib.Path, ending: str, channel: int) -> dict[str, pathlib.Path]:
    """Case -> file of a channel; a file without the number of a channel has the first."""
    found = {}
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; nnU-Net wants images there")
    for path in sorted(folder.glob(f"[!.]*{ending}")):
        match = re.fullmatch(r"(.+)_(\d{4})", path.name.removesuffix(ending))
        if match is None and channel == 0:
            found[path.name.removesuffix(ending)] = path
        elif match is not None and int(match[2]) == channel:
            found[match[1]] = path
    return found


def _pictures(
    cases: Sequence[volumes.Case],
    values: LabelValues,
    source: pathlib.Path,
    reading: InputOptions,
) -> Contents:
    """Cases that are pictures, with labels that are pictures."""

    def truth(path: pathlib.Path, height: int, width: int) -> Truth:
        labels = images.read_mask(images.read_file(path))
        if labels.shape != (height, width):
            size = f"{labels.shape[1]}x{labels.shape[0]} for {width}x{height}"
            raise ScanError(f"its labels have another size: {size}")
        return values.truth(labels.astype(np.int64))

    drafts = [
        Draft(
            case.image.relative_to(source).as_posix(),
            **picture_fields(case.image, reading),
            patient=case.patient,
            split=case.split,
            truth=functools.partial(truth, case.label),
        )
        for case in cases
    ]
    return Contents(drafts, values.taken)
