"""One process at a time in a folder."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import pathlib
from collections.abc import Iterator

from ssm_jax.data.errors import DataError

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(folder: pathlib.Path, option: str) -> Iterator[None]:
    """Holds a lock file in `folder` (made if need be); the system frees it if the process dies.

    Waits while another process holds it.

    Args:
      folder: where the lock file lies.
      option: what the user sets to choose another folder, for the message.

    Raises:
      DataError: the folder can not be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / "lock").open("w")
    except OSError as error:
        raise DataError(
            f"can not write prepared data to {folder} ({error}); set {option} to a folder that can "
            "be written"
        ) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("another process is preparing %s; waiting for it", folder)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
