"""Which model a command runs, and what counts as a detection."""

from __future__ import annotations

import dataclasses
from typing import Any

from ssm_jax.scans.options import RULES

SHARE = {"least": 0, "most": 1}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SummaryFlags:
    """How slices become a scan.

    Attributes:
      rule: How class probabilities of slices become those of the scan. mean: their mean. vote: the
        share of slices whose largest probability is the class. telling: the mean over the (at most
        five) most telling slices, those with the least probability of the normal class.
    """

    rule: str = dataclasses.field(default="mean", metadata={"choices": RULES})


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointFlag:
    """Which model.

    Attributes:
      checkpoint: A run's working directory, its folder of checkpoints, or the folder of one step.
        Of several the best is taken, or the latest where none was evaluated.
    """

    checkpoint: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFlags(CheckpointFlag):
    """Which model, and what counts as a detection.

    Attributes:
      score_threshold: Detections have a larger score. Default: as the run evaluated it, or 0.75
        for imported weights.
      nms_threshold: Of two detections with a larger IoU the lower-scored one is dropped. Default:
        as the run evaluated it, or 0.5 for imported weights.
    """

    score_threshold: float | None = dataclasses.field(default=None, metadata=SHARE)
    nms_threshold: float | None = dataclasses.field(default=None, metadata=SHARE)

    def thresholds(self, run: dict[str, Any] | None) -> dict[str, float]:
        """Both thresholds.

        Args:
          run: the configuration of the checkpoint's run; None for imported weights.
        """
        from ssm_jax.config import default_config

        settings = run["eval"] if run else default_config().eval
        given = {"score_threshold": self.score_threshold, "nms_threshold": self.nms_threshold}
        return {k: settings[k] if value is None else value for k, value in given.items()}


def load_predictor(flags: ModelFlags, **settings):
    """The model that flags name, and what people want to know of it.

    Args:
      flags: of the command.
      **settings: of `ssm_jax.predictor.Predictor`, the thresholds aside.

    Returns:
      the Predictor, and its facts: label and value, in reading order.

    Raises:
      CheckpointError: no checkpoint there, not ours, or damaged.
    """
    import jax

    from ssm_jax.checkpoints import load_model
    from ssm_jax.classes import long_names
    from ssm_jax.predictor import Predictor

    config, variables, info = load_model(flags.checkpoint)
    predictor = Predictor(config, variables, **flags.thresholds(info.config), **settings)
    count = sum(x.size for x in jax.tree.leaves(variables["params"]))
    facts = {
        "Checkpoint": str(info.path),
        "Iteration": str(info.step) if info.config else "imported",
        "Network": f"{config.backbone}, {config.blocks} blocks, {count:,} parameters",
        "Classes": ", ".join(long_names(config.image_classes)) or "none: it only segments",
        "Score threshold": f"{predictor.score_threshold:g}",
        "NMS threshold": f"{predictor.nms_threshold:g}",
        "Computed on": f"{jax.devices()[0].device_kind} with JAX {jax.__version__}",
    }
    return predictor, facts
