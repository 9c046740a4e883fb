"""A feature pyramid of one level."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ssm_jax.models import layers

CHANNELS = 256


class FPN(nn.Module):
    """1x1 convolution to 256 channels, then a 3x3 convolution; both with bias.

    Attributes:
      dtype: see `layers`.
    """

    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w 256"]:
        """The features that RoIAlign reads, at least float32, for it interpolates them."""
        init = layers.kaiming_uniform_fan_in
        x = layers.conv(CHANNELS, 1, kernel_init=init, dtype=self.dtype, name="inner")(x)
        x = layers.conv(CHANNELS, 3, kernel_init=init, dtype=self.dtype, name="layer")(x)
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))
