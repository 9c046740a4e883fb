"""Convolution whose gradient with respect to the kernel is fast on a CPU.

XLA computes that gradient on a CPU as a convolution with a window as large as the feature map,
several times slower than the same sum as matrix products: one product for each place of the
kernel, of the map shifted to that place with the gradient of the output. Strips of a few rows keep
the operands in the cache. Accelerators have their own kernels and take the compiler's gradient.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32

from ssm_jax import sharding
from ssm_jax.ops import platforms

STRIP_ROWS = 8  # output rows of a strip, of all images together
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
    return lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((padding, padding),) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _forward(x, kernel, stride, padding):
    return convolve(x, kernel, stride, padding), (x, kernel)


def _backward(stride, padding, residuals, gradient):
    x, kernel = residuals

    def plain(x, kernel):
        return convolve.fun(x, kernel, stride, padding)

    def by_compiler(x, gradient):
        return jax.vjp(functools.partial(plain, x), kernel)[1](gradient)[0]

    def by_products(x, gradient):
        def of_images(x, gradient):
            share = kernel_gradient(x, gradient, kernel.shape[0], stride, padding)
            return sharding.total(share).astype(kernel.dtype)

        return sharding.per_device(of_images, out_specs=sharding.REPLICATED)(x, gradient)

    of_kernel = platforms.by_platform(x, gradient, cpu=by_products, default=by_compiler)
    (of_x,) = jax.vjp(lambda x: plain(x, kernel), x)[1](gradient)
    return of_x, of_kernel


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
    batch, height, _, features = gradient.shape
    channels = x.shape[-1]
    rows = math.gcd(height, max(1, STRIP_ROWS // batch))
    products = _patch_product if channels <= FEW_CHANNELS else _shifted_products
    padded = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    span = (rows - 1) * stride + size

    def add(total, index):
        strip = lax.dynamic_slice_in_dim(padded, index * rows * stride, span, axis=1)
        of_strip = lax.dynamic_slice_in_dim(gradient, index * rows, rows, axis=1)
        return total + products(strip, of_strip, size, stride), None

    zeros = jnp.zeros((size, size, channels, features))
    return lax.scan(add, zeros, jnp.arange(height // rows))[0]


def _shifts(strip: Array, rows: int, columns: int, size: int, stride: int) -> list[Array]:
    """The input at each place of the kernel, row by row: size * size maps [B, rows, columns, C]."""

    def at(y, x):
        return strip[:, y : y + (rows - 1) * stride + 1 : stride][
            :, :, x : x + (columns - 1) * stride + 1 : stride
        ]

    return [at(y, x) for y in range(size) for x in range(size)]


def _shifted_products(strip: Array, gradient: Array, size: int, stride: int) -> Array:
    """One product for each place of the kernel."""
    _, rows, columns, features = gradient.shape
    flat = gradient.reshape(-1, features)
    of_places = [
        _product(shifted.reshape(-1, strip.shape[-1]).T, flat)
        for shifted in _shifts(strip, rows, columns, size, stride)
    ]
    return jnp.stack(of_places).reshape(size, size, -1, features)


def _patch_product(strip: Array, gradient: Array, size: int, stride: int) -> Array:
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
    product = _product(
        patches.reshape(size * size * strip.shape[-1], -1), gradient.reshape(-1, features)
    )
    return product.reshape(size, size, -1, features)


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def conv_general_dilated(
    x: Array, kernel: Array, window_strides: Any, padding: Any, **kwargs: Any
) -> Array:
    """`convolve` in the form in which `flax.linen.Conv` calls `lax.conv_general_dilated`."""
    del kwargs  # the dilations, groups and dimension numbers that `layers.conv` leaves at one
    (stride, _), ((before, _), _) = window_strides, padding
    return convolve(x, kernel, stride, before)
