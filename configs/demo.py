"""The single-shot model made small for a laptop CPU: minutes, no data needed.

    python -m experiments.main --config=configs/demo.py

The same model and algorithm as `scratch_r18.py` on smaller phantom slices: two residual blocks,
192-pixel slices, a higher learning rate that decays, two pairs of slices an iteration, and the
branch copied every step, because at such a rate a lucky easy slice soon sets a best loss that no
later step beats. BN statistics lag behind the weights, and are re-estimated before evaluation.
"""

from ssm_jax.config import default_config


def get_config():
    """The run's `ml_collections.ConfigDict`."""
    config = default_config()
    config.model.blocks = 2
    config.model.image_size = 192
    config.data.phantom.size = 192
    config.data.phantom.seg_train = 400
    config.data.phantom.seg_test = 60
    config.data.phantom.cls_train = 900
    config.data.phantom.cls_test = 150
    config.data.min_area = 14  # 100 pixels at 512
    config.train.batch_size = 2
    config.train.max_steps = 300
    config.train.learning_rate = 4e-4
    config.train.warmup_steps = 40
    config.train.schedule = "cosine"
    config.train.copy_rule = "every_step"
    config.eval.every_steps = 300
    config.eval.bn_slices = 64
    config.eval.score_threshold = 0.5
    config.checkpoint.every_steps = 100
    return config
