"""Facts beside the figures of an evaluation: model, data, and how it was run."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

import ssm_jax
from ssm_jax.checkpoints import CheckpointInfo
from ssm_jax.config import ModelConfig, default_config
from ssm_jax.data import patients
from ssm_jax.report import paper
from ssm_jax.training import optimizer, patterns


def model_facts(
    model: ModelConfig, variables: Mapping[str, Any], info: CheckpointInfo
) -> dict[str, Any]:
    """Facts of a model.

    Args:
      model: its configuration.
      variables: {"params": ..., "batch_stats": ...}.
      info: where it came from.

    Returns:
      "name" in the paper's notation, "system" (see `paper.system_of`), "backbone", "blocks",
      "branches", "image_classes", "classes" (see `ClassSet.to_json`), "image_size", "parameters",
      "trainable_segmentation" and "trainable_classification" (parameters that either step updates;
      the latter None without module S), "checkpoint", "step", and "training_minutes" (with those of
      the run that it started from; None where unknown).
    """
    params, run = variables["params"], info.config
    system = paper.system_of(dataclasses.asdict(model), run)
    train = default_config().train
    train.update(run["train"] if run else {})
    frozen = patterns.chosen(model, train).frozen
    trained = None
    if model.image_classes:
        groups = optimizer.CLASSIFICATION_STEP[train.update_rule]
        trained = optimizer.stepped_count(params, groups, frozen)
    other = "SSM, two branches" if model.image_classes else "segmentation alone"
    return {
        "name": paper.label(system, model.backbone, model.blocks, other),
        "system": system,
        "backbone": model.backbone,
        "blocks": model.blocks,
        "branches": model.branches,
        "image_classes": model.image_classes,
        "classes": info.classes.to_json(),
        "image_size": model.image_size,
        "parameters": sum(array.size for array in jax.tree.leaves(params)),
        "trainable_segmentation": optimizer.stepped_count(
            params, optimizer.SEGMENTATION_STEP, frozen
        ),
        "trainable_classification": trained,
        "checkpoint": str(info.path),
        "step": info.step,
        "training_minutes": None if info.seconds is None else info.seconds / 60,
    }


def data_facts(
    source: Any, data: Mapping[str, Any], part: str, split: str, indices: Sequence[int]
) -> dict[str, Any]:
    """Facts of a split.

    Args:
      source: a split of `Datasets`.
      data: section of the configuration.
      part: "seg" or "cls".
      split: its name.
      indices: of the slices that were evaluated.

    Returns:
      "folder" (None: the phantom), "source" (the same for people), "split", "slices", "of" (slices
      of the split), "patients" (None where file names do not tell), "sizes" (of the slices, as
      "width×height"), and for segmentation slices "objects", "slices_without_objects" and
      "min_area", for classification slices "classes" (slices of each, by number).
    """
    chosen = np.asarray(indices, int)
    patient_of = patients.PATIENT_OF[part]
    numbers, known = patients.clusters([patient_of(source.files[k]) for k in chosen])
    pairs = zip(source.widths[chosen].tolist(), source.heights[chosen].tolist(), strict=True)
    folder, phantom = data[f"{part}_dir"], data["phantom"]
    drawn = f"phantom, drawn by this program: {phantom['size']} pixels, seed {phantom['seed']}"
    facts: dict[str, Any] = {
        "folder": folder or None,
        "source": folder or drawn,
        "split": split,
        "slices": len(chosen),
        "of": len(source),
        "patients": int(numbers.max()) + 1 if known and len(numbers) else None,
        "sizes": sorted({f"{width}×{height}" for width, height in pairs}),
    }
    if part == "seg":
        counts = source.object_counts[chosen]
        facts |= {
            "objects": int(counts.sum()),
            "slices_without_objects": int((counts == 0).sum()),
            "min_area": source.min_area,
        }
    else:
        facts["classes"] = np.bincount(source.labels[chosen]).tolist()
    return facts


def run_facts(command: str, seconds: float) -> dict[str, Any]:
    """When, where and with what an evaluation ran.

    Args:
      command: the command line.
      seconds: it took.

    Returns:
      "command", "date" (local time with its offset), "seconds", "device" and "versions".
    """
    device = jax.local_devices()[0]
    kind = device.device_kind
    return {
        "command": command,
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "device": kind if kind == device.platform else f"{kind} ({device.platform})",
        "versions": {
            "ssm_jax": ssm_jax.__version__,
            "jax": jax.__version__,
            "numpy": np.__version__,
            "pycocotools": importlib.metadata.version("pycocotools"),
            "python": platform.python_version(),
        },
    }
