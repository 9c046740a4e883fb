"""Flags of the programs that run a trained model: which one, and what counts as a detection."""

from absl import flags

from ssm_jax.cli import common

CHECKPOINT = flags.DEFINE_string("checkpoint", None, common.CHECKPOINT_HELP, required=True)
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


def thresholds() -> dict[str, float]:
    """Those that the flags give: score_threshold and nms_threshold."""
    return {
        "score_threshold": _SCORE_THRESHOLD.value,
        "nms_threshold": _NMS_THRESHOLD.value,
    }


def load_predictor(**settings):
    """The model that the flags name, and what people want to know of it.

    Args:
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

    config, variables, info = load_model(CHECKPOINT.value)
    predictor = Predictor(config, variables, **thresholds(), **settings)
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
