"""Writes a checkpoint as weights of the reference implementation, for PyTorch.

The names, shapes and layouts are those of the reference's state dict. PyTorch is not needed. A
`.pth` or `.pt` file is of today's format, and loads with `torch.load(path, weights_only=True)`.

Examples:

    ssm-jax export-reference --checkpoint=runs/demo --output=weights.pth
    ssm-jax export-reference --checkpoint=runs/demo --output=weights.npz
    ssm-jax export-reference --checkpoint=runs/demo --output=ssm.pth \\
        --layout=checkpoint
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np

from ssm_jax import files
from ssm_jax.cli import common
from ssm_jax.cli.model import require_folder

LAYOUTS = ("state_dict", "checkpoint")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of `export-reference`.

    Attributes:
      checkpoint: A run's working directory, its folder of checkpoints, or the folder of one step.
        Of several the best is taken, or the latest where none was evaluated.
      output: The .npz, .pth or .pt file; must not exist.
      layout: Content of a .pth file. state_dict: the tensors by name, for model.load_state_dict().
        checkpoint: a dict with epoch, model_weights (the state dict) and anchor_generator, which is
        what the reference's evaluation and training scripts load. anchor_generator is an
        OrderedDict with attributes sizes and aspect_ratios: all that those scripts ask of it,
        without a class that torch.load would have to import. An .npz file always holds the tensors
        by name.
    """

    checkpoint: str
    output: pathlib.Path
    layout: str = dataclasses.field(default="state_dict", metadata={"choices": LAYOUTS})

    def __post_init__(self):
        require_folder(self.checkpoint)


def main(flags: Flags) -> None:
    """The program."""
    from ssm_jax import checkpoints
    from ssm_jax.config import ModelConfig
    from ssm_jax.interop import reference_names, weight_files
    from ssm_jax.interop.reference_config import inferred

    output = flags.output
    if output.suffix.lower() not in weight_files.SUFFIXES:
        raise ValueError(f"--output={output} must end in {', '.join(weight_files.SUFFIXES)}")
    as_npz = output.suffix.lower() == ".npz"
    if as_npz and flags.layout != "state_dict":
        raise ValueError("--layout=checkpoint needs an --output that ends in .pth or .pt")
    common.require_absent(output)
    common.start_jax()
    model_config, variables, info = checkpoints.load_model(flags.checkpoint)
    state_dict = reference_names.from_variables(variables, model_config)
    output.parent.mkdir(parents=True, exist_ok=True)
    if as_npz:
        write_npz(output, state_dict)
    else:
        write_torch(output, state_dict, model_config, info.step, flags.layout)
    told = ModelConfig.from_mapping(inferred(weight_files.read_weights(output)))
    print(f"{info.path} -> {output}")
    untold = differences(told, model_config)
    if untold:
        print("the file cannot tell that the model was trained with " + ", ".join(untold))


def differences(told, model_config) -> list[str]:
    """The fields of a configuration, with their values, that another one has differently."""
    fields = dataclasses.asdict(model_config)
    return [f"{name}={value}" for name, value in fields.items() if getattr(told, name) != value]


def write_npz(path: pathlib.Path, state_dict: dict[str, np.ndarray]) -> None:
    """Writes arrays by name, never a part of them."""
    with files.replacing(path) as temporary, temporary.open("wb") as file:
        arrays: dict[str, Any] = dict(state_dict)
        np.savez(file, **arrays)


def write_torch(
    path: pathlib.Path, state_dict: dict[str, np.ndarray], model_config, step: int, layout: str
) -> None:
    """Writes a `.pth` file of one of the LAYOUTS."""
    from ssm_jax.interop import torch_writer
    from ssm_jax.interop.torch_pickle import Dict

    content: dict[str, Any] = Dict(state_dict)
    if layout == "checkpoint":
        generator = Dict()
        generator.state = {
            "sizes": (tuple(model_config.anchor_sizes),),
            "aspect_ratios": (tuple(model_config.anchor_ratios),),
        }
        content = {"epoch": str(step), "model_weights": content, "anchor_generator": generator}
    torch_writer.write(path, content)
