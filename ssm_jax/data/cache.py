"""Preparing a set once, safely: one process at a time, all or nothing, found again at once."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

import tensorflow_datasets as tfds

from ssm_jax.data.errors import DataError
from ssm_jax.data.folders import locked
from ssm_jax.data.indexed import IndexedBuilder

MEGABYTE = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)
logger = logging.getLogger(__name__)


def prepared(
    builder_class: type[IndexedBuilder], config: tfds.core.BuilderConfig, data_dir: str
) -> IndexedBuilder:
    """A builder whose records are on disk; they are written if they are not there yet.

    Records are written to another folder that is renamed when complete, so that a preparation
    that was killed leaves nothing that counts; what it left is removed. Other processes that want
    the same set wait.

    Args:
      builder_class: one of the builders.
      config: its config; the name identifies the content.
      data_dir: where prepared sets are kept; "~" is expanded.

    Raises:
      DataError: the data are unusable, or data_dir can not be written.
    """
    root = pathlib.Path(data_dir).expanduser()

    def find() -> IndexedBuilder:
        with _quiet_tfds():
            return builder_class(config=config, data_dir=root, file_format="array_record")

    builder = find()
    if _complete(builder):
        return builder
    home = pathlib.Path(builder.data_dir).parent  # <root>/<builder>/<config>
    with locked(home, "config.data.data_dir"):
        builder = find()
        if not _complete(builder):  # nobody made it while this process waited
            for leftover in home.iterdir():
                if leftover.is_dir():
                    shutil.rmtree(leftover)
            logger.info("preparing %s in %s, once", builder.name, home)
            _write(builder, home)
    return builder


def _complete(builder: IndexedBuilder) -> bool:
    """Whether records and index are there, with as many entries as records."""
    index = builder.info.metadata or {}
    with _quiet_tfds():
        found = builder.is_prepared()
    return found and all(
        len(index.get(split, {}).get(field, ())) == builder.info.splits[split].num_examples
        for split in builder.split_names
        for field in builder.index_fields
    )


def _write(builder: IndexedBuilder, home: pathlib.Path) -> None:
    """Writes the records.

    Raises:
      DataError: the data are unusable, or the disk is full.
    """
    try:
        # For downloads, of which there are none; in here the next start removes what a kill leaves.
        with tempfile.TemporaryDirectory(dir=home) as empty, _quiet_tfds():
            builder.download_and_prepare(download_dir=empty)
    except (OSError, RuntimeError) as error:  # the latter is how records tell it
        if getattr(error, "errno", None) not in _FULL and not any(
            os.strerror(number) in str(error) for number in _FULL
        ):
            raise
        free = shutil.disk_usage(home).free / MEGABYTE
        raise DataError(
            f"can not write prepared data to {home}: the disk is full; they take about "
            f"{builder.estimated_bytes() / MEGABYTE:.1f} MiB, and {free:.1f} are free. Make room, "
            "or set config.data.data_dir to a folder on another disk"
        ) from error


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """Holds back what tfds says of downloads and configs; errors pass."""

    def is_error(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    absl_logger = logging.getLogger("absl")
    absl_logger.addFilter(is_error)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        absl_logger.removeFilter(is_error)
