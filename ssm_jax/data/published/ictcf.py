"""iCTCF slices by lists of <class>_<id>.jpg; the files may have their published names <id>.jpg."""

from __future__ import annotations

import functools
import pathlib
import re
from collections.abc import Mapping

from ssm_jax.classes import COVID, NORMAL, PAPER, class_number
from ssm_jax.data.findings import Findings
from ssm_jax.data.inspection import Slice
from ssm_jax.data.published import listing

_NAME = re.compile(r"(\d+)_([^_]+)\.(?:jpe?g|png)", re.IGNORECASE)
_TOLD = {"nCT": NORMAL, "pCT": COVID}  # negative, positive: the start of an id


def read(
    files: listing.SourceFiles, lists: Mapping[str, pathlib.Path], findings: Findings
) -> list[Slice]:
    """Slices named <class>_<id>.jpg in the lists, class 0 normal (nCT) or 2 COVID-19 (pCT).

    iCTCF does not tell whose slice it is, so patients are None; in the prepared folder every slice
    stands as a patient of its own: <class>_<id>_0_0.jpg.

    Args:
      files: pictures of the source folder.
      lists: split -> list.
      findings: receives what is wrong.

    Raises:
      DataError: lists that can not be read.
    """
    return listing.read_classes(files, lists, findings, functools.partial(_entry, findings))


def _entry(findings: Findings, line: listing.Line) -> listing.Entry | None:
    name = pathlib.PurePosixPath(line.words[0]).name
    match = _NAME.fullmatch(name)
    if match is None or len(line.words) != 1:
        findings.add("bad_line", f"{line} (not <class>_<id>.jpg)")
        return None
    label = class_number(match[1])
    if label is None:
        findings.add("unknown_class", str(line))
        return None
    told = _TOLD.get(match[2][:3], label)
    if told != label:
        findings.add("class_conflict", f"{line} (the name says {PAPER.names[told]})")
        return None
    names = (name, name.partition("_")[2])
    return listing.Entry(name, label, f"{match[2]}_0_0", None, names)
