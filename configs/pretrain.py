"""Stage I: the segmentation model alone, from which SSM and SSM^2 start (paper, figure 1).

    ssm-jax train --config=pretrain:VARIANT --config.data.seg_dir=DIR

VARIANT is the backbone: r18_2, r18_3 (default), r34_2 or r34_3 (the paper's R18*, R18**, R34* and
R34**). 50 epochs of the segmentation slices, batch size 1, learning rate 1e-5, weight decay 1e-3
(paper, section 4). There is no module S and no second RoI branch, and no classification slice is
read.
"""

from ssm_jax.config import paper_config


def get_config(variant: str = "r18_3"):
    """The run's `ml_collections.ConfigDict`, for a key of `ssm_jax.config.VARIANTS`."""
    config = paper_config(variant)
    config.model.branches = 1
    config.model.image_classes = 0
    config.checkpoint.best_metric = "ap"
    return config
