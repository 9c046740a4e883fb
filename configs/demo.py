"""The single-shot model made small for a laptop CPU: minutes, no data needed.

    ssm-jax train --config=demo

The same model and algorithm as `scratch_r18.py` on smaller phantom slices: two residual blocks,
160-pixel slices, two pairs of slices an iteration, a higher learning rate that decays, and the
branch copied every step, because at such a rate a lucky easy slice soon sets a best loss that no
later step beats. The detector learns alone first: before there are lesions to rank, the
classification loss is noise, and its gradients in the backbone keep the detector from learning.
Then both steps are taken, at a low rate for all but module S, which starts from random weights with
class logits near zero: as the method draws them, its loss starts near ten. BN statistics lag behind
the weights, and are re-estimated before evaluation, of the average of all weights. Expect a
per-image AP@0.5 of 0.63 to 0.74 and an accuracy of 0.78 to 0.89 after three to eight minutes.
"""

from ssm_jax.config import default_config, short_run


def get_config():
    """The run's `ml_collections.ConfigDict`."""
    config = default_config()
    short_run(config)
    config.model.image_size = 160
    config.data.phantom.size = 160
    config.data.phantom.seg_train = 400
    config.data.phantom.seg_test = 60
    config.data.phantom.cls_train = 600
    config.data.phantom.cls_test = 150
    config.train.max_steps = 700
    config.train.classification_from = 450
    config.train.learning_rate = 1e-3
    config.train.end_learning_rate = 1e-5
    config.train.module_s_learning_rate = 3e-3
    config.train.module_s_output_scale = 0.1
    config.train.warmup_steps = 30
    config.train.copy_rule = "every_step"
    config.train.ema_decay = 0.98
    config.eval.every_steps = 700
    config.eval.bn_slices = 64
    config.eval.score_threshold = 0.3
    config.checkpoint.every_steps = 100
    return config
