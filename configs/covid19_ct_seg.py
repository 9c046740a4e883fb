"""Benchmark: lesions of COVID-19 patients that the model never saw, on COVID-19-CT-Seg.

    ssm-jax train --config=covid19_ct_seg --config.backbone.init=resnet18.pth \
        --config.data.seg_dir=DATA/ct_lesion_seg,DATA/coronacases

DATA holds slices of the MedSeg and Coronacases volumes with lesion masks, in folders as
docs/data.md describes them, `train` and `test` being of different patients. resnet18.pth holds
torchvision's ImageNet weights of ResNet-18. All lesions are one class, and the model segments
alone: there is no module S. The score threshold is chosen on training slices for the largest
infection Dice. On one core of a shared machine the iterations took 40 minutes; expect an infection
Dice of 0.72 and an AP@0.5 of 0.56 (seed 0, slices resized to 256 pixels beforehand).

`--config=covid19_ct_seg:paper` is the paper's recipe on the same data, from the same weights and
for as many iterations: three residual blocks, slices of 512 pixels, one slice an iteration, a
learning rate of 1e-4, nothing else.
"""

from ssm_jax.config import default_config

VARIANTS = ("recipe", "paper")
ITERATIONS = 1500


def get_config(variant: str = "recipe"):
    """The run's `ml_collections.ConfigDict`, for one of `VARIANTS`."""
    if variant not in VARIANTS:
        raise ValueError(f"there is no variant {variant!r}; choose from {', '.join(VARIANTS)}")
    config = default_config()
    config.model.branches = 1
    config.model.image_classes = 0
    config.train.max_steps = ITERATIONS
    config.train.learning_rate = 1e-4
    config.eval.every_steps = ITERATIONS // 3
    config.eval.choose_threshold = "infection_dice"
    config.eval.threshold_slices = 200
    config.checkpoint.every_steps = 200
    config.checkpoint.best_metric = "infection_dice"
    if variant == "paper":
        return config
    config.model.blocks = 2
    config.model.image_size = 256
    config.model.bn_momentum = 0.02
    config.model.anchor_sizes = (4, 8, 16, 32, 64)
    # Few RoIs: half of an iteration's time would go into the mask head.
    config.model.roi_batch, config.model.roi_positives = 64, 16
    config.model.rpn_pre_nms, config.model.rpn_post_nms = 1000, 300
    config.data.augment.update(flip=0.5, scale=0.2, shift=0.1, rotate=8.0)
    config.data.augment.update(gain=0.2, gamma=0.25, clahe=0.2)
    config.train.batch_size = 2
    config.train.learning_rate = 5e-4
    config.train.end_learning_rate = 1e-5
    config.train.schedule = "cosine"
    config.train.warmup_steps = 50
    config.eval.bn_slices = 100
    return config
