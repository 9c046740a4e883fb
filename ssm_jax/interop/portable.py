"""A model in one file that runs wherever JAX does, without this package.

The file is a zip of two entries: `program.bin`, a serialized `jax.export` artifact with the weights
inside, and `metadata.json`, which says what goes in, what comes out and what the model is.
"""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jax import export

import ssm_jax
from ssm_jax import files
from ssm_jax.class_set import ClassSet
from ssm_jax.classes import unnamed
from ssm_jax.config import ModelConfig
from ssm_jax.models.inference import make_predict_fn
from ssm_jax.ops import platforms
from ssm_jax.predictor import check_thresholds

PROGRAM, METADATA = "program.bin", "metadata.json"
PLATFORMS = ("cpu", "cuda", "tpu")
NOTICE = "Research software. Not a medical device; not for diagnosis."

_INPUT = (
    "gray CT slices of b images, windowed as those the model was trained on (a lung window), "
    "resized to fill the square; {values}"
)
VALUES = {"uint8": "0 to 255", "float32": "0 to 1"}  # of pixels, by type of the input
OUTPUTS = {
    "class_logits": "of the image classes, in their order; a softmax makes them probabilities",
    "boxes": "x1, y1, x2, y2 of the lesions, pixels of the input; by decreasing score",
    "scores": "of the boxes, 0 to 1",
    "labels": "lesion class of the boxes, from 1",
    "valid": "whether a row of boxes, scores, labels and mask_probabilities is in use; those are "
    "the first rows",
    "mask_probabilities": "of the lesion in its box, which the grid divides evenly; 0 to 1",
}


@dataclasses.dataclass(frozen=True)
class ExportSettings:
    """How an exported file predicts, and what it tells of its model.

    Attributes:
      score_threshold: detections have a larger score, in [0, 1].
      nms_threshold: IoU above which the lower-scored box is dropped, in [0, 1].
      masks: whether masks are predicted.
      input_type: of the pixels it takes: "uint8" (0 to 255) or "float32" (0 to 1).
      step: iterations that the model was trained for, if known.
      classes: of the model; None: see `classes.unnamed`.

    Raises:
      ValueError: a threshold outside [0, 1] or another input type.
    """

    score_threshold: float = 0.75
    nms_threshold: float = 0.5
    masks: bool = True
    input_type: str = "uint8"
    step: int | None = None
    classes: ClassSet | None = None

    def __post_init__(self):
        check_thresholds(self.score_threshold, self.nms_threshold)
        if self.input_type not in VALUES:
            allowed = ", ".join(VALUES)
            raise ValueError(f"input_type must be one of {allowed}, not {self.input_type!r}")


def export_program(
    model_config: ModelConfig, variables: Mapping[str, Any], settings: ExportSettings
) -> export.Exported:
    """Inference as a program of its own, for any batch size and for `PLATFORMS`.

    Compiled for a batch size, it gives bit for bit what `models.inference.make_predict_fn` gives
    there, on the same machine.

    Args:
      model_config: the model.
      variables: {"params": ..., "batch_stats": ...}; they become part of the program.
      settings: thresholds, input type, and whether to predict masks.

    Returns:
      A program of images [b, S, S], S being the model's `image_size`. It returns a dict of
      class_logits [b, K] float32, boxes [b, D, 4] float32, scores [b, D] float32, labels [b, D]
      int32, valid [b, D] bool and, with masks, mask_probabilities [b, D, 28, 28] float32; see
      `models.inference.Predictions`.
    """
    predict = make_predict_fn(model_config, masks=settings.masks)
    size = model_config.image_size
    thresholds = (np.float32(settings.score_threshold), np.float32(settings.nms_threshold))

    @jax.jit
    def run(images):
        sizes = jnp.full((images.shape[0], 2), size, jnp.int32)
        # What is constant here is an argument elsewhere: the barrier keeps the compiler from
        # computing with it in advance, which would round differently.
        inputs = (dict(variables), images[..., None], sizes, *thresholds)
        predictions = predict(*jax.lax.optimization_barrier(inputs))
        outputs = {name: getattr(predictions, name) for name in OUTPUTS}
        return {name: value for name, value in outputs.items() if value is not None}

    (batch,) = export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((batch, size, size), settings.input_type)
    with platforms.several():
        return export.export(run, platforms=PLATFORMS)(images)


def write(
    path: str | os.PathLike,
    model_config: ModelConfig,
    variables: Mapping[str, Any],
    settings: ExportSettings,
) -> dict[str, Any]:
    """Writes a model as one file, never a part of it.

    Args:
      path: of the file; replaced.
      model_config: the model.
      variables: {"params": ..., "batch_stats": ...}; they become part of the file.
      settings: how it predicts, and what the metadata tell.

    Returns:
      The metadata in the file.

    Raises:
      OSError: the file cannot be written.
    """
    program = export_program(model_config, variables, settings)
    facts = {
        **_program_facts(program, meaning=_INPUT.format(values=VALUES[settings.input_type])),
        **model_facts(model_config, settings),
    }
    with (
        files.replacing(path) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
    ):
        file.writestr(METADATA, json.dumps(facts, indent=2) + "\n")
        file.writestr(PROGRAM, bytes(program.serialize()))
    return facts


def model_facts(model_config: ModelConfig, settings: ExportSettings) -> dict[str, Any]:
    """Metadata of a model and of how it predicts; JSON can hold them."""
    named = settings.classes or unnamed(model_config.image_classes, model_config.num_classes - 1)
    return {
        "notice": NOTICE,
        "model": dataclasses.asdict(model_config),
        "step": settings.step,
        "score_threshold": settings.score_threshold,
        "nms_threshold": settings.nms_threshold,
        "image_classes": list(named.titles),
        "lesion_classes": named.lesion_titles,
        "classes": named.to_json(),
    }


def _program_facts(program: export.Exported, meaning: str) -> dict[str, Any]:
    """Metadata of a program, whose input has a meaning."""
    outputs = jax.tree.unflatten(program.out_tree, program.out_avals)
    return {
        "format": "ssm_jax portable model",
        "format_version": 1,
        "platforms": list(program.platforms),
        "versions": {
            "ssm_jax": ssm_jax.__version__,
            "jax": jax.__version__,
            "flax": flax.__version__,
            "calling_convention": program.calling_convention_version,
        },
        "inputs": {"images": _described(program.in_avals[0], meaning)},
        "outputs": {name: _described(aval, OUTPUTS[name]) for name, aval in outputs.items()},
    }


def _described(aval: Any, meaning: str) -> dict[str, Any]:
    """Shape, data type and meaning of an input or output; the batch size reads "b"."""
    shape = [side if isinstance(side, int) else str(side) for side in aval.shape]
    return {"shape": shape, "dtype": str(aval.dtype), "meaning": meaning}
