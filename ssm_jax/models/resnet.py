"""ResNet-18/34, truncated after the second or third residual stage (the paper's * and **)."""

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Bool, Float

from ssm_jax.models import layers
from ssm_jax.models.convolution import convolve
from ssm_jax.ops.images import fold_normalization

DEPTHS = {"resnet18": (2, 2, 2), "resnet34": (3, 4, 6)}
CHANNELS = (64, 128, 256)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut.

    Attributes:
      channels: output channels.
      stride: of the first convolution and the shortcut.
      bn_momentum: see `layers.BatchNorm`.
      bn_per_example: see `layers.BatchNorm`.
      dtype: of the convolutions and what they return; see `layers`.
    """

    channels: int
    stride: int
    bn_momentum: float
    bn_per_example: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], train: bool, example_mask: Bool[Array, "B"] | None
    ) -> Float[Array, "B H//{self.stride} W//{self.stride} {self.channels}"]:
        """The block; see `ResNet` for the arguments."""

        def norm(x, name):
            layer = layers.BatchNorm(self.bn_momentum, self.bn_per_example, name=name)
            return layer(x, train, example_mask)

        def conv(x, kernel, stride, name):
            init = layers.kaiming_normal_fan_out
            return layers.conv(
                self.channels,
                kernel,
                stride,
                use_bias=False,
                kernel_init=init,
                dtype=self.dtype,
                name=name,
            )(x)

        shortcut = x
        if self.stride != 1 or x.shape[-1] != self.channels:
            shortcut = norm(conv(x, 1, self.stride, "downsample_conv"), "downsample_bn")
        x = nn.relu(norm(conv(x, 3, self.stride, "conv1"), "bn1"))
        x = norm(conv(x, 3, 1, "conv2"), "bn2")
        return nn.relu(x + shortcut)


class Stem(nn.Module):
    """The first convolution: 7x7, stride 2, without bias.

    Attributes:
      channels: output channels.
      dtype: see `BasicBlock`.
    """

    channels: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W P"]) -> Float[Array, "B h w F"]:
        """Reads pixels.

        Args:
          x: the three channels of `ops.images.normalize`, or the two of `gray_and_inside`, which
            do the work of three equal ones.

        Returns:
          A map of H / 2 x W / 2 cells, the same for both to rounding.
        """
        kernel = self.param("kernel", layers.kaiming_normal_fan_out, (7, 7, 3, self.channels))
        if x.shape[-1] == 2:
            kernel = fold_normalization(kernel)
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        return convolve(x, kernel, 2, 3)


class ResNet(nn.Module):
    """The backbone.

    Attributes:
      depth: "resnet18" or "resnet34".
      blocks: residual stages, 2 (stride 8, 128 channels) or 3 (stride 16, 256 channels).
      bn_momentum: see `layers.BatchNorm`.
      bn_per_example: see `layers.BatchNorm`.
      dtype: see `BasicBlock`.
    """

    depth: str
    blocks: int
    bn_momentum: float
    bn_per_example: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B H W P"],
        train: bool,
        example_mask: Bool[Array, "B"] | None = None,
    ) -> Float[Array, "B h w C"]:
        """Computes the feature map of the last stage.

        Args:
          x: pixels, see `Stem`; H and W multiples of 32.
          train: BN uses and updates batch statistics.
          example_mask: examples that the BN statistics are taken over; None: all.

        Returns:
          The map, of H / stride x W / stride cells.
        """
        x = Stem(64, self.dtype, name="conv1")(x)
        norm = (self.bn_momentum, self.bn_per_example)
        x = nn.relu(layers.BatchNorm(*norm, name="bn1")(x, train, example_mask))
        x = layers.max_pool_3x3_stride_2(x)
        for stage in range(self.blocks):
            for index in range(DEPTHS[self.depth][stage]):
                stride = 2 if stage > 0 and index == 0 else 1
                name = f"layer{stage + 1}_{index}"
                block = BasicBlock(CHANNELS[stage], stride, *norm, self.dtype, name=name)
                x = block(x, train, example_mask)
        return x
