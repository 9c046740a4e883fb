"""iCTCF slices by lists of <class>_<id>.jpg; the files may have their published names <id>.jpg."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping

from ssm_jax.data.folders import CLASS_NAMES
from ssm_jax.data.published import listing
from ssm_jax.data.published.findings import Findings

_NAME = re.compile(r"(\d+)_([^_]+)\.(?:jpe?g|png)", re.IGNORECASE)
_TOLD = {"nCT": 0, "pCT": 2}  # negative, positive: the start of an id


def read(
    files: listing.SourceFiles, lists: Mapping[str, pathlib.Path], findings: Findings
) -> list[listing.Slice]:
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
    used, result = set(), []
    for line in listing.read_lists(lists):
        name = pathlib.PurePosixPath(line.words[0]).name
        match = _NAME.fullmatch(name)
        if match is None or len(line.words) != 1:
            findings.add("bad_line", f"{line} (not <class>_<id>.jpg)")
            continue
        if match[1] not in ("0", "1", "2"):
            findings.add("unknown_class", str(line))
            continue
        label, told = int(match[1]), _TOLD.get(match[2][:3])
        if told is not None and told != label:
            findings.add("class_conflict", f"{line} (the name says {CLASS_NAMES[told]})")
            continue
        found = files.find(name, name.partition("_")[2])
        if not listing.look_up(line, found, findings):
            continue
        used.add(found[0])
        path = files.paths[found[0]]
        result.append(
            listing.Slice(
                split=line.split,
                listed=name,
                name=f"{label}_{match[2]}_0_0{path.suffix.lower()}",
                path=path,
                label=label,
            )
        )
    for relative in sorted(files.paths.keys() - used):
        findings.add("unlisted", relative)
    return result
