"""Inference and training of R18** by batch size and type, for machines with an accelerator."""

from __future__ import annotations

import functools
import pathlib
import sys
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np

from benchmarks import inference, models, training
from benchmarks.timing import UNIT, Case, compiled_case, gemm_case, measure
from ssm_jax.models import ssm
from ssm_jax.models.inference import make_predict_fn
from ssm_jax.predictor import Predictor

TYPES = ("float32", "bfloat16")
BATCHES = (1, 16, 64, 256)
TRAINING_BATCHES = (1, 16, 64)
SMALL_BATCHES = (2,)  # to try the program out
POSITIVES = 8


def measured(repeats: int, minutes: float, small: bool, profile: pathlib.Path | None) -> list[dict]:
    """The rows of the suite, one case after the other until the time is over.

    Args:
      repeats: timed runs of each case.
      minutes: no case begins that would not end within them if it took as long as the longest.
      small: few batch sizes.
      profile: folder that takes a trace of one run of the last case; None: no trace.

    Returns:
      Rows of `timing.measure`. Cases that the time or the memory did not suffice for are told on
      standard error.
    """
    start = time.monotonic()
    rows: list[dict] = []
    longest = 0.0
    case = None
    for name, make in case_makers(small):
        begun = time.monotonic()
        if begun - start + longest > 60 * minutes:
            print(f"left out, the time is over: {name}", file=sys.stderr)
            continue
        try:
            case = make()
            rows += measure([*_yardsticks(), case], repeats, lambda: None)[2 if rows else 0 :]
            print(f"{name}: {rows[-1]['ms']:.1f} ms", file=sys.stderr, flush=True)
        except jax.errors.JaxRuntimeError as error:  # out of memory, as a rule
            print(f"left out, {name}: {str(error)[:300]}", file=sys.stderr)
        longest = max(longest, time.monotonic() - begun)
    if case and profile:
        with jax.profiler.trace(profile):
            case.run()
    return rows


def case_makers(small: bool) -> Iterator[tuple[str, Callable[[], Case]]]:
    """Names of all cases and functions that compile them, small batches first."""
    for size in SMALL_BATCHES if small else BATCHES:
        for dtype in TYPES:
            name = f"inference, {dtype}, batch {size}"
            yield name, functools.partial(_on_device, name, dtype, size)
            if size in TRAINING_BATCHES or small:
                name = f"iteration, {POSITIVES} positives a slice, {dtype}, batch {size}"
                yield name, functools.partial(_iteration, name, dtype, size)
        name = f"inference from slice to masks in memory, float32, batch {size}"
        yield name, functools.partial(_whole_path, name, size)


@functools.lru_cache
def _yardsticks() -> tuple[Case, Case]:
    """A matrix product, and the unit: backbone and FPN of one slice in float32."""
    config = models.model_config()

    def extract(variables, images, sizes):
        return ssm.stage(config, variables, "extract", images, sizes, train=False)

    arguments = (models.variables(config), models.slices(1), models.sizes(1))
    return gemm_case(), compiled_case(UNIT, extract, *arguments, note="the unit")


@functools.lru_cache
def _predictor(dtype: str) -> tuple[Predictor, float]:
    """A predictor of single slices, and the threshold that leaves it 16 detections."""
    config = models.model_config(dtype=dtype)
    predictor = Predictor(config, models.variables(config), 0)
    return predictor, inference.threshold_for(predictor, models.slices(1)[0], inference.DETECTIONS)


def _on_device(name: str, dtype: str, size: int) -> Case:
    """The program alone: its inputs and outputs stay on the device."""
    predictor, threshold = _predictor(dtype)
    config = predictor.model_config
    images, sizes = models.slices(1).repeat(size, 0), models.sizes(size)
    thresholds = np.float32(threshold), np.float32(0.5)
    return compiled_case(
        *(name, make_predict_fn(config), models.variables(config), images, sizes, *thresholds),
        images=size,
    )


def _whole_path(name: str, size: int) -> Case:
    predictor, _ = _predictor("float32")
    return inference.path_case(name, predictor, size, inference.DETECTIONS)


def _iteration(name: str, dtype: str, size: int) -> Case:
    trainer = training.Trainer(size, (POSITIVES,), models.model_config(dtype=dtype))
    return Case(
        name,
        training.bound(trainer.iterate, POSITIVES),
        images=size,
        compile_s=sum(trainer.compile_s),
    )
