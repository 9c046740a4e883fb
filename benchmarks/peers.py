"""The exported model in ONNX Runtime and OpenVINO, as far as installed, beside JAX."""

from __future__ import annotations

import importlib.util
import pathlib
import tempfile

import numpy as np
import onnx.shape_inference
import onnx.utils

from benchmarks import inference, models
from benchmarks.timing import UNIT, Case, compiled_case, gemm_case
from ssm_jax.interop.onnx import engines, file
from ssm_jax.interop.portable import ExportSettings
from ssm_jax.models import ssm
from ssm_jax.predictor import Predictor

COUNTS = (0, inference.DETECTIONS, 128)
CALIBRATION = 8  # phantom slices
FEATURES = "fpn/Conv_1:0"


def peer_cases() -> list[Case]:
    """The unit and the yardstick; then the whole path of one slice of R18**, and backbone + FPN."""
    config = models.model_config()
    variables = models.variables(config)
    image, size = models.slices(1), models.sizes(1)

    def extract(variables, images, sizes):
        return ssm.stage(config, variables, "extract", images, sizes, train=False)

    cases = [gemm_case(), compiled_case(UNIT, extract, variables, image, size, note="JAX")]
    predictor = Predictor(config, variables, 0)
    thresholds = {n: inference.threshold_for(predictor, image[0], n) for n in COUNTS}
    cases += [inference.path_case(_name("jax", n), predictor, 1, n) for n in COUNTS]
    for bits, calibration in (("", ()), (", int8", models.slices(CALIBRATION)[..., 0])):
        with tempfile.TemporaryDirectory() as folder:
            paths = {}
            for count, threshold in thresholds.items():
                paths[count] = pathlib.Path(folder) / f"{count}.onnx"
                settings = ExportSettings(score_threshold=threshold)
                file.write(paths[count], config, variables, settings, calibration)
            for name in filter(importlib.util.find_spec, engines.ENGINES):
                cases.append(features_case(name, bits, paths[0], image[..., 0]))
                cases += [engine_case(name, bits, n, path, predictor) for n, path in paths.items()]
    return cases


def features_case(name: str, bits: str, path: pathlib.Path, images: np.ndarray) -> Case:
    """Backbone and FPN of an exported model in an engine."""
    whole = onnx.shape_inference.infer_shapes(onnx.load(path))
    part = onnx.utils.Extractor(whole).extract_model(["images"], [FEATURES])
    alone = path.with_name("features.onnx")
    onnx.save(part, alone)
    run = engines.ENGINES[name](engines.engine_library(name), str(alone), [FEATURES])
    return Case(f"backbone + FPN: {name}{bits}", lambda: run(images))


def engine_case(name: str, bits: str, count: int, path: pathlib.Path, predictor: Predictor) -> Case:
    """The whole path of one slice: uint8 pixels in, lesions in its own pixels out."""
    engine = engines.Engine(name, path)
    own = Predictor(predictor.model_config, predictor.variables, engine=engine)
    image = models.slices(1)[0][..., 0]
    found = len(own(image).scores)
    note = "" if found == count else f"{found} detections"
    return Case(_name(engine.version + bits, count), lambda: own(image), note=note)


def _name(engine: str, count: int) -> str:
    return f"class, boxes, masks of {count}: {engine}"
