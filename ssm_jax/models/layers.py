"""Layers and initializers that the networks share.

Layers with a `dtype` compute in it and return it, whatever their parameters and inputs are; None
leaves the choice to these. Parameters are float32 and so are, by their promotion, the outputs of
layers without a `dtype`.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ssm_jax.models import convolution

kaiming_normal_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
kaiming_uniform_fan_in = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
normal_001 = nn.initializers.normal(0.01)


def uniform_by_fan_in(fan_in: int) -> nn.initializers.Initializer:
    """Uniform in +-1 / sqrt(fan_in): the default of the reference for weights and biases."""
    bound = 1 / math.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def conv(features: int, kernel: int, stride: int = 1, **kwargs) -> nn.Conv:
    """A square convolution padded by kernel // 2 on every side."""
    padding = kernel // 2
    return nn.Conv(
        features,
        (kernel, kernel),
        stride,
        ((padding, padding),) * 2,
        conv_general_dilated=convolution.conv_general_dilated,
        **kwargs,
    )


def dense_by_fan_in(features: int, fan_in: int, **kwargs) -> nn.Dense:
    """A linear layer with the reference's default initialization."""
    init = uniform_by_fan_in(fan_in)
    return nn.Dense(features, kernel_init=init, bias_init=init, **kwargs)


class BatchNorm(nn.Module):
    """Batch normalization over all axes but the last.

    Running statistics move by `momentum` toward those of the batch; the running variance takes the
    unbiased batch variance, while the batch itself is normalized by the biased one.

    Attributes:
      momentum: weight of the batch in the running statistics.
      per_example: normalize each example by its own moments, whose means over the examples go into
        the running statistics; examples then do not depend on what else is in the batch.
      epsilon: added to the variance.
    """

    momentum: float = 0.1
    per_example: bool = False
    epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B H W C"],
        train: bool,
        example_mask: Bool[Array, "B"] | None = None,
    ) -> Float[Array, "B H W C"]:
        """Normalizes.

        Args:
          x: activations; statistics and arithmetic are float32 where they are bfloat16.
          train: use (and update) the statistics of the batch, or the running ones.
          example_mask: the examples that the batch statistics are taken over; None: all.

        Returns:
          The same activations normalized, of their own type.
        """
        dtype = x.dtype
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        updates = self.variable("batch_stats", "count", jnp.zeros, (), jnp.int32)
        if not train:
            factor = scale * jax.lax.rsqrt(running_var.value + self.epsilon)
            return (x * factor + (bias - running_mean.value * factor)).astype(dtype)
        weight = jnp.ones(x.shape[0]) if example_mask is None else example_mask.astype(scale.dtype)
        if self.per_example:
            x, mean, unbiased = _normalize_by_example(x, scale, bias, weight, self.epsilon)
        else:
            x, (mean, var, count) = _normalize_by_batch(x, scale, bias, weight, self.epsilon)
            unbiased = var * count / jnp.maximum(count - 1, 1)
        if not self.is_initializing():
            # Not "+=", which would change the caller's arrays where those are NumPy's.
            running_mean.value = running_mean.value + self.momentum * (mean - running_mean.value)
            running_var.value = running_var.value + self.momentum * (unbiased - running_var.value)
            updates.value = updates.value + 1
        return x.astype(dtype)


def _normalize_by_example(
    x: Float[Array, "B H W C"],
    scale: Float[Array, "C"],
    bias: Float[Array, "C"],
    weight: Float[Array, "B"],
    epsilon: float,
) -> tuple[Float[Array, "B H W C"], Float[Array, "C"], Float[Array, "C"]]:
    """Normalizes each example by its own moments.

    Also returns the means of these moments, mean and unbiased variance, over the examples of
    weight 1.
    """

    def one(example):
        normalized, moments = _normalize_by_batch(
            example[None], scale, bias, jnp.ones(1, weight.dtype), epsilon
        )
        return normalized[0], moments

    normalized, (means, variances, counts) = jax.vmap(one)(x)
    unbiased = variances * (counts / jnp.maximum(counts - 1, 1))[:, None]
    shares = weight / jnp.maximum(weight.sum(), 1)
    return normalized, shares @ means, shares @ unbiased


def _channel_sum(x: Float[Array, "B H W C"]) -> Float[Array, "C"]:
    """Sums over all axes but the last: each row as a tree of sums of four, then the rows.

    One running sum over a whole map loses several digits on a CPU, which Adam's first steps, all
    of one length, turn into a change of sign of small gradients; and a CPU adds up the quarters of
    rows ten times faster than it reduces a map.
    """
    while x.shape[2] >= 8 and x.shape[2] % 4 == 0:
        first, second, third, fourth = jnp.split(x, 4, axis=2)
        # The barrier keeps the compiler from making one sum of two.
        x = jax.lax.optimization_barrier((first + second) + (third + fourth))
    return x.sum(axis=2).sum(axis=(0, 1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _normalize_by_batch(
    x: Float[Array, "B H W C"],
    scale: Float[Array, "C"],
    bias: Float[Array, "C"],
    weight: Float[Array, "B"],
    epsilon: float,
) -> tuple[Float[Array, "B H W C"], tuple[Float[Array, "C"], Float[Array, "C"], Float[Array, ""]]]:
    """Normalizes by the moments of the examples of weight 1, leaving out those of weight 0.

    The second result, (mean, biased variance, number of values), carries no gradient.
    """
    return _normalize_forward(x, scale, bias, weight, epsilon)[0]


def _normalize_forward(x, scale, bias, weight, epsilon):
    per_example = weight[:, None, None, None]
    count = jnp.maximum(weight.sum(), 1) * x.shape[1] * x.shape[2]
    mean = _channel_sum(x * per_example) / count
    var = _channel_sum(jnp.square(x - mean) * per_example) / count
    inverse = jax.lax.rsqrt(var + epsilon)
    factor = scale * inverse
    normalized = x * factor + (bias - mean * factor)
    return (normalized, (mean, var, count)), (x, mean, inverse, scale, weight, count)


def _normalize_backward(epsilon, residuals, cotangents):
    del epsilon
    x, mean, inverse, scale, weight, count = residuals
    gradient = cotangents[0]
    centered = (x - mean) * inverse
    bias_gradient = _channel_sum(gradient)
    scale_gradient = _channel_sum(gradient * centered)
    through_moments = (bias_gradient + centered * scale_gradient) / count
    through_moments *= weight[:, None, None, None]
    x_gradient = (scale * inverse * (gradient - through_moments)).astype(x.dtype)
    return x_gradient, scale_gradient, bias_gradient, jnp.zeros_like(weight)


_normalize_by_batch.defvjp(_normalize_forward, _normalize_backward)


def max_pool_3x3_stride_2(
    x: Float[Array, "B H W C"],
) -> Float[Array, "B (H+1)//2 (W+1)//2 C"]:
    """3x3 max-pooling with stride 2, padded by one.

    Written as maxima of strided slices, rows then columns: the gradient of a window reduction is a
    scatter, which costs more than a convolution on a CPU.
    """
    for axis in (1, 2):
        size = x.shape[axis]
        outputs = (size + 1) // 2
        padding = [(0, 0)] * x.ndim
        padding[axis] = (1, 1)
        padded = jnp.pad(x, padding, constant_values=-jnp.inf)
        x = jnp.maximum(
            jnp.maximum(
                jax.lax.slice_in_dim(padded, 0, 2 * outputs - 1, 2, axis),
                jax.lax.slice_in_dim(padded, 1, 2 * outputs, 2, axis),
            ),
            jax.lax.slice_in_dim(padded, 2, 2 * outputs + 1, 2, axis),
        )
    return x
