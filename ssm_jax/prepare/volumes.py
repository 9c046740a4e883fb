"""Volumes with labels: their slices as `ssm-jax predict` shows them, and the labels beside."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence

from ssm_jax.data.errors import DataError
from ssm_jax.data.findings import Findings
from ssm_jax.data.folders import progress
from ssm_jax.data.published.listing import SPLITS
from ssm_jax.prepare import tables
from ssm_jax.prepare.drafts import Contents, Draft, Truth
from ssm_jax.prepare.labels import LabelValues, VolumeLabels, open_labels, taken_of
from ssm_jax.prepare.options import ReadOptions
from ssm_jax.scans.find import NIFTIS
from ssm_jax.scans.open import open_scans
from ssm_jax.scans.options import InputOptions, ScanError
from ssm_jax.scans.source import Scan

IMAGES, LABELS = "images", "labels"  # folders of a source


@dataclasses.dataclass(frozen=True)
class Case:
    """A volume and its labels.

    Attributes:
      name: in messages and in names of slices.
      image: NIfTI file, DICOM file, or folder of a DICOM series.
      label: NIfTI file, DICOM segmentation, or a folder with one.
      patient: whose volume it is.
      split: None where the source does not say.
    """

    name: str
    image: pathlib.Path
    label: pathlib.Path
    patient: str
    split: str | None = None


def read(
    source: pathlib.Path, options: ReadOptions, reading: InputOptions, findings: Findings
) -> Contents:
    """Volumes with labels, from images/ and labels/ or a table.

    The source has a folder images with a volume or a folder of DICOM files a case, and a folder
    labels with labels of the same names; or `labels` names a CSV file with the columns image and
    label, and perhaps patient and split, whose paths start at the source. NIfTI labels are named by
    `label_name`, segments of DICOM segmentations by themselves.

    Raises:
      DataError: a source of another layout, or values without names.
    """
    cases = _table(source, options.labels, findings) if options.labels else _pairs(source, findings)
    return contents(cases, _values(options), options, reading, findings)


def contents(
    cases: Sequence[Case],
    named: Mapping[str, tuple[int, ...]],
    options: ReadOptions,
    reading: InputOptions,
    findings: Findings,
    ignored: int | None = None,
) -> Contents:
    """The slices of volumes.

    Args:
      cases: the volumes.
      named: name of a label -> its values; empty where labels name themselves.
      options: which labels are taken, and which slices.
      reading: how volumes are read.
      findings: receives what is wrong.
      ignored: value of pixels that nobody judged, whose slices are left out; None: there is none.
    """
    opened = [
        one
        for case in progress(cases, len(cases), "opening volumes")
        if (one := _opened(case, reading, findings)) is not None
    ]
    own = {name for _, _, labels in opened for name in (labels.names or {}).values()}
    taken = taken_of([*named, *sorted(own)], options)
    if opened and not taken:
        raise DataError("no label has a name; give them names with --label_name=VALUE=NAME")
    drafts: list[Draft] = []
    for case, scan, labels in opened:
        values = dict(named) if labels.names is None else _by_name(labels.names)
        reader = LabelValues(values, taken, ignored)
        drafts += _drafts(case, scan, labels, reader, options.lesions_only)
    first = opened[0][1].facts if opened else {}
    return Contents(drafts, taken, (), {name: first[name] for name in ("Values",) if name in first})


def _by_name(names: Mapping[int, str]) -> dict[str, tuple[int, ...]]:
    """Name -> its values: several segments may have one name."""
    return {
        name: tuple(value for value, other in names.items() if other == name)
        for name in names.values()
    }


def _opened(
    case: Case, reading: InputOptions, findings: Findings
) -> tuple[Case, Scan, VolumeLabels] | None:
    """A case with its scan and labels; None, after noting why, where they cannot be used."""
    for path, kind in ((case.image, "missing"), (case.label, "missing_label")):
        if not path.exists():
            findings.add(kind, f"{case.name}: {path.name}")
            return None
    scans = open_scans([str(case.image)], reading)
    errors = [scan.error for scan in scans if scan.error]
    if len(scans) != 1 or errors:
        why = errors[0] if errors else f"holds {len(scans)} scans; leave one in it"
        findings.add("unreadable_volume", f"{case.name} ({case.image.name} {why})")
        return None
    for warning in scans[0].warnings:
        findings.add("volume_warning", f"{case.name} ({warning})")
    if any(slice_.aspect != 1 for slice_ in scans[0].slices):
        findings.add("not_square", case.name)
    try:
        return case, scans[0], open_labels(case.label, scans[0], reading)
    except ScanError as error:
        findings.add("unreadable_labels", f"{case.name} ({case.label.name} {error})")
        return None


def _drafts(
    case: Case, scan: Scan, labels: VolumeLabels, values: LabelValues, lesions_only: bool
) -> list[Draft]:
    """The slices of a case, in the order of the scan."""

    def truth(index: int, height: int, width: int) -> Truth:
        found = values.truth(labels.of_slice(index, height, width))
        if lesions_only and not found.skip and not found.mask.any():
            return dataclasses.replace(found, skip="without_lesion")
        return found

    def release() -> None:
        scan.release()
        labels.release()

    drafts = [
        Draft(
            f"{case.name} slice {index}",
            slice_.read,
            patient=case.patient,
            split=case.split,
            truth=functools.partial(truth, index),
            volume=case.name,
            number=index,
        )
        for index, slice_ in enumerate(scan.slices)
    ]
    return [*drafts[:-1], *(dataclasses.replace(draft, release=release) for draft in drafts[-1:])]


def _pairs(source: pathlib.Path, findings: Findings) -> list[Case]:
    """Cases of the folders images and labels."""
    for name in (IMAGES, LABELS):
        if not (source / name).is_dir():
            raise DataError(
                f"there is no folder {source / name}; put volumes in {IMAGES} and their labels, of "
                f"the same names, in {LABELS}, or list them in a CSV file and give it as --labels"
            )
    images, labels = _by_stem(source / IMAGES, findings), _by_stem(source / LABELS, findings)
    for stem in sorted(labels.keys() - images.keys()):
        findings.add("missing", f"{stem}: no volume of this name is in {IMAGES}")
    cases = []
    for stem, image in images.items():
        if stem in labels:
            cases.append(Case(stem, image, labels[stem], stem))
        else:
            findings.add("missing_label", f"{stem}: no labels of this name are in {LABELS}")
    return cases


def _by_stem(folder: pathlib.Path, findings: Findings) -> dict[str, pathlib.Path]:
    """Name without suffix -> volume or folder."""
    found: dict[str, pathlib.Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir() or path.name.lower().endswith((*NIFTIS, ".dcm")):
            stem = path.name if path.is_dir() else stem_of(path.name)
            if stem in found:
                findings.add("ambiguous", f"{stem} ({found[stem].name}, {path.name})")
            found.setdefault(stem, path)
        else:
            findings.add("unlisted", f"{folder.name}/{path.name}")
    return found


def stem_of(name: str) -> str:
    """A file name without .nii.gz, or another suffix."""
    return name[:-7] if name.lower().endswith(".nii.gz") else pathlib.PurePath(name).stem


def _table(source: pathlib.Path, table: pathlib.Path, findings: Findings) -> list[Case]:
    """Cases of a CSV file."""
    cases: dict[str, Case] = {}
    for where, cells in tables.csv_rows(table, "--labels", ("image", "label")):
        split = cells.get("split") or None
        if not cells["image"] or not cells["label"]:
            findings.add("bad_line", f"{where} (no image or no label)")
        elif split not in (None, *SPLITS):
            findings.add("bad_line", f"{where} (split {split!r} is none of {', '.join(SPLITS)})")
        elif cells["image"] in cases:
            findings.add("repeated_entry", f"{where} ({cells['image']})")
        else:
            image, name = source / cells["image"], stem_of(cells["image"].rstrip("/"))
            patient = cells.get("patient") or name
            label = source / cells["label"]
            cases[cells["image"]] = Case(cells["image"], image, label, patient, split)
    return list(cases.values())


def _values(options: ReadOptions) -> dict[str, tuple[int, ...]]:
    """Name -> values, of the flag `label_name`."""
    named: dict[str, tuple[int, ...]] = {}
    for text in options.label_name:
        number, _, name = text.partition("=")
        if not number.strip().isdecimal() or not name.strip():
            raise DataError(f"--label_name={text} has to be VALUE=NAME, such as 1=tumor")
        named[name.strip()] = (*named.get(name.strip(), ()), int(number))
    return named
