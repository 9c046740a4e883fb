"""SSM^S R18**: the paper's best model, trained from scratch, both RoI branches at once.

    ssm-jax train --config=scratch_r18 \
        --config.data.seg_dir=DIR --config.data.cls_dir=DIR

50 epochs of 3000 classification slices at batch size 1, learning rate 1e-5, weight decay 1e-3,
update rule 2 (paper, section 4). The paper reports 42.45% mean AP, 93.00% COVID-19 sensitivity and
96.75% accuracy on its data. Until directories are given, the phantom stands in for them: its
figures say nothing about CT.
"""

from ssm_jax.config import default_config


def get_config():
    """The run's `ml_collections.ConfigDict`."""
    config = default_config()
    config.model.backbone = "resnet18"
    config.model.blocks = 3
    config.model.branches = 2
    config.train.batch_size = 1
    config.train.epochs = 50
    config.train.learning_rate = 1e-5
    config.train.weight_decay = 1e-3
    config.train.update_rule = 2
    config.train.copy_rule = "best"
    return config
