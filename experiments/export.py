"""Writes a trained model as one file that runs wherever JAX does, without this package.

The file is a zip of program.bin (a jax.export artifact with the weights inside, for CPU, CUDA and
TPU) and metadata.json (the model's configuration, classes and thresholds, and what inputs and
outputs mean). The program takes images [b, S, S], any number of slices at a time, where S is the
model's image size, and returns class_logits, boxes, scores, labels, valid and mask_probabilities.
The README has a script that runs it; that needs jax, flatbuffers and pillow.

Examples:

    python -m experiments.export --checkpoint=runs/demo --output=model.zip
    python -m experiments.export --checkpoint=runs/demo --output=model.zip --score_threshold=0.5 \\
        --nomasks
"""

import pathlib

from absl import app, flags

from experiments import common

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    common.CHECKPOINT_HELP,
    required=True,
)
_OUTPUT = flags.DEFINE_string("output", None, "The file; must not exist.", required=True)
_SCORE_THRESHOLD = flags.DEFINE_float(
    "score_threshold", 0.75, "Detections have a larger score.", lower_bound=0, upper_bound=1
)
_NMS_THRESHOLD = flags.DEFINE_float(
    "nms_threshold",
    0.5,
    "Of two detections with a larger IoU the lower-scored one is dropped.",
    lower_bound=0,
    upper_bound=1,
)
_MASKS = flags.DEFINE_bool("masks", True, "Whether the program predicts masks.")
_INPUT_TYPE = flags.DEFINE_enum(
    "input_type",
    "uint8",
    ("uint8", "float32"),
    "What the program takes: grey values of 0 to 255 (uint8) or of 0 to 1 (float32).",
)


def main(argv: list[str]) -> None:
    """The program."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    common.set_up_logging()
    with common.one_line_errors(ValueError, OSError):
        output = pathlib.Path(_OUTPUT.value)
        if output.exists():
            raise ValueError(f"{output} exists; delete it or give another --output")
        from ssm_jax import checkpoints, portable

        model_config, variables, info = checkpoints.load_model(_CHECKPOINT.value)
        output.parent.mkdir(parents=True, exist_ok=True)
        facts = portable.write(
            output,
            model_config,
            variables,
            score_threshold=_SCORE_THRESHOLD.value,
            nms_threshold=_NMS_THRESHOLD.value,
            masks=_MASKS.value,
            input_type=_INPUT_TYPE.value,
            step=info.step if info.config else None,
            mask_type=info.config["data"]["mask_type"] if info.config else None,
        )
    images = facts["inputs"]["images"]
    shape = ", ".join(map(str, images["shape"]))
    megabytes = output.stat().st_size / 1e6
    print(f"{info.path} -> {output} ({megabytes:.1f} MB; images [{shape}] {images['dtype']})")


if __name__ == "__main__":
    app.run(main)
