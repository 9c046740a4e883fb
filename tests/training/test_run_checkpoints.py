"""Checkpoints of a run: exact, the last and the best kept, nothing lost whatever happens."""

import concurrent.futures
import contextlib
import errno
import logging
import math
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from ssm_jax import checkpoints as checkpoints_lib
from ssm_jax.checkpoints import DIGESTS_FILE, CheckpointError, load_model, read_info, save_model
from ssm_jax.config import ModelConfig, default_config, validate
from ssm_jax.training import run_checkpoints
from ssm_jax.training.run_checkpoints import RunCheckpoints
from ssm_jax.training.state import TrainState, create_state

ROOT = pathlib.Path(__file__).resolve().parents[2]
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
    """A state of random numbers: an initialization would have to be compiled."""
    rng = np.random.default_rng(seed)

    def leaf(x):
        if np.issubdtype(x.dtype, np.integer):
            return np.asarray(rng.integers(0, 1000, x.shape), x.dtype)
        return rng.standard_normal(x.shape, np.float32)

    return jax.tree.map(leaf, shapes).replace(step=np.int32(step))


def small_state(value, step):
    array = np.full(3, value, np.float32)
    return TrainState(
        step=np.int32(step),
        params={"w": array},
        batch_stats={"mean": array},
        opt_state={"m": array},
        best_seg_loss=np.float32(value),
        key=np.zeros(2, np.uint32),
    )


@pytest.fixture
def small_model(monkeypatch):
    """What `load_model` expects of a model is what a small state holds."""
    state = small_state(0, 0)
    shapes = {"params": state.params, "batch_stats": state.batch_stats}
    monkeypatch.setattr(checkpoints_lib, "variable_shapes", lambda config: shapes)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def save(workdir, config, state, keep_last=2, **kwargs):
    with RunCheckpoints(workdir, keep_last, config.checkpoint.best_metric) as checkpoints:
        checkpoints.save(state, config.to_dict(), LOOP, **kwargs)


def restored(workdir, shapes):
    with RunCheckpoints(workdir) as checkpoints:
        return checkpoints.restore(shapes)


def names_in(workdir):
    return sorted(p.name for p in (workdir / "checkpoints").iterdir())


def test_a_state_comes_back_bit_by_bit(tmp_path, config, shapes):
    state = random_state(shapes, 0, 5)
    estimated = jax.tree.map(lambda x: x + 1, state.batch_stats)
    metrics = {"accuracy": 0.5, "ap": None}
    save(tmp_path, config, state, batch_stats=estimated, metrics=metrics, seconds=12.5)
    with RunCheckpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 5
        assert checkpoints.metrics(5) == metrics
        resumed = checkpoints.restore(shapes)
    assert_same(resumed.state, jax.tree.map(np.asarray, state))  # the raw statistics among them
    assert (resumed.loop, resumed.seconds) == (LOOP, 12.5)
    model_config, variables, info = load_model(tmp_path)
    assert model_config == ModelConfig(blocks=2)
    assert_same(variables, {"params": state.params, "batch_stats": estimated})
    assert (info.step, info.metrics["accuracy"], info.seconds) == (5, 0.5, 12.5)
    assert info.config["train"]["learning_rate"] == config.train.learning_rate


def test_saving_does_not_alias_the_state(tmp_path, config, shapes):
    state = jax.tree.map(np.array, random_state(shapes, 0, 1))
    with RunCheckpoints(tmp_path) as checkpoints:
        checkpoints.save(state, config.to_dict(), LOOP)
        # What donation does to the buffers, while the checkpoint is still being written.
        jax.tree.map(lambda x: x.fill(0) if x.ndim else None, state)
    assert_same(restored(tmp_path, shapes).state, random_state(shapes, 0, 1))


def test_keeps_the_last_and_the_best(small_model, tmp_path, config):
    figures = {1: 0.5, 2: 0.9, 3: None, 4: 0.9, 5: math.nan, 6: None, 7: None}
    for step, value in figures.items():
        metrics = None if value is None else {"accuracy": None if math.isnan(value) else value}
        save(tmp_path, config, small_state(step, step), metrics=metrics)
    assert names_in(tmp_path) == ["4", "6", "7"]  # of equals the later one
    assert load_model(tmp_path)[2].step == 4
    assert load_model(tmp_path / "checkpoints")[2].step == 4
    _, variables, info = load_model(tmp_path / "checkpoints" / "6")
    assert (info.step, info.metrics) == (6, None)
    assert_same(variables["params"], small_state(6, 6).params)
    assert restored(tmp_path, small_state(0, 0)).state.step == 7


def test_the_latest_is_taken_where_none_was_evaluated(small_model, tmp_path, config):
    for step in (9, 10):
        save(tmp_path, config, small_state(step, step))
    assert load_model(tmp_path)[2].step == 10


def test_a_step_can_be_saved_again_with_its_evaluation(tmp_path, config):
    state = small_state(1, 3)
    save(tmp_path, config, state)
    save(tmp_path, config, state, metrics={"accuracy": 1.0})
    with RunCheckpoints(tmp_path) as checkpoints:
        assert checkpoints.metrics(3) == {"accuracy": 1.0}
        assert_same(checkpoints.restore(state).state, state)


class Killed(BaseException):
    """Stands for SIGKILL."""


def kill_at(monkeypatch, number):
    """Ends the program at the `number`-th change of a name or removal of a folder."""
    changes = []

    def counted(function):
        def call(*args, **kwargs):
            changes.append(args)
            if len(changes) == number:
                raise Killed
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(pathlib.Path, "rename", counted(pathlib.Path.rename))
    monkeypatch.setattr(shutil, "rmtree", counted(shutil.rmtree))
    return changes


def test_the_newest_survives_a_kill_while_it_is_replaced(tmp_path, config, monkeypatch):
    seen = set()
    for number in range(1, 20):
        workdir = tmp_path / str(number)
        save(workdir, config, small_state(1, 3), keep_last=1)
        with monkeypatch.context() as patch:
            changes = kill_at(patch, number)
            with contextlib.suppress(Killed):
                save(workdir, config, small_state(2, 3), keep_last=1)
        for _ in range(2):  # opening it a second time changes nothing more
            state = restored(workdir, small_state(0, 0)).state
            value = int(state.params["w"][0])
            assert_same(state, small_state(value, 3))
            assert names_in(workdir) == ["3"]
        seen.add(value)
        if len(changes) < number:
            break
    assert seen == {1, 2}
    assert number == 4


def test_a_kill_while_an_old_one_is_removed_leaves_no_half(tmp_path, config, monkeypatch):
    for number in range(1, 20):
        workdir = tmp_path / str(number)
        save(workdir, config, small_state(1, 1), keep_last=1)
        with monkeypatch.context() as patch:
            changes = kill_at(patch, number)
            with contextlib.suppress(Killed):
                save(workdir, config, small_state(2, 2), keep_last=1)
        for name in filter(str.isdecimal, names_in(workdir)):
            read_info(workdir / "checkpoints" / name)
        with RunCheckpoints(workdir, 1) as checkpoints:
            step = int(checkpoints.restore(small_state(0, 0)).state.step)
        assert names_in(workdir) == [str(step)]  # what was surplus is gone
        if len(changes) < number:
            break
    assert step == 2
    assert number >= 3


def test_leftovers_of_a_killed_process_are_no_checkpoints(small_model, tmp_path, config):
    save(tmp_path, config, small_state(1, 3))
    folder = tmp_path / "checkpoints"
    for name in ("4.orbax-checkpoint-tmp", "4.new.orbax-checkpoint-tmp", "4.new", "2.old"):
        shutil.copytree(folder / "3", folder / name)
    (folder / "4.new" / DIGESTS_FILE).unlink()  # it is written last
    shutil.copytree(folder / "3", folder / "3.old")
    assert load_model(tmp_path)[2].step == 3
    with RunCheckpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 3
    assert names_in(tmp_path) == ["2", "3"]  # the 2 was being replaced


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def largest(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def empty(path):
    path.write_text("")


OF_THE_MODEL = {
    "cut weights": lambda step: cut(largest(step / "model")),
    "flipped weights": lambda step: flip(largest(step / "model")),
    "no manifest": lambda step: (step / "model" / "manifest.ocdbt").unlink(),
    "empty config": lambda step: empty(step / "config" / "metadata"),
    "changed config": lambda step: flip(step / "config" / "metadata"),
    "no digests": lambda step: (step / DIGESTS_FILE).unlink(),
    "empty digests": lambda step: empty(step / DIGESTS_FILE),
    "hollow": lambda step: [shutil.rmtree(step), step.mkdir()],
}
OF_THE_TRAINING = {
    "flipped moments": lambda step: flip(largest(step / "training")),
    "no training": lambda step: shutil.rmtree(step / "training"),
    "empty loop": lambda step: empty(step / "loop" / "metadata"),
    "changed loop": lambda step: (step / "loop" / "metadata").write_text('{"a": 1}'),
}
DAMAGES = OF_THE_MODEL | OF_THE_TRAINING


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory, config):
    workdir = tmp_path_factory.mktemp("two")
    for step in (4, 8):
        save(workdir, config, small_state(step, step), metrics={"accuracy": step})
    return workdir


def own_lines(caplog):
    return [r.getMessage() for r in caplog.records if r.name.startswith("ssm_jax")]


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_the_newest_whole_one_is_taken(damage, two_steps, tmp_path, config, caplog):
    workdir = tmp_path / "run"
    shutil.copytree(two_steps, workdir)
    newest = workdir / "checkpoints" / "8"
    damage(newest)
    with RunCheckpoints(workdir, 2, "accuracy") as checkpoints:
        with caplog.at_level(logging.WARNING):
            resumed = checkpoints.restore(small_state(0, 0))
        assert_same(resumed.state, small_state(4, 4))
        (line,) = own_lines(caplog)
        assert line.startswith(f"passed over: {newest}") and "\n" not in line
        assert newest.is_dir()  # until something newer is whole
        checkpoints.save(small_state(6, 6), config.to_dict(), LOOP)
    assert names_in(workdir) == ["4", "6"]


def test_who_reads_a_model_passes_over_what_is_damaged(two_steps, small_model, tmp_path, caplog):
    for name, damage in DAMAGES.items():
        workdir = tmp_path / name
        shutil.copytree(two_steps, workdir)
        newest = workdir / "checkpoints" / "8"
        damage(newest)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            step = load_model(workdir)[2].step
        if name in OF_THE_TRAINING:  # it has no use for that
            assert (step, own_lines(caplog)) == (8, [])
            continue
        assert step == 4
        assert own_lines(caplog)[0].startswith(f"passed over: {newest}")
        with pytest.raises(CheckpointError, match="checkpoints/8"):
            load_model(newest)
        shutil.copytree(two_steps / "checkpoints" / "8", workdir / "checkpoints" / "9")
        assert load_model(workdir)[2].step == 9  # an older one does not matter


def test_none_that_is_whole(two_steps, tmp_path):
    shutil.copytree(two_steps, tmp_path / "run")
    for step in (4, 8):
        flip(largest(tmp_path / "run" / "checkpoints" / str(step) / "training"))
    with pytest.raises(CheckpointError, match="delete that folder to start over") as caught:
        restored(tmp_path / "run", small_state(0, 0))
    assert "checkpoints/4 is damaged: training/" in str(caught.value)
    assert "checkpoints/8 is damaged: training/" in str(caught.value)
    assert names_in(tmp_path / "run") == ["4", "8"]


@pytest.mark.parametrize("part", ["params", "opt_state"])
def test_a_number_that_is_not_finite_is_damage(tmp_path, config, part):
    state = small_state(1, 1)
    save(tmp_path, config, state.replace(**{part: {"w": np.float32([1, np.nan])}}))
    like = state.replace(**{part: {"w": np.zeros(2, np.float32)}})
    with pytest.raises(CheckpointError, match=f"damaged: {part}/w is not finite"):
        restored(tmp_path, like)


def test_a_full_disk_is_one_line_and_costs_nothing(tmp_path, config, monkeypatch):
    with RunCheckpoints(tmp_path) as checkpoints:
        checkpoints.save(small_state(1, 1), config.to_dict(), LOOP)
        checkpoints.wait()
        usage = shutil.disk_usage(tmp_path)._replace(free=1 << 19)
        monkeypatch.setattr(run_checkpoints.shutil, "disk_usage", lambda path: usage)
        with pytest.raises(CheckpointError) as caught:
            checkpoints.save(small_state(2, 2), config.to_dict(), LOOP)
    text = str(caught.value)
    assert text.startswith(str(tmp_path / "checkpoints")) and "\n" not in text
    assert "needs 1 MiB" in text and "step 1 is saved" in text
    assert restored(tmp_path, small_state(0, 0)).state.step == 1


def test_what_fails_in_the_background_is_told_at_once(tmp_path, config, monkeypatch):
    def full(path, content, indent=2):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with RunCheckpoints(tmp_path) as checkpoints:
        checkpoints.save(small_state(1, 1), config.to_dict(), LOOP)
        checkpoints.wait()
        monkeypatch.setattr(checkpoints_lib, "write_json", full)
        checkpoints.save(small_state(2, 2), config.to_dict(), LOOP)
        concurrent.futures.wait([checkpoints._writing])
        with pytest.raises(CheckpointError, match=r"2 cannot be written: .*No space left"):
            checkpoints.check()
        checkpoints.check()
        assert checkpoints.latest_step() == 1
    assert restored(tmp_path, small_state(0, 0)).state.step == 1
    assert names_in(tmp_path) == ["1"]


def test_imported_weights_are_not_resumed_from(tmp_path):
    state = small_state(1, 0)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    save_model(tmp_path, ModelConfig(blocks=2), variables)
    with pytest.raises(CheckpointError, match="without a training state") as caught:
        restored(tmp_path, state)
    assert "Choose another working directory" in str(caught.value)


def test_restores_on_another_number_of_devices(tmp_path, shapes):
    program = f"""
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ssm_jax.config import default_config, validate
from ssm_jax.training.run_checkpoints import RunCheckpoints
from ssm_jax.training.state import create_state
from tests.training.test_run_checkpoints import random_state
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
    assert_same(restored(tmp_path, shapes).state, random_state(shapes, 0, 3))
