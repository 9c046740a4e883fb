"""Medians over interleaved repeats, and the floating-point operations behind them."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

UNIT = "backbone + FPN, R18**"  # the case whose time is the unit
GEMM = "matrix product"
GEMM_SIZE = 2048


@dataclasses.dataclass
class Case:
    """Something to be timed.

    Attributes:
      name: of the row.
      run: does it once and returns when it is done.
      flop: of its matrix products and convolutions; 0: not counted.
      images: slices that one run handles.
      compile_s: seconds that its compilation took; None: not known.
      note: what else is to be said.
    """

    name: str
    run: Callable[[], Any]
    flop: float = 0
    images: int = 1
    compile_s: float | None = None
    note: str = ""


def compiled_case(name: str, function: Callable, *args: Any, trips: int = 1, **kwargs: Any) -> Case:
    """A case of one jitted function on given arguments, compiled here.

    Args:
      name: of the row.
      function: to be jitted; all its arguments are arrays.
      *args: its arguments.
      trips: turns of its loops whose length depends on data.
      **kwargs: further fields of the Case.
    """
    args = jax.device_put(args)
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*args).compile()
    seconds = time.perf_counter() - start
    flop = flop_of(function, *args, trips=trips)
    return Case(
        name, lambda: jax.block_until_ready(compiled(*args)), flop, compile_s=seconds, **kwargs
    )


def gemm_case() -> Case:
    """The yardstick of the machine: a float32 product of two square matrices."""
    matrix = np.random.default_rng(0).standard_normal((GEMM_SIZE, GEMM_SIZE)).astype(np.float32)
    return compiled_case(GEMM, jax.numpy.matmul, matrix, matrix)


def flop_of(function: Callable, *args: Any, trips: int = 1) -> float:
    """Operations of the matrix products and convolutions of a function, 2 a multiply-add.

    Args:
      function: of arrays.
      *args: its arguments, or their shapes.
      trips: turns of loops whose length depends on data.
    """
    return _flop(jax.make_jaxpr(function)(*args).jaxpr, trips)


def _flop(jaxpr: core.Jaxpr, trips: int) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            depth = math.prod(shape[axis] for axis in contracted)
            total += 2 * depth * math.prod(equation.outvars[0].aval.shape)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            features = kernel[params["dimension_numbers"].rhs_spec[0]]
            outputs = math.prod(equation.outvars[0].aval.shape)
            total += 2 * outputs * math.prod(kernel) / features
        inside = [_flop(part, trips) for part in _parts(params)]
        if name == "scan":
            total += params["length"] * sum(inside)
        elif name == "while":
            total += trips * sum(inside)
        elif name == "cond":
            total += max(inside)
        else:
            total += sum(inside)
    return total


def _parts(params: dict[str, Any]) -> list[core.Jaxpr]:
    values = [
        item
        for value in params.values()
        for item in (value if isinstance(value, list | tuple) else [value])
    ]
    closed = [v.jaxpr if isinstance(v, core.ClosedJaxpr) else v for v in values]
    return [v for v in closed if isinstance(v, core.Jaxpr)]


def measure(cases: Sequence[Case], repeats: int, progress: Callable[[], Any]) -> list[dict]:
    """Times cases in turns, so that a machine that is busy for a while is busy for all.

    Args:
      cases: with one named UNIT and one named GEMM.
      repeats: runs of each, after one that does not count.
      progress: called after each run.

    Returns:
      A dict a case: name, ms (median), spread_ms (half the interquartile range), units, per_image
      (units), gflop, gflop_per_s, of_gemm (share of its rate), compile_s, note. What is not known
      is None.
    """
    seconds: dict[str, list[float]] = {case.name: [] for case in cases}
    for turn in range(repeats + 1):
        for case in cases:
            start = time.perf_counter()
            case.run()
            elapsed = time.perf_counter() - start
            if turn:
                seconds[case.name].append(elapsed)
            progress()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rates = {case.name: case.flop / medians[case.name] / 1e9 for case in cases}
    rows = []
    for case in cases:
        first, _, third = statistics.quantiles(seconds[case.name], n=4, method="inclusive")
        units = medians[case.name] / medians[UNIT]
        rows.append(
            {
                "name": case.name,
                "ms": 1e3 * medians[case.name],
                "spread_ms": 1e3 * (third - first) / 2,
                "units": units,
                "per_image": units / case.images,
                "gflop": case.flop / 1e9 or None,
                "gflop_per_s": rates[case.name] or None,
                "of_gemm": rates[case.name] / rates[GEMM] or None,
                "compile_s": case.compile_s,
                "note": case.note,
            }
        )
    return rows
