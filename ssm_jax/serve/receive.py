"""An upload as it arrives: the files of a form are written to disk under names of ours."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import unicodedata
from collections.abc import AsyncIterator, Sequence
from typing import Any, BinaryIO

import anyio.to_thread
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.exceptions import HTTPException

from ssm_jax.scans.find import DICOMS, NIFTIS, PICTURES, hidden
from ssm_jax.serve.limits import Limits

# Files are stored with one of these; the longer of two that fit is taken.
SUFFIXES = (*sorted(NIFTIS, key=len, reverse=True), ".zip", *DICOMS, *PICTURES)
FOLDER = "files"  # of the files that are no zip: the slices of a series belong together


@dataclasses.dataclass
class Received:
    """The content of an upload.

    Attributes:
      names: a name for people of each file that was stored, by its path.
      left_out: names for people of files of other kinds, which were not stored.
    """

    names: dict[pathlib.Path, str]
    left_out: list[str]


async def receive(
    content_type: str, stream: AsyncIterator[bytes], folder: pathlib.Path, limits: Limits
) -> Received:
    """Stores the files of a multipart form.

    Args:
      content_type: of the request.
      stream: its body.
      folder: for zips; other files go into `FOLDER` in it.
      limits: of files and bytes.

    Raises:
      HTTPException: no such form, damaged, too large, or without a file of a kind that is read.
      OSError: a file cannot be written.
    """
    form = _Form(content_type, folder, limits)
    try:
        async for chunk in stream:
            await anyio.to_thread.run_sync(form.write, chunk)
    finally:
        form.close()
    return form.received()


def stored_suffix(name: str) -> str | None:
    """With what a file is stored: one of `SUFFIXES`, "" for a name without any, None: not at all.

    Args:
      name: a client's file name. Scanners write names without a suffix, or ones that end with a
        number.
    """
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return suffix
    _, point, last = name.rpartition(".")
    return None if point and last[:1].isalpha() else ""


def names_for_people(names: Sequence[str]) -> list[str]:
    """Short lines of text for clients' file names, each another one.

    A name loses its folders, unless it takes them to tell it from another one.
    """
    paths = [_parts(name) for name in names]
    short = collections.Counter(parts[-1] for parts in paths)
    shown = [parts[-1] if short[parts[-1]] == 1 else "/".join(parts) for parts in paths]
    seen: collections.Counter[str] = collections.Counter()
    for index, name in enumerate(shown):
        seen[name] += 1
        if seen[name] > 1:
            shown[index] = f"{name} ({seen[name]})"
    return shown


def _parts(name: str) -> list[str]:
    """A path of a client without what leads out of it, and without control characters."""
    text = "".join(c for c in name.replace("\\", "/") if unicodedata.category(c)[0] != "C")
    return [part[-120:] for part in text.split("/") if part.strip(".")] or ["unnamed"]


class _Form:
    """Takes a multipart form apart, chunk by chunk."""

    def __init__(self, content_type: str, folder: pathlib.Path, limits: Limits) -> None:
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise _refused(400, "an upload is a multipart form; its field is called “file”")
        self._folder, self._limits = folder, limits
        self._names: list[str] = []  # of all files, as the client has them
        self._paths: list[pathlib.Path | None] = []  # None: not stored
        self._bytes, self._ended = 0, False
        self._header, self._value, self._disposition = b"", b"", b""
        self._file: BinaryIO | None = None
        (folder / FOLDER).mkdir(parents=True)
        callbacks: Any = {
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._begin,
            "on_part_data": self._on_data,
            "on_part_end": self.close,
            "on_end": self._on_end,
        }
        try:
            self._parser = MultipartParser(options[b"boundary"], callbacks)
        except FormParserError as error:
            raise _refused(400, f"the form is damaged: {error}") from error

    def write(self, chunk: bytes) -> None:
        """Takes the next part of the body."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise _refused(400, f"the form is damaged: {error}") from error

    def close(self) -> None:
        """Closes the file that is being written, if there is one."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def received(self) -> Received:
        """The files, when all has arrived."""
        if not self._names:
            raise _refused(400, "no file was uploaded: send it as the form's field “file”")
        if not self._ended:
            raise _refused(400, "the form ends early; send it again")
        stored, left_out = {}, []
        for path, raw, name in zip(
            self._paths, self._names, names_for_people(self._names), strict=True
        ):
            if path is not None:
                stored[path] = name
            elif not hidden(tuple(_parts(raw))):
                left_out.append(name)
        if not stored:
            first = left_out[0] if left_out else names_for_people(self._names)[0]
            kinds = ", ".join(SUFFIXES)
            raise _refused(415, f"{first}: files of this kind are not read; they are {kinds}")
        return Received(stored, left_out)

    def _begin(self) -> None:
        """Opens a file when the headers of its part are there."""
        _, options = parse_options_header(self._disposition)
        self._disposition = b""
        if options.get(b"name") != b"file" or b"filename" not in options:
            raise _refused(400, "the form may only have files, in its field “file”")
        if len(self._names) == self._limits.files:
            raise _refused(400, f"an upload may have {self._limits.files:,} files at most")
        name = options[b"filename"].decode("utf-8", "replace")
        suffix = None if hidden(tuple(_parts(name))) else stored_suffix(_parts(name)[-1])
        path = None
        if suffix is not None:
            place = self._folder if suffix == ".zip" else self._folder / FOLDER
            path = place / f"upload-{len(self._names):05d}{suffix}"
            self._file = path.open("xb")
        self._names.append(name)
        self._paths.append(path)

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header, self._value = b"", b""

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        self._bytes += end - start
        if self._bytes > self._limits.upload_bytes:
            most = self._limits.upload_bytes
            raise _refused(413, f"an upload may have {most:,} bytes at most")
        if self._file is not None:
            self._file.write(data[start:end])

    def _on_end(self) -> None:
        self._ended = True


def _refused(status: int, text: str) -> HTTPException:
    return HTTPException(status, text, {"connection": "close"})
