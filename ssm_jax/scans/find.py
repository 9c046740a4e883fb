"""Paths: files, folders, globs and zips become readable blobs, told apart by content.

A zip is never unpacked to disk: members are read into memory, one at a time and up to a limit, so
their names are labels and nothing else. Whatever is not read is named.
"""

from __future__ import annotations

import dataclasses
import glob
import io
import os
import pathlib
import stat
import zipfile
from typing import IO

from ssm_jax.scans.options import MIB, InputOptions, ScanError, check_unpacked, guarded

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
DICOMS = (".dcm", ".dicom", ".ima")
NIFTIS = (".nii", ".nii.gz")
KINDS = "DICOM, NIfTI, PNG, JPEG, TIFF or zip"
_INDEXES = ("DICOMDIR", "DIRFILE")  # lists of files on a disk of DICOM
_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"II*\x00", b"MM\x00*")
_HEAD = 352  # bytes that tell the kinds apart
_CONTROL = {*range(9), *range(14, 32)}  # characters that texts do not have


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
            with guarded("is no readable zip"):
                self._zip = zipfile.ZipFile(self.path)
        return self._zip


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

    def size(self) -> int:
        """Bytes of the content."""
        if self.archive is None:
            return os.path.getsize(self.path)
        return self.archive.open().infolist()[self.member].file_size

    def open(self) -> IO[bytes]:
        """A stream of the content.

        Raises:
          ScanError: larger than the limit, encrypted, or unreadable.
        """
        if self.size() > self.limit:
            verb = "is" if self.archive is None else "unpacks to"
            word = "larger" if self.archive is None else "more"
            raise ScanError(f"{verb} {word} than the limit of {self.limit // MIB} MiB")
        if self.archive is None:
            return open(self.path, "rb")
        info = self.archive.open().infolist()[self.member]
        # zipfile reads no more than the size that the zip's directory declares.
        check_unpacked(info.file_size, info.compress_size, "zip")
        return self.archive.open().open(info)

    def head(self) -> bytes:
        """The first bytes.

        Raises:
          ScanError: larger than the limit, or unreadable.
        """
        with guarded("cannot be read"), self.open() as stream:
            return stream.read(_HEAD)

    def seekable(self) -> IO[bytes]:
        """A stream for random access: the file, or the member in memory.

        Raises:
          ScanError: larger than the limit, or unreadable.
        """
        with guarded("cannot be read"):
            stream = self.open()
            if self.archive is None:
                return stream
            with stream:
                return io.BytesIO(stream.read(self.limit + 1))


@dataclasses.dataclass
class Found:
    """The files behind a path.

    Attributes:
      single: whether it is one file that is no zip.
      dicom: blobs.
      nifti: blobs.
      pictures: blobs.
      refused: (name, why) of what may be an image and cannot be read.
      others: names of what is no image.
      unknown: blobs of no known kind that may be damaged DICOM: beside DICOM they are.
    """

    single: bool = False
    dicom: list[Blob] = dataclasses.field(default_factory=list)
    nifti: list[Blob] = dataclasses.field(default_factory=list)
    pictures: list[Blob] = dataclasses.field(default_factory=list)
    refused: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    others: list[str] = dataclasses.field(default_factory=list)
    unknown: list[Blob] = dataclasses.field(default_factory=list)

    def images(self) -> bool:
        """Whether there is anything that may be an image."""
        return bool(self.dicom or self.nifti or self.pictures or self.refused)

    def settle(self) -> None:
        """Decides about what is unknown."""
        if self.dicom:
            self.dicom += self.unknown
        else:
            self.others += [blob.name for blob in self.unknown]
        self.unknown = []


def expand(paths: list[str]) -> list[str]:
    """Takes lists with commas apart and expands globs; names that exist are left whole."""
    whole = [[path] if os.path.lexists(path) else path.split(",") for path in paths]
    found = []
    for path in (path for part in whole for path in part):
        if glob.has_magic(path) and not os.path.lexists(path):
            found += sorted(glob.glob(path, recursive=True)) or [path]
        else:
            found.append(path)
    return found


def find(path: str, options: InputOptions) -> Found:
    """Looks at what a path holds.

    Args:
      path: file, folder (searched with its subfolders, links followed) or zip.
      options: limits.

    Raises:
      ScanError: nothing there, nothing of use in it, no file, or a zip that is encrypted, damaged,
        or larger than the limits.
    """
    found = Found()
    if not os.path.lexists(path):
        magic = glob.has_magic(path)
        raise ScanError("nothing matches this pattern" if magic else "no such file")
    if os.path.isdir(path):
        _add_folder(found, path, options)
        where = "the folder"
    else:
        _require_file(path)
        limit = options.max_file_mib * MIB
        head = Blob(path, path, max(limit, options.max_zip_mib * MIB)).head()
        if kind_of(path, head) != "zip":
            found.single = True
            _sort_in(found, Blob(path, path, limit), head)
            if found.refused:
                raise ScanError(found.refused[0][1])
            if not found.images():
                raise ScanError(f"is no {KINDS} file")
            return found
        _add_zip(found, path, options)
        where = "the zip"
    found.settle()
    if not found.images():
        raise ScanError(f"{where} holds no DICOM, NIfTI, PNG, JPEG or TIFF file")
    return found


def kind_of(name: str, head: bytes) -> str:
    """The kind of a file, by content first and by name second.

    Returns:
      "dicom", "nifti", "picture", "zip", "other", or "unknown": neither text nor named for anything
      else, as damaged DICOM files without a suffix are.
    """
    lower = name.lower()
    if head[128:132] == b"DICM":
        return "dicom"
    if lower.endswith(NIFTIS) or head[344:347] in (b"n+1", b"ni1") or head[4:7] == b"n+2":
        return "nifti"
    if lower.endswith(PICTURES) or head.startswith(_MAGIC):
        return "picture"
    if lower.endswith(DICOMS) or _begins_as_dicom(head):
        return "dicom"
    suffix = pathlib.PurePath(lower).suffix
    bare = not suffix[1:2].isalpha()
    if lower.endswith(".zip") or (head.startswith((b"PK\x03\x04", b"PK\x05\x06")) and bare):
        return "zip"
    return "unknown" if bare and not _is_text(head) else "other"


def _is_text(head: bytes) -> bool:
    """Whether a file begins as a text does; its last character may be cut."""
    letters = head.decode("utf-8", "replace")
    return bool(head) and "\ufffd" not in letters[:-1] and not set(head) & _CONTROL


def _begins_as_dicom(head: bytes) -> bool:
    """Whether this is DICOM without a preamble: its first element is one of group 2 or 8."""
    if len(head) < 8 or head[0] not in (2, 8) or head[1] or head[3]:
        return False
    length = int.from_bytes(head[4:8], "little")
    return (head[4:6].isalpha() and head[4:6].isupper()) or length < 1 << 12


def _require_file(path: str) -> None:
    """Refuses what would block or never end.

    Raises:
      ScanError: no file.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise ScanError("is a link to nothing") from None
    except OSError as error:
        raise ScanError(f"cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        raise ScanError("is a pipe, a socket or a device, which is not read")


def hidden(parts: tuple[str, ...]) -> bool:
    """Whether systems put a file there: a name with a point, one of macOS, a list of files.

    Args:
      parts: of its path within what the user named.
    """
    if parts[-1].upper() in _INDEXES:
        return True
    return any((part.startswith(".") and part.strip(".")) or part == "__MACOSX" for part in parts)


def _add_folder(found: Found, path: str, options: InputOptions) -> None:
    """Adds all that is below a folder, in order of name."""
    files, seen = [], set()

    def refuse(error: OSError) -> None:
        found.refused.append((str(error.filename), f"cannot be read: {error.strerror}"))

    for folder, inner, names in os.walk(path, onerror=refuse, followlinks=True):
        here = os.stat(folder)
        if (here.st_dev, here.st_ino) in seen:  # a link to where we have been
            inner.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        files += [pathlib.Path(folder, name) for name in names]
    for file in sorted(files):
        if hidden(file.relative_to(path).parts):
            continue
        blob = Blob(str(file), str(file), options.max_file_mib * MIB)
        try:
            _require_file(blob.path)
            if kind_of(blob.name, head := _head_of(blob, options)) == "zip":
                _add_zip(found, blob.path, options)
            else:
                _sort_in(found, blob, head)
        except ScanError as error:
            found.refused.append((blob.name, str(error)))


def _head_of(blob: Blob, options: InputOptions) -> bytes:
    """The first bytes of a file that may be as large as a zip may be."""
    return dataclasses.replace(blob, limit=max(blob.limit, options.max_zip_mib * MIB)).head()


def _sort_in(found: Found, blob: Blob, head: bytes) -> None:
    """Adds a blob under its kind."""
    kind = kind_of(blob.name, head)
    if kind == "zip":
        raise ScanError("is a zip within a zip; unpack it")
    places = {
        "dicom": found.dicom,
        "nifti": found.nifti,
        "picture": found.pictures,
        "unknown": found.unknown,
    }
    if kind in places:
        places[kind].append(blob)
    else:
        found.others.append(blob.name)


def _add_zip(found: Found, path: str, options: InputOptions) -> None:
    """Adds the members of a zip, in order of name.

    Raises:
      ScanError: encrypted, damaged, or beyond the limits.
    """
    archive = Archive(path)
    infos = archive.open().infolist()
    files = [(i, info) for i, info in enumerate(infos) if not info.filename.endswith("/")]
    if len(files) > options.max_zip_members:
        raise ScanError(f"the zip has {len(files)} members, more than {options.max_zip_members}")
    if files and all(info.flag_bits & 1 for _, info in files):
        raise ScanError("the zip is protected by a password; unpack it and give the folder")
    # Members that claim too much are refused one by one; the others must fit together.
    limit = options.max_file_mib * MIB
    total = sum(info.file_size for _, info in files if info.file_size <= limit)
    if total > options.max_zip_mib * MIB:
        raise ScanError(f"the zip unpacks to {total // MIB} MiB, more than {options.max_zip_mib}")
    for index, info in sorted(files, key=lambda item: item[1].filename):
        if hidden(tuple(info.filename.split("/"))):
            continue
        blob = Blob(f"{path}/{info.filename}", path, limit, archive, index)
        try:
            _sort_in(found, blob, blob.head())
        except ScanError as error:
            found.refused.append((blob.name, str(error)))
