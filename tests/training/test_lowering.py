"""Both training steps become programs of accelerators, without one at hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from ssm_jax.config import validate
from ssm_jax.ops import platforms
from ssm_jax.training import steps
from ssm_jax.training.state import state_from_variables
from tests.helpers.tiny import get_config, random_variables

BATCH, OBJECTS = 2, 3


def arguments(config, part):
    """Abstract state and batch of a step."""
    model, size = validate(config), config.model.image_size
    variables = random_variables(model)
    state = jax.eval_shape(lambda: state_from_variables(variables, jax.random.key(0)))

    def array(dtype, *shape):
        return jax.ShapeDtypeStruct((BATCH, *shape), dtype)

    batch = {"image": array(jnp.uint8, size, size, 1), "image_size": array(jnp.int32, 2)}
    if part == "cls":
        return state, batch | {"label": array(jnp.int32)}
    return state, batch | {
        "instances": array(jnp.uint8, size, size),
        "boxes": array(jnp.float32, OBJECTS, 4),
        "labels": array(jnp.int32, OBJECTS),
        "valid": array(np.bool_, OBJECTS),
    }


@pytest.mark.parametrize(
    ("part", "dtype"), [("seg", "bfloat16"), pytest.param("cls", "float32", marks=pytest.mark.slow)]
)
def test_steps_lower_for_accelerators(part, dtype):
    config = get_config()
    config.model.dtype = dtype
    step = steps.make_steps(validate(config), config.train)[("seg", "cls").index(part)]
    with platforms.several():
        exported = export.export(step, platforms=["cuda", "tpu"])(*arguments(config, part))
    assert exported.platforms == ("cuda", "tpu")
    results = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    loss = results[1][f"loss_{part}"]
    assert (loss.shape, loss.dtype) == ((), jnp.float32)
    text = exported.mlir_module()
    assert ("bf16" in text) == (dtype == "bfloat16")
    assert "stablehlo.convolution" in text
