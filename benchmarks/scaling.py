"""How the time of a slice falls with the slices in a batch: inference and training."""

from __future__ import annotations

import jax

from benchmarks import inference, models, training
from benchmarks.timing import Case
from ssm_jax.predictor import Predictor

BATCHES = {"cpu": (1, 2, 4, 8)}
ACCELERATOR_BATCHES = (1, 4, 16, 64)


def scaling_cases() -> list[Case]:
    """The unit and the yardstick; then inference and training iterations by batch size."""
    unit, gemm = inference.stage_cases()[:2]
    cases = [unit, gemm]
    config = models.model_config()
    for size in BATCHES.get(jax.default_backend(), ACCELERATOR_BATCHES):
        predictor = Predictor(config, models.variables(config), 0, batch_size=size)
        name = f"class, boxes, masks of {inference.DETECTIONS}, batch {size}"
        cases.append(inference.path_case(name, predictor, size, inference.DETECTIONS))
        trainer = training.Trainer(size)
        run = training.bound(trainer.iterate, 8)
        cases.append(Case(f"iteration, 8 positives a slice, batch {size}", run, images=size))
    return cases
