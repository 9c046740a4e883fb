"""SSM^2: pretrained, two RoI branches, the second a copy made once (paper, section 3.2).

    ssm-jax train --config=ssm2:VARIANT \
        --config.init_from=runs/pretrain_VARIANT \
        --config.data.seg_dir=DIR --config.data.cls_dir=DIR

VARIANT is the backbone: r18_2, r18_3 (default), r34_2 or r34_3 (the paper's R18*, R18**, R34* and
R34**); `pretrain.py` makes the checkpoint. The recipe is that of `ssm.py`, but module S
reads a second RoI branch that starts as a copy of the pretrained segmentation branch and is never
trained nor copied again.
"""

from ssm_jax.config import paper_config


def get_config(variant: str = "r18_3"):
    """The run's `ml_collections.ConfigDict`, for a key of `ssm_jax.config.VARIANTS`."""
    config = paper_config(variant)
    config.model.branches = 2
    config.train.pretrained = True
    config.train.copy_rule = "never"
    return config
