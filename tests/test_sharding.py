"""Data parallel training and prediction: many devices and processes compute what one does."""

import functools
import json
import os
import socket
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ssm_jax import sharding
from ssm_jax.checkpoints import load_model
from ssm_jax.config import validate
from ssm_jax.models.layers import BatchNorm
from ssm_jax.training.metrics import read_lines
from ssm_jax.training.state import create_state
from tests.helpers.programs import ROOT, command
from tests.helpers.tiny import get_config

pytestmark = pytest.mark.usefixtures("quickly_compiled")
# Of each run: processes, and virtual devices of each process.
KINDS = {"one": (1, 1), "many": (2, 2), "eight": (1, 8), "two": (2, 1)}
SETTINGS = (
    "train.batch_size=8",
    "train.max_steps=3",
    "train.learning_rate=1e-6",
    "log.every_steps=1",
    "eval.every_steps=100",
    "eval.max_slices=1",
    "eval.bn_slices=0",
    "eval.overlays=0",
    "checkpoint.every_steps=100",
)


def start(program, *arguments, devices=1):
    """Starts a program with so many virtual devices."""
    environment = dict(os.environ)
    environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        command(program, *arguments),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def job(processes, program, *arguments, devices=1):
    """Starts several processes of one job; returns them."""
    if processes == 1:
        return [start(program, *arguments, devices=devices)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = (f"--coordinator=127.0.0.1:{port}", f"--num_processes={processes}")
    return [
        start(program, *arguments, *flags, f"--process_id={index}", devices=devices)
        for index in range(processes)
    ]


def finished(processes):
    """What each process printed; fails if one failed."""
    outputs = [process.communicate(timeout=400)[0] for process in processes]
    codes = [process.returncode for process in processes]
    assert not any(codes), "\n".join(outputs)
    return outputs


def training(data_dir, workdir, *settings):
    flags = [f"--config.{setting}" for setting in (*SETTINGS, *settings)]
    return [
        "--config=tests/helpers/tiny.py",
        f"--workdir={workdir}",
        f"--config.data.data_dir={data_dir}",
        *flags,
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Three iterations by a kind of devices: run(kind) -> workdir and outputs; each kind once."""
    folder = tmp_path_factory.mktemp("runs")

    @functools.cache
    def run(kind):
        processes, devices = KINDS[kind]
        arguments = training(folder / "data", folder / kind)
        return folder / kind, finished(job(processes, "train", *arguments, devices=devices))

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("many", "4 of 4 devices: cpu (cpu) in 2 processes"),
        pytest.param("eight", "8 of 8 devices", marks=pytest.mark.slow),
        pytest.param("two", "in 2 processes", marks=pytest.mark.slow),
    ],
    ids=["many", "eight", "two"],
)
def test_many_devices_train_as_one(run, kind, told):
    (reference, _), (workdir, outputs) = run("one"), run(kind)
    assert told in outputs[0]
    expected, found = (
        [line for line in read_lines(folder) if line["kind"] == "train"]
        for folder in (reference, workdir)
    )
    assert [line["step"] for line in found] == [1, 2, 3]
    for one, many in zip(expected, found, strict=True):
        losses = [key for key in one if key.startswith("loss_")]
        assert len(losses) == 7
        for key in losses:
            assert many[key] == pytest.approx(one[key], abs=1e-5), (one["step"], key)
        assert (many["copied"], many["positives"]) == (one["copied"], one["positives"])
    _, one, _ = load_model(reference)
    _, many, info = load_model(workdir)
    assert info.step == 3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=0), one, many)
    # So small a rate moves parameters by less than that: the movements themselves agree too.
    start = jax.device_get(create_state(validate(get_config()), jax.random.key(0)).params)
    jax.tree.map(assert_same_way, start, one["params"], many["params"])


def assert_same_way(start, one, many):
    a, b = (np.ravel(end - start).astype(np.float64) for end in (one, many))
    assert np.dot(a, b) >= 0.9999 * np.linalg.norm(a) * np.linalg.norm(b) > 0


@pytest.mark.slow
def test_only_the_first_process_tells_and_writes(run):
    workdir, outputs = run("many")
    assert "training for 3 iterations" in outputs[0]
    assert "training for" not in outputs[1]
    assert "it/s" not in outputs[1]
    lines = read_lines(workdir)
    assert [line["kind"] for line in lines] == ["train"] * 3 + ["evaluation"]


@pytest.mark.slow
def test_a_checkpoint_of_many_devices_goes_on_with_one(run):
    workdir, _ = run("many")
    arguments = training(workdir.parent / "data", workdir, "train.max_steps=4")
    (output,) = finished([start("train", *arguments)])
    assert "resumed at step 3 of 4" in output
    assert [line["step"] for line in read_lines(workdir)][-2:] == [4, 4]


@pytest.mark.slow
def test_prediction_by_two_processes_of_two_devices_is_that_of_one(run, tmp_path):
    workdir, _ = run("one")
    rng = np.random.default_rng(0)
    inputs = tmp_path / "slices"
    inputs.mkdir()
    for index in range(7):
        values = rng.integers(0, 256, (64, 64), np.uint8)
        Image.fromarray(values).save(inputs / f"{index}.png")
    (inputs / "3.png").write_bytes(b"no picture")
    arguments = [f"--checkpoint={workdir}", "--score_threshold=0.05", f"--inputs={inputs}"]
    contents = {}
    for name, processes, devices in (("one", 1, 1), ("many", 2, 2)):
        output = tmp_path / name
        flags = [f"--output_dir={output}", "--overlays", f"--batch_size={devices}"]
        outputs = [
            process.communicate(timeout=300)[0]
            for process in job(processes, "predict", *arguments, *flags, devices=devices)
        ]
        assert "6 of 7 slices" in outputs[0]
        assert "slices ->" not in "".join(outputs[1:])
        contents[name] = json.loads((output / "predictions.json").read_text())
        pictures = sorted(path.name for path in (output / "overlays").iterdir())
        assert pictures == [f"{k:05d}_{k}.png" for k in (0, 1, 2, 4, 5, 6)]
    assert contents["one"] == contents["many"]
    assert any(entry.get("detections") for entry in contents["one"]["slices"])


def test_batches_that_cannot_be_shared_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="batch_size=3 cannot be shared by 2 processes"):
        sharding.training_mesh(3)


def test_devices_taken_are_as_many_as_split_the_batch(monkeypatch):
    class Device:
        def __init__(self, process_index):
            self.process_index = process_index

    # Of the second process one more than anybody has a use for.
    devices = [Device(process) for process in (0, 0, 0, 1, 1, 1, 1)]
    taken = []
    monkeypatch.setattr(sharding, "_mesh", taken.append)
    monkeypatch.setattr(jax, "devices", lambda: devices)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for batch_size in (2, 4, 6, 8, 10, 12):
        sharding.training_mesh(batch_size)
    assert [[d.process_index for d in used] for used in taken] == [
        [0, 1],
        [0, 0, 1, 1],
        [0, 0, 0, 1, 1, 1],
        [0, 0, 1, 1],
        [0, 1],
        [0, 0, 0, 1, 1, 1],
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_processes=2"], "need --coordinator"),
        (["--coordinator=127.0.0.1:1", "--num_processes=2"], "needs --num_processes and"),
        (
            ["--coordinator=127.0.0.1:1", "--num_processes=2", "--process_id=2"],
            "--process_id=2 must be below --num_processes=2",
        ),
    ],
)
def test_flags_that_do_not_go_together_end_in_one_line(flags, message, tmp_path):
    process = start(
        "predict", "--checkpoint=none", f"--output_dir={tmp_path}", "--inputs=x.png", *flags
    )
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 1
    assert message in output.splitlines()[-1]


def test_statistics_of_each_example_alone():
    rng = np.random.default_rng(0)
    x = rng.normal(1, 2, (4, 6, 8, 3)).astype(np.float32)
    x *= np.arange(1, 5)[:, None, None, None]
    mask = jnp.array([True, False, True, True])
    layer = BatchNorm(momentum=0.3, per_example=True)
    scale, bias = jnp.asarray(rng.normal(size=(2, 3)).astype(np.float32))
    stats = {"mean": jnp.ones(3), "var": jnp.full(3, 2.0)}
    variables = {
        "params": {"scale": scale, "bias": bias},
        "batch_stats": stats | {"count": jnp.zeros((), jnp.int32)},
    }
    cotangent = rng.normal(size=x.shape).astype(np.float32) * mask[:, None, None, None]

    def run(x, scale):
        given = variables | {"params": {"scale": scale, "bias": bias}}
        return layer.apply(given, x, True, mask, mutable=["batch_stats"])

    y, updated = run(jnp.asarray(x), scale)
    means, variances = x.mean(axis=(1, 2)), x.var(axis=(1, 2))  # [4, 3]
    normalized = (x - means[:, None, None]) / np.sqrt(variances[:, None, None] + 1e-5)
    np.testing.assert_allclose(y, normalized * scale + bias, rtol=1e-4, atol=1e-4)
    unbiased = variances * 48 / 47
    new = updated["batch_stats"]
    np.testing.assert_allclose(new["mean"], 0.7 + 0.3 * means[mask].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(new["var"], 1.4 + 0.3 * unbiased[mask].mean(axis=0), rtol=1e-5)
    assert new["count"] == 1

    def loss(x, scale):
        return (run(x, scale)[0] * cotangent).sum()

    of_x, of_scale = jax.grad(loss, (0, 1))(x, scale)
    np.testing.assert_allclose(of_scale, (cotangent * normalized).sum((0, 1, 2)), rtol=1e-3)
    # Each example gives what it gives in a batch of its own.
    for index in np.flatnonzero(mask):
        alone = BatchNorm(momentum=0.3)

        def loss_alone(one, index=index, alone=alone):
            y, _ = alone.apply(variables, one[None], True, mutable=["batch_stats"])
            return (y[0] * cotangent[index]).sum()

        expected = jax.grad(loss_alone)(x[index])
        np.testing.assert_allclose(of_x[index], expected, rtol=1e-4, atol=1e-5)
