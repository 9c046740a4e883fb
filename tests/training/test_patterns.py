"""Parameters by patterns: which are frozen, which step slower, and what a pattern misses."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssm_jax.config import ModelConfig, default_config
from ssm_jax.models.layers import BatchNorm
from ssm_jax.training import optimizer, patterns

MODEL = ModelConfig(blocks=2)


def train_section(**fields):
    train = default_config().train
    train.update(fields)
    return train


def test_nothing_is_named_by_default():
    assert patterns.chosen(MODEL, train_section()) == (frozenset(), {})


def test_patterns_cross_folders_and_later_factors_count():
    chosen = patterns.chosen(
        MODEL, train_section(freeze="backbone/*bn*, fpn/*", lr_factors="rpn/*=0.5,rpn/conv/*=2")
    )
    tops = {path.split("/")[0] for path in chosen.frozen}
    assert tops == {"backbone", "fpn"}
    assert "backbone/layer1_0/bn1/scale" in chosen.frozen
    assert "backbone/conv1/kernel" not in chosen.frozen
    assert "backbone/bn1" in chosen.frozen_layers
    assert chosen.factors["rpn/conv/kernel"] == 2
    assert chosen.factors["rpn/deltas/bias"] == 0.5
    assert all(path.startswith("rpn/") for path in chosen.factors)


def test_a_layer_is_frozen_whole_or_not():
    chosen = patterns.chosen(MODEL, train_section(freeze="backbone/*/scale"))
    assert chosen.frozen and chosen.frozen_layers == frozenset()


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"freeze": "backbon/*"}, r"no parameter is called backbon/\*; near it are .*backbone/\*"),
        ({"freeze": "zzz"}, r"there are backbone/\*, classification_branch/\*"),
        ({"freeze": "*"}, "leaves nothing to train"),
        ({"lr_factors": "backbone/*"}, "<pattern>=<number above 0>"),
        ({"lr_factors": "backbone/*=0"}, "<pattern>=<number above 0>"),
        ({"lr_factors": "backbone/*=nan"}, "<pattern>=<number above 0>"),
        ({"lr_factors": "heads/*=2"}, r"lr_factors='heads/\*=2': no parameter is called heads"),
    ],
)
def test_patterns_that_make_no_sense(fields, text):
    with pytest.raises(ValueError, match=text):
        patterns.chosen(MODEL, train_section(**fields))


def test_a_step_of_some_parameters_equals_a_step_of_a_smaller_model():
    """Frozen arrays, their moments too, stay bit by bit; the others step as if those were not."""
    rng = np.random.default_rng(0)
    names = ("rpn/conv/kernel", "rpn/conv/bias", "mask_head/logits/bias")

    def nested(flat):
        return optimizer.merge({"all": flat})

    flat = {name: jnp.asarray(rng.standard_normal(3), jnp.float32) for name in names}
    gradient = {name: jnp.asarray(rng.standard_normal(3), jnp.float32) for name in names[1:]}
    rates = {optimizer.SEGMENTATION: jnp.float32(0.1)}
    step = {optimizer.SEGMENTATION: gradient}
    whole, state = nested(flat), optimizer.init(nested(flat))
    small = nested({name: flat[name] for name in names[1:]})
    small_state = optimizer.init(small)
    for _ in range(3):
        whole, state = optimizer.apply_gradients(whole, state, step, rates, 0.01)
        small, small_state = optimizer.apply_gradients(small, small_state, step, rates, 0.01)
    np.testing.assert_array_equal(whole["rpn"]["conv"]["kernel"], flat["rpn/conv/kernel"])
    np.testing.assert_array_equal(whole["rpn"]["conv"]["bias"], small["rpn"]["conv"]["bias"])
    jax.tree.map(np.testing.assert_array_equal, whole["mask_head"], small["mask_head"])
    (_, moments), (_, expected) = state[optimizer.SEGMENTATION], small_state[optimizer.SEGMENTATION]
    assert int(moments.count) == int(expected.count) == 3
    assert not np.any(moments.mu["rpn/conv/kernel"]) and not np.any(moments.nu["rpn/conv/kernel"])
    for name in names[1:]:
        np.testing.assert_array_equal(moments.mu[name], expected.mu[name])


def test_a_factor_scales_the_step():
    params = {"rpn": {"a": jnp.ones(2), "b": jnp.ones(2)}}
    gradient = {optimizer.SEGMENTATION: {"rpn/a": jnp.ones(2), "rpn/b": jnp.ones(2)}}
    rates = {optimizer.SEGMENTATION: jnp.float32(0.1)}
    stepped, _ = optimizer.apply_gradients(
        params, optimizer.init(params), gradient, rates, 0.0, {"rpn/b": 0.25}
    )
    moved = {name: float(1 - stepped["rpn"][name][0]) for name in "ab"}
    assert moved["b"] == pytest.approx(0.25 * moved["a"], rel=1e-5)


class TwoNorms(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        for name in ("first", "second"):
            x = jnp.tanh(BatchNorm(name=name)(x, train, None))
        return x


def test_frozen_layers_normalize_by_their_running_statistics():
    x = jnp.asarray(np.random.default_rng(0).normal(2, 3, (2, 4, 4, 3)), jnp.float32)
    model = TwoNorms()
    variables = model.init(jax.random.key(0), x, False)

    def applied(train, layers=()):
        with patterns.still(frozenset(layers)):
            return model.apply(variables, x, train, mutable=["batch_stats"])

    y, stats = applied(True, ["first", "second"])
    np.testing.assert_array_equal(y, applied(False)[0])
    jax.tree.map(np.testing.assert_array_equal, stats["batch_stats"], variables["batch_stats"])
    y, stats = applied(True, ["first"])
    assert np.abs(y - applied(True)[0]).max() > 0
    assert [int(stats["batch_stats"][name]["count"]) for name in ("first", "second")] == [0, 1]
