"""Module S: the small network that reads the class of a slice off its RoI batch."""

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from ssm_jax.models import layers

WIDTH = 512


class ModuleS(nn.Module):
    """Two fully connected layers and the class logits (paper, figure 3b).

    Attributes:
      image_classes: classes of a slice.
      dtype: of all but the logits; see `layers`.
    """

    image_classes: int
    dtype: Any = None

    @nn.compact
    def __call__(self, rows: Float[Array, "B R 5"]) -> Float[Array, "B {self.image_classes}"]:
        """Class logits of slices from ranked rows (score, tx, ty, tw, th)."""

        def dense(x, features, name, dtype=None):
            bias_init = layers.uniform_by_fan_in(x.shape[-1])
            init = layers.kaiming_normal_fan_out
            return nn.Dense(
                features, dtype=dtype, kernel_init=init, bias_init=bias_init, name=name
            )(x)

        x = rows.reshape(rows.shape[0], -1)
        x = nn.relu(dense(x, WIDTH, "fc1", self.dtype))
        x = nn.relu(dense(x, WIDTH, "fc2", self.dtype))
        return dense(x, self.image_classes, "logits")
