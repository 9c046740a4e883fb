"""The training loop: what it writes, and that no interruption changes a single bit of it."""

import json
import logging
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from ssm_jax.checkpoints import load_model
from ssm_jax.classes import PAPER
from ssm_jax.config import validate
from ssm_jax.data import open_datasets
from ssm_jax.predictor import Predictor
from ssm_jax.training import evaluate as evaluation
from ssm_jax.training import loop
from ssm_jax.training.evaluate import reestimated_batch_stats
from ssm_jax.training.loop import train
from ssm_jax.training.metrics import read_lines
from ssm_jax.training.run_checkpoints import RunCheckpoints
from ssm_jax.training.state import create_state
from tests.helpers import programs
from tests.helpers.tiny import get_config

pytestmark = pytest.mark.usefixtures("quickly_compiled")
ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = "--config=tests/helpers/tiny.py"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, data_dir):
    """A run from start to end: (workdir, what train returned, log lines).

    JAX tells in them what it compiles, and "settled <step>" stands where an iteration was over.
    """
    workdir = tmp_path_factory.mktemp("run") / "uninterrupted"
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    loggers = [logging.getLogger(name) for name in ("ssm_jax", "jax")]
    levels = [logger.level for logger in loggers]

    def settle(run, iteration, original=loop._Run.settle):
        original(run, iteration)
        if iteration is not None:
            lines.append(f"settled {iteration.step}")

    jax.config.update("jax_log_compiles", True)
    for logger in loggers:
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop._Run, "settle", settle)
            result = train(get_config(data_dir), workdir)
    finally:
        jax.config.update("jax_log_compiles", False)
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
    return workdir, result, lines


def latest_state(workdir, config):
    shapes = jax.eval_shape(lambda key: create_state(validate(config), key), jax.random.key(0))
    with RunCheckpoints(workdir) as checkpoints:
        return checkpoints.restore(shapes)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def saved_steps(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())


def test_a_run_writes_all_that_it_promises(uninterrupted, data_dir):
    workdir, result, log = uninterrupted
    own = [line for line in log if "phantom" in line and "for your own set config.data." in line]
    assert [line.rsplit(".", 1)[1] for line in own] == ["seg_dir", "cls_dir"]
    assert json.loads((workdir / "metrics.json").read_text()) == result
    assert (result["step"], result["seg_slices"], result["cls_slices"]) == (6, 3, 4)
    assert result["score_threshold"] == 0.05
    lines = [(line["step"], line["kind"]) for line in read_lines(workdir)]
    assert lines == [(3, "train"), (4, "evaluation"), (6, "train"), (6, "evaluation")]
    assert read_lines(workdir)[0]["loss_seg"] > 0
    datasets = open_datasets(get_config(data_dir))
    drawn = [path.stem.partition("_")[2] for path in sorted((workdir / "overlays").glob("*.png"))]
    splits = (datasets.seg_test, datasets.cls_test)
    assert drawn == [pathlib.Path(split[0].file).stem for split in splits]
    assert list((workdir / "tensorboard").iterdir())
    assert {"4", "6"} == {p.name for p in (workdir / "checkpoints").iterdir()}


def test_each_step_is_compiled_once(uninterrupted):
    _, _, log = uninterrupted
    for name in ("segmentation_step", "classification_step"):
        compiled = [line for line in log if line.startswith(f"Compiling jit({name})")]
        assert len(compiled) == 1, name


def test_iterations_compile_nothing_after_the_first(uninterrupted):
    _, _, log = uninterrupted
    for first, last in ((1, 4), (5, 6)):  # between them is an evaluation
        between = log[log.index(f"settled {first}") : log.index(f"settled {last}")]
        assert f"settled {last - 1}" in between
        assert not [line for line in between if line.startswith("Compiling")]


def test_the_checkpoint_gives_the_metrics_of_the_run(uninterrupted, data_dir):
    workdir, result, _ = uninterrupted
    model_config, variables, info = load_model(workdir / "checkpoints" / "6")
    assert info.metrics == result
    state = latest_state(workdir, get_config(data_dir)).state
    assert_same(variables["params"], state.params)
    mean = variables["batch_stats"]["backbone"]["bn1"]["mean"]
    assert (mean != state.batch_stats["backbone"]["bn1"]["mean"]).any()  # re-estimated
    predictor = Predictor(model_config, variables, score_threshold=0.05)
    slices = open_datasets(get_config(data_dir)).cls_test
    right = [predictor(s.image[..., 0]).predicted_class == s.label for s in slices]
    assert np.mean(right) == result["accuracy"]


# Trains, and kills itself in the middle: of the n-th iteration, or of the evaluation at step n.
KILLED = """
import os, signal, sys
from ssm_jax.training import loop
from tests.helpers.tiny import get_config
data_dir, workdir, where, step = *sys.argv[1:4], int(sys.argv[4])

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def settle(run, iteration, original=loop._Run.settle):
    original(run, iteration)
    if where == "iteration" and iteration is not None and iteration.step == step:
        kill()

def evaluate(run, state, at, original=loop._Run.evaluate):
    result = original(run, state, at)
    return kill() if where == "evaluation" and at == step else result

loop._Run.settle, loop._Run.evaluate = settle, evaluate
loop.train(get_config(data_dir), workdir)
"""


@pytest.mark.slow
def test_a_killed_run_resumes_bit_by_bit(uninterrupted, data_dir, tmp_path):
    workdir = tmp_path / "killed"
    for where, step in (("iteration", 3), ("evaluation", 4)):
        process = subprocess.run(
            [sys.executable, "-c", KILLED, data_dir, workdir, where, str(step)],
            cwd=ROOT,
            capture_output=True,
            check=False,
        )
        assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    # The first was killed while its checkpoint was being written, or soon after; the second left
    # one, and lines that it wrote after it.
    assert saved_steps(workdir) == [2]
    assert [line["step"] for line in read_lines(workdir)] == [3, 4]  # both after the checkpoint
    result = train(get_config(data_dir), workdir)

    reference, expected, _ = uninterrupted
    assert result == expected
    for name in ("metrics.json", "metrics.jsonl"):
        assert (workdir / name).read_bytes() == (reference / name).read_bytes()
    config = get_config(data_dir)
    resumed, expected = latest_state(workdir, config), latest_state(reference, config)
    assert jax.tree.structure(resumed.state) == jax.tree.structure(expected.state)
    assert_same(resumed.state, expected.state)
    assert resumed.loop == expected.loop


# Below, the steps and the evaluation are stand-ins: what is tested is the loop around them.


def test_the_evaluation_predicts_by_its_own_settings(data_dir, monkeypatch):
    class Told(Exception):
        pass

    def predictor(model, variables, **settings):
        raise Told(settings)

    monkeypatch.setattr(evaluation, "Predictor", predictor)
    config = get_config(data_dir)
    settings = {"score_threshold": 0.2, "nms_threshold": 0.4, "batch_size": 3}
    config.eval.update(settings)
    with pytest.raises(Told) as told:
        evaluation.evaluate_variables(config, validate(config), open_datasets(config), {})
    assert told.value.args == (settings | {"classes": PAPER},)


def test_bn_statistics_come_from_training_slices_with_lesions(data_dir):
    config = get_config(data_dir)
    config.data.min_area = 1920  # too much for the lesions of some slices
    datasets = open_datasets(config)
    seen = []

    def estimator(params, average, images, sizes, count):
        assert (images.shape[0], sizes.shape) == (config.train.batch_size, (1, 2))
        seen.append(images[0, ..., 0])
        return average + (images.mean() - average) / (count + 1)

    weights = {"params": {}, "batch_stats": np.float64(99)}
    with_lesions = [e.image[..., 0] for e in datasets.seg_train if len(e.boxes)]
    assert 2 < len(with_lesions) < len(datasets.seg_train)
    config.eval.bn_slices = 100
    mean = reestimated_batch_stats(config, datasets, weights, estimator)
    np.testing.assert_array_equal(seen, with_lesions)
    assert mean == pytest.approx(np.mean(with_lesions))
    seen.clear()
    config.eval.bn_slices = 2
    reestimated_batch_stats(config, datasets, weights, estimator)
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config=nowhere.py"], "nowhere.py"),
        ([TINY, "--config.train.copyrule=ema"], "copyrule"),
        ([TINY, "--config.train.copy_rule=x"], "config.train.copy_rule='x'"),
        ([TINY, "--config.data.seg_dir=nowhere"], "nowhere"),
        (["--config=configs/ssm2.py:r50_2"], "there is no variant 'r50_2'"),
        (["--config=configs/ssm2.py:r18_2"], "--config.init_from=runs/pretrain_r18_2"),
    ],
)
def test_the_program_reports_errors_without_a_traceback(flags, message, data_dir, tmp_path):
    folders = [f"--workdir={tmp_path}"]
    if "nowhere.py" not in flags[0]:
        folders.append(f"--config.data.data_dir={data_dir}")
    done = programs.run("train", *flags, *folders)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
