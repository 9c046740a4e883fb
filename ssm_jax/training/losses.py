"""The five segmentation losses and the classification loss, each over a whole batch.

Means are taken over everything that the batch sampled, so that a batch of one is exactly the
reference.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32

Scalar = Float[Array, ""]


def _ratio(total: Scalar, count: Int[Array, ""] | int) -> Scalar:
    return total / jnp.maximum(count, 1)


def sigmoid_cross_entropy(
    logits: Float[Array, "*n"], targets: Float[Array, "*n"]
) -> Float[Array, "*n"]:
    """Elementwise binary cross-entropy of logits against targets in [0, 1]."""
    return jnp.maximum(logits, 0) - logits * targets + jnp.log1p(jnp.exp(-jnp.abs(logits)))


def smooth_l1(difference: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Elementwise smooth L1 with its corner at 1."""
    size = jnp.abs(difference)
    return jnp.where(size < 1, 0.5 * jnp.square(difference), size - 0.5)


def rpn_losses(
    objectness: Float[Array, "B S"],
    deltas: Float[Array, "B S 4"],
    targets: Float[Array, "B S 4"],
    positive: Bool[Array, "B S"],
    valid: Bool[Array, "B S"],
) -> tuple[Scalar, Scalar]:
    """Objectness and box loss of the sampled anchors.

    Args:
      objectness: logits of the sample.
      deltas: predictions.
      targets: encoded boxes of the matched objects.
      positive: anchors that matched one.
      valid: slots in use.

    Returns:
      Mean binary cross-entropy, and the L1 loss summed over positives / sampled anchors.
    """
    count = valid.sum()
    entropy = sigmoid_cross_entropy(objectness, positive.astype(objectness.dtype))
    distance = jnp.abs(deltas - targets).sum(axis=-1)
    box = jnp.where(positive & valid, distance, 0).sum()
    return _ratio(jnp.where(valid, entropy, 0).sum(), count), _ratio(box, count)


def roi_losses(
    logits: Float[Array, "N K"],
    deltas: Float[Array, "N K 4"],
    labels: Int32[Array, "N"],
    targets: Float[Array, "N 4"],
    valid: Bool[Array, "N"],
) -> tuple[Scalar, Scalar]:
    """Class and box loss of the sampled RoIs.

    Args:
      logits: class scores.
      deltas: predictions, by class.
      labels: 0 is background.
      targets: encoded boxes of the matched objects.
      valid: slots in use.

    Returns:
      Mean cross-entropy, and the smooth L1 loss of the label's class summed over positives /
      sampled RoIs.
    """
    count = valid.sum()
    log_probabilities = jax.nn.log_softmax(logits)
    entropy = -jnp.take_along_axis(log_probabilities, labels[:, None], axis=1)[:, 0]
    own = jnp.take_along_axis(deltas, labels[:, None, None], axis=1)[:, 0]  # [N, 4]
    distance = smooth_l1(own - targets).sum(axis=-1)
    box = jnp.where(valid & (labels > 0), distance, 0).sum()
    return _ratio(jnp.where(valid, entropy, 0).sum(), count), _ratio(box, count)


def mask_loss(
    logits: Float[Array, "N M M K"],
    labels: Int32[Array, "N"],
    targets: Float[Array, "N M M"],
    valid: Bool[Array, "N"],
    count: Int[Array, ""] | int,
) -> Scalar:
    """Mean binary cross-entropy of the masks of the labels' classes; 0 without any.

    Args:
      logits: of every class.
      labels: class of each RoI.
      targets: in [0, 1].
      valid: RoIs that count.
      count: RoIs that the mean is over: with a part of them at hand, this part's share of it.
    """
    own = jnp.take_along_axis(logits, labels[:, None, None, None], axis=-1)[..., 0]
    entropy = sigmoid_cross_entropy(own, targets)
    pixels = count * targets.shape[1] * targets.shape[2]
    return _ratio(jnp.where(valid[:, None, None], entropy, 0).sum(), pixels)


def classification_loss(logits: Float[Array, "B K"], labels: Int32[Array, "B"]) -> Scalar:
    """Binary cross-entropy against the one-hot label, mean over classes and slices.

    Paper, equation 2, with the mean that the reference takes.
    """
    one_hot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return sigmoid_cross_entropy(logits, one_hot).mean()
