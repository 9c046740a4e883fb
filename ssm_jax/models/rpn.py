"""Region proposal network: its head, and proposals from what the head says."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax import lax
from jaxtyping import Array, Bool, Float, Int32

from ssm_jax.config import ModelConfig
from ssm_jax.models import fpn, layers
from ssm_jax.ops import boxes as box_ops
from ssm_jax.ops.nms import nms


class Proposals(NamedTuple):
    """Boxes that may hold a lesion, in pixels, by decreasing logit; those not valid fill up."""

    boxes: Float[Array, "*B P 4"]
    logits: Float[Array, "*B P"]
    valid: Bool[Array, "*B P"]


class RPNHead(nn.Module):
    """3x3 convolution + ReLU, then objectness and deltas of every anchor.

    Attributes:
      num_anchors: anchors a cell, A.
      dtype: of all but the outputs; see `layers`.
    """

    num_anchors: int
    dtype: Any = None

    @nn.compact
    def __call__(
        self, features: Float[Array, "B h w 256"]
    ) -> tuple[
        Float[Array, "B h*w*{self.num_anchors}"], Float[Array, "B h*w*{self.num_anchors} 4"]
    ]:
        """Objectness logits and deltas of all anchors, in the order of `anchors.grid_anchors`."""
        init = layers.normal_001
        batch = features.shape[0]
        conv = layers.conv(fpn.CHANNELS, 3, kernel_init=init, dtype=self.dtype, name="conv")
        x = nn.relu(conv(features))
        objectness = layers.conv(self.num_anchors, 1, kernel_init=init, name="objectness")(x)
        deltas = layers.conv(4 * self.num_anchors, 1, kernel_init=init, name="deltas")(x)
        return objectness.reshape(batch, -1), deltas.reshape(batch, -1, 4)


def propose(
    config: ModelConfig,
    objectness: Float[Array, "B N"],
    deltas: Float[Array, "B N 4"],
    anchors: Float[Array, "N 4"],
    image_sizes: Int32[Array, "B 2"],
) -> Proposals:
    """Proposals: the top anchors by logit, decoded, clipped, and thinned by NMS.

    No gradient flows through them. Zero-area boxes stay, as in the reference.

    Args:
      config: `rpn_pre_nms`, `rpn_post_nms` and `rpn_nms_threshold` are read.
      objectness: logits of the anchors.
      deltas: of the anchors.
      anchors: pixels.
      image_sizes: (height, width) without padding, pixels.

    Returns:
      `rpn_post_nms` proposals for every image.
    """
    before = min(config.rpn_pre_nms, anchors.shape[0])

    def one(objectness, deltas, image_size):
        logits, top = lax.top_k(objectness, before)
        boxes = box_ops.decode(deltas[top], anchors[top], box_ops.RPN_WEIGHTS)
        boxes = box_ops.clip_to_image(boxes, image_size)
        kept, valid = nms(boxes, logits, config.rpn_nms_threshold, config.rpn_post_nms)
        return Proposals(boxes[kept], logits[kept], valid)

    return jax.vmap(one)(lax.stop_gradient(objectness), lax.stop_gradient(deltas), image_sizes)
