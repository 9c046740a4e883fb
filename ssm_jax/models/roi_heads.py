"""Heads on RoI features: the box branch (used twice) and the mask head."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from ssm_jax.models import fpn, layers

BOX_BINS = 7
MASK_BINS = 14
WIDTH = 128


class BoxOutputs(NamedTuple):
    """Class scores before softmax, and an encoded box for every class."""

    logits: Float[Array, "N K"]
    deltas: Float[Array, "N K 4"]


class BoxBranch(nn.Module):
    """Two fully connected layers, then class logits and box deltas of every class.

    The segmentation branch and its twin, the classification branch, are both one of these.

    Attributes:
      num_classes: K, background included.
      dtype: of all but the outputs; see `layers`.
    """

    num_classes: int
    dtype: Any = None

    @nn.compact
    def __call__(self, roi_features: Float[Array, "N 7 7 256"]) -> BoxOutputs:
        """Classes and boxes of N RoIs."""
        x = roi_features.reshape(roi_features.shape[0], -1)
        x = nn.relu(layers.dense_by_fan_in(WIDTH, x.shape[-1], dtype=self.dtype, name="fc6")(x))
        x = nn.relu(layers.dense_by_fan_in(WIDTH, WIDTH, dtype=self.dtype, name="fc7")(x))
        logits = layers.dense_by_fan_in(self.num_classes, WIDTH, name="logits")(x)
        deltas = layers.dense_by_fan_in(4 * self.num_classes, WIDTH, name="deltas")(x)
        return BoxOutputs(logits, deltas.reshape(-1, self.num_classes, 4))


class Upsample2x(nn.Module):
    """2x2 transposed convolution with stride 2.

    Windows do not overlap, so it is one matrix product. The four cells that come of one are left
    side by side: `interleave` puts them in place, after the layers that read each cell alone have
    made them small.

    Attributes:
      channels: output channels.
      dtype: see `layers`.
    """

    channels: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "N h w C"]) -> Float[Array, "N h w 2 2 {self.channels}"]:
        """Doubles both sides: entry [n, i, j, y, x] is the cell [n, 2 i + y, 2 j + x]."""
        in_channels = x.shape[-1]
        # Initialized as the reference does: the fan-out of its [in, out, 2, 2] weight is 4 * in.
        init = nn.initializers.normal((2 / (4 * in_channels)) ** 0.5)
        kernel = self.param("kernel", init, (2, 2, in_channels, self.channels))
        bias_init = layers.uniform_by_fan_in(4 * self.channels)
        bias = self.param("bias", bias_init, (self.channels,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return jnp.einsum("nijc,yxco->nijyxo", x, kernel) + bias


def interleave(x: Float[Array, "N h w 2 2 C"]) -> Float[Array, "N 2*h 2*w C"]:
    """Puts the cells that `Upsample2x` gives in their places."""
    count, height, width, _, _, channels = x.shape
    return x.swapaxes(2, 3).reshape(count, 2 * height, 2 * width, channels)


class MaskHead(nn.Module):
    """3x3 convolution, 2x upsampling, 1x1 convolution to one mask a class.

    Attributes:
      num_classes: K, background included.
      dtype: of all but the outputs; see `layers`.
    """

    num_classes: int
    dtype: Any = None

    @nn.compact
    def __call__(
        self, roi_features: Float[Array, "N 14 14 256"]
    ) -> Float[Array, "N 28 28 {self.num_classes}"]:
        """Mask logits of N RoIs, one mask for every class."""
        init = layers.kaiming_normal_fan_out
        bias_init = layers.uniform_by_fan_in(9 * fpn.CHANNELS)
        conv = layers.conv(
            WIDTH, 3, kernel_init=init, bias_init=bias_init, dtype=self.dtype, name="conv"
        )
        x = nn.relu(conv(roi_features))
        x = nn.relu(Upsample2x(WIDTH, self.dtype, name="upsample")(x))
        bias_init = layers.uniform_by_fan_in(WIDTH)
        logits = nn.Dense(self.num_classes, kernel_init=init, bias_init=bias_init, name="logits")
        return interleave(logits(x))
