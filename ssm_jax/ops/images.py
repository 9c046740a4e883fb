"""Pixel values as the network reads them."""

import jax.numpy as jnp
from jax import Array

# ImageNet statistics, which the reference normalises with whatever the backbone starts from.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def normalize(images: Array, image_sizes: Array) -> Array:
    """Brings slices to three normalised channels, zero in the padding.

    Args:
      images: [B, H, W, C], C = 1 (repeated to three channels) or 3; uint8, or float in [0, 1].
      image_sizes: [B, 2], (height, width) of the slices without padding, pixels.

    Returns:
      [B, H, W, 3] float32.
    """
    if jnp.issubdtype(images.dtype, jnp.integer):
        images = images.astype(jnp.float32) / 255
    normalized = (images - jnp.asarray(MEAN)) / jnp.asarray(STD)
    rows = jnp.arange(images.shape[1]) < image_sizes[:, :1]  # [B, H]
    columns = jnp.arange(images.shape[2]) < image_sizes[:, 1:]  # [B, W]
    inside = rows[:, :, None, None] & columns[:, None, :, None]
    return jnp.where(inside, normalized, 0).astype(jnp.float32)
