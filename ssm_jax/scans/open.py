"""From what a user names to scans that can be read."""

from __future__ import annotations

from ssm_jax.scans.dicom import open_dicom
from ssm_jax.scans.find import Found, expand, find
from ssm_jax.scans.nifti import open_nifti
from ssm_jax.scans.options import InputOptions, ScanError, guarded, quiet_libraries
from ssm_jax.scans.pictures import open_pictures
from ssm_jax.scans.source import Scan, few


def open_scans(paths: list[str], options: InputOptions | None = None) -> list[Scan]:
    """Opens everything that paths mean; slices are read later.

    A folder or zip may hold several scans: each DICOM series, each NIfTI volume, and its pictures
    together. Single pictures are taken together as one scan.

    Args:
      paths: files, folders, globs and zips.
      options: window, assumptions and limits.

    Returns:
      The scans. What cannot be used is a scan with `error` set, so that it stops no other.
    """
    options = options or InputOptions()
    quiet_libraries()
    scans: list[Scan] = []
    singles = []
    for path in expand(paths):
        try:
            with guarded("cannot be read"):
                found = find(path, options)
        except ScanError as error:
            scans.append(Scan(path, "pictures", error=str(error)))
            continue
        if found.single and found.pictures:
            singles.append((len(scans), found))
            continue
        scans += _open(path, found, options)
    if singles:
        blobs = [blob for _, found in singles for blob in found.pictures]
        name = blobs[0].name if len(blobs) == 1 else f"{len(blobs)} pictures"
        scans.insert(singles[0][0], open_pictures(name, blobs, options))
    return scans


def _open(path: str, found: Found, options: InputOptions) -> list[Scan]:
    """The scans of one path."""
    scans = []
    if found.dicom:
        try:
            with guarded("cannot be read"):
                scans += open_dicom(path, found.dicom, options)
        except ScanError as error:
            scans.append(Scan(path, "dicom", error=str(error)))
    for blob in found.nifti:
        try:
            if blob.archive is not None:
                raise ScanError("a NIfTI volume in a zip is not read; unpack it")
            scans.append(open_nifti(blob.path, options))
        except ScanError as error:
            scans.append(Scan(blob.name, "nifti", error=str(error)))
    if found.pictures:
        scans.append(open_pictures(path, found.pictures, options))
    read = [scan for scan in scans if not scan.error]
    if read and found.others:
        line = f"left out: {len(found.others)} files that are no images ({few(found.others)})"
        read[0].warnings.append(line)
    return scans + [Scan(name, "pictures", error=why) for name, why in found.refused]
