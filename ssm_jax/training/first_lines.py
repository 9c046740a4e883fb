"""The first lines of a run in the log: data, folder, devices, and what there is to do."""

from __future__ import annotations

import logging
import pathlib

import jax
import ml_collections
from jax.sharding import Mesh

from ssm_jax.config import ModelConfig
from ssm_jax.training.plan import Plan
from ssm_jax.training.state import TrainState

logger = logging.getLogger(__name__)


def log_sources(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """The first lines of a run: what it learns from, and where its files go."""
    kinds = (("segmentation", "seg_dir"), ("classification", "cls_dir"))
    for kind, field in kinds if config.model.image_classes else kinds[:1]:
        phantom = f"phantom slices made by this program; for your own set config.data.{field}"
        logger.info("%s data: %s", kind, config.data[field] or phantom)
    logger.info("working directory: %s", workdir)


def log_model(
    model: ModelConfig, shapes: TrainState, step: int, plan: Plan, mesh: Mesh | None
) -> None:
    """Devices, size of the model, and what is left of the run."""
    device = jax.local_devices()[0]
    used, there = 1 if mesh is None else mesh.size, jax.device_count()
    logger.info(
        "%s: %s (%s)%s%s",
        "device" if there == 1 else f"{used} of {there} devices",
        device.device_kind,
        device.platform,
        f" in {jax.process_count()} processes" if jax.process_count() > 1 else "",
        "" if used == there else "; a batch_size that is a multiple of their number uses all",
    )
    logger.info(
        "model: %s, %d blocks, %d RoI branches%s, %s parameters",
        model.backbone,
        model.blocks,
        model.branches,
        "" if model.image_classes else ", segmentation alone",
        f"{sum(array.size for array in jax.tree.leaves(shapes.params)):,}",
    )
    if step >= plan.total:
        logger.info("the run is complete: %d of %d iterations", step, plan.total)
    else:
        start = f"resumed at step {step} of" if step else "training for"
        logger.info("%s %d iterations; compiling first", start, plan.total)
