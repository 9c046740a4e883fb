"""Benchmark: COVID-19 or another finding, on the pictures of COVID-CT.

    ssm-jax train --config=covid_ct --config.data.seg_dir=DATA/ct_lesion_seg,DATA/coronacases \
        --config.data.cls_dir=DATA/covid_ct

DATA/covid_ct/train holds COVID-CT's pictures as `<class>_<document>_0_<name>.png`, the class being
2 for COVID-19 and 0 for all else; the set has no test pictures of its own here, so that a fifth of
the documents, whole ones, is kept for the evaluation. The segmentation slices are those of
`covid19_ct_seg.py`; only the evaluation reads them.

The run starts from the lesion detector that comes with the package and takes classification steps
alone: FPN and module S learn the class, the backbone stays, and the detector is not kept up. A
second run goes on from there and trains the last layer of the backbone as well, at lower rates:

    ssm-jax train --config=covid_ct --workdir=runs/covid_ct DATA_FLAGS
    ssm-jax train --config=covid_ct:second --workdir=runs/covid_ct_second DATA_FLAGS

with the two flags above for DATA_FLAGS. Each takes 27 minutes on one core of two beside other work.
Expect an AUC of 0.84 and an accuracy of 0.76 of the first, and 0.89, 0.82 and an F1 of 0.81 (macro)
of the second (seed 0; 0.92, 0.81 and 0.80 with seed 1).

`--config=covid_ct:paper` is the paper's recipe (`scratch_r18.py`) on the same data and for as many
iterations, at a learning rate of 1e-4, from torchvision's ImageNet weights of ResNet-18
(`--config.backbone.init=resnet18.pth`).
"""

from ssm_jax.config import benchmark_config, few_real_slices, short_run

VARIANTS = ("recipe", "second", "paper")
ITERATIONS, SECOND_ITERATIONS = 700, 600
CLASSES = (
    {"name": "other", "title": "Other", "number": 0},
    {"name": "covid", "title": "COVID-19", "number": 2},
)


def get_config(variant: str = "recipe"):
    """The run's `ml_collections.ConfigDict`, for one of `VARIANTS`."""
    if variant not in VARIANTS:
        raise ValueError(f"there is no variant {variant!r}; choose from {', '.join(VARIANTS)}")
    config = benchmark_config(ITERATIONS, best_metric="auc_covid")
    config.classes.image = CLASSES
    config.model.image_classes = 2
    config.data.dev_share = 0.2
    config.eval.every_steps = 350
    config.eval.choose_threshold = "none"  # of lesions, which are not what is measured
    if variant == "paper":
        return config
    short_run(config)
    few_real_slices(config)
    config.model.rpn_pre_nms, config.model.rpn_post_nms = 500, 150
    train = config.train
    train.segmentation_every = 0
    train.batch_size = 8
    train.end_learning_rate = 1e-5
    train.warmup_steps = 10
    train.ema_decay = 0.98
    config.eval.bn_slices = 0  # classification steps read the running statistics
    if variant == "second":
        config.init_from = f"runs/covid_ct/checkpoints/{ITERATIONS}"
        train.pretrained = False  # the classification branch goes on as it is
        train.freeze = "backbone/conv1/*,backbone/bn1/*,backbone/layer1_*"
        train.learning_rate, train.module_s_learning_rate = 1e-4, 3e-4
        train.max_steps = SECOND_ITERATIONS
        return config
    config.init_from = "box"
    train.pretrained = True  # the classification branch starts as the segmentation branch
    train.freeze = "backbone/*"
    train.learning_rate, train.module_s_learning_rate = 1e-4, 1e-3
    train.module_s_output_scale = 0.0  # as drawn, the loss starts far above chance
    return config
