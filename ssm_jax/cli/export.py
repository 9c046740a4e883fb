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

import pathlib

from absl import flags

from ssm_jax.cli import common, model_flags

flags.adopt_module_key_flags(model_flags)
_OUTPUT = flags.DEFINE_string("output", None, "The file; must not exist.", required=True)
_MASKS = flags.DEFINE_bool("masks", True, "Whether the program predicts masks.")
_INPUT_TYPE = flags.DEFINE_enum(
    "input_type",
    "uint8",
    ("uint8", "float32"),
    "What the program takes: grey values of 0 to 255 (uint8) or of 0 to 1 (float32).",
)


def main(argv: list[str]) -> None:
    """The program."""
    common.start(argv)
    with common.one_line_errors(ValueError, OSError):
        output = pathlib.Path(_OUTPUT.value)
        common.require_absent(output)
        from ssm_jax import checkpoints
        from ssm_jax.interop import portable

        model_config, variables, info = checkpoints.load_model(model_flags.CHECKPOINT.value)
        output.parent.mkdir(parents=True, exist_ok=True)
        facts = portable.write(
            output,
            model_config,
            variables,
            **model_flags.thresholds(),
            masks=_MASKS.value,
            input_type=_INPUT_TYPE.value,
            step=info.step if info.config else None,
            mask_type=info.config["data"]["mask_type"] if info.config else None,
        )
    images = facts["inputs"]["images"]
    shape = ", ".join(map(str, images["shape"]))
    megabytes = output.stat().st_size / 1e6
    print(f"{info.path} -> {output} ({megabytes:.1f} MB; images [{shape}] {images['dtype']})")
