"""Slices in three classes: COVIDx-CT lists, and flat lists named after CNCB's patients."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping, Sequence

from ssm_jax.classes import PAPER, class_number
from ssm_jax.data.errors import DataError, name_files
from ssm_jax.data.findings import Findings
from ssm_jax.data.inspection import Slice
from ssm_jax.data.published import listing

CNCB_FOLDERS = ("Normal", "CP", "NCP")  # CNCB's names of our classes 0, 1, 2
_FLAT = re.compile(r"(\d+)_([^_]+)_([^_]+)_([^_]+)\.(?:png|jpe?g)", re.IGNORECASE)
_CNCB = re.compile(r"(Normal|CP|NCP)_([^_]+)_([^_]+)_([^_]+)")
# Sources whose names tell the class, besides CNCB's.
_NAMED_CLASS = (
    re.compile(r"COVIDCTMD-normal.*|(?:cd)?normal.*_patient.*|LIDC-IDRI-.*"),
    re.compile(r"COVIDCTMD-cap.*"),
    re.compile(r"COVIDCTMD-P\d.*|\d*covid_patient.*|STOIC-.*|volume-covid.*|coronacases_.*"),
)
# Other sources of COVIDx-CT-2 and 3: who is shown, and which picture it is. "_1" after the number
# of a TCIA volume is a second scan.
_PATIENTS = (
    re.compile(r"(?P<scan>\w+)_(?P<patient>patient\d+)_(?P<more>.+)_(?P<slice>[^_]+)"),
    re.compile(
        r"(?P<patient>volume-covid19-A-\d+|LIDC-IDRI-\d+|COVIDCTMD-[A-Za-z]+\d+|HUST-Patient\d+"
        r"|STOIC-\d+|coronacases_\d+|radiopaedia_\d+_\d+|radiopaedia-\d+|study_\d+|A\d+)"
        r"(?P<scan>.*)[-_](?P<slice>[^-_]+)"
    ),
    re.compile(r"(?P<patient>.+)(?P<scan>)[-_](?P<slice>[^-_]+)"),
)


def find_lists(root: pathlib.Path) -> dict[str, pathlib.Path]:
    """COVIDx-CT lists right in a folder: split -> file, of those that are there.

    Raises:
      DataError: several versions lie side by side.
    """
    lists = {}
    for split in listing.SPLITS:
        found = sorted(root.glob(f"{split}_COVIDx*CT*.txt"))
        if len(found) > 1:
            raise DataError(
                f"{root} has several lists for {split}: {name_files(p.name for p in found)}; say "
                "which with --train_list, --val_list and --test_list"
            )
        if found:
            lists[split] = found[0]
    return lists


def class_order(names: Sequence[str]) -> tuple[int, ...]:
    """Our class of every class of a list.

    COVIDx-CT-1, 2 and 3 number their classes 0 normal, 1 pneumonia, 2 COVID-19: in our order.

    Args:
      names: "normal", "cp" and "covid" in the order of the list's classes.

    Raises:
      DataError: other names, or not all of them.
    """
    if sorted(names) != sorted(PAPER.names):
        raise DataError(
            f"--class_order={','.join(names)} has to name {', '.join(PAPER.names)}, each once, in "
            "the order of the list's classes 0, 1, 2"
        )
    return tuple(PAPER.names.index(name) for name in names)


def read(
    files: listing.SourceFiles,
    lists: Mapping[str, pathlib.Path],
    findings: Findings,
    order: Sequence[int] = (0, 1, 2),
) -> list[Slice]:
    """Slices of lists in either form; the forms may be mixed.

    COVIDx-CT: `<file> <class> <xmin> <ymin> <xmax> <ymax>` a line; the box (of the body) is not
    used. Flat: `<class>_<patient>_<scan>_<slice>.png` a line, in our classes; the file may have
    that name, or COVIDx-CT's (Normal_..., CP_..., NCP_...), or lie in CNCB's own folders
    (<Normal|CP|NCP>/<patient>/<scan>/<slice>.png or .jpg).

    Args:
      files: pictures of the source folder.
      lists: split -> list.
      findings: receives what is wrong.
      order: our class of the classes of COVIDx-CT lines.

    Raises:
      DataError: lists that can not be read.
    """

    def understand(line: listing.Line) -> listing.Entry | None:
        if len(line.words) == 1:
            return _flat_entry(findings, line)
        return _covidx_entry(findings, order, line)

    return listing.read_classes(files, lists, findings, understand)


def patient_of(stem: str) -> tuple[str, str, str]:
    """Patient, scan and slice by a file name of COVIDx-CT without suffix; none has a "_"."""
    match = _CNCB.fullmatch(stem)
    if match:
        return match[2], match[3], match[4]
    for form in _PATIENTS:
        match = form.fullmatch(stem)
        if match:
            parts = match.groupdict()
            scan = f"{parts['scan']}-{parts.get('more') or ''}"
            return _plain(parts["patient"]), _plain(scan) or "0", _plain(parts["slice"]) or "0"
    return _plain(stem), "0", "0"


def _plain(text: str) -> str:
    return re.sub(r"[_\s]+", "-", text).strip("-")


def _flat_entry(findings: Findings, line: listing.Line) -> listing.Entry | None:
    """<class>_<patient>_<scan>_<slice>.png, in our classes."""
    name = pathlib.PurePosixPath(line.words[0]).name
    match = _FLAT.fullmatch(name)
    if match is None:
        findings.add("bad_line", f"{line} (not <class>_<patient>_<scan>_<slice>.png)")
        return None
    label, parts = class_number(match[1]), match.groups()[1:]
    if label is None:
        findings.add("unknown_class", str(line))
        return None
    folder, rest = CNCB_FOLDERS[label], "_".join(parts)
    raw = f"{folder}/{'/'.join(parts)}"
    names = (name, f"{folder}_{rest}.png", f"{raw}.png", f"{raw}.jpg")
    return listing.Entry(line.words[0], label, rest, parts[0], names)


def _covidx_entry(
    findings: Findings, order: Sequence[int], line: listing.Line
) -> listing.Entry | None:
    """<file> <class> <xmin> <ymin> <xmax> <ymax>, the class in the order of the list."""
    name, listed, *box = line.words
    if len(box) != 4 or not all(re.fullmatch(r"-?\d+", value) for value in (listed, *box)):
        findings.add("bad_line", f"{line} (not <file> <class> <xmin> <ymin> <xmax> <ymax>)")
        return None
    if int(listed) not in range(len(order)):
        findings.add("unknown_class", str(line))
        return None
    label = order[int(listed)]
    stem = pathlib.PurePosixPath(name).stem
    told = _told_class(stem)
    if told is not None and told != label:
        findings.add("class_conflict", f"{line} (the name says {PAPER.names[told]})")
        return None
    parts = patient_of(stem)
    names = (name, pathlib.PurePosixPath(name).name)
    return listing.Entry(name, label, "_".join(parts), parts[0], names)


def _told_class(stem: str) -> int | None:
    """The class that the name of a COVIDx-CT file tells."""
    match = _CNCB.fullmatch(stem)
    if match:
        return CNCB_FOLDERS.index(match[1])
    told = [label for label, form in enumerate(_NAMED_CLASS) if form.fullmatch(stem)]
    return told[0] if told else None
