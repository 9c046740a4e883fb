"""The folder of a run: one process at a time, and one configuration for good."""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Mapping
from typing import IO, Any

from ssm_jax import files
from ssm_jax.checkpoints import FOLDER, CheckpointError, describe, step_folders
from ssm_jax.classes import of_run
from ssm_jax.config import default_config

CONFIG_FILE = "config.json"
LOCK_FILE = ".lock"

# Fields (or sections, with the dot) that do not change what is computed.
NEUTRAL = ("data.data_dir", "data.threads", "data.prefetch", "eval.overlays", "checkpoint.", "log.")
# Fields that only decide where a run ends, unless the learning rate decays towards it.
LENGTH = ("train.epochs", "train.max_steps")


class WorkdirError(ValueError):
    """A working directory that this run cannot use."""


def locked(workdir: pathlib.Path) -> IO[str]:
    """Holds the folder for this process, until a `with` block of the result ends.

    Raises:
      WorkdirError: another process holds it.
    """
    try:
        return files.lock(workdir / LOCK_FILE)
    except BlockingIOError as error:
        raise WorkdirError(f"another process is training in {workdir}") from error


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Fields that make a different run of it, one line each: "name: old -> new".

    Left out: fields that do not change what is computed, and the length of the run where the
    learning rate does not depend on it.

    Args:
      old: nested dicts.
      new: nested dicts.

    Returns:
      Lines in the order of the names.
    """
    old, new = (flatten(json.loads(json.dumps(config))) for config in (old, new))
    constant = all(config.get("train.schedule") == "constant" for config in (old, new))
    free = NEUTRAL + (LENGTH if constant else ())

    def is_free(name: str) -> bool:
        return any(name == f or (f.endswith(".") and name.startswith(f)) for f in free)

    def shown(config: Mapping[str, Any], name: str) -> str:
        return json.dumps(config[name]) if name in config else "(absent)"

    return [
        f"{name}: {shown(old, name)} -> {shown(new, name)}"
        for name in sorted(old.keys() | new.keys())
        if not is_free(name) and shown(old, name) != shown(new, name)
    ]


def check_config(workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Compares the configuration with that of the run that lives in the folder, if any.

    Args:
      workdir: of the run.
      config: nested dicts that JSON can hold.

    Raises:
      WorkdirError: they differ; the differences are listed. Or the old one cannot be read.
    """
    path = workdir / CONFIG_FILE
    try:
        run = json.loads(path.read_text(encoding="utf-8")) if path.exists() else _of_steps(workdir)
        if run is None:
            return
        # Classes that a run older than their names had.
        stored = flatten({"classes": of_run(run).to_json(), **run})
        # A field that is newer than the run has the default, which leaves things as they were.
        usual = flatten(json.loads(default_config().to_json_best_effort()))
        lines = differences(usual | stored, config)
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise WorkdirError(f"{path} is damaged: {error}") from error
    if lines:
        listed = "\n  ".join(lines)
        raise WorkdirError(
            f"{workdir} holds a run with another configuration:\n  {listed}\n"
            "Start with the old values to go on with it, or choose another --workdir"
        )


def _of_steps(workdir: pathlib.Path) -> Mapping[str, Any] | None:
    """The configuration in the latest checkpoint that is whole: for a folder that lost its file."""
    for step_folder in reversed(step_folders(workdir / FOLDER)):
        with contextlib.suppress(CheckpointError):
            return describe(step_folder)["run"]
    return None


def store_config(workdir: pathlib.Path, config: Mapping[str, Any]) -> None:
    """Writes the configuration that later starts are compared with."""
    files.write_json(workdir / CONFIG_FILE, config)
