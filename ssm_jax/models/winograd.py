"""3x3 convolution with 4 / 9 of the multiplications: the algorithm of Winograd, for a CPU.

Each tile of 4x4 inputs becomes 16 points, and so does the kernel; at every point one matrix product
over the channels of all tiles follows; the 16 products of a tile become its 2x2 outputs. These
transforms are sums and differences: F(2x2, 3x3) of Lavin and Gray, "Fast Algorithms for
Convolutional Neural Networks", CVPR 2016. Rounding errors are at most 1.6 times those of a direct
convolution of up to 256 channels.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float32

# Maps up to this size, those of RoIs, are transformed together; larger ones one after the other,
# so that the points of one, four times as many numbers as its inputs, stay in the cache.
SMALL = 20 * 20

_KERNEL = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
KERNEL = np.kron(_KERNEL, _KERNEL)  # [16 points, 9 places]
Sums = tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
# The four points along an axis are sums of two entries of a tile: places and weights of the first
# ones, then of the second ones.
INPUTS = ((0, 1, 2, 1), (1, 1, 1, 1)), ((2, 2, 1, 3), (-1, 1, -1, -1))
GRADIENTS = ((0, 0, 0, 1), (1, 1, 1, -1)), ((1, 1, 1, 0), (0, 1, -1, 0))


def convolve(
    x: Float32[Array, "B H W C"], kernel: Float32[Array, "3 3 C F"]
) -> Float32[Array, "B H W F"]:
    """Cross-correlation with stride 1, padded by one zero on every side.

    Args:
      x: maps of even height and width.
      kernel: see `convolution.convolve`.
    """
    _, height, width, _ = x.shape
    kernel_points = jnp.matmul(KERNEL, kernel.reshape(9, -1)).reshape(16, *kernel.shape[2:])

    def of_maps(x):
        products = lax.batch_matmul(_points(x, INPUTS, -1), kernel_points)
        return _outputs(products, height, width)

    def of_map(x):
        # Without the barrier the compiler writes the outputs to their place among the others in
        # one thread.
        return lax.optimization_barrier(of_maps(x[None]))[0]

    return of_maps(x) if _together(x) else lax.map(of_map, x)


def kernel_gradient(
    x: Float32[Array, "B H W C"], gradient: Float32[Array, "B H W F"]
) -> Float32[Array, "3 3 C F"]:
    """Gradient of `convolve` with respect to the kernel.

    Args:
      x: the input.
      gradient: of the output.
    """

    def of_maps(x, gradient):
        of_outputs = _points(gradient, GRADIENTS, 0)
        return jnp.einsum("pnc,pnf->pcf", _points(x, INPUTS, -1), of_outputs)

    def add(total, maps):
        x, gradient = maps
        return total + lax.optimization_barrier(of_maps(x[None], gradient[None])), None

    channels, features = x.shape[-1], gradient.shape[-1]
    if _together(x):
        total = of_maps(x, gradient)
    else:
        total = lax.scan(add, jnp.zeros((16, channels, features)), (x, gradient))[0]
    return jnp.matmul(KERNEL.T, total.reshape(16, -1)).reshape(3, 3, channels, features)


def _together(x: Float32[Array, "B H W C"]) -> bool:
    """Whether all maps are transformed at once."""
    batch, height, width, _ = x.shape
    return height * width <= SMALL or batch == 1


def _points(
    x: Float32[Array, "B H W C"], sums: Sums, start: int
) -> Float32[Array, "16 B*H*W//4 C"]:
    """The points of all tiles; tile t begins at entry 2 t + start, and outside of maps is zero."""

    def along(x, axis):
        length = x.shape[axis]
        tiles = 2 * np.arange(length // 2) + start
        after = (1,) * (x.ndim - axis - 1)

        def part(places, weights):
            entries = np.array(places)[:, None] + tiles
            inside = (entries >= 0) & (entries < length)
            factors = np.where(inside, np.array(weights, np.float32)[:, None], 0)
            # Entries outside are taken from the border, times zero: sooner than a padded copy.
            taken = jnp.take(x, entries, axis, mode="clip")
            return taken * factors.reshape(*factors.shape, *after)

        first, second = sums
        return part(*first) + part(*second)

    channels = x.shape[-1]
    points = along(along(x, 1), 3)  # [B, 4, tiles down, 4, tiles across, C]
    return points.transpose(1, 3, 0, 2, 4, 5).reshape(16, -1, channels)


def _outputs(
    products: Float32[Array, "16 n F"], height: int, width: int
) -> Float32[Array, "B {height} {width} F"]:
    """The outputs of all tiles, put in their places."""

    def pair(points):
        first, second, third, fourth = points
        return first + second + third, second - third - fourth

    features = products.shape[-1]
    rows = pair(products.reshape(4, 4, -1, height // 2, width // 2, features))
    tiles = jnp.stack([jnp.stack(pair(row), 3) for row in rows], 2)
    return tiles.reshape(-1, height, width, features)
