"""Checkpoints: exact, self-describing, the best and the last kept, clear about damage."""

import dataclasses
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from ssm_jax.checkpoints import (
    CheckpointError,
    load_model,
    metric_value,
    save_model,
)
from ssm_jax.config import ModelConfig, default_config, validate
from ssm_jax.training.run_checkpoints import RunCheckpoints
from ssm_jax.training.state import create_state

ROOT = pathlib.Path(__file__).resolve().parent.parent
LOOP = {"loader": {"next": 7}, "window": {"totals": {"loss": 0.1}, "counts": {"loss": 1}}}


@pytest.fixture(scope="module")
def config():
    config = default_config()
    config.model.blocks = 2
    config.checkpoint.best_metric = "accuracy"
    return config


@pytest.fixture(scope="module")
def shapes(config):
    return jax.eval_shape(lambda key: create_state(validate(config), key), jax.random.key(0))


def random_state(shapes, seed, step=0):
    """A state of random numbers: an initialisation would have to be compiled."""
    rng = np.random.default_rng(seed)

    def leaf(x):
        if np.issubdtype(x.dtype, np.integer):
            return np.asarray(rng.integers(0, 1000, x.shape), x.dtype)
        return rng.standard_normal(x.shape, np.float32)

    return jax.tree.map(leaf, shapes).replace(step=np.int32(step))


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def save(workdir, config, state, keep_last=2, **kwargs):
    with RunCheckpoints(workdir, keep_last, config.checkpoint.best_metric) as checkpoints:
        checkpoints.save(state, config.to_dict(), LOOP, **kwargs)


def steps_in(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())


def test_a_state_comes_back_bit_by_bit(tmp_path, config, shapes):
    state = random_state(shapes, 0, 5)
    estimated = jax.tree.map(lambda x: x + 1, state.batch_stats)
    save(tmp_path, config, state, batch_stats=estimated, metrics={"accuracy": 0.5, "ap": None})
    with RunCheckpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 5
        assert checkpoints.metrics(5) == {"accuracy": 0.5, "ap": None}
        restored, loop = checkpoints.restore(shapes)
    assert_same(restored, jax.tree.map(np.asarray, state))  # the raw statistics among them
    assert loop == LOOP
    model_config, variables, info = load_model(tmp_path)
    assert model_config == ModelConfig(blocks=2)
    assert_same(variables, {"params": state.params, "batch_stats": estimated})
    assert (info.step, info.metrics["accuracy"]) == (5, 0.5)
    assert info.config["train"]["learning_rate"] == config.train.learning_rate


def test_saving_does_not_alias_the_state(tmp_path, config, shapes):
    state = jax.tree.map(np.array, random_state(shapes, 0, 1))
    with RunCheckpoints(tmp_path) as checkpoints:
        checkpoints.save(state, config.to_dict(), LOOP)
        # What donation does to the buffers, while the checkpoint is still being written.
        jax.tree.map(lambda x: x.fill(0) if x.ndim else None, state)
    with RunCheckpoints(tmp_path) as checkpoints:
        restored, _ = checkpoints.restore(shapes)
    assert_same(restored, random_state(shapes, 0, 1))


def test_keeps_the_last_and_the_best(tmp_path, config, shapes):
    figures = {1: 0.5, 2: 0.9, 3: None, 4: 0.9, 5: math.nan, 6: None, 7: None}
    for step, value in figures.items():
        metrics = None if value is None else {"accuracy": None if math.isnan(value) else value}
        save(tmp_path, config, random_state(shapes, step, step), metrics=metrics)
    assert steps_in(tmp_path) == [4, 6, 7]  # of equals the later one
    assert load_model(tmp_path)[2].step == 4
    assert load_model(tmp_path / "checkpoints")[2].step == 4
    _, variables, info = load_model(tmp_path / "checkpoints" / "6")
    assert (info.step, info.metrics) == (6, None)
    assert_same(variables["params"], random_state(shapes, 6).params)
    with RunCheckpoints(tmp_path, 2, "accuracy") as checkpoints:
        assert checkpoints.restore(shapes)[0].step == 7


def test_the_latest_is_taken_where_none_was_evaluated(tmp_path, config, shapes):
    for step in (9, 10):
        save(tmp_path, config, random_state(shapes, step, step))
    assert load_model(tmp_path)[2].step == 10


def test_a_step_can_be_saved_again_with_its_evaluation(tmp_path, config, shapes):
    state = random_state(shapes, 0, 3)
    save(tmp_path, config, state)
    save(tmp_path, config, state, metrics={"accuracy": 1.0})
    with RunCheckpoints(tmp_path) as checkpoints:
        assert checkpoints.metrics(3) == {"accuracy": 1.0}
        assert_same(checkpoints.restore(shapes)[0], state)


def test_leftovers_of_a_killed_process_are_no_checkpoints(tmp_path, config, shapes):
    save(tmp_path, config, random_state(shapes, 0, 3))
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "3", folder / "4.orbax-checkpoint-tmp")
    assert load_model(tmp_path)[2].step == 3
    with RunCheckpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 3
    save(tmp_path, config, random_state(shapes, 0, 4))
    assert steps_in(tmp_path) == [3, 4]


def test_metric_value_ranks_what_is_no_number_last():
    assert metric_value({"a": 1}, "a") == 1
    for metrics in (None, {}, {"a": None}, {"a": math.nan}, {"a": [1]}):
        assert metric_value(metrics, "a") == -math.inf


def test_weights_alone(tmp_path, shapes):
    state = random_state(shapes, 0)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    folder = save_model(tmp_path / "new" / "imported", ModelConfig(blocks=2), variables)
    assert folder == tmp_path / "new" / "imported" / "checkpoints" / "0"
    model_config, restored, info = load_model(tmp_path / "new" / "imported")
    assert model_config == ModelConfig(blocks=2)
    assert_same(restored, variables)
    assert (info.step, info.metrics, info.config) == (0, None, None)
    with pytest.raises(CheckpointError, match="not empty"):
        save_model(tmp_path / "new" / "imported", ModelConfig(blocks=2), variables)
    with (
        RunCheckpoints(tmp_path / "new" / "imported") as checkpoints,
        pytest.raises(CheckpointError, match="without a training state"),
    ):
        checkpoints.restore(shapes)


def test_what_is_no_checkpoint_is_named(tmp_path, config, shapes):
    with pytest.raises(CheckpointError, match="no such folder"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="there is no checkpoint at"):
        load_model(tmp_path)
    (tmp_path / "checkpoints" / "3" / "model").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"checkpoints/3 is not a checkpoint"):
        load_model(tmp_path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of orbax
def test_damage_is_named(tmp_path, config, shapes):
    save(tmp_path, config, random_state(shapes, 0, 3))
    step = tmp_path / "checkpoints" / "3"

    def broken(name, change):
        copy = tmp_path / name / "3"
        shutil.copytree(step, copy)
        change(copy)
        with pytest.raises(CheckpointError, match=f"{name}/3"):
            load_model(copy)

    broken("without_model", lambda copy: shutil.rmtree(copy / "model"))
    broken("without_data", lambda copy: shutil.rmtree(copy / "model" / "ocdbt.process_0"))
    broken("without_index", lambda copy: (copy / "model" / "manifest.ocdbt").unlink())
    broken("cut_config", lambda copy: (copy / "config" / "metadata").write_text('{"format": "ss'))

    def truncate(copy):
        largest = max((copy / "model").rglob("*"), key=lambda p: p.stat().st_size)
        os.truncate(largest, largest.stat().st_size // 2)

    broken("truncated", truncate)

    def rewrite(**fields):
        def change(copy):
            path = copy / "config" / "metadata"
            path.write_text(json.dumps(json.loads(path.read_text()) | fields))

        return change

    broken("foreign", rewrite(format="something else"))
    broken("later_version", rewrite(version=99))
    broken("unknown_field", rewrite(model={"depth": 3}))
    broken("another_model", rewrite(model=dataclasses.asdict(ModelConfig(blocks=3))))


def test_restores_on_another_number_of_devices(tmp_path, shapes):
    program = f"""
import sys
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tests.test_checkpoints import random_state
from ssm_jax.training.run_checkpoints import RunCheckpoints
from ssm_jax.config import default_config, validate
from ssm_jax.training.state import create_state
assert jax.device_count() == 4
config = default_config()
config.model.blocks = 2
shapes = jax.eval_shape(lambda key: create_state(validate(config), key), jax.random.key(0))
mesh = Mesh(np.array(jax.devices()), ("data",))
state = jax.device_put(random_state(shapes, 0, 3), NamedSharding(mesh, PartitionSpec()))
with RunCheckpoints({str(tmp_path)!r}) as checkpoints:
    checkpoints.save(state, config.to_dict(), {{"loader": {{}}}})
"""
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, check=True)
    _, variables, _ = load_model(tmp_path)
    assert {len(x.sharding.device_set) for x in jax.tree.leaves(variables)} == {1}
    assert_same(variables["params"], random_state(shapes, 0).params)
    with RunCheckpoints(tmp_path) as checkpoints:
        assert_same(checkpoints.restore(shapes)[0], random_state(shapes, 0, 3))
