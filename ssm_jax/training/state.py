"""The state of a run: one immutable pytree of arrays."""

from typing import Any, no_type_check

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32, PRNGKeyArray, UInt32

from ssm_jax.config import ModelConfig
from ssm_jax.models.ssm import init_variables
from ssm_jax.training import optimizer

# "Best so far" before the first segmentation step, as in the reference.
WORST_LOSS = 10000.0


@no_type_check  # JAX puts shapes, axes and placeholders into such a tree
class TrainState(flax.struct.PyTreeNode):
    """Everything that a step reads and writes.

    Attributes:
      step: iterations done.
      params: nested dict of float32 arrays.
      batch_stats: running BN statistics, nested dict.
      opt_state: optimizer state by parameter group.
      best_seg_loss: the smallest segmentation loss so far.
      key: data of the run's PRNG key; step keys are folded out of it.
      average: {"params": ..., "batch_stats": ...} averaged over the iterations; None: not wanted.
    """

    step: Int32[Array, ""]
    params: Any
    batch_stats: Any
    opt_state: Any
    best_seg_loss: Float32[Array, ""]
    key: UInt32[Array, "n"]
    average: Any = None

    @property
    def evaluated(self) -> dict[str, Any]:
        """The weights that are evaluated and handed on, {"params": ..., "batch_stats": ...}: the
        average, or where there is none those of the last iteration.
        """
        return self.average or {"params": self.params, "batch_stats": self.batch_stats}


def create_state(
    model: ModelConfig, key: PRNGKeyArray, module_s_output_scale: float = 1.0
) -> TrainState:
    """A fresh state.

    Args:
      model: whose parameters it holds.
      key: PRNG key; initializes the parameters and drives all sampling of the run.
      module_s_output_scale: factor of the initial weights and biases of module S's last layer. As
        the reference draws them, logits differ by about ten, a loss far above chance whose gradient
        moves the backbone at random; with 0 all classes start alike.

    Returns:
      TrainState at step 0.
    """
    init_key, run_key = jax.random.split(key)
    variables = init_variables(model, init_key)
    if model.image_classes:
        last = variables["params"]["module_s"]["logits"]
        last.update({name: module_s_output_scale * array for name, array in last.items()})
    return state_from_variables(variables, run_key)


def state_from_variables(variables: dict[str, Any], key: PRNGKeyArray) -> TrainState:
    """A state at step 0 that starts from given weights.

    Args:
      variables: {"params": ..., "batch_stats": ...}.
      key: PRNG key that drives all sampling of the run.

    Returns:
      TrainState at step 0, with fresh moments.
    """
    params = jax.tree.map(jnp.asarray, variables["params"])
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=jax.tree.map(jnp.asarray, variables["batch_stats"]),
        opt_state=optimizer.init(params),
        best_seg_loss=jnp.asarray(WORST_LOSS, jnp.float32),
        key=jax.random.key_data(key),
    )
