"""Convolution that is fast on a CPU, forward and backward.

3x3 convolutions of many channels go by Winograd's algorithm, see `winograd`; all others go forward
as the compiler has them. XLA computes the gradient with respect to the kernel as a convolution with
a window as large as the feature map, up to three times slower than the same sum as matrix products:
one product for each row of the kernel, of the gradient of the output with the map shifted to each
place of that row. Strips of a few rows keep the operands in the cache. Accelerators have their own
kernels and take the compiler's convolutions and gradients.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32

from ssm_jax import sharding
from ssm_jax.models import winograd
from ssm_jax.ops import platforms

# Channels, of the input and of the output, from which on Winograd's algorithm takes less time.
WINOGRAD, WINOGRAD_OF_ONE_MAP = 128, 64

STRIP_ROWS = 16  # output rows of a strip at most
STRIP_PLACES = 2048  # places that the maps of a strip have together, where it spans several maps
FEW_CHANNELS = 4  # up to here whole patches make one product; single channels are too thin for one


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(
    x: Float[Array, "B H W C"], kernel: Float[Array, "k k C F"], stride: int, padding: int
) -> Float[Array, "B h w F"]:
    """2-D cross-correlation, padded by zeros on every side.

    Args:
      x: maps.
      kernel: of the type of x.
      stride: in both directions.
      padding: rows and columns of zeros on each side.

    Returns:
      Maps of h = (H + 2 padding - k) // stride + 1 rows, w likewise.
    """
    by_compiler = functools.partial(_by_compiler, stride=stride, padding=padding)
    channels = WINOGRAD_OF_ONE_MAP if x.shape[0] == 1 else WINOGRAD
    if not _by_winograd(x, kernel, stride, padding, channels):
        return by_compiler(x, kernel)
    specs = (sharding.SPLIT, sharding.REPLICATED)
    by_points = sharding.per_device(winograd.convolve, specs)
    return platforms.by_platform(x, kernel, cpu=by_points, default=by_compiler)


def _by_compiler(x: Array, kernel: Array, stride: int, padding: int) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((padding, padding),) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _by_winograd(x: Array, kernel: Array, stride: int, padding: int, channels: int) -> bool:
    """Whether Winograd's algorithm can be used, and takes less time from so many channels on."""
    size, _, *of_kernel = kernel.shape
    even = x.shape[1] % 2 == x.shape[2] % 2 == 0
    fits = (size, stride, padding) == (3, 1, 1) and even and x.dtype == jnp.float32
    return fits and min(of_kernel) >= channels


def _forward(x, kernel, stride, padding):
    return convolve(x, kernel, stride, padding), (x, kernel)


def _backward(stride, padding, residuals, gradient):
    plain = functools.partial(_by_compiler, stride=stride, padding=padding)

    def by_compiler(x, kernel, gradient):
        return jax.vjp(plain, x, kernel)[1](gradient)

    def by_products(x, kernel, gradient):
        def of_images(x, gradient):
            if _by_winograd(x, kernel, stride, padding, WINOGRAD):
                return winograd.kernel_gradient(x, gradient)
            return kernel_gradient(x, gradient, kernel.shape[0], stride, padding)

        of_kernel = sharding.summed(of_images)(x, gradient).astype(kernel.dtype)
        if stride > 1:
            (of_x,) = jax.vjp(lambda x: plain(x, kernel), x)[1](gradient)
        else:
            # The same as above, as a convolution that can go by Winograd's algorithm too.
            turned = kernel[::-1, ::-1].swapaxes(2, 3)
            of_x = convolve.fun(gradient, turned, 1, kernel.shape[0] - 1 - padding)
        return of_x, of_kernel

    return platforms.by_platform(*residuals, gradient, cpu=by_products, default=by_compiler)


convolve.defvjp(_forward, _backward)


def kernel_gradient(
    x: Float[Array, "B H W C"],
    gradient: Float[Array, "B h w F"],
    size: int,
    stride: int,
    padding: int,
) -> Float32[Array, "{size} {size} C F"]:
    """Gradient of `convolve` with respect to the kernel, as matrix products over strips of rows.

    Args:
      x: the input.
      gradient: of the output.
      size: of the kernel, k.
      stride: see `convolve`.
      padding: see `convolve`.
    """
    batch, height, width, features = gradient.shape
    channels = x.shape[-1]
    strips, rows = _parts(height, STRIP_ROWS)
    groups, images = _parts(batch, max(1, STRIP_PLACES // (height * width)))
    # Rows and images of zeros, which add nothing, make all strips alike.
    more_images, more_rows = groups * images - batch, strips * rows - height
    below = padding + more_rows * stride
    x = jnp.pad(x, ((0, more_images), (padding, below), (padding, padding), (0, 0)))
    gradient = jnp.pad(gradient, ((0, more_images), (0, more_rows), (0, 0), (0, 0)))
    span = (rows - 1) * stride + size
    few = channels <= FEW_CHANNELS
    products = _patch_product if few else _row_products

    def add(total, index):
        image, first = index // strips * images, index % strips * rows
        strip = lax.dynamic_slice(x, (image, first * stride, 0, 0), (images, span, *x.shape[2:]))
        of_strip = lax.dynamic_slice(
            gradient, (image, first, 0, 0), (images, rows, *gradient.shape[2:])
        )
        return total + products(strip, of_strip, size, stride), None

    shape = (size, size * channels, features) if few else (size, features, size * channels)
    total = lax.scan(add, jnp.zeros(shape), jnp.arange(groups * strips))[0]
    total = total if few else total.mT
    return total.reshape(size, size, channels, features)


def _parts(count: int, most: int) -> tuple[int, int]:
    """How many equal parts of at most `most` hold so many, and the size of each."""
    parts = -(-count // most)
    return parts, -(-count // parts)


def _row_products(
    strip: Float[Array, "B H W C"],
    gradient: Float[Array, "B h w F"],
    size: int,
    stride: int,
) -> Float32[Array, "{size} F {size}*C"]:
    """One product for each row of the kernel: of the gradient, whose places lie along the rows of
    the left matrix, with the input at all places of that row of the kernel.

    The compiler has a fast product for a left matrix that is stored like this. Without the barrier
    it would leave out the transposition and compute a slower one.
    """
    _, rows, columns, features = gradient.shape
    across, down = (columns - 1) * stride + 1, (rows - 1) * stride + 1
    aside = jnp.concatenate([strip[:, :, x : x + across : stride] for x in range(size)], axis=-1)
    turned = lax.optimization_barrier(gradient.reshape(-1, features).T)
    return jnp.stack(
        [
            _product(turned, aside[:, y : y + down : stride].reshape(-1, aside.shape[-1]))
            for y in range(size)
        ]
    )


def _patch_product(
    strip: Float[Array, "B H W C"],
    gradient: Float[Array, "B h w F"],
    size: int,
    stride: int,
) -> Float32[Array, "{size} {size}*C F"]:
    """One product for all places: of patches, each a column, with the gradient.

    Shifted to the side first and downward then: a compiler handles 21 slices for 7x7 places of two
    channels sooner than 98.
    """
    _, rows, columns, features = gradient.shape
    across, down = (columns - 1) * stride + 1, (rows - 1) * stride + 1
    aside = jnp.stack(
        [
            strip[:, :, x : x + across : stride, c]
            for x in range(size)
            for c in range(strip.shape[-1])
        ]
    )
    patches = jnp.stack([aside[:, :, y : y + down : stride] for y in range(size)])
    product = _product(patches.reshape(size * aside.shape[0], -1), gradient.reshape(-1, features))
    return product.reshape(size, -1, features)


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def conv_general_dilated(
    x: Array, kernel: Array, window_strides: Any, padding: Any, **kwargs: Any
) -> Array:
    """`convolve` in the form in which `flax.linen.Conv` calls `lax.conv_general_dilated`."""
    del kwargs  # the dilations, groups and dimension numbers that `layers.conv` leaves at one
    (stride, _), ((before, _), _) = window_strides, padding
    return convolve(x, kernel, stride, before)
