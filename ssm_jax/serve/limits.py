"""Bounds of what a server takes on."""

from __future__ import annotations

import dataclasses

_SOME = {"least": 1}


def _field(default: int) -> int:
    return dataclasses.field(default=default, metadata=_SOME)


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of the server.

    Attributes:
      upload_bytes: Bytes of one upload, all its files together.
      files: Files in one upload.
      waiting: Uploads that may wait; more are refused.
      keep: Results that are kept; of more the oldest are deleted.
      idle_seconds: Seconds without a byte after which an upload is broken off.
      bytes_per_second: Of an upload, on average after its first minute; a slower one is broken off.
      read_seconds: Seconds that opening an upload, reading a slice, or writing a file of masks may
        take.
      read_mib: Memory of the process that reads uploads, MiB.
    """

    upload_bytes: int = _field(2 << 30)
    files: int = _field(2000)
    waiting: int = _field(8)
    keep: int = _field(20)
    idle_seconds: int = _field(15)
    bytes_per_second: int = _field(16 << 10)
    read_seconds: int = _field(120)
    read_mib: int = _field(4096)
