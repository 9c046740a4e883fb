"""SSM: pretrained, one RoI branch that both segmentation and module S read (paper, section 3.2).

    ssm-jax train --config=ssm:VARIANT \
        --config.init_from=runs/pretrain_VARIANT \
        --config.data.seg_dir=DIR --config.data.cls_dir=DIR

VARIANT is the backbone: r18_2, r18_3 (default), r34_2 or r34_3 (the paper's R18*, R18**, R34* and
R34**); `pretrain.py` makes the checkpoint. 50 epochs of the classification slices, batch
size 1, learning rate 1e-5, weight decay 1e-3. Segmentation steps train all but module S,
classification steps module S and the backbone (update rule 2).
"""

from ssm_jax.config import paper_config


def get_config(variant: str = "r18_3"):
    """The run's `ml_collections.ConfigDict`, for a key of `ssm_jax.config.VARIANTS`."""
    config = paper_config(variant)
    config.model.branches = 1
    config.train.pretrained = True
    config.train.copy_rule = "never"
    return config
