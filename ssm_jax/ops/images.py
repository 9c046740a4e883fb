"""Pixel values as the network reads them."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32, UInt8

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
    if jnp.issubdtype(images.dtype, jnp.integer):
        images = images.astype(jnp.float32) / 255
    normalized = (images - jnp.asarray(MEAN)) / jnp.asarray(STD)
    rows = jnp.arange(images.shape[1]) < image_sizes[:, :1]  # [B, H]
    columns = jnp.arange(images.shape[2]) < image_sizes[:, 1:]  # [B, W]
    inside = rows[:, :, None, None] & columns[:, None, :, None]
    return jnp.where(inside, normalized, 0).astype(jnp.float32)
