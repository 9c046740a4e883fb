"""Bounds of what a server takes on."""

from __future__ import annotations

import dataclasses

_SOME = {"least": 1}


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of the server.

    Attributes:
      upload_bytes: Bytes of one upload, all its files together.
      files: Files in one upload.
      waiting: Uploads that may wait; more are refused.
      keep: Results that are kept; of more the oldest are deleted.
    """

    upload_bytes: int = dataclasses.field(default=2 << 30, metadata=_SOME)
    files: int = dataclasses.field(default=2000, metadata=_SOME)
    waiting: int = dataclasses.field(default=8, metadata=_SOME)
    keep: int = dataclasses.field(default=20, metadata=_SOME)
