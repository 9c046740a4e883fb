"""A model in an ONNX file, with what it is and what it takes in the file's metadata."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

import ssm_jax
from ssm_jax import files
from ssm_jax.class_set import ClassSet
from ssm_jax.config import ModelConfig
from ssm_jax.interop import portable
from ssm_jax.interop.onnx import model, quantize

FORMAT = "ssm_jax ONNX model"
_INPUT = (
    "gray CT slices of b images, windowed as those the model was trained on (a lung window) and "
    "resized so that the short side is model.image_size; {values}"
)


def write(
    path: str | os.PathLike,
    model_config: ModelConfig,
    variables: Mapping[str, Any],
    score_threshold: float = 0.75,
    nms_threshold: float = 0.5,
    masks: bool = True,
    input_type: str = "uint8",
    step: int | None = None,
    classes: ClassSet | None = None,
    calibration: Sequence[np.ndarray] = (),
) -> dict[str, Any]:
    """Writes inference as standard ONNX operators, computed in float32.

    The input `images` is [b, h, w], of any number of slices of one size, which the graph itself
    pads. The outputs are those of `portable.export_program`; a model without image classes has no
    `class_logits`.

    Args:
      path: of the file; replaced.
      model_config: the model.
      variables: {"params": ..., "batch_stats": ...}; they become part of the file.
      score_threshold: detections have a larger score, in [0, 1].
      nms_threshold: IoU above which the lower-scored box is dropped, in [0, 1].
      masks: whether to predict masks.
      input_type: "uint8" (0 to 255) or "float32" (0 to 1).
      step: iterations that the model was trained for, if known.
      classes: of the model; None: see `classes.unnamed`.
      calibration: slices [h, w] of the input type: convolutions are done in 8 bits, whose ranges
        are those of these slices. None: all is done in float32.

    Returns:
      The metadata in the file: each entry is there under its name, as JSON.

    Raises:
      ValueError: a threshold outside [0, 1] or another input type.
      OSError: the file cannot be written.
    """
    portable.check(score_threshold, nms_threshold, input_type)
    graph = model.build(model_config, variables, score_threshold, nms_threshold, masks, input_type)
    if len(calibration):
        graph = quantize.quantized(graph, calibration)
    facts = {
        "format": FORMAT,
        "format_version": 1,
        **portable.model_facts(model_config, score_threshold, nms_threshold, step, classes),
        "input_type": input_type,
        "convolutions": "int8" if len(calibration) else "float32",
        "inputs": {"images": _INPUT.format(values=portable.VALUES[input_type])},
        "outputs": {x.name: portable.OUTPUTS[x.name] for x in graph.graph.output},
    }
    helper.set_model_props(graph, {name: json.dumps(value) for name, value in facts.items()})
    graph.producer_name, graph.producer_version = "ssm_jax", ssm_jax.__version__
    onnx.checker.check_model(graph, full_check=True)
    with files.replacing(path) as temporary:
        temporary.write_bytes(graph.SerializeToString())
    return facts


def read_facts(path: str | os.PathLike) -> dict[str, Any]:
    """The metadata of a file that `write` wrote.

    Raises:
      ValueError: another file.
      OSError: it cannot be read.
    """
    try:
        graph = onnx.load_model(os.fspath(path), load_external_data=False)
        facts = {entry.key: json.loads(entry.value) for entry in graph.metadata_props}
    except OSError:
        raise
    except Exception as error:  # protobuf has an error of its own for each kind of damage
        raise ValueError(f"{os.fspath(path)} is no ONNX file: {error}") from error
    if facts.get("format") != FORMAT:
        raise ValueError(
            f"{os.fspath(path)} is not from ssm-jax export --format=onnx; it does not say what "
            "its outputs mean"
        )
    return facts
