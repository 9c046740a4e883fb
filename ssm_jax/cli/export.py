"""Writes a trained model as one file that runs wherever JAX does, without this package.

The file is a zip of program.bin (a jax.export artifact with the weights inside, for CPU, CUDA and
TPU) and metadata.json (the model's configuration, classes and thresholds, and what inputs and
outputs mean). The program takes images [b, S, S], any number of slices at a time, where S is the
model's image size, and returns class_logits, boxes, scores, labels, valid and mask_probabilities.
The page "Predict" of the documentation has a script that runs it with jax, flatbuffers and pillow.

Examples:

    ssm-jax export --checkpoint=runs/demo --output=model.zip
    ssm-jax export --checkpoint=runs/demo --output=model.zip --score_threshold=0.5 \\
        --nomasks
"""

from __future__ import annotations

import dataclasses
import pathlib

from ssm_jax.cli import common
from ssm_jax.cli.model import Loaded, ModelFlags


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of `export`.

    Attributes:
      output: The file; must not exist.
      masks: Whether the program predicts masks.
      input_type: Gray values that the program takes: 0 to 255 (uint8) or 0 to 1 (float32).
      model: Which model.
    """

    output: pathlib.Path
    masks: bool = True
    input_type: str = dataclasses.field(default="uint8", metadata={"choices": ("uint8", "float32")})
    model: ModelFlags


def main(flags: Flags) -> None:
    """The program."""
    output = flags.output
    common.require_absent(output)
    common.start_jax()
    from ssm_jax.interop import portable

    model = Loaded(flags.model)
    model.tell()
    info = model.info
    output.parent.mkdir(parents=True, exist_ok=True)
    facts = portable.write(
        output,
        model.config,
        model.variables,
        **model.thresholds,
        masks=flags.masks,
        input_type=flags.input_type,
        step=info.step if info.config else None,
        classes=info.classes,
    )
    images = facts["inputs"]["images"]
    shape = ", ".join(map(str, images["shape"]))
    megabytes = output.stat().st_size / 1e6
    print(f"{info.path} -> {output} ({megabytes:.1f} MB; images [{shape}] {images['dtype']})")
