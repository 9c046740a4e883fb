"""The benchmarks: operations counted by hand, rows of a measurement, and a run of the program."""

import json
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import models, peers, timing
from benchmarks import run as program
from ssm_jax.cli import common
from ssm_jax.config import ModelConfig
from ssm_jax.interop.onnx import file as onnx_file
from ssm_jax.interop.portable import ExportSettings
from ssm_jax.predictor import Predictor
from tests.helpers.tiny import get_config, random_variables


def test_flop_of_products_and_convolutions():
    a, b = np.ones((3, 5), np.float32), np.ones((5, 7), np.float32)
    assert timing.flop_of(jnp.matmul, a, b) == 2 * 3 * 5 * 7
    x, kernel = np.ones((2, 8, 8, 4), np.float32), np.ones((3, 3, 4, 6), np.float32)

    def convolve(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=numbers)

    assert timing.flop_of(convolve, x, kernel) == 2 * (2 * 4 * 4 * 6) * (3 * 3 * 4)


def test_flop_of_loops_and_branches():
    a = np.ones((4, 4), np.float32)
    once = 2 * 4**3

    def scanned(a):
        return jax.lax.scan(lambda x, _: (x @ a, None), a, None, length=5)[0]

    def looped(a, turns):
        return jax.lax.fori_loop(0, turns, lambda _, x: x @ a, a)

    def chosen(a, index):
        return jax.lax.switch(index, [lambda x: x, lambda x: x @ x, lambda x: x @ x @ x], a)

    assert timing.flop_of(scanned, a) == 5 * once
    assert timing.flop_of(looped, a, np.int32(3), trips=3) == 3 * once
    assert timing.flop_of(chosen, a, np.int32(0)) == 2 * once  # the dearest branch


def test_measure():
    ran = []

    def case(name, seconds, **fields):
        def run():
            ran.append(name)
            time.sleep(seconds)

        return timing.Case(name, run, **fields)

    cases = [
        case(timing.UNIT, 0.01, flop=1e7),
        case(timing.GEMM, 0.002, flop=2e7),
        case("batch", 0.04, flop=2e7, images=2),
        case("host", 0.001),
    ]
    ticks = []
    unit, gemm, batch, host = timing.measure(cases, 3, lambda: ticks.append(1))
    assert ran == [c.name for c in cases] * 4  # interleaved, one round to warm up
    assert len(ticks) == 16
    assert unit["units"] == 1 and gemm["of_gemm"] == 1
    assert batch["units"] == pytest.approx(batch["ms"] / unit["ms"])
    assert batch["per_image"] == pytest.approx(batch["units"] / 2)
    assert batch["gflop"] == pytest.approx(0.02)
    assert batch["gflop_per_s"] == pytest.approx(0.02 / (batch["ms"] / 1e3))
    assert host["gflop"] is host["gflop_per_s"] is host["of_gemm"] is None
    assert all(math.isfinite(row["spread_ms"]) for row in (unit, gemm, batch, host))


def test_markdown_holds_every_row():
    row = {"name": "a*", "ms": 12.34, "spread_ms": 0.5, "units": 1.5, "per_image": 0.75}
    row |= {"gflop": 1.0, "gflop_per_s": 81.2, "of_gemm": 0.5, "compile_s": None, "note": "b"}
    results = {
        "machine": {"platform": "cpu", "device": "x", "devices": 1, "cores": 2, "jax": "1"},
        "repeats": 3,
        "suites": {
            "inference": [row],
            "processes": [{"name": "predict", "seconds": 5.25, "peak_mb": 700.4}],
        },
    }
    text = program.markdown(json.loads(json.dumps(results)))
    assert "| a\\* (b) | 12.3 | 0.5 | 1.50 | 0.75 | 81 | 50% | – |" in text
    assert "| predict | 5.2 | 700 |" in text


def test_table_needs_its_marks():
    begin, end = (mark.format("benchmarks") for mark in program.MARKS)
    text = f"before\n{begin}\nold\n{end}\nafter\n"
    written = common.with_marked(text, begin, end, "new")
    assert written == f"before\n{begin}\n\nnew\n{end}\nafter\n"
    with pytest.raises(ValueError, match="no place for the table"):
        common.with_marked("nothing", begin, end, "new")


@pytest.fixture
def compilations(caplog, quickly_compiled):
    """Programs that JAX compiled so far in the test, by name."""

    def names():
        return [r.getMessage() for r in caplog.records if r.getMessage().startswith("Compiling")]

    # Another test may have compiled the same program in this process,
    jax.clear_caches()
    # and programs of ours, run by other tests, silence JAX's logger.
    with jax.log_compiles(), caplog.at_level("WARNING"), caplog.at_level("WARNING", "jax"):
        yield names


def test_predictions_compile_nothing_after_the_first(compilations):
    config = ModelConfig.from_mapping(get_config().model.to_dict())
    predictor = Predictor(config, random_variables(config), 0.4)
    slices = np.random.default_rng(0).integers(0, 256, (3, 64, 64), np.uint8)
    predictor(slices[0])
    first = compilations()
    assert any("jit(predict)" in message for message in first)
    predictor.predict_batch(list(slices))
    predictor.score_threshold = 0.6
    predictor(slices[2])
    assert compilations() == first


def test_cases_of_other_engines(tmp_path, monkeypatch):
    config = ModelConfig.from_mapping(get_config().model.to_dict())
    variables = random_variables(config)
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 1), np.uint8)
    monkeypatch.setattr(models, "slices", lambda count: images.repeat(count, 0))
    onnx_file.write(tmp_path / "m.onnx", config, variables, ExportSettings(0.3))
    part = peers.features_case("onnxruntime", "", tmp_path / "m.onnx", images[..., 0])
    assert [array.shape for array in part.run().values()] == [(1, 256, 8, 8)]
    predictor = Predictor(config, variables, 0.3)
    count = config.max_detections
    whole = peers.engine_case("onnxruntime", ", int8", count, tmp_path / "m.onnx", predictor)
    assert len(whole.run().scores) == count
    assert not whole.note
    assert whole.name.startswith(f"class, boxes, masks of {count}: onnxruntime ")
    assert peers.engine_case("onnxruntime", "", 0, tmp_path / "m.onnx", predictor).note
