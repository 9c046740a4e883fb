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
    settings: portable.ExportSettings,
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
      settings: how it predicts, and what the metadata tell.
      calibration: slices [h, w] of the input type: large layers are computed in 8 bits, with the
        ranges that these slices show. Empty: all is done in float32.

    Returns:
      The metadata in the file: each entry is there under its name, as JSON.

    Raises:
      OSError: the file cannot be written.
    """
    graph = model.build(model_config, variables, settings)
    if len(calibration):
        graph = quantize.quantized(graph, calibration)
    facts = {
        "format": FORMAT,
        "format_version": 1,
        **portable.model_facts(model_config, settings),
        "input_type": settings.input_type,
        "convolutions": "int8" if len(calibration) else "float32",
        "inputs": {"images": _INPUT.format(values=portable.VALUES[settings.input_type])},
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
