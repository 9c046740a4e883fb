"""The five segmentation losses and the classification loss, each over a whole batch.

Means are taken over everything that the batch sampled, so that a batch of one is exactly the
reference.
"""

import jax
import jax.numpy as jnp
from jax import Array


def _ratio(total: Array, count: Array | int) -> Array:
    return total / jnp.maximum(count, 1)


def sigmoid_cross_entropy(logits: Array, targets: Array) -> Array:
    """Elementwise binary cross-entropy of logits against targets in [0, 1], same shape."""
    return jnp.maximum(logits, 0) - logits * targets + jnp.log1p(jnp.exp(-jnp.abs(logits)))


def smooth_l1(difference: Array) -> Array:
    """Elementwise smooth L1 with its corner at 1."""
    size = jnp.abs(difference)
    return jnp.where(size < 1, 0.5 * jnp.square(difference), size - 0.5)


def rpn_losses(
    objectness: Array, deltas: Array, targets: Array, positive: Array, valid: Array
) -> tuple[Array, Array]:
    """Objectness and box loss of the sampled anchors.

    Args:
      objectness: [B, S] float logits of the sample.
      deltas: [B, S, 4] float predictions.
      targets: [B, S, 4] float, encoded boxes of the matched objects.
      positive: [B, S] bool.
      valid: [B, S] bool, slots in use.

    Returns:
      Mean binary cross-entropy, and the L1 loss summed over positives / sampled anchors.
    """
    count = valid.sum()
    entropy = sigmoid_cross_entropy(objectness, positive.astype(objectness.dtype))
    distance = jnp.abs(deltas - targets).sum(axis=-1)
    box = jnp.where(positive & valid, distance, 0).sum()
    return _ratio(jnp.where(valid, entropy, 0).sum(), count), _ratio(box, count)


def roi_losses(
    logits: Array, deltas: Array, labels: Array, targets: Array, valid: Array
) -> tuple[Array, Array]:
    """Class and box loss of the sampled RoIs.

    Args:
      logits: [N, K] float class scores.
      deltas: [N, K, 4] float predictions, by class.
      labels: [N] int32, 0 background.
      targets: [N, 4] float, encoded boxes of the matched objects.
      valid: [N] bool, slots in use.

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
    logits: Array, labels: Array, targets: Array, valid: Array, count: Array | int
) -> Array:
    """Mean binary cross-entropy of the masks of the labels' classes; 0 without any.

    Args:
      logits: [N, M, M, K] float.
      labels: [N] int32, class of each RoI.
      targets: [N, M, M] float in [0, 1].
      valid: [N] bool, RoIs that count.
      count: RoIs that the mean is over: with a part of them at hand, this part's share of it.

    Returns:
      Scalar.
    """
    own = jnp.take_along_axis(logits, labels[:, None, None, None], axis=-1)[..., 0]
    entropy = sigmoid_cross_entropy(own, targets)
    pixels = count * targets.shape[1] * targets.shape[2]
    return _ratio(jnp.where(valid[:, None, None], entropy, 0).sum(), pixels)


def classification_loss(logits: Array, labels: Array) -> Array:
    """Binary cross-entropy against the one-hot label, mean over classes and slices.

    Paper, equation 2, with the mean that the reference takes.

    Args:
      logits: [B, C] float.
      labels: [B] int32.

    Returns:
      Scalar.
    """
    one_hot = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return sigmoid_cross_entropy(logits, one_hot).mean()
