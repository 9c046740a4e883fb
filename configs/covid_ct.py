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
weights and for as many iterations, at a learning rate of 1e-4. Neither has been run to its end;
docs/results.md tells what was tried, and that the class is not learned well yet.
"""

from ssm_jax.config import benchmark_config, few_real_slices, short_run

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
    config = benchmark_config(ITERATIONS, best_metric="auc_covid")
    config.classes.image = CLASSES
    config.model.image_classes = 2
    config.data.dev_share = 0.2
    if variant == "paper":
        return config
    short_run(config)
    few_real_slices(config)
    config.train.classification_from = ITERATIONS // 2
    config.train.learning_rate = 5e-4
    config.train.end_learning_rate = 1e-5
    config.train.module_s_learning_rate = 2e-4
    config.train.module_s_output_scale = 0.15  # as drawn, the loss starts far above chance
    config.train.ema_decay = 0.995
    return config
