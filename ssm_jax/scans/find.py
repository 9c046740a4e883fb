"""What paths mean: files, folders, globs and zips become readable blobs, told apart by content.

A zip is never unpacked to disk: members are read into memory, one at a time and up to a limit, so
their names are labels and nothing else.
"""

from __future__ import annotations

import dataclasses
import glob
import io
import os
import pathlib
import zipfile
import zlib
from typing import BinaryIO

from ssm_jax.scans.options import InputOptions, ScanError

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
DICOMS = (".dcm", ".dicom", ".ima")
NIFTIS = (".nii", ".nii.gz")
KINDS = "DICOM, NIfTI, PNG, JPEG, TIFF or zip"
_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"II*\x00", b"MM\x00*")
_HEAD = 352  # bytes that tell the kinds apart
_MIB = 1 << 20
_DAMAGED = (OSError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error)
# Deflate reaches 1032; CT slices reach 20 where most is air.
_MAX_RATIO, _RATIO_FROM = 200, 16 * _MIB


class Archive:
    """A zip that opens when it is read."""

    def __init__(self, path: str):
        """Takes the path of a zip file."""
        self.path = path
        self._zip: zipfile.ZipFile | None = None

    def open(self) -> zipfile.ZipFile:
        """The zip, opened once.

        Raises:
          ScanError: no readable zip.
        """
        if self._zip is None:
            try:
                self._zip = zipfile.ZipFile(self.path)
            except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
                raise ScanError(f"{self.path} is no readable zip: {error}") from error
        return self._zip

    def close(self) -> None:
        """Closes it; reading opens it again."""
        if self._zip is not None:
            self._zip.close()
            self._zip = None


@dataclasses.dataclass(frozen=True)
class Blob:
    """A file, or a member of a zip.

    Attributes:
      name: for people; of a member the zip's path and the member's name.
      path: of the file, or of the zip.
      limit: bytes that may be read.
      archive: the zip, or None.
      member: number of the member in it.
    """

    name: str
    path: str
    limit: int
    archive: Archive | None = None
    member: int = 0

    def open(self) -> BinaryIO:
        """A stream of the content.

        Raises:
          ScanError: larger than the limit.
        """
        if self.archive is None:
            if os.path.getsize(self.path) > self.limit:
                raise ScanError(f"is larger than the limit of {self.limit // _MIB} MiB")
            return open(self.path, "rb")
        info = self.archive.open().infolist()[self.member]
        # zipfile reads no more than the size that the zip's directory declares.
        if info.file_size > self.limit:
            raise ScanError(f"unpacks to more than the limit of {self.limit // _MIB} MiB")
        if info.file_size > max(_RATIO_FROM, _MAX_RATIO * info.compress_size):
            raise ScanError("is compressed beyond what images are: refused as a zip bomb")
        return self.archive.open().open(info)

    def head(self) -> bytes:
        """The first bytes.

        Raises:
          ScanError: larger than the limit, or unreadable.
        """
        try:
            with self.open() as stream:
                return stream.read(_HEAD)
        except _DAMAGED as error:
            raise ScanError(f"cannot be read: {error}") from error

    def seekable(self) -> BinaryIO:
        """A stream for random access: the file, or the member in memory.

        Raises:
          ScanError: larger than the limit.
        """
        stream = self.open()
        if self.archive is None:
            return stream
        with stream:
            return io.BytesIO(stream.read(self.limit + 1))


@dataclasses.dataclass
class Found:
    """What a path holds.

    Attributes:
      path: as given.
      single: whether it is one file that is no zip.
      dicom: blobs.
      nifti: blobs.
      pictures: blobs.
      refused: (name, why) of what looks like an image and cannot be read.
      others: names of what is no image.
      archive: the zip, or None.
    """

    path: str
    single: bool = False
    dicom: list[Blob] = dataclasses.field(default_factory=list)
    nifti: list[Blob] = dataclasses.field(default_factory=list)
    pictures: list[Blob] = dataclasses.field(default_factory=list)
    refused: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    others: list[str] = dataclasses.field(default_factory=list)
    archive: Archive | None = None


def expand(paths: list[str]) -> list[str]:
    """Takes lists with commas apart and expands globs; names that exist are left whole."""
    whole = [[path] if pathlib.Path(path).exists() else path.split(",") for path in paths]
    found = []
    for path in (path for part in whole for path in part):
        if glob.has_magic(path) and not pathlib.Path(path).exists():
            found += sorted(glob.glob(path, recursive=True)) or [path]
        else:
            found.append(path)
    return found


def find(path: str, options: InputOptions) -> Found:
    """Looks at what a path holds.

    Args:
      path: file, folder (searched with its subfolders) or zip.
      options: limits.

    Raises:
      ScanError: nothing there, nothing of use in it, or a zip that is encrypted, damaged, or
        larger than the limits.
    """
    limit = options.max_file_mib * _MIB
    if glob.has_magic(path) and not pathlib.Path(path).exists():
        raise ScanError("nothing matches this pattern")
    if not pathlib.Path(path).exists():
        raise ScanError("no such file")
    found = Found(path)
    if pathlib.Path(path).is_dir():
        for file in sorted(p for p in pathlib.Path(path).rglob("*") if p.is_file()):
            _sort_in(found, Blob(str(file), str(file), limit), file.relative_to(path).parts)
        where = "the folder"
    else:
        head = Blob(path, path, max(limit, options.max_zip_mib * _MIB)).head()
        if kind_of(path, head) != "zip":
            found.single = True
            _sort_in(found, Blob(path, path, limit), ())
            if found.refused:
                raise ScanError(found.refused[0][1])
            if found.others:
                raise ScanError(f"is no {KINDS} file")
            return found
        found.archive = Archive(path)
        for blob, parts in _members(found.archive, options):
            _sort_in(found, blob, parts)
        where = "the zip"
    if not (found.dicom or found.nifti or found.pictures or found.refused):
        raise ScanError(f"{where} holds no DICOM, NIfTI, PNG, JPEG or TIFF file")
    return found


def kind_of(name: str, head: bytes) -> str:
    """ "dicom", "nifti", "picture", "zip" or "other", by content first and by name second."""
    lower = name.lower()
    if head[128:132] == b"DICM":
        return "dicom"
    if lower.endswith(NIFTIS) or head[344:347] in (b"n+1", b"ni1") or head[4:7] == b"n+2":
        return "nifti"
    if lower.endswith(PICTURES) or head.startswith(_MAGIC):
        return "picture"
    if lower.endswith(DICOMS):
        return "dicom"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")) or lower.endswith(".zip"):
        return "zip"
    return "other"


def _sort_in(found: Found, blob: Blob, parts: tuple[str, ...]) -> None:
    """Adds a blob under its kind; what systems hide beside files is passed over."""
    if any((part.startswith(".") and part.strip(".")) or part == "__MACOSX" for part in parts):
        return
    try:
        kind = kind_of(blob.name, blob.head())
    except ScanError as error:
        found.refused.append((blob.name, str(error)))
        return
    places = {"dicom": found.dicom, "nifti": found.nifti, "picture": found.pictures}
    if kind in places:
        places[kind].append(blob)
    else:
        found.others.append(blob.name)


def _members(archive: Archive, options: InputOptions) -> list[tuple[Blob, tuple[str, ...]]]:
    """The members of a zip, in order of name.

    Raises:
      ScanError: encrypted, or beyond the limits.
    """
    infos = archive.open().infolist()
    files = [(i, info) for i, info in enumerate(infos) if not info.is_dir()]
    if len(files) > options.max_zip_members:
        raise ScanError(f"the zip has {len(files)} members, more than {options.max_zip_members}")
    if any(info.flag_bits & 1 for _, info in files):
        raise ScanError("the zip is protected by a password; unpack it and give the folder")
    # Members that claim too much are refused one by one; the others must fit together.
    limit = options.max_file_mib * _MIB
    total = sum(info.file_size for _, info in files if info.file_size <= limit)
    if total > options.max_zip_mib * _MIB:
        raise ScanError(f"the zip unpacks to {total // _MIB} MiB, more than {options.max_zip_mib}")
    files.sort(key=lambda item: item[1].filename)
    return [
        (
            Blob(f"{archive.path}/{info.filename}", archive.path, limit, archive, index),
            tuple(info.filename.split("/")),
        )
        for index, info in files
    ]
