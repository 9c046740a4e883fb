"""Which model a command runs, and what counts as a detection."""

from __future__ import annotations

import dataclasses
import pathlib
import sys
import tempfile
from typing import TYPE_CHECKING, Any

from ssm_jax.cli import common
from ssm_jax.scans.options import RULES

if TYPE_CHECKING:
    from ssm_jax.box import Facts
    from ssm_jax.checkpoints import CheckpointInfo
    from ssm_jax.interop.onnx.engines import Engine
    from ssm_jax.interop.portable import ExportSettings
    from ssm_jax.predictor import Predictor

SHARE = {"least": 0, "most": 1}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SummaryFlags:
    """How slices become a scan.

    Attributes:
      rule: How class probabilities of slices become those of the scan. mean: their mean. vote: the
        share of slices whose largest probability is the class. telling: the mean over the (at most
        five) most telling slices, those with the least probability of the first class.
    """

    rule: str = dataclasses.field(default="mean", metadata={"choices": RULES})


def require_folder(checkpoint: str) -> None:
    """Raises ValueError for a file in place of a checkpoint, which is a folder."""
    if pathlib.Path(checkpoint).is_file():
        raise ValueError(
            f"{checkpoint} is a file, and a checkpoint is a folder; of weights in a .pth, .pt or "
            f".npz file ssm-jax import-reference --weights={checkpoint} --output=FOLDER makes one"
        )


def tell_box(facts: Facts) -> None:
    """Says what the model in the box is not good for."""
    first = f"no --checkpoint is given: the model that comes with ssm-jax, {facts.name}"
    for line in (first, *facts.limits, f"Its weights: {facts.license}"):
        print(f"note: {line}", file=sys.stderr)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFlag:
    """Which model.

    Attributes:
      checkpoint: A run's working directory, its folder of checkpoints, or the folder of one step.
        Of several the best is taken, or the latest where none was evaluated. Default: the model
        that comes with the package, whose limits are told.
    """

    checkpoint: str | None = None

    def __post_init__(self):
        if self.checkpoint is not None:
            require_folder(self.checkpoint)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFlags(ModelFlag):
    """Which model, and what counts as a detection.

    Attributes:
      score_threshold: Detections have a larger score. Default: as the run was evaluated, or 0.75
        for imported weights.
      nms_threshold: Of two detections with a larger IoU the lower-scored one is dropped. Default:
        as the run was evaluated, or 0.5 for imported weights.
    """

    score_threshold: float | None = dataclasses.field(default=None, metadata=SHARE)
    nms_threshold: float | None = dataclasses.field(default=None, metadata=SHARE)

    def thresholds(self, info: CheckpointInfo) -> dict[str, Any]:
        """Both thresholds, for a checkpoint; see `ssm_jax.predictor.thresholds`."""
        from ssm_jax.predictor import thresholds

        score, nms = thresholds(info)
        return {
            "score_threshold": score if self.score_threshold is None else self.score_threshold,
            "nms_threshold": nms if self.nms_threshold is None else self.nms_threshold,
        }


class Loaded:
    """The model that flags name, read from its checkpoint or from the box.

    Attributes:
      config, variables, info: as `checkpoints.load_model` gives them.
      box: what is told of the model in the box; None for another one.
      thresholds: score and NMS threshold, by name.
    """

    def __init__(self, flags: ModelFlags):
        """Reads it.

        Raises:
          CheckpointError: no checkpoint there, not ours, or damaged.
        """
        from ssm_jax import box

        self.config, self.variables, self.info = box.open_model(flags.checkpoint)
        self.box = box.facts() if flags.checkpoint is None else None
        self.thresholds = flags.thresholds(self.info)

    def predictor(self, **settings: Any) -> Predictor:
        """Makes it ready; settings are those of `Predictor`, the thresholds aside."""
        from ssm_jax.predictor import Predictor

        classes = self.info.classes
        return Predictor(
            self.config, self.variables, **self.thresholds, classes=classes, **settings
        )

    def tell(self) -> None:
        """Says of the model in the box, before there are results, what it is not good for."""
        if self.box is not None:
            tell_box(self.box)

    def export_settings(self, masks: bool, input_type: str) -> ExportSettings:
        """How an exported file of this model predicts, and what it tells; see `ExportSettings`."""
        from ssm_jax.interop.portable import ExportSettings

        return ExportSettings(
            **self.thresholds,
            masks=masks,
            input_type=input_type,
            step=self.info.step if self.info.config else None,
            classes=self.info.classes,
        )

    def engine(self, name: str, exported: pathlib.Path | None, masks: bool) -> Engine:
        """Makes another engine than JAX ready.

        Args:
          name: a key of `interop.onnx.engines.ENGINES`.
          exported: the file that it runs; None: one is written, read and removed.
          masks: whether masks are asked for.

        Raises:
          ValueError: a file that is none, or does not fit the checkpoint.
          ImportError: the engine is not installed; the message names the extra.
        """
        with common.needs_extra("onnx"):
            from ssm_jax.interop.onnx import engines, file

        engines.engine_library(name)  # before seconds of work
        with tempfile.TemporaryDirectory() as folder:
            path = exported or pathlib.Path(folder) / "model.onnx"
            if exported is None:
                settings = self.export_settings(masks, "float32")
                file.write(path, self.config, self.variables, settings)
            engine = engines.Engine(name, path)
        engines.check_fits(engine.facts, self.config, masks, self.thresholds)
        return engine

    def facts(self) -> dict[str, str]:
        """Lines for people about the model: label and value, in reading order."""
        import jax

        config, info = self.config, self.info
        count = sum(x.size for x in jax.tree.leaves(self.variables["params"]))
        boxed = {}
        if self.box is not None:
            boxed = {"Model": self.box.name, "Limits": " ".join(self.box.limits)}
            boxed |= {"Weights": self.box.license}
        return {
            # Reports tell no folders of this machine.
            "Checkpoint": "/".join(info.path.parts[-3:]),
            **boxed,
            "Iteration": str(info.step) if info.config else "imported",
            "Network": f"{config.backbone}, {config.blocks} blocks, {count:,} parameters",
            "Classes": ", ".join(info.classes.titles) or "none: it only segments",
            "Lesions": ", ".join(info.classes.lesion_titles.values()),
            "Score threshold": f"{self.thresholds['score_threshold']:g}",
            "NMS threshold": f"{self.thresholds['nms_threshold']:g}",
            "Computed on": f"{jax.devices()[0].device_kind} with JAX {jax.__version__}",
        }
