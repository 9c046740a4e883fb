"""Benchmark: COVID-19 or another finding, on the pictures of COVID-CT.

    ssm-jax train --config=covid_ct --config.backbone.init=resnet18.pth \
        --config.data.seg_dir=DATA/ct_lesion_seg,DATA/coronacases \
        --config.data.cls_dir=DATA/covid_ct

DATA/covid_ct/train holds COVID-CT's pictures as `<class>_<document>_0_<name>.png`, the class being
2 for COVID-19 and 0 for all else; the set has no test pictures of its own here, so that a fifth of
the documents, whole ones, is kept for the evaluation. The segmentation slices are those of
`covid19_ct_seg.py`: module S, which tells the class, reads what the detector finds. resnet18.pth
holds torchvision's ImageNet weights of ResNet-18.

`--config=covid_ct:paper` is the paper's recipe (`scratch_r18.py`) on the same data, from the same
weights and for as many iterations, at a learning rate of 1e-4. No figure of either has been
measured yet.
"""

from ssm_jax.config import default_config

VARIANTS = ("recipe", "paper")
ITERATIONS = 3000
CLASSES = (
    {"name": "other", "title": "Other", "number": 0},
    {"name": "covid", "title": "COVID-19", "number": 2},
)


def get_config(variant: str = "recipe"):
    """The run's `ml_collections.ConfigDict`, for one of `VARIANTS`."""
    if variant not in VARIANTS:
        raise ValueError(f"there is no variant {variant!r}; choose from {', '.join(VARIANTS)}")
    config = default_config()
    config.classes.image = CLASSES
    config.model.image_classes = 2
    config.data.dev_share = 0.2
    config.train.max_steps = ITERATIONS
    config.train.learning_rate = 1e-4
    config.eval.every_steps = ITERATIONS // 3
    config.eval.choose_threshold = "infection_dice"
    config.eval.threshold_slices = 200
    config.checkpoint.every_steps = 200
    config.checkpoint.best_metric = "auc_covid"
    if variant == "paper":
        return config
    config.model.blocks = 2
    config.model.image_size = 256
    config.model.bn_momentum = 0.02
    config.model.anchor_sizes = (4, 8, 16, 32, 64)
    config.model.roi_batch, config.model.roi_positives = 64, 16
    config.model.rpn_pre_nms, config.model.rpn_post_nms = 1000, 300
    config.data.augment.update(flip=0.5, scale=0.2, shift=0.1, rotate=8.0)
    config.data.augment.update(gain=0.2, gamma=0.25, clahe=0.2)
    config.train.batch_size = 2
    config.train.classification_from = ITERATIONS // 2
    config.train.learning_rate = 5e-4
    config.train.end_learning_rate = 1e-5
    config.train.module_s_learning_rate = 1e-4  # at 1e-3 its loss stays above chance
    config.train.schedule = "cosine"
    config.train.warmup_steps = 50
    config.train.copy_rule = "every_step"
    config.train.ema_decay = 0.995
    config.eval.bn_slices = 100
    return config
