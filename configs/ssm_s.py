"""SSM^S: from scratch, two RoI branches, the second copied on a best loss (paper, section 3.3).

    ssm-jax train --config=ssm_s:VARIANT \
        --config.data.seg_dir=DIR --config.data.cls_dir=DIR

VARIANT is the backbone: r18_2, r18_3 (default, the same run as `scratch_r18.py`), r34_2 or r34_3
(the paper's R18*, R18**, R34* and R34**). 50 epochs of the classification slices, batch size 1,
learning rate 1e-5, weight decay 1e-3, update rule 2.
"""

from ssm_jax.config import paper_config


def get_config(variant: str = "r18_3"):
    """The run's `ml_collections.ConfigDict`, for a key of `ssm_jax.config.VARIANTS`."""
    config = paper_config(variant)
    config.model.branches = 2
    config.train.copy_rule = "best"
    return config
