"""A feature pyramid of one level."""

import flax.linen as nn
from jax import Array

from ssm_jax.models import layers

CHANNELS = 256


class FPN(nn.Module):
    """1x1 convolution to 256 channels, then a 3x3 convolution; both with bias."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, h, w, C] -> [B, h, w, 256]."""
        init = layers.kaiming_uniform_fan_in
        x = layers.conv(CHANNELS, 1, kernel_init=init, name="inner")(x)
        return layers.conv(CHANNELS, 3, kernel_init=init, name="layer")(x)
