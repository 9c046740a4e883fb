"""Turns weights of the reference implementation (PyTorch) into a checkpoint of this project.

Takes an `.npz` of its state dict: one array a tensor, under the tensor's own name. To make one:
`numpy.savez(path, **{name: tensor.numpy() for name, tensor in state_dict.items()})`.

Examples:

    python -m experiments.import_reference --weights=weights.npz --output=runs/imported
    python -m experiments.import_reference --weights=weights.npz --output=runs/imported \\
        --backbone=resnet34 --blocks=2
    python -m experiments.predict --checkpoint=runs/imported --inputs=slice.png --output_dir=out
"""

import zipfile

import numpy as np
from absl import app, flags

from experiments import common
from ssm_jax.config import BACKBONES, ModelConfig

BRANCH_2 = "roi_heads.box_head_s2."  # names of the second RoI branch start so

_WEIGHTS = flags.DEFINE_string("weights", None, "The .npz file.", required=True)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Folder for the checkpoint; created, and must hold none.", required=True
)
_BACKBONE = flags.DEFINE_enum("backbone", "resnet18", BACKBONES, "The network's backbone.")
_BLOCKS = flags.DEFINE_enum("blocks", "3", ("2", "3"), "Residual stages that the backbone keeps.")


def read_weights(path: str) -> dict[str, np.ndarray]:
    """Reads all arrays of an `.npz` file.

    Raises:
      ValueError: not there, or not such a file.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as an .npz file of arrays: {error}") from error


def main(argv: list[str]) -> None:
    """The program."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    common.set_up_logging()
    from ssm_jax import checkpoints, reference

    with common.one_line_errors(ValueError):
        weights = read_weights(_WEIGHTS.value)
        branches = 2 if any(name.startswith(BRANCH_2) for name in weights) else 1
        model_config = ModelConfig(
            backbone=_BACKBONE.value, blocks=int(_BLOCKS.value), branches=branches
        )
        variables = reference.to_variables(weights, model_config)
        folder = checkpoints.save_model(_OUTPUT.value, model_config, variables)
    print(f"{_WEIGHTS.value} -> {folder}")


if __name__ == "__main__":
    app.run(main)
