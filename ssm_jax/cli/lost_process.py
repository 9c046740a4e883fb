"""Stands between native libraries and stderr, and says in one line that a job lost a process.

JAX's service ends a process whose job has lost another one with a page of text, from a thread that
Python does not see. `watch` sends what native libraries print through a program, this file, that
passes everything on but that page. Python's own stderr stays as it is.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable
from typing import BinaryIO

LOST = b"this job lost a process\n"  # as `tell` has it said
_PAGE = re.compile(rb"[EF]\d{4} .*(coordination_service|preemption_sync|distributed service)")
_FATAL = b"the JAX distributed service detected fatal errors"


def watch(line: str) -> None:
    """Has `line` said once where JAX's service ends this process, or `tell` is called."""
    own = os.dup(2)
    command = [sys.executable, "-S", "-E", __file__, line]
    watcher = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=own)
    assert watcher.stdin is not None
    os.dup2(watcher.stdin.fileno(), 2)
    sys.stderr = os.fdopen(own, "w", buffering=1)
    for handler in logging.getLogger("ssm_jax").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)


def tell() -> None:
    """Has the line said, of a process that is watched and ends now."""
    os.write(2, LOST)


def pass_on(lines: Iterable[bytes], out: BinaryIO, line: bytes) -> None:
    """Writes lines as they come; from the first of the service's on they are held back.

    Args:
      lines: what native libraries print, to its end.
      out: where it goes.
      line: takes the place of the service's page, if the service ended the process.
    """
    held: list[bytes] = []
    for text in lines:
        if held or text == LOST or _PAGE.match(text):
            held.append(text)
        else:
            out.write(text)
            out.flush()
    page = b"".join(held)
    out.write(line + b"\n" if LOST in page or _FATAL in page else page)
    out.flush()


def main() -> None:
    """The program; it ends when all that print have ended, whatever signals come."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    pass_on(sys.stdin.buffer, sys.stderr.buffer, os.fsencode(sys.argv[1]))


if __name__ == "__main__":
    main()
