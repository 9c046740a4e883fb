"""The folder of a server: private, and gone as soon as the server is, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator

PREFIX = "ssm_jax_serve_"
# A process of its own that outlives the server: it waits for the server's end of a pipe to close,
# which even SIGKILL does, and removes the folder.
_REMOVE = "import shutil, sys; sys.stdin.read(); shutil.rmtree(sys.argv[1], ignore_errors=True)"


@contextlib.contextmanager
def private_folder() -> Iterator[pathlib.Path]:
    """Gives a folder that nobody else can look into; it is removed when the block or process ends.

    What this process writes meanwhile can only be read by its user, here and elsewhere. Folders
    that are left of servers that were killed together with all they had started, as by a power
    failure, are removed first.
    """
    _sweep()
    folder, lock = _locked()
    command = [sys.executable, "-I", "-S", "-c", _REMOVE, str(folder)]
    remover = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C and the terminal's end are not for it
    )
    before = os.umask(0o077)
    os.umask(before | 0o077)  # it may forbid more
    try:
        yield folder
    finally:
        os.umask(before)
        shutil.rmtree(folder, ignore_errors=True)
        remover.communicate()
        os.close(lock)


def _locked() -> tuple[pathlib.Path, int]:
    """A new folder, and the descriptor that holds its lock: who has the lock uses the folder."""
    while True:
        folder = pathlib.Path(tempfile.mkdtemp(prefix=PREFIX))
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():  # another server that starts may have swept it before it was locked
            return folder, lock
        os.close(lock)


def _sweep() -> None:
    """Removes folders of this user that no server holds any more."""
    for folder in pathlib.Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue
        with contextlib.suppress(BlockingIOError):
            if os.fstat(lock).st_uid == os.getuid():
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)
