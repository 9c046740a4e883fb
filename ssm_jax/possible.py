"""Values that the fields of a configuration can have: of each a test, and the words for an error.

A new field of `ssm_jax/config.py` needs its entry here, in `MODEL_VALUES` or `RUN_VALUES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from ssm_jax.classes import MASK_TYPES

BACKBONES = ("resnet18", "resnet34")
DTYPES = ("float32", "bfloat16")
BN_STATISTICS = ("batch", "example")
UPDATE_RULES = (1, 2, 3)
COPY_RULES = ("best", "every_step", "ema", "never")
SCHEDULES = ("constant", "cosine")
THRESHOLD_RULES = ("none", "infection_dice", "ap50")  # the figure that is made largest


class Possible(NamedTuple):
    """Values that a field can have: a test, and what it says."""

    holds: Callable[[Any], bool]
    text: str


def choice(*values: Any) -> Possible:
    """A few values; 2.0 is not 2."""
    return Possible(
        lambda value: any(type(value) is type(v) and value == v for v in values),
        ", ".join(map(repr, values)),
    )


def whole(low: int, high: float = math.inf, multiple: int = 1) -> Possible:
    """Whole numbers from `low` to `high`, and multiples of one of them."""
    kind = "whole numbers" if multiple == 1 else f"multiples of {multiple}"
    end = "" if high == math.inf else f" to {high}"
    return Possible(
        lambda value: type(value) is int and low <= value <= high and value % multiple == 0,
        f"{kind} from {low}{end}",
    )


def numbers(low: float, high: float = math.inf, above: bool = False) -> Possible:
    """Finite numbers; `above`: `low` is none of them."""

    def holds(value: Any) -> bool:
        is_number = type(value) in (int, float) and math.isfinite(value)
        return is_number and low <= value <= high and not (above and value == low)

    end = "" if high == math.inf else f" to {high:g}"
    return Possible(holds, f"numbers {'above' if above else 'from'} {low:g}{end}")


def lists(possible: Possible) -> Possible:
    """Lists and tuples of some of these values."""
    return Possible(
        lambda value: type(value) in (list, tuple) and value and all(map(possible.holds, value)),
        f"lists of {possible.text}",
    )


def text(signs: str, name: str, *others: str) -> Possible:
    """Texts called `name`, without some signs, and but for some."""
    return Possible(lambda v: isinstance(v, str) and not {*v} & {*signs} and v not in others, name)


def either(first: Possible, second: Possible) -> Possible:
    """Values of the one or the other kind."""
    return Possible(
        lambda value: first.holds(value) or second.holds(value), f"{first.text} or {second.text}"
    )


SHARE, COUNT = numbers(0, 1), whole(0)
ENTRIES = Possible(lambda value: type(value) in (list, tuple), "lists, see ssm_jax.classes")
PATH, NAME = text("\0", "paths"), text("/\\\0", "names of a subfolder", "", ".", "..")
# What the fields of the model can be: those of a run's configuration, and those of a checkpoint's.
MODEL_VALUES = {
    "backbone": choice(*BACKBONES),
    "blocks": choice(2, 3),
    "branches": choice(1, 2),
    "num_classes": whole(2, 256),
    "image_classes": either(choice(0), whole(2, 256)),
    "image_size": whole(32, 4096, multiple=32),
    "max_size": whole(32, 8192),
    "bn_momentum": SHARE,
    "bn_statistics": choice(*BN_STATISTICS),
    "anchor_sizes": lists(numbers(0, 4096, above=True)),
    "anchor_ratios": lists(numbers(0, 1000, above=True)),
    "rpn_pre_nms": whole(1, 1_000_000),
    "rpn_post_nms": whole(1, 1_000_000),
    "rpn_nms_threshold": SHARE,
    "rpn_batch": whole(1, 1_000_000),
    "rpn_positives": COUNT,
    "roi_batch": whole(1, 1_000_000),
    "roi_positives": COUNT,
    "selection_size": whole(1, 100_000),
    "selection_nms_threshold": SHARE,
    "max_detections": whole(1, 100_000),
    "dtype": choice(*DTYPES),
}
# What the other fields of a run's configuration can be, as section.field.
RUN_VALUES = {
    "seed": whole(0, 2**32 - 1),
    "init_from": PATH,
    "backbone.init": PATH,
    "classes.image": ENTRIES,
    "classes.lesion": ENTRIES,
    "classes.background": ENTRIES,
    "data.seg_dir": PATH,
    "data.cls_dir": PATH,
    "data.seg_weights": PATH,
    "data.cls_weights": PATH,
    "data.data_dir": PATH,
    "data.train_split": NAME,
    "data.test_split": NAME,
    "data.dev_share": numbers(0, 0.9),
    "data.dev_seed": COUNT,
    "data.mask_type": choice(*MASK_TYPES),
    "data.min_area": COUNT,
    "data.max_objects": whole(0, 255),
    "data.threads": whole(1, 1024),
    "data.prefetch": whole(0, 100_000),
    "data.phantom.seed": COUNT,
    "data.phantom.size": whole(1, 4096),
    "data.phantom.seg_train": whole(1, 10_000_000),
    "data.phantom.seg_test": whole(1, 10_000_000),
    "data.phantom.cls_train": whole(1, 10_000_000),
    "data.phantom.cls_test": whole(1, 10_000_000),
    **{
        f"data.augment.{name}": numbers(0)
        for name in ("scale", "shift", "rotate", "gain", "offset", "gamma", "noise", "blur")
    },
    "data.augment.flip": SHARE,
    "data.augment.clahe": SHARE,
    "data.augment.crop": numbers(0, 0.9),
    "train.batch_size": whole(1, 65_536),
    "train.epochs": whole(1),
    "train.max_steps": COUNT,
    "train.learning_rate": numbers(0, above=True),
    "train.module_s_learning_rate": numbers(0),
    "train.module_s_output_scale": numbers(0),
    "train.schedule": choice(*SCHEDULES),
    "train.end_learning_rate": numbers(0),
    "train.warmup_steps": COUNT,
    "train.classification_from": COUNT,
    "train.segmentation_every": COUNT,
    "train.weight_decay": numbers(0),
    "train.freeze": PATH,
    "train.lr_factors": PATH,
    "train.pretrained": choice(False, True),
    "train.update_rule": choice(*UPDATE_RULES),
    "train.copy_rule": choice(*COPY_RULES),
    "train.copy_ema": SHARE,
    "train.ema_decay": SHARE,
    "eval.every_steps": COUNT,
    "eval.max_slices": COUNT,
    "eval.batch_size": whole(1, 65_536),
    "eval.score_threshold": SHARE,
    "eval.choose_threshold": choice(*THRESHOLD_RULES),
    "eval.threshold_slices": COUNT,
    "eval.nms_threshold": SHARE,
    "eval.bn_slices": COUNT,
    "eval.overlays": COUNT,
    "checkpoint.every_steps": COUNT,
    "checkpoint.keep_last": whole(1),
    "checkpoint.best_metric": PATH,
    "log.every_steps": whole(1),
    "log.tracking": choice("", "mlflow"),
}
