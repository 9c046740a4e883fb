"""The average of all weights against plain arithmetic, in a run that is interrupted and in a whole
one; without it, nothing is there."""

import jax
import jax.numpy as jnp
import numpy as np

from ssm_jax import checkpoints
from ssm_jax.checkpoints import load_model
from ssm_jax.training import loop
from ssm_jax.training.averaging import make_averaging, with_average
from ssm_jax.training.loop import train
from ssm_jax.training.run_checkpoints import RunCheckpoints
from ssm_jax.training.state import TrainState
from tests.training.test_interruptions import fake_config
from tests.training.test_loop import saved_steps
from tests.training.test_run_checkpoints import small_state


def state_at(step, value):
    weights = jnp.full(3, value, jnp.float32)
    return {
        "step": jnp.asarray(step, jnp.int32),
        "params": {"w": weights},
        "batch_stats": {"mean": 2 * weights, "count": jnp.asarray(step, jnp.int32)},
    }


def test_the_average_equals_plain_arithmetic():
    values, decay = np.random.default_rng(0).normal(size=40), 0.6
    zero = jnp.zeros(())
    state = with_average(
        TrainState(**state_at(0, 1.0), opt_state={}, best_seg_loss=zero, key=zero), decay
    )
    averaged, expected = make_averaging(decay), 1.0
    for t, value in enumerate(values, 1):
        state = averaged(state.replace(**state_at(t, value)))
        kept = min(decay, (1 + t) / (10 + t))
        expected = kept * expected + (1 - kept) * value
        assert state.params["w"][0] == np.float32(value)  # training goes on from these
    np.testing.assert_allclose(state.average["params"]["w"], expected, rtol=1e-5)
    np.testing.assert_allclose(state.average["batch_stats"]["mean"], 2 * expected, rtol=1e-5)
    assert state.average["batch_stats"]["count"] == 40
    assert state.evaluated is state.average


def test_without_decay_there_is_no_average():
    state = small_state(1, 0)
    assert with_average(state, 0.0) is state
    assert make_averaging(0.0)(state) is state
    assert state.evaluated == {"params": state.params, "batch_stats": state.batch_stats}
    assert len(jax.tree.leaves(state)) == 6  # as states were before there were averages


def latest(workdir, like):
    with RunCheckpoints(workdir) as saved:
        return saved.restore(like).state


def test_a_run_evaluates_and_hands_on_the_average(fake, tmp_path, monkeypatch):
    """And goes on from the raw weights, bit by bit, wherever it was interrupted."""
    data_dir = str(tmp_path / "data")
    plain = tmp_path / "plain"
    train(fake_config(data_dir), plain)
    raw = list(fake.evaluations)
    fake.evaluations.clear()

    config = fake_config(data_dir, ema_decay=0.3)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    result = train(config, whole)
    assert fake.evaluations != raw and len(raw) == len(fake.evaluations) == 2
    like = with_average(loop.create_state(None, None), 0.3)
    state = latest(whole, like)
    assert float(state.params["seen"]) == raw[-1]  # the same training
    assert float(state.average["params"]["seen"]) == fake.evaluations[-1] == result["accuracy"]
    monkeypatch.setattr(checkpoints, "variable_shapes", lambda model: like.evaluated)
    _, variables, _ = load_model(whole / "checkpoints" / "6")
    assert float(variables["params"]["seen"]) == fake.evaluations[-1]

    for steps in (1, 3, 5, 6):
        again = fake_config(data_dir, ema_decay=0.3, max_steps=steps)
        train(again, parts)
    assert saved_steps(parts)[-1] == 6
    resumed = latest(parts, like)
    assert jax.tree.structure(resumed) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, resumed, state)
    assert train(config, parts) == result
