"""bfloat16 compute: what is computed in it, what is not, and how far results drift."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssm_jax.config import ModelConfig
from ssm_jax.interop import reference_names
from ssm_jax.models import ssm
from ssm_jax.models.inference import make_predict_fn
from tests.helpers.shared import REFERENCE, needs_reference
from tests.helpers.tiny import get_config, random_variables

TINY = ModelConfig.from_mapping(get_config().model.to_dict())


def in_bfloat16(config):
    return dataclasses.replace(config, dtype="bfloat16")


@pytest.fixture(scope="module")
def variables():
    return random_variables(TINY)


def test_parameters_and_statistics_stay_float32():
    shapes = jax.eval_shape(
        lambda key: ssm.init_variables(in_bfloat16(TINY), key), jax.random.key(0)
    )
    assert {str(x.dtype) for x in jax.tree.leaves(shapes)} == {"float32", "int32"}


def test_convolutions_are_bfloat16_and_boxes_are_not(variables):
    predict = make_predict_fn(in_bfloat16(TINY), masks=True)
    images, sizes = np.zeros((1, 64, 64, 1), np.uint8), np.array([[64, 64]], np.int32)
    outputs = jax.eval_shape(predict, variables, images, sizes, 0.5, 0.5)
    floats = {x.dtype for x in jax.tree.leaves(outputs) if jnp.issubdtype(x.dtype, jnp.floating)}
    assert floats == {jnp.dtype("float32")}
    text = str(jax.make_jaxpr(predict)(variables, images, sizes, 0.5, 0.5))
    convolutions = [line for line in text.splitlines() if "= conv_general_dilated[" in line]
    in_half = [line for line in convolutions if ":bf16[" in line]
    # Of the RPN the two outputs are float32.
    assert len(convolutions) - len(in_half) == 2
    assert len(in_half) > 10


def test_gradients_of_the_class_drift_little(variables):
    """bfloat16 has 8 bits: each layer rounds by up to 2**-9 of a value."""
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 5)), jnp.float32)

    def loss(module_s, config):
        params = {"params": {"module_s": module_s}}
        return jax.nn.logsumexp(ssm.stage(config, params, "read_class", rows)).sum()

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    exact = gradient(variables["params"]["module_s"], TINY)
    ours = gradient(variables["params"]["module_s"], in_bfloat16(TINY))
    for a, b in zip(jax.tree.leaves(exact), jax.tree.leaves(ours), strict=True):
        assert b.dtype == jnp.float32
        assert jnp.linalg.norm(a - b) < 0.02 * jnp.linalg.norm(a)


@needs_reference
@pytest.mark.slow
def test_features_of_the_published_size_drift_little():
    config = ModelConfig()
    with np.load(REFERENCE / "weights_r18_3.npz") as weights:
        variables = reference_names.to_variables(weights, config)
    image = np.load(REFERENCE / "eval_2_015.npz")["image"]
    image = np.asarray(image, np.float32).reshape(1, 512, 512, -1)[:, :256, :256, :1] / 255

    @functools.partial(jax.jit, static_argnums=1)
    def features(variables, config):
        model = ssm.SingleShotModel(config)
        x = jnp.broadcast_to(image, (1, 256, 256, 3))
        return model.apply(variables, x, method=lambda m, x: m.fpn(m.backbone(x, False)))

    exact, ours = features(variables, config), features(variables, in_bfloat16(config))
    assert ours.dtype == jnp.float32
    assert jnp.linalg.norm(exact - ours) < 0.02 * jnp.linalg.norm(exact)
    assert float(jnp.abs(exact - ours).max()) > 0
