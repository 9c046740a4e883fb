"""Turns weights of the reference implementation (PyTorch) into a checkpoint of this project.

Takes a file that its training script wrote, of any version of PyTorch (`.pth`, `.pt`): a dict with
`model_weights` and `anchor_generator`; or a bare state dict; or an `.npz` with an array for each
tensor, under the tensor's own name. PyTorch is not needed, and nothing that a file names is
imported or run. Backbone, blocks, branches and anchors are read from the file.

Examples:

    ssm-jax import-reference --weights=ssm.pth --output=runs/imported
    ssm-jax import-reference --weights=weights.npz --output=runs/imported \\
        --backbone=resnet34 --blocks=2 --anchor_sizes=4,8,16 --anchor_ratios=0.5,1,2
    ssm-jax predict --checkpoint=runs/imported --inputs=slice.png --output_dir=out
"""

from typing import Any

from absl import flags

from ssm_jax.cli import common
from ssm_jax.config import BACKBONES

_WEIGHTS = flags.DEFINE_string("weights", None, "The .pth, .pt or .npz file.", required=True)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Folder for the checkpoint; created, and must hold none.", required=True
)
_BACKBONE = flags.DEFINE_enum(
    "backbone", None, BACKBONES, "The network's backbone; default: what the file holds."
)
_BLOCKS = flags.DEFINE_enum(
    "blocks", None, ("2", "3"), "Residual stages that the backbone keeps; default: as in the file."
)
_ANCHORS = {
    "anchor_sizes": flags.DEFINE_list(
        "anchor_sizes",
        None,
        "Sizes of the anchors, pixels. Default: as in the file, or the reference's own 2,4,8,16,32 "
        "where the file does not tell.",
    ),
    "anchor_ratios": flags.DEFINE_list(
        "anchor_ratios",
        None,
        "Heights of the anchors over their widths. Default: as in the file, or the reference's own "
        "0.1,0.25,0.5,1,1.5,2 where the file does not tell.",
    ),
}
_MAX_GIB = flags.DEFINE_float(
    "max_gib",
    2,
    "A file that is larger or unpacks to more is refused.",
    lower_bound=0,
    upper_bound=1024,
)


def given_fields() -> dict[str, Any]:
    """The fields of ModelConfig that flags set.

    Raises:
      ValueError: an anchor size or ratio is not a positive number.
    """
    fields: dict[str, Any] = {}
    if _BACKBONE.value is not None:
        fields["backbone"] = _BACKBONE.value
    if _BLOCKS.value is not None:
        fields["blocks"] = int(_BLOCKS.value)
    for name, flag in _ANCHORS.items():
        if flag.value is not None:
            try:
                fields[name] = tuple(float(number) for number in flag.value)
            except ValueError:
                fields[name] = ()
            if not fields[name] or not all(0 < number < 1e6 for number in fields[name]):
                raise ValueError(f"--{name}={','.join(flag.value)}: give positive numbers")
    return fields


def main(argv: list[str]) -> None:
    """The program."""
    common.start(argv)
    from ssm_jax.interop import weight_files

    path = _WEIGHTS.value
    with common.one_line_errors(ValueError, OSError):
        given = given_fields()
        weights = weight_files.read_weights(path, int(_MAX_GIB.value * 2**30))

        # These import JAX, which takes seconds; a file that cannot be read needs none of it.
        from ssm_jax import checkpoints
        from ssm_jax.interop import reference_names
        from ssm_jax.interop.reference_config import infer_config

        try:
            model_config = infer_config(weights, given)
            variables = reference_names.to_variables(weights.arrays, model_config)
        except (ValueError, TypeError) as error:  # TypeError: an .npz of no numbers
            raise ValueError(f"{path}: {error}") from error
        folder = checkpoints.save_model(_OUTPUT.value, model_config, variables)
    kind = f"{model_config.backbone}, {model_config.blocks} blocks"
    print(f"{path} ({kind}, {model_config.branches} RoI branches) -> {folder}")
