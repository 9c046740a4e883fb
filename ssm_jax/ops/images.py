"""Pixel values as the network reads them."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32, UInt8

# ImageNet statistics: the reference normalizes with them whatever the backbone starts from.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def normalize(
    images: UInt8[Array, "B H W C"] | Float[Array, "B H W C"], image_sizes: Int32[Array, "B 2"]
) -> Float32[Array, "B H W 3"]:
    """Brings slices to three normalized channels, zero in the padding.

    Args:
      images: of one channel (repeated to three) or of three; uint8, or float in [0, 1].
      image_sizes: (height, width) of the slices without padding, pixels.
    """
    normalized = (_unit_range(images) - jnp.asarray(MEAN)) / jnp.asarray(STD)
    return jnp.where(_inside(images, image_sizes), normalized, 0).astype(jnp.float32)


def gray_and_inside(
    images: UInt8[Array, "B H W 1"] | Float[Array, "B H W 1"], image_sizes: Int32[Array, "B 2"]
) -> Float32[Array, "B H W 2"]:
    """All that `normalize` makes of one gray channel, as two channels in place of three.

    Each of its channels is a multiple of the gray values plus a constant where there is no padding.

    Args:
      images: uint8, or float in [0, 1].
      image_sizes: (height, width) of the slices without padding, pixels.

    Returns:
      The gray values in [0, 1], zero in the padding; and 1, zero in the padding.
    """
    inside = _inside(images, image_sizes).astype(jnp.float32)
    return jnp.concatenate([_unit_range(images) * inside, inside], axis=-1)


def fold_normalization(kernel: Float[Array, "k k 3 F"]) -> Float[Array, "k k 2 F"]:
    """The kernel that does on `gray_and_inside` what another one does on `normalize`.

    Args:
      kernel: of three channels.

    Returns:
      The kernel of two channels; results are equal to rounding.
    """
    mean, std = jnp.asarray(MEAN), jnp.asarray(STD)
    return jnp.einsum("yxcf,gc->yxgf", kernel, jnp.stack([1 / std, -mean / std]))


def _unit_range(images: Array) -> Float[Array, "B H W C"]:
    if jnp.issubdtype(images.dtype, jnp.integer):
        return images.astype(jnp.float32) / 255
    return images


def _inside(images: Array, image_sizes: Array) -> Bool[Array, "B H W 1"]:
    """Where there is no padding."""
    rows = jnp.arange(images.shape[1]) < image_sizes[:, :1]  # [B, H]
    columns = jnp.arange(images.shape[2]) < image_sizes[:, 1:]  # [B, W]
    return rows[:, :, None, None] & columns[:, None, :, None]
