"""Predicted scans as JSON."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from ssm_jax.scans.find import expand
from ssm_jax.scans.result import ScanResult, SliceResult
from ssm_jax.scans.source import Scan


def without_folders(inputs: Sequence[str]) -> Callable[[str], str]:
    """Makes texts in which no folder of this machine stands.

    Args:
      inputs: paths as they were given; relative ones, which tell of no folder above, stay.

    Returns:
      From a text to the same with paths relative to the folder that all absolute inputs share, or
      where they share none to their own.
    """
    folders = {
        os.path.dirname(path).rstrip("/") for path in expand(list(inputs)) if os.path.isabs(path)
    }
    shared = os.path.commonpath(folders) if folders else "/"
    cut = [shared] if shared != "/" else sorted(folders, key=len, reverse=True)

    def short(text: str) -> str:
        for folder in cut:
            text = text.replace(f"{folder}/", "")
        return text

    return short


def to_json(results: Sequence[ScanResult], failed: Sequence[Scan] = ()) -> dict[str, Any]:
    """The content of predictions.json.

    Args:
      results: predicted scans.
      failed: inputs that cannot be read, with their `error`.

    Returns:
      `classes`: those of the model, see `ClassSet.to_json`; null where no scan was predicted.
      `slices`: one object a slice: file, scan (index into `scans`), position (millimeters or
      null), and what `Prediction.to_dict` gives, or `error` in its place. `scans`: one object a
      scan: name, kind, facts, warnings, slices and unread (numbers), and summary (null if none was
      read) with rule, class_probabilities, predicted_class, predicted_class_name,
      slices_per_class, lesion_ml, lung_share, body_share and telling (files).
    """
    slices = [
        _slice(slice_, index) for index, result in enumerate(results) for slice_ in result.slices
    ]
    slices += [{"file": scan.name, "error": scan.error} for scan in failed]
    classes = results[0].classes.to_json() if results else None
    return {"classes": classes, "slices": slices, "scans": [_scan(result) for result in results]}


def _slice(slice_: SliceResult, scan: int) -> dict[str, Any]:
    place = {"file": slice_.name, "scan": scan, "position": slice_.position}
    if slice_.prediction is None:
        return {**place, "error": slice_.error}
    return {**place, **slice_.prediction.to_dict()}


def _scan(result: ScanResult) -> dict[str, Any]:
    summary = None
    if result.summary is not None:
        known = result.summary
        names, predicted = result.classes.names, known.predicted_class
        summary = {
            "rule": known.rule,
            "class_probabilities": known.class_probabilities.tolist(),
            "predicted_class": predicted,
            "predicted_class_name": names[predicted] if predicted is not None else None,
            "slices_per_class": known.slices_per_class.tolist(),
            "lesion_ml": known.lesion_ml,
            "lung_share": known.lung_share,
            "body_share": known.body_share,
            "telling": [result.slices[k].name for k in known.telling],
        }
    return {
        "name": result.name,
        "kind": result.kind,
        "facts": result.facts,
        "warnings": result.warnings,
        "slices": len(result.slices),
        "unread": sum(slice_.prediction is None for slice_ in result.slices),
        "summary": summary,
    }
