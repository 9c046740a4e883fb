"""Region proposal network: its head, and proposals from what the head says."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from ssm_jax.config import ModelConfig
from ssm_jax.models import fpn, layers
from ssm_jax.ops import boxes as box_ops
from ssm_jax.ops.nms import nms


class Proposals(NamedTuple):
    """`boxes` [B, P, 4] pixels, `logits` [B, P], `valid` [B, P] bool; by decreasing logit."""

    boxes: Array
    logits: Array
    valid: Array


class RPNHead(nn.Module):
    """3x3 convolution + ReLU, then objectness and deltas of every anchor.

    Attributes:
      num_anchors: anchors a cell, A.
      dtype: of all but the outputs; see `layers`.
    """

    num_anchors: int
    dtype: Any = None

    @nn.compact
    def __call__(self, features: Array) -> tuple[Array, Array]:
        """Scores and refines all anchors.

        Args:
          features: [B, h, w, 256] float.

        Returns:
          objectness logits [B, h * w * A] and deltas [B, h * w * A, 4], in the order of
          `ops.anchors.grid_anchors`.
        """
        init = layers.normal_001
        batch = features.shape[0]
        conv = layers.conv(fpn.CHANNELS, 3, kernel_init=init, dtype=self.dtype, name="conv")
        x = nn.relu(conv(features))
        objectness = layers.conv(self.num_anchors, 1, kernel_init=init, name="objectness")(x)
        deltas = layers.conv(4 * self.num_anchors, 1, kernel_init=init, name="deltas")(x)
        return objectness.reshape(batch, -1), deltas.reshape(batch, -1, 4)


def propose(
    config: ModelConfig, objectness: Array, deltas: Array, anchors: Array, image_sizes: Array
) -> Proposals:
    """Proposals: the top anchors by logit, decoded, clipped, and thinned by NMS.

    No gradient flows through them. Zero-area boxes stay, as in the reference.

    Args:
      config: `rpn_pre_nms`, `rpn_post_nms` and `rpn_nms_threshold` are read.
      objectness: [B, N] float logits.
      deltas: [B, N, 4] float.
      anchors: [N, 4] float, pixels.
      image_sizes: [B, 2], (height, width) in pixels without padding.

    Returns:
      Proposals with P = rpn_post_nms.
    """
    before = min(config.rpn_pre_nms, anchors.shape[0])

    def one(objectness, deltas, image_size):
        logits, top = lax.top_k(objectness, before)
        boxes = box_ops.decode(deltas[top], anchors[top], box_ops.RPN_WEIGHTS)
        boxes = box_ops.clip_to_image(boxes, image_size)
        kept, valid = nms(boxes, logits, config.rpn_nms_threshold, config.rpn_post_nms)
        return Proposals(boxes[kept], logits[kept], valid)

    anchors = jnp.asarray(anchors)
    return jax.vmap(one)(lax.stop_gradient(objectness), lax.stop_gradient(deltas), image_sizes)
