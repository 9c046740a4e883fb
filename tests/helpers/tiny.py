"""A configuration that trains in seconds: a small model on a handful of small phantoms."""

import jax
import numpy as np

from ssm_jax.config import default_config
from ssm_jax.models.ssm import init_variables


def get_config(data_dir: str = ""):
    """Six iterations of batch size 1 on 64x64 slices, evaluated at 4 and 6, saved at 2, 4 and 6."""
    config = default_config()
    config.model.blocks = 2
    return shrunk(config, data_dir)


def shrunk(config, data_dir: str = ""):
    """Makes any configuration as small as this one, but for the depth of its backbone."""
    config.model.update(
        image_size=64,
        max_size=128,
        anchor_sizes=(8, 16),
        anchor_ratios=(0.5, 1.0),
        rpn_pre_nms=32,
        rpn_post_nms=16,
        rpn_batch=16,
        rpn_positives=8,
        roi_batch=16,
        roi_positives=4,
        selection_size=8,
        max_detections=8,
    )
    config.data.update(data_dir=data_dir, min_area=256, prefetch=2)
    config.data.phantom.update(size=64, seg_train=6, seg_test=3, cls_train=6, cls_test=4)
    config.train.update(max_steps=6, learning_rate=1e-3)
    config.eval.update(every_steps=4, score_threshold=0.05, bn_slices=2, overlays=2)
    config.checkpoint.every_steps = 2
    config.log.every_steps = 3
    return config


def random_variables(model_config, seed=0):
    """Variables of a plausible scale, without the compilation that an initialization takes."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda key: init_variables(model_config, key), jax.random.key(0))

    def leaf(path, x):
        name = path[-1].key
        if name == "kernel":
            fan_in = np.prod(x.shape[:-1])
            return (rng.standard_normal(x.shape) * np.sqrt(2 / fan_in)).astype(x.dtype)
        return np.full(x.shape, name in ("scale", "var"), x.dtype)

    return jax.tree_util.tree_map_with_path(leaf, shapes)
