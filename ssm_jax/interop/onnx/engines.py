"""Engines that run ONNX files, in place of JAX: ONNX Runtime and OpenVINO, on the CPU."""

from __future__ import annotations

import importlib
import os
import types
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int32

from ssm_jax.config import ModelConfig
from ssm_jax.interop.onnx import file
from ssm_jax.models.inference import Predictions

Run = Callable[[np.ndarray], dict[str, np.ndarray]]


class Engine:
    """Predicts batches of slices as `Predictor` asks for them.

    Attributes:
      facts: metadata of the file, see `file.write`.
      version: the engine's name and version.
    """

    def __init__(self, name: str, path: str | os.PathLike):
        """Opens a file of `file.write`.

        Args:
          name: a key of `ENGINES`.
          path: of the file.

        Raises:
          ValueError: another file.
          ImportError: the engine is not installed; the message names the extra.
          OSError: the file cannot be read.
        """
        self.facts = file.read_facts(path)
        library = engine_library(name)
        self.version = f"{name} {library.__version__.partition('-')[0]}"
        self._run = ENGINES[name](library, os.fspath(path), list(self.facts["outputs"]))

    def __call__(self, images: np.ndarray, image_sizes: Int32[np.ndarray, "B 2"]) -> Predictions:
        """Predicts slices; the arguments are those of `models.inference.make_predict_fn`.

        Raises:
          ValueError: colored slices, or floats for a file that takes bytes.
        """
        found: dict[str, Any] = {}
        gray = self._gray(images)
        for size in np.unique(image_sizes, axis=0):
            rows = np.flatnonzero((image_sizes == size).all(axis=1))
            height, width = size
            for name, values in self._run(gray[rows, :height, :width]).items():
                shape = (len(images), *values.shape[1:])
                found.setdefault(name, np.zeros(shape, values.dtype))[rows] = values
        found.setdefault("class_logits", np.zeros((len(images), 0), np.float32))
        return Predictions(**found)

    def _gray(self, images: np.ndarray) -> np.ndarray:
        """[B, H, W] of the type that the file takes."""
        gray = images[..., 0]
        if (images != gray[..., None]).any():
            raise ValueError("the exported model takes gray slices, and this one has colors")
        if self.facts["input_type"] == "float32":
            return gray.astype(np.float32) / (1 if gray.dtype.kind == "f" else 255)
        if gray.dtype != np.uint8:
            raise ValueError(
                "the exported model takes slices of whole gray values, and this one was resized "
                "to floats; export it with --input_type=float32"
            )
        return gray


def engine_library(name: str) -> types.ModuleType:
    """Imports an engine.

    Raises:
      ImportError: it is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        extra = {"onnxruntime": "onnx"}.get(name, name)
        raise ImportError(f"{name} is not installed: pip install 'ssm-jax[{extra}]'") from error


def check_fits(
    facts: dict[str, Any], model_config: ModelConfig, masks: bool, thresholds: dict[str, float]
) -> None:
    """Raises ValueError where a file is of another model, or was exported otherwise.

    Args:
      facts: of the file.
      model_config: of the checkpoint.
      masks: whether masks are asked for.
      thresholds: `score_threshold` and `nms_threshold` that are asked for.
    """
    if ModelConfig.from_mapping(facts["model"]) != model_config:
        raise ValueError("the exported file is of another model than the checkpoint")
    if masks and "mask_probabilities" not in facts["outputs"]:
        raise ValueError("the exported file has no masks; give --masks=none, or export it again")
    for name, value in thresholds.items():
        if facts[name] != value:
            raise ValueError(
                f"the exported file has {name}={facts[name]:g}, and {value:g} is asked for; give "
                f"--{name}={facts[name]:g}, or export it again with --{name}={value:g}"
            )


def _onnxruntime(library: Any, path: str, names: list[str]) -> Run:
    options = library.SessionOptions()
    # Its threads would go on turning after a run, in the way of what comes next on their cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = library.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: dict(zip(names, session.run(names, {"images": images}), strict=True))


def _openvino(library: Any, path: str, names: list[str]) -> Run:
    # Processors with narrower types of their own would use those without being asked.
    model = library.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        found = model(np.ascontiguousarray(images))
        return {name: found[name].copy() for name in names}

    return run


# Each makes of the library, a file and the names of its outputs a function of images [b, h, w].
ENGINES = {"onnxruntime": _onnxruntime, "openvino": _openvino}
