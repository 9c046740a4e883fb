"""The settings of a run: one `ml_collections.ConfigDict`; its model section as a dataclass.

A file under `configs/` starts from `default_config()` and changes what it needs. Every field can be
overridden on the command line: `--config.train.learning_rate=1e-4`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import ml_collections

from ssm_jax.class_set import ClassSet
from ssm_jax.classes import MASK_TYPES, of_run
from ssm_jax.possible import MODEL_VALUES, RUN_VALUES, Possible, choice, whole

# Backbones of the paper as configurations name them: depth, and residual stages kept (2: *, 3: **).
VARIANTS = {
    "r18_2": ("resnet18", 2),
    "r18_3": ("resnet18", 3),
    "r34_2": ("resnet34", 2),
    "r34_3": ("resnet34", 3),
}


def _check(value: Any, possible: Possible, name: str, why: str = "") -> None:
    """Raises ValueError, which names the field, its value and what is possible."""
    if not possible.holds(value):
        told = f"{possible.text} ({why})" if why else possible.text
        raise ValueError(f"config.{name}={value!r} is not possible; choose from {told}")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything that shapes the network; hashable, so that it can be a static argument.

    Sizes are pixels of the resized image, thresholds are IoUs, counts are per image. The defaults
    are the reference implementation's.
    """

    backbone: str = "resnet18"  # or resnet34
    blocks: int = 3  # residual stages kept: 2 (stride 8) or 3 (stride 16)
    branches: int = 2  # RoI branches: 1 (module S reads the segmentation branch) or 2
    num_classes: int = 2  # background and the lesion classes
    image_classes: int = 3  # of whole slices; 0: segmentation alone, without module S
    image_size: int = 512  # length that the short side is resized to
    max_size: int = 1024  # upper bound of the long side
    bn_momentum: float = 0.1  # weight of the current batch in the running statistics
    bn_statistics: str = "batch"  # moments in training: of the batch, or of each example alone
    anchor_sizes: tuple[float, ...] = (2, 4, 8, 16, 32)  # square roots of their areas
    anchor_ratios: tuple[float, ...] = (0.1, 0.25, 0.5, 1, 1.5, 2)  # height / width
    rpn_pre_nms: int = 2000  # anchors decoded, by objectness
    rpn_post_nms: int = 1000  # proposals kept
    rpn_nms_threshold: float = 0.75  # IoU above which the lower-scored anchor is dropped
    rpn_batch: int = 256  # anchors sampled for the RPN losses
    rpn_positives: int = 128  # of the sampled anchors at most
    roi_batch: int = 512  # RoIs sampled for the losses of the segmentation branch
    roi_positives: int = 128  # of the sampled RoIs at most
    selection_size: int = 128  # rows that module S reads
    selection_nms_threshold: float = 0.75  # IoU above which the lower-scored row is dropped
    max_detections: int = 128  # lesions that a prediction can hold
    dtype: str = "float32"  # of convolutions and dense layers; or bfloat16, for accelerators

    def __post_init__(self):
        for name, possible in MODEL_VALUES.items():
            _check(getattr(self, name), possible, f"model.{name}")
        if not self.image_classes:
            _check(self.branches, choice(1), "model.branches", "without module S")
        for name in ("rpn", "roi"):
            most = whole(0, getattr(self, f"{name}_batch"))
            field = f"{name}_positives"
            _check(getattr(self, field), most, f"model.{field}", f"of model.{name}_batch")

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


def default_config() -> ml_collections.ConfigDict:
    """The paper's recipe (SSM^S, ResNet-18 with three blocks) with the phantom as its data."""
    config = ml_collections.ConfigDict()
    config.seed = 0  # of initial weights, batches and all sampling
    config.init_from = ""  # checkpoint that the run starts from, or box: all that fits is taken
    config.model = ml_collections.ConfigDict(dataclasses.asdict(ModelConfig()))
    config.backbone = ml_collections.ConfigDict()
    config.backbone.init = "random"  # or a file with a torchvision ResNet's state dict

    config.classes = named = ml_collections.ConfigDict()  # empty: see docs/adapt.md
    named.image = ()  # image classes; empty: those of the data, or else the paper's
    named.lesion = ()  # lesion classes; empty: those of the data, or else the paper's
    named.background = ()  # names and mask values that are no lesion, with classes.lesion

    config.data = data_section()
    config.train = train = ml_collections.ConfigDict()
    train.batch_size = 1  # pairs of slices an iteration, of all devices together
    train.epochs = 50  # passes over the classification slices, or the segmentation slices alone
    train.max_steps = 0  # iterations; 0: epochs decide
    train.learning_rate = 1e-5  # of Adam
    train.module_s_learning_rate = 0.0  # of module S; 0: the same as the others
    train.module_s_output_scale = 1.0  # of the initial weights of its last layer; 0: classes alike
    train.schedule = "constant"  # or cosine
    train.end_learning_rate = 0.0  # where a cosine ends, for all but module S
    train.warmup_steps = 0  # iterations over which the learning rate rises from 0
    train.classification_from = 0  # iterations of segmentation alone before both steps are taken
    train.segmentation_every = 1  # iterations between segmentation steps from then on; 0: none
    train.weight_decay = 1e-3  # L2, added to the gradient
    train.freeze = ""  # parameters that stay as they are: patterns such as backbone/*, with commas
    train.lr_factors = ""  # of learning rates: backbone/*=0.1, with commas
    train.pretrained = False  # the method needs weights to start from, see init_from
    train.update_rule = 2  # classification step: 1 S; 2 S + backbone and FPN; 3 S + backbone BN
    train.copy_rule = "best"  # segmentation -> classification branch: best, every_step, ema, never
    train.copy_ema = 0.99  # decay of copy_rule ema
    train.ema_decay = 0.0  # > 0: an average of all weights with this decay is what is evaluated

    config.eval = evaluation = ml_collections.ConfigDict()
    evaluation.every_steps = 0  # 0: once an epoch
    evaluation.max_slices = 0  # of each test split; 0: all
    evaluation.batch_size = 1  # slices predicted at once
    evaluation.score_threshold = 0.75  # detections have a larger score
    evaluation.choose_threshold = "none"  # on training slices: none, infection_dice or ap50
    evaluation.threshold_slices = 0  # training slices that it is chosen on; 0: all
    evaluation.nms_threshold = 0.5  # IoU above which the lower-scored detection is dropped
    evaluation.bn_slices = 0  # > 0: re-estimate BN statistics over so many training slices first
    evaluation.overlays = 6  # pictures written at the end

    config.checkpoint = checkpoint = ml_collections.ConfigDict()
    checkpoint.every_steps = 1000  # iterations; 0: only where evaluated and at the end
    checkpoint.keep_last = 2  # latest checkpoints that are kept, beside the best
    checkpoint.best_metric = "accuracy"  # a name of metrics.json; larger is better

    config.log = ml_collections.ConfigDict()
    config.log.every_steps = 10  # iterations between lines of metrics.jsonl
    config.log.tracking = ""  # mlflow: metrics go there too; needs ssm-jax[tracking]
    return config


def data_section() -> ml_collections.ConfigDict:
    """The section `data` of the default configuration."""
    data = ml_collections.ConfigDict()
    data.seg_dir = ""  # <seg_dir>/<split>/{imgs,masks}, or several: A,B; empty: the phantom
    data.cls_dir = ""  # <cls_dir>/<split>/<class>_<patient>_<scan>_<slice>.png, or A,B
    data.seg_weights = ""  # of folders of seg_dir in training, as 1,2.5; empty: by their slices
    data.cls_weights = ""  # of folders of cls_dir in training, as 1,2.5; empty: by their slices
    data.data_dir = "~/.cache/ssm_jax"  # where prepared data sets are kept
    data.train_split = "train"  # subfolder with the training slices
    data.test_split = "test"  # subfolder with the slices of the evaluation
    data.dev_share = 0.0  # > 0: where there are none, this share of the training slices, by patient
    data.dev_seed = 0  # of the choice of these patients
    data.mask_type = "merge"  # lesion classes of the paper's masks: a key of classes.MASK_TYPES
    data.min_area = 100  # pixels of a slice of 512 x 512 that a lesion exceeds, as the paper's
    data.max_objects = 0  # objects a slice can hold; 0: what the training set needs
    data.threads = 2  # decoding threads
    data.prefetch = 8  # batches decoded ahead

    data.phantom = phantom = ml_collections.ConfigDict()
    phantom.seed = 0  # of all phantoms
    phantom.size = 512  # pixels of either side
    phantom.seg_train = 650  # segmentation slices to train on
    phantom.seg_test = 100  # segmentation slices to evaluate on
    phantom.cls_train = 3000  # classification slices to train on
    phantom.cls_test = 300  # classification slices to evaluate on

    data.augment = augment = ml_collections.ConfigDict()  # random changes of training slices
    augment.flip = 0.0  # probability of a mirror image
    augment.scale = 0.0  # zoom by a factor from 1 / (1 + scale) to 1 + scale
    augment.shift = 0.0  # at most this share of the sides
    augment.rotate = 0.0  # at most so many degrees
    augment.crop = 0.0  # at most this share of the sides is cut off, and the rest enlarged
    augment.gain = 0.0  # contrast by a factor from 1 / (1 + gain) to 1 + gain
    augment.offset = 0.0  # brightness by at most this share of white
    augment.gamma = 0.0  # exponent of the gray values from 1 / (1 + gamma) to 1 + gamma
    augment.noise = 0.0  # standard deviation of white noise, at most this share of white
    augment.blur = 0.0  # standard deviation of a Gaussian blur, at most so many pixels
    augment.clahe = 0.0  # probability of contrast-limited adaptive histogram equalization
    return data


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


def short_run(config: ml_collections.ConfigDict) -> None:
    """Changes what lets a CPU train a model in minutes or an hour, not the paper's fifty epochs.

    For a run of a few thousand iterations or fewer from `default_config()`: a shallower backbone,
    few RoIs (half of an iteration's time would go into the mask head), two pairs of slices an
    iteration, BN statistics that are averaged over more iterations, and a learning rate that
    decays. Learning rates, the number of iterations and of warm-up steps are the caller's to set.
    """
    model, train = config.model, config.train
    model.blocks = 2
    model.bn_momentum = 0.02
    model.roi_batch, model.roi_positives = 64, 16
    model.rpn_pre_nms, model.rpn_post_nms = 1000, 300
    train.batch_size = 2
    train.schedule = "cosine"


def few_real_slices(config: ml_collections.ConfigDict) -> None:
    """Changes what helps where some hundreds of slices of real patients are all there is.

    Goes with `short_run`: slices of 256 pixels, anchors for lesions up to a quarter of the side,
    random changes of the training slices, and BN statistics re-estimated before an evaluation.
    """
    config.model.image_size = 256
    config.model.anchor_sizes = (4, 8, 16, 32, 64)
    config.data.augment.update(flip=0.5, scale=0.2, shift=0.1, rotate=8.0)
    config.data.augment.update(gain=0.2, gamma=0.25, clahe=0.2)
    config.train.warmup_steps = 50
    config.eval.bn_slices = 100


def benchmark_config(max_steps: int, best_metric: str) -> ml_collections.ConfigDict:
    """The paper's recipe for a comparison on real slices, at a learning rate of 1e-4.

    It is evaluated three times; the score threshold is chosen on training slices for the largest
    infection Dice.

    Args:
      max_steps: iterations in all.
      best_metric: name of the figure of metrics.json by which the best checkpoint is kept.
    """
    config = default_config()
    config.train.max_steps = max_steps
    config.train.learning_rate = 1e-4
    config.eval.every_steps = max_steps // 3
    config.eval.choose_threshold = "infection_dice"
    config.eval.threshold_slices = 200
    config.checkpoint.every_steps = 200
    config.checkpoint.best_metric = best_metric
    return config


def variant_of(model: ModelConfig | ml_collections.ConfigDict) -> str:
    """The name in `VARIANTS` of a model's backbone."""
    return next(name for name, kind in VARIANTS.items() if kind == (model.backbone, model.blocks))


def class_set(config: ml_collections.ConfigDict) -> ClassSet:
    """The classes that a configuration names, and the paper's (or numbers) in place of others.

    Raises:
      ValueError: classes that cannot be.
    """
    try:
        return of_run(config)
    except ValueError as error:
        raise ValueError(f"config.classes: {error}") from error


def check_values(config: ml_collections.ConfigDict) -> ModelConfig:
    """Checks every field by itself; returns the model section.

    Raises:
      ValueError: names the field, its value and what is possible.
    """
    for name, possible in RUN_VALUES.items():
        *sections, field = name.split(".")
        section = functools.reduce(lambda part, key: part[key], sections, config)
        _check(section[field], possible, name)
    return ModelConfig.from_mapping(config.model.to_dict())


def validate(config: ml_collections.ConfigDict) -> ModelConfig:
    """Checks all that can be checked before there are data; returns the model section.

    Raises:
      ValueError: names the field, its value and what is possible.
    """
    model, train = check_values(config), config.train
    if train.max_steps and model.image_classes:
        both = whole(0, train.max_steps - 1)
        _check(train.classification_from, both, "train.classification_from", "below max_steps")
    _check_counts(config, model)
    if config.init_from and config.backbone.init != "random":
        raise ValueError(
            "config.init_from and config.backbone.init both give a backbone; set one of them"
        )
    return model


def _check_counts(config: ml_collections.ConfigDict, model: ModelConfig) -> None:
    """Raises ValueError where the model has not as many classes as are named."""
    classes, mask_type = class_set(config), config.data.mask_type
    lesions, wanted = len(classes.lesion), model.num_classes
    if lesions != wanted - 1:
        of_paper = classes.lesion == MASK_TYPES[mask_type][0]
        names = ", ".join(classes.lesion_names.values())
        told = f"config.data.mask_type={mask_type!r}" if of_paper else f"lesion classes {names}"
        raise ValueError(
            f"{told} and config.model.num_classes={wanted} do not fit: set the latter to "
            f"{lesions + 1}, one for the background and {lesions} for lesions"
            + (", or name the classes in config.classes.lesion" if of_paper else "")
        )
    if mask_type != "merge" and classes.lesion != MASK_TYPES[mask_type][0]:
        raise ValueError(
            f"config.data.mask_type={mask_type!r} chooses among the paper's lesion classes, and "
            f"others are named ({', '.join(classes.lesion_names.values())}); leave it out"
        )
    if len(classes.image) != model.image_classes:
        raise ValueError(
            f"config.model.image_classes={model.image_classes} and the image classes "
            f"({', '.join(classes.names)}) do not fit: set the former to {len(classes.image)}, or "
            "to 0 (with model.branches=1) for a model of lesions alone"
        )
