"""Sets evaluations side by side, and evaluates checkpoints that have none yet."""

from __future__ import annotations

import datetime
import json
import logging
import pathlib
from collections.abc import Sequence
from typing import Any

from ssm_jax.files import write_text_atomically
from ssm_jax.report import compare as side_by_side
from ssm_jax.report.evaluate import (
    FORMAT,
    METRICS_FILE,
    REPORT_FILE,
    VERSION,
    Options,
    evaluate_checkpoint,
)

logger = logging.getLogger(__name__)


def read_evaluation(folder: pathlib.Path) -> dict[str, Any] | None:
    """The metrics.json of an evaluation; None if the folder holds none.

    Raises:
      ValueError: the file is damaged, or of another version.
    """
    path = folder / METRICS_FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return None  # a run's working directory has one too
    if content.get("version") != VERSION:
        raise ValueError(
            f"{path} has version {content.get('version')}; this program reads version {VERSION}"
        )
    return content


def names_of(folders: Sequence[str]) -> list[str]:
    """The ends of paths, as long as it takes to tell them apart.

    Raises:
      ValueError: a folder is listed twice.
    """
    paths = [pathlib.Path(folder).expanduser().resolve().parts[1:] for folder in folders]
    if len(set(paths)) < len(paths):
        raise ValueError("--compare lists a folder twice")
    names = [parts[-1:] for parts in paths]
    while repeated := {name for name in names if names.count(name) > 1}:
        names = [
            parts[-len(name) - 1 :] if name in repeated else name
            for parts, name in zip(paths, names, strict=True)
        ]
    return ["/".join(name) for name in names]


def compare(
    folders: Sequence[str], output: pathlib.Path, options: Options, command: str = ""
) -> None:
    """Writes compare.md and compare.html.

    Args:
      folders: output folders of evaluations, and checkpoints, which are evaluated first, each
        into a folder of its name in `output`.
      output: folder, created.
      options: how checkpoints are evaluated.
      command: the command line, for the pages.

    Raises:
      CheckpointError, DataError: a checkpoint can not be evaluated.
      ValueError: a folder is listed twice, or its evaluation is damaged.
    """
    evaluations = []
    for name, folder in zip(names_of(folders), folders, strict=True):
        result = read_evaluation(pathlib.Path(folder))
        if result is None:
            target = output / name
            result = evaluate_checkpoint(folder, target, options, command)
            logger.info("%s -> %s", folder, target / REPORT_FILE)
        evaluations.append(side_by_side.Evaluation(name, result))
    output.mkdir(parents=True, exist_ok=True)
    date = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    write_text_atomically(output / "compare.md", side_by_side.markdown(evaluations))
    page = side_by_side.html(evaluations, command, date)
    write_text_atomically(output / "compare.html", page)
