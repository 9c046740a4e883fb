"""Weights for inference that differ from those of the last iteration: averages over iterations, and
BN statistics estimated anew."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from ssm_jax import sharding
from ssm_jax.config import ModelConfig
from ssm_jax.models import ssm
from ssm_jax.training import patterns
from ssm_jax.training.state import TrainState


def with_average(state: TrainState, decay: float) -> TrainState:
    """The state with an average that starts at its weights.

    Args:
      state: at the start of a run.
      decay: of the average; 0: none is wanted.
    """
    if not decay:
        return state
    # Copies: what a step donates must not be donated twice.
    copies = jax.tree.map(lambda array: jnp.array(array, copy=True), state.evaluated)
    return state.replace(average=copies)


def make_averaging(decay: float, mesh: Mesh | None = None) -> Callable:
    """Builds the exponential moving average of all weights.

    Args:
      decay: weight of the average so far; 0: none is wanted. After t iterations it is at most
        (1 + t) / (10 + t), so that the first weights, which are random, are soon forgotten.
      mesh: devices that hold the state; None: one device.

    Returns:
      averaged(state) -> the state after its average took in its weights. Call it once an
      iteration; it donates the average. Counts of updates are those of the last iteration.
    """
    if not decay:
        return lambda state: state

    def average(old, new, step):
        kept = jnp.minimum(decay, (1 + step) / (10 + step))

        def mix(old, new):
            return new if jnp.issubdtype(new.dtype, jnp.integer) else new + kept * (old - new)

        return jax.tree.map(mix, old, new)

    place = None if mesh is None else sharding.replicated(mesh)
    average = jax.jit(average, donate_argnums=0, out_shardings=place)

    def averaged(state: TrainState) -> TrainState:
        weights = {"params": state.params, "batch_stats": state.batch_stats}
        return state.replace(average=average(state.average, weights, state.step))

    return averaged


def make_bn_estimator(model: ModelConfig, train: ml_collections.ConfigDict) -> Callable:
    """Builds the re-estimation of BN statistics over a set of slices.

    At batch size 1 and a high learning rate the running statistics lag behind the weights; the
    plain average over some slices, taken with the final weights, does not.

    Args:
      model: whose statistics they are.
      train: section of the run's configuration; BN layers that are frozen keep their statistics.

    Returns:
      estimate(params, average, images [B, H, W, C], image_sizes [B, 2], seen) -> average, where
      `average` is a tree like batch_stats that holds the mean over the `seen` batches before this
      one. Start with the running statistics and seen = 0; jitted.
    """
    still_layers = patterns.chosen(model, train).frozen_layers
    model = dataclasses.replace(model, bn_momentum=1.0)

    @jax.jit
    def estimate(params, average, images, image_sizes, seen):
        variables = {"params": params, "batch_stats": average}
        with patterns.still(still_layers):
            _, updated = ssm.stage(
                model,
                variables,
                "extract",
                images,
                image_sizes,
                train=True,
                mutable=["batch_stats"],
            )

        def mix(old, batch):
            # Update counts are integers, and stay.
            is_count = jnp.issubdtype(old.dtype, jnp.integer)
            return old if is_count else old + (batch - old) / (seen + 1)

        return jax.tree.map(mix, average, updated["batch_stats"])

    return estimate
