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

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

from ssm_jax.class_set import ClassSet
from ssm_jax.cli import common
from ssm_jax.possible import BACKBONES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of `import-reference`.

    Attributes:
      weights: The .pth, .pt or .npz file.
      output: Folder for the checkpoint; created, and must hold none.
      backbone: The network's backbone. Default: as in the file.
      blocks: Residual stages that the backbone keeps. Default: as in the file.
      anchor_sizes: Sizes of the anchors, pixels. Default: as in the file, or the reference's own
        2,4,8,16,32 where the file does not tell.
      anchor_ratios: Heights of the anchors over their widths. Default: as in the file, or the
        reference's own 0.1,0.25,0.5,1,1.5,2 where the file does not tell.
      classes: A JSON file that names the model's classes, as classes.json of a data set does.
        Default: the paper's names, or numbers where the model has more classes.
      max_gib: A file that is larger or unpacks to more is refused.
    """

    weights: str
    output: str
    backbone: str | None = dataclasses.field(default=None, metadata={"choices": BACKBONES})
    blocks: str | None = dataclasses.field(default=None, metadata={"choices": ("2", "3")})
    anchor_sizes: tuple[float, ...] | None = None
    anchor_ratios: tuple[float, ...] | None = None
    classes: pathlib.Path | None = None
    max_gib: float = dataclasses.field(default=2.0, metadata={"least": 0, "most": 1024})

    def given_fields(self) -> dict[str, Any]:
        """The fields of ModelConfig that flags set.

        Raises:
          ValueError: an anchor size or ratio is not a positive number.
        """
        for name in ("anchor_sizes", "anchor_ratios"):
            numbers = getattr(self, name)
            if numbers is not None and not all(0 < number < 1e6 for number in numbers):
                shown = ",".join(f"{number:g}" for number in numbers)
                raise ValueError(f"--{name}={shown}: give positive numbers")
        fields = {
            "backbone": self.backbone,
            "blocks": self.blocks and int(self.blocks),
            "anchor_sizes": self.anchor_sizes,
            "anchor_ratios": self.anchor_ratios,
        }
        return {name: value for name, value in fields.items() if value is not None}

    def class_set(self, image: int, lesion: int) -> ClassSet | None:
        """The classes that --classes names, of a model that has so many.

        Raises:
          ValueError: the file cannot be used, or names more or fewer.
        """
        if self.classes is None:
            return None
        try:
            named = ClassSet.from_json(json.loads(self.classes.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ValueError(f"--classes={self.classes}: {error}") from error
        if (len(named.image), len(named.lesion)) != (image, lesion):
            raise ValueError(
                f"--classes={self.classes} names {len(named.image)} image and {len(named.lesion)} "
                f"lesion classes, and the model has {image} and {lesion}"
            )
        return named


def main(flags: Flags) -> None:
    """The program."""
    from ssm_jax.interop import weight_files

    path = flags.weights
    given = flags.given_fields()
    weights = weight_files.read_weights(path, int(flags.max_gib * 2**30))

    # These import JAX, which takes seconds; a file that cannot be read needs none of it.
    common.start_jax()
    from ssm_jax import checkpoints
    from ssm_jax.interop import reference_names
    from ssm_jax.interop.reference_config import infer_config

    try:
        model_config = infer_config(weights, given)
        variables = reference_names.to_variables(weights.arrays, model_config)
    except (ValueError, TypeError) as error:  # TypeError: an .npz of no numbers
        raise ValueError(f"{path}: {error}") from error
    classes = flags.class_set(model_config.image_classes, model_config.num_classes - 1)
    folder = checkpoints.save_model(flags.output, model_config, variables, classes)
    kind = f"{model_config.backbone}, {model_config.blocks} blocks"
    print(f"{path} ({kind}, {model_config.branches} RoI branches) -> {folder}")
