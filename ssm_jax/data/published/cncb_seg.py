"""CNCB-NCOV lesion segmentation: image/<scan>/<n>.jpg with mask/<scan>/<n>.png, or flattened."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping

from ssm_jax.data.errors import DataError
from ssm_jax.data.findings import Findings
from ssm_jax.data.inspection import Slice
from ssm_jax.data.published import listing

_IMAGES, _MASKS = ("image", "images", "imgs"), ("mask", "masks")
_NAME = re.compile(r"([^_/]+)_([^_/]+)\.(?:jpe?g|png)", re.IGNORECASE)


def read(
    files: listing.SourceFiles, lists: Mapping[str, pathlib.Path], findings: Findings
) -> list[Slice]:
    """Slices named <scan>_<slice>.jpg in the lists, each with its mask.

    The folder may have the pictures as published (image/<scan>/<n>.jpg, mask/<scan>/<n>.png) or
    flattened (imgs/<scan>_<n>.jpg, masks/<scan>_<n>.png), inside other folders or not. A scan is
    taken for a patient: there is one scan a patient in the published set.

    Args:
      files: pictures of the source folder.
      lists: split -> list.
      findings: receives what is wrong.

    Raises:
      DataError: lists that can not be read, or a folder of another layout.
    """
    slices, masks = _flat(files, _IMAGES), _flat(files, _MASKS)
    for found, names in ((slices, _IMAGES), (masks, _MASKS)):
        if not found:
            raise DataError(
                f"no picture lies in a folder {' or '.join(names)} under {files.root}; set "
                "--source to a folder with image/<scan>/<n>.jpg and mask/<scan>/<n>.png, or the "
                "same flattened"
            )
    listed, result = set(), []
    for line in listing.read_lists(lists):
        name = pathlib.PurePosixPath(line.words[0]).name
        match = _NAME.fullmatch(name)
        if match is None or len(line.words) != 1:
            findings.add("bad_line", f"{line} (not <scan>_<slice>.jpg)")
            continue
        key = f"{match[1]}_{match[2]}"
        listed.add(key)
        has_slice = listing.look_up(line, slices.get(key, []), findings)
        if not has_slice:
            continue
        if not listing.look_up(line, masks.get(key, []), findings, "missing_mask"):
            continue
        image, mask = files.paths[slices[key][0]], files.paths[masks[key][0]]
        if mask.suffix.lower() != ".png":
            findings.add("unreadable_mask", f"{line.split}/{name} (its mask is no PNG file)")
            continue
        result.append(
            Slice(
                split=line.split,
                listed=name,
                name=key + image.suffix.lower(),
                path=image,
                mask=mask,
                patient=match[1],
            )
        )
    for key in sorted(slices.keys() - listed):
        findings.add("unlisted", slices[key][0])
    return result


def _flat(files: listing.SourceFiles, folders: tuple[str, ...]) -> dict[str, list[str]]:
    """Flat name without suffix -> relative paths, of the pictures below a folder of these names."""
    found: dict[str, list[str]] = {}
    for relative in files.paths:
        *parents, name = pathlib.PurePosixPath(relative).with_suffix("").parts
        depths = [k for k, parent in enumerate(parents) if parent.lower() in folders]
        if depths:
            found.setdefault("_".join([*parents[depths[-1] + 1 :], name]), []).append(relative)
    return found
