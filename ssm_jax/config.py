"""The settings of a run: one `ml_collections.ConfigDict`; its model section as a dataclass.

A file under `configs/` starts from `default_config()` and changes what it needs. Every field can be
overridden on the command line: `--config.train.learning_rate=1e-4`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import ml_collections

from ssm_jax.classes import FILE_CLASSES, LESION_CLASSES

BACKBONES = ("resnet18", "resnet34")
DTYPES = ("float32", "bfloat16")
BN_STATISTICS = ("batch", "example")
UPDATE_RULES = (1, 2, 3)
COPY_RULES = ("best", "every_step", "ema", "never")
SCHEDULES = ("constant", "cosine")
# Backbones of the paper as configurations name them: depth, and residual stages kept (2: *, 3: **).
VARIANTS = {
    "r18_2": ("resnet18", 2),
    "r18_3": ("resnet18", 3),
    "r34_2": ("resnet34", 2),
    "r34_3": ("resnet34", 3),
}


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything that shapes the network; hashable, so that it can be a static argument.

    Sizes are pixels of the resized image, thresholds are IoUs, counts are per image. The defaults
    are the reference implementation's.
    """

    backbone: str = "resnet18"
    blocks: int = 3  # residual stages kept: 2 (stride 8) or 3 (stride 16)
    branches: int = 2  # RoI branches: 1 (module S reads the segmentation branch) or 2
    num_classes: int = 2  # background and the lesion classes
    image_classes: int = 3  # see ssm_jax.classes; 0: segmentation alone, without module S
    image_size: int = 512  # length that the short side is resized to
    max_size: int = 1024  # upper bound of the long side
    bn_momentum: float = 0.1  # weight of the current batch in the running statistics
    bn_statistics: str = "batch"  # moments in training: of the batch, or of each example alone
    anchor_sizes: tuple[float, ...] = (2, 4, 8, 16, 32)
    anchor_ratios: tuple[float, ...] = (0.1, 0.25, 0.5, 1, 1.5, 2)  # height / width
    rpn_pre_nms: int = 2000  # anchors decoded, by objectness
    rpn_post_nms: int = 1000  # proposals kept
    rpn_nms_threshold: float = 0.75
    rpn_batch: int = 256  # anchors sampled for the RPN losses
    rpn_positives: int = 128
    roi_batch: int = 512  # RoIs sampled for the losses of the segmentation branch
    roi_positives: int = 128
    selection_size: int = 128  # rows that module S reads
    selection_nms_threshold: float = 0.75
    max_detections: int = 128
    dtype: str = "float32"  # of convolutions and dense layers; or bfloat16, for accelerators

    def __post_init__(self):
        _check(self.backbone in BACKBONES, "model.backbone", self.backbone, BACKBONES)
        _check(self.blocks in (2, 3), "model.blocks", self.blocks, (2, 3))
        _check(self.branches in (1, 2), "model.branches", self.branches, (1, 2))
        _check(self.image_size % 32 == 0, "model.image_size", self.image_size, "multiples of 32")
        _check(self.num_classes >= 2, "model.num_classes", self.num_classes, "numbers from 2")
        possible = tuple(FILE_CLASSES)
        _check(self.image_classes in possible, "model.image_classes", self.image_classes, possible)
        kind = self.bn_statistics
        _check(kind in BN_STATISTICS, "model.bn_statistics", kind, BN_STATISTICS)
        _check(self.dtype in DTYPES, "model.dtype", self.dtype, DTYPES)
        if not self.image_classes:
            _check(self.branches == 1, "model.branches", self.branches, "(1,) without module S")

    @property
    def stride(self) -> int:
        """Pixels of the image per cell of the feature map."""
        return 8 if self.blocks == 2 else 16

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Builds the dataclass from a config section or from a checkpoint's JSON (lists allowed).

        Raises:
          ValueError: a name that is not a field, or a value out of range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"config.model has no field {unknown}; the fields are {sorted(known)}")
        as_tuples: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list | tuple) else v for k, v in values.items()
        }
        return cls(**as_tuples)


def _check(condition: bool, name: str, value: Any, allowed: Any) -> None:
    if not condition:
        raise ValueError(f"config.{name}={value!r} is not possible; choose from {allowed}")


def default_config() -> ml_collections.ConfigDict:
    """The paper's recipe (SSM^S, ResNet-18 with three blocks) with the phantom as its data."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.init_from = ""  # checkpoint that the run starts from: its segmentation part is taken
    config.model = ml_collections.ConfigDict(dataclasses.asdict(ModelConfig()))
    config.backbone = ml_collections.ConfigDict()
    config.backbone.init = "random"  # or a file with a torchvision ResNet's state dict

    config.data = data = ml_collections.ConfigDict()
    data.seg_dir = ""  # <seg_dir>/<split>/{imgs,masks}, or several: A,B; empty: the phantom
    data.cls_dir = ""  # <cls_dir>/<split>/<class>_<patient>_<scan>_<slice>.png; the same
    data.seg_weights = ""  # of several folders in training, as 1,2.5; empty: by numbers of slices
    data.cls_weights = ""  # the same of classification slices
    data.data_dir = "~/.cache/ssm_jax"  # where prepared data sets are kept
    data.train_split = "train"
    data.test_split = "test"
    data.mask_type = "merge"  # lesion classes: merge (one), both (ground glass, consolidation), ggo
    data.min_area = 100  # pixels of a slice of 512 x 512 that a lesion exceeds, as the paper's
    data.max_objects = 0  # objects a slice can hold; 0: what the training set needs
    data.threads = 2  # decoding threads
    data.prefetch = 8  # batches decoded ahead

    data.phantom = phantom = ml_collections.ConfigDict()
    phantom.seed = 0
    phantom.size = 512
    phantom.seg_train = 650
    phantom.seg_test = 100
    phantom.cls_train = 3000
    phantom.cls_test = 300

    data.augment = augment = ml_collections.ConfigDict()  # random changes of training slices
    augment.flip = 0.0  # probability of a mirror image
    augment.scale = 0.0  # zoom by a factor from 1 / (1 + scale) to 1 + scale
    augment.shift = 0.0  # at most this share of the sides
    augment.rotate = 0.0  # at most so many degrees
    augment.crop = 0.0  # at most this share of the sides is cut off, and the rest enlarged
    augment.gain = 0.0  # contrast by a factor from 1 / (1 + gain) to 1 + gain
    augment.offset = 0.0  # brightness by at most this share of white
    augment.gamma = 0.0  # exponent of the grey values from 1 / (1 + gamma) to 1 + gamma
    augment.noise = 0.0  # standard deviation of white noise, at most this share of white
    augment.blur = 0.0  # standard deviation of a Gaussian blur, at most so many pixels
    augment.clahe = 0.0  # probability of contrast-limited adaptive histogram equalization

    config.train = train = ml_collections.ConfigDict()
    train.batch_size = 1  # pairs of slices an iteration, of all devices together
    train.epochs = 50  # passes over the classification slices, or the segmentation slices alone
    train.max_steps = 0  # iterations; 0: epochs decide
    train.learning_rate = 1e-5
    train.module_s_learning_rate = 0.0  # of module S; 0: the same as the others
    train.schedule = "constant"  # or cosine
    train.end_learning_rate = 0.0  # where a cosine ends, for all but module S
    train.warmup_steps = 0
    train.classification_from = 0  # iterations of segmentation alone before both steps are taken
    train.weight_decay = 1e-3  # L2, added to the gradient
    train.pretrained = False  # the method needs weights to start from, see init_from
    train.update_rule = 2  # classification step: 1 S; 2 S + backbone and FPN; 3 S + backbone BN
    train.copy_rule = "best"  # segmentation -> classification branch: best, every_step, ema, never
    train.copy_ema = 0.99  # decay of copy_rule ema

    config.eval = evaluation = ml_collections.ConfigDict()
    evaluation.every_steps = 0  # 0: once an epoch
    evaluation.max_slices = 0  # of each test split; 0: all
    evaluation.batch_size = 1
    evaluation.score_threshold = 0.75
    evaluation.nms_threshold = 0.5
    evaluation.bn_slices = 0  # > 0: re-estimate BN statistics over so many training slices first
    evaluation.overlays = 6  # pictures written at the end

    config.checkpoint = checkpoint = ml_collections.ConfigDict()
    checkpoint.every_steps = 1000
    checkpoint.keep_last = 2
    checkpoint.best_metric = "accuracy"  # a name of metrics.json; larger is better

    config.log = ml_collections.ConfigDict()
    config.log.every_steps = 10  # iterations between lines of metrics.jsonl
    return config


def paper_config(variant: str) -> ml_collections.ConfigDict:
    """`default_config()` with one of the backbones of the paper.

    Args:
      variant: a key of `VARIANTS`: "r18_2" (ResNet-18, two blocks, the paper's R18*), "r18_3"
        (R18**), "r34_2" (R34*) or "r34_3" (R34**).

    Raises:
      ValueError: another name.
    """
    if variant not in VARIANTS:
        raise ValueError(f"there is no variant {variant!r}; choose from {', '.join(VARIANTS)}")
    config = default_config()
    config.model.backbone, config.model.blocks = VARIANTS[variant]
    return config


def variant_of(model: ModelConfig | ml_collections.ConfigDict) -> str:
    """The name in `VARIANTS` of a model's backbone."""
    return next(name for name, kind in VARIANTS.items() if kind == (model.backbone, model.blocks))


def validate(config: ml_collections.ConfigDict) -> ModelConfig:
    """Checks the values that would otherwise fail late; returns the model section.

    Raises:
      ValueError: names the field, its value and what is possible.
    """
    train = config.train
    _check(train.update_rule in UPDATE_RULES, "train.update_rule", train.update_rule, UPDATE_RULES)
    _check(train.copy_rule in COPY_RULES, "train.copy_rule", train.copy_rule, COPY_RULES)
    _check(train.schedule in SCHEDULES, "train.schedule", train.schedule, SCHEDULES)
    for name in ("batch_size", "epochs"):
        _check(train[name] >= 1, f"train.{name}", train[name], "numbers from 1")
    start = train.classification_from
    _check(start >= 0, "train.classification_from", start, "numbers from 0")
    _check(config.data.max_objects <= 255, "data.max_objects", config.data.max_objects, "0 to 255")
    for name, value in config.data.augment.items():
        most = {"flip": 1, "clahe": 1, "crop": 0.9}.get(name, math.inf)
        possible = "numbers from 0" + (f" to {most}" if most < math.inf else "")
        _check(0 <= value <= most, f"data.augment.{name}", value, possible)
    mask_types = tuple(LESION_CLASSES)
    _check(config.data.mask_type in mask_types, "data.mask_type", config.data.mask_type, mask_types)
    model = ModelConfig.from_mapping(config.model.to_dict())
    lesions = len(LESION_CLASSES[config.data.mask_type])
    if model.num_classes != lesions + 1:
        raise ValueError(
            f"config.data.mask_type={config.data.mask_type!r} and config.model.num_classes="
            f"{model.num_classes} do not fit: set the latter to {lesions + 1}, one for the "
            f"background and {lesions} for lesions"
        )
    if config.init_from and config.backbone.init != "random":
        raise ValueError(
            "config.init_from and config.backbone.init both give a backbone; set one of them"
        )
    return model
