"""Writing a checked set as a folder in the layout that the builders read, all or nothing."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Sequence

from ssm_jax.data.errors import DataError
from ssm_jax.data.folders import progress
from ssm_jax.data.inspection import NUMBERS, Slice, file_stamp
from ssm_jax.data.published.listing import MARK

LINKS = ("auto", "hard", "symbolic", "copy")
_NO_HARD_LINK = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS)


def tree_files(slices: Sequence[Slice]) -> dict[str, pathlib.Path]:
    """Relative path in the prepared folder -> source file, of all slices and masks.

    <split>/imgs/<name> with <split>/masks/<stem>.png where a slice has a mask, and with
    <split>/instances/<stem>.png where its objects have numbers; else <split>/<name>.
    """
    files = {}
    for item in slices:
        if item.mask is None:
            files[f"{item.split}/{item.name}"] = item.path
        else:
            files[f"{item.split}/imgs/{item.name}"] = item.path
            stem = pathlib.PurePath(item.name).stem
            files[f"{item.split}/masks/{stem}.png"] = item.mask
            if item.numbers is not None:
                files[f"{item.split}/{NUMBERS}/{stem}.png"] = item.numbers
    return files


def fingerprint(files: dict[str, pathlib.Path], options: Sequence[str]) -> str:
    """Hex digits that change when a file is another, or `options` are."""
    digest = hashlib.sha256(json.dumps(list(options)).encode())
    for name, path in sorted(files.items()):
        digest.update(json.dumps([name, str(path), *file_stamp(path)]).encode())
    return digest.hexdigest()


def is_complete(tree: pathlib.Path, key: str) -> bool:
    """Whether `tree` was finished with this fingerprint and its files are all still there."""
    try:
        mark = json.loads((tree / MARK).read_text(encoding="utf-8"))
        return mark["fingerprint"] == key and mark["listing"] == _listing(tree)
    except (OSError, ValueError, KeyError):
        return False


def _listing(tree: pathlib.Path) -> str:
    """Hex digits that change when a file of a split is added, removed or resized."""
    present = sorted(
        [path.relative_to(tree).as_posix(), path.stat().st_size]
        for path in tree.glob("*/**/*")
        if path.is_file() and not path.name.startswith(".")
    )
    return hashlib.sha256(json.dumps(present).encode()).hexdigest()


def check_owned(tree: pathlib.Path) -> None:
    """Raises DataError where `tree` has something that this module did not write."""
    if tree.exists() and not (tree / MARK).is_file() and not _is_empty(tree):
        raise DataError(
            f"{tree} is there already and was not made by this program; remove it, or set --name "
            "or --data_dir to another"
        )


def _is_empty(tree: pathlib.Path) -> bool:
    return tree.is_dir() and not any(tree.iterdir())


def write(
    tree: pathlib.Path, state: pathlib.Path, files: dict[str, pathlib.Path], key: str, link: str
) -> None:
    """Makes `tree` of the files, in place of an earlier one.

    The files are put in a folder inside `state` that is renamed when complete: a process that is
    killed leaves no half folder, and the next one starts clean.

    Args:
      tree: the folder to make.
      state: a folder on the same disk, held by this process alone.
      files: see `tree_files`; files in `state` are the program's own, and linked or copied.
      key: see `fingerprint`.
      link: "hard" or "symbolic" links, "copy", or "auto": hard links where the disk allows them,
        copies elsewhere.

    Raises:
      DataError: `tree` is not this program's, or hard links are asked for and not possible.
      OSError: no space, or no right to write.
    """
    check_owned(tree)
    partial, old = state / "partial", state / "old"
    for folder in (partial, old):
        shutil.rmtree(folder, ignore_errors=True)
    partial.mkdir(parents=True)
    for name in sorted({str(pathlib.PurePosixPath(name).parent) for name in files}):
        (partial / name).mkdir(parents=True, exist_ok=True)
    for name, path in progress(files.items(), len(files), f"writing {tree.name}"):
        if link == "symbolic" and path.is_relative_to(state):
            _put(path, partial / name, "auto")
        else:
            link = _put(path, partial / name, link)
    mark = {"fingerprint": key, "files": len(files), "listing": _listing(partial)}
    (partial / MARK).write_text(json.dumps(mark) + "\n", encoding="utf-8")
    if tree.exists():
        os.replace(tree, old)
    os.replace(partial, tree)
    shutil.rmtree(old, ignore_errors=True)


def _put(source: pathlib.Path, target: pathlib.Path, link: str) -> str:
    """Links or copies a file; returns how the next one is to be done."""
    if link == "symbolic":
        target.symlink_to(source.resolve())
        return link
    if link in ("auto", "hard"):
        try:
            os.link(source.resolve(), target)
            return link
        except OSError as error:
            if error.errno not in _NO_HARD_LINK:
                raise
            if link == "hard":
                raise DataError(
                    f"no hard link to {source} can be made in {target.parent} ({error.strerror}); "
                    "set --link to symbolic or copy"
                ) from error
    shutil.copy2(source, target)
    return "copy"
