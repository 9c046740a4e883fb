"""The training loop: what it writes, and that no interruption changes a single bit of it."""

import json
import logging
import os
import pathlib
import signal
import subprocess
import sys
from concurrent.futures import Future

import jax
import numpy as np
import pytest

from ssm_jax.checkpoints import load_model
from ssm_jax.config import validate
from ssm_jax.data import open_datasets
from ssm_jax.evaluation.predicted_slices import Stopped
from ssm_jax.predictor import Predictor
from ssm_jax.training import evaluate as evaluation
from ssm_jax.training import loop
from ssm_jax.training.evaluate import reestimated_batch_stats
from ssm_jax.training.interrupt import StopRequest
from ssm_jax.training.loop import TrainingError, train
from ssm_jax.training.metrics import read_lines
from ssm_jax.training.plan import Plan
from ssm_jax.training.run_checkpoints import RunCheckpoints
from ssm_jax.training.state import TrainState, create_state
from ssm_jax.training.workdir import WorkdirError, differences, locked
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


class FakeSteps:
    """Steps that count: the state's only parameter adds up the files it has seen."""

    def __init__(self):
        self.bad = {}  # step -> metrics that replace the good ones
        self.on_step = lambda step: None

    def segmentation(self, state, batch):
        step = int(state.step) + 1
        self.on_step(step)
        metrics = {"loss_seg": 1 / step, "copied": step == 1, "best_seg_loss": 0.5}
        metrics |= {"seg_grad_norm": 1.0, "skipped": False}
        seen = state.params["seen"] * 3 + batch["image"].astype(np.float64).sum() % 1000
        params = {"seen": np.float32(seen % 1000)}
        return state.replace(params=params), metrics | self.bad.get(step, {})

    def classification(self, state, batch):
        step = int(state.step) + 1
        bad = {k: v for k, v in self.bad.get(step, {}).items() if k == "loss_cls"}
        return state.replace(step=np.int32(step)), {"loss_cls": 2.0 / step} | bad


@pytest.fixture
def fake(monkeypatch):
    steps = FakeSteps()

    def start_compiling(*_):
        futures = {"seg": Future(), "cls": Future()}
        futures["seg"].set_result(steps.segmentation)
        futures["cls"].set_result(steps.classification)
        return futures

    def create(model, key):
        zero = np.float32(0)
        key = np.zeros(2, np.uint32)
        return TrainState(np.int32(0), {"seen": zero}, {"mean": zero}, {"m": zero}, zero, key)

    steps.evaluations = []

    def evaluate(config, model, datasets, variables, stop, overlays):
        steps.evaluations.append(float(variables["params"]["seen"]))
        if stop:
            raise Stopped
        return {"accuracy": steps.evaluations[-1]}

    monkeypatch.setattr(loop, "_start_compiling", start_compiling)
    monkeypatch.setattr(loop, "create_state", create)
    monkeypatch.setattr(loop, "evaluate_variables", evaluate)
    return steps


def fake_config(data_dir, **train):
    config = get_config(data_dir)
    config.eval.bn_slices = 0
    config.train.update(train)
    return config


def saved_steps(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("where", ["iteration", "evaluation"])
def test_a_signal_saves_and_ends(fake, data_dir, tmp_path, monkeypatch, where, number):
    expected = train(fake_config(data_dir), tmp_path / "whole")
    former = signal.getsignal(number)
    at = {"iteration": 5, "evaluation": 4}[where]
    original = loop.evaluate_variables
    if where == "iteration":
        fake.on_step = lambda step: os.kill(os.getpid(), number) if step == at else None
    else:

        def evaluate(config, model, datasets, variables, stop, overlays):
            os.kill(os.getpid(), number)
            return original(config, model, datasets, variables, stop, overlays)

        monkeypatch.setattr(loop, "evaluate_variables", evaluate)
    workdir = tmp_path / "stopped"
    train(fake_config(data_dir), workdir)
    assert signal.getsignal(number) is former
    assert saved_steps(workdir)[-1] == at
    with RunCheckpoints(workdir) as checkpoints:
        assert checkpoints.metrics(at) is None
    fake.on_step = lambda step: None
    monkeypatch.setattr(loop, "evaluate_variables", original)
    assert train(fake_config(data_dir), workdir) == expected
    lines = (workdir / "metrics.jsonl").read_bytes()
    assert lines == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    if where == "evaluation":
        with RunCheckpoints(workdir) as checkpoints:
            assert checkpoints.metrics(4) is not None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_first_iteration_ends_at_once(
    fake, data_dir, tmp_path, monkeypatch, number
):
    """A compilation cannot be interrupted, and there is nothing to save."""

    def start_compiling(*_):
        os.kill(os.getpid(), number)
        return {"seg": Future()}  # that never comes

    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr(loop, "_start_compiling", start_compiling)
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(SystemExit) as ended:
        train(fake_config(data_dir), tmp_path)
    assert ended.value.code == 128 + number


def test_the_second_signal_ends_at_once(monkeypatch):
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    with StopRequest() as stop:
        assert not stop
        os.kill(os.getpid(), signal.SIGINT)
        assert stop
        assert codes == []
        os.kill(os.getpid(), signal.SIGTERM)
        assert codes == [128 + signal.SIGTERM]


@pytest.mark.parametrize(
    ("name", "value"), [("loss_seg", np.nan), ("seg_grad_norm", np.inf), ("loss_cls", np.nan)]
)
@pytest.mark.parametrize("step", [4, 5])
def test_a_number_that_is_not_finite_stops_the_run(fake, data_dir, tmp_path, step, name, value):
    fake.bad[step] = {name: value}
    with pytest.raises(TrainingError, match=f"step {step}: {name} is {value}") as caught:
        train(fake_config(data_dir), tmp_path)
    batches = loop.TrainBatches(open_datasets(fake_config(data_dir)), 0, 1)
    for file in (*batches[step - 1]["seg_files"], *batches[step - 1]["cls_files"]):
        assert file in str(caught.value)
    good = 2 if step == 4 else 4  # never the bad step, though a checkpoint is due at step 4
    assert saved_steps(tmp_path)[-1] == good
    assert f"Step {good} is saved" in str(caught.value)
    fake.bad.clear()
    assert train(fake_config(data_dir), tmp_path)["step"] == 6


def test_a_skipped_segmentation_step_is_no_error(fake, data_dir, tmp_path):
    fake.bad[2] = {"loss_seg": np.nan, "seg_grad_norm": np.nan, "skipped": True}
    train(fake_config(data_dir), tmp_path)
    line = read_lines(tmp_path)[0]
    assert line["loss_seg"] == pytest.approx((1 + 1 / 3) / 2)
    assert line["skipped"] == pytest.approx(1 / 3)


def test_classification_steps_can_begin_later(fake, data_dir, tmp_path):
    train(fake_config(data_dir, classification_from=4), tmp_path)
    lines = [line for line in read_lines(tmp_path) if line["kind"] == "train"]
    assert lines[0]["loss_cls"] is None  # iterations 1 to 3
    assert lines[0]["loss_seg"] > 0
    assert lines[1]["loss_cls"] > 0  # 4 is left out, 5 and 6 are taken
    assert saved_steps(tmp_path)[-1] == 6


def test_a_finished_run_is_left_alone_and_can_be_extended(fake, data_dir, tmp_path):
    result = train(fake_config(data_dir, max_steps=3), tmp_path / "extended")
    fake.evaluations.clear()
    assert train(fake_config(data_dir, max_steps=3), tmp_path / "extended") == result
    assert fake.evaluations == []
    extended = train(fake_config(data_dir), tmp_path / "extended")
    assert extended == train(fake_config(data_dir), tmp_path / "whole")


def test_another_configuration_is_refused(fake, data_dir, tmp_path):
    train(fake_config(data_dir, max_steps=2), tmp_path)
    changed = fake_config(data_dir, max_steps=2, learning_rate=0.5, update_rule=1)
    changed.model.blocks = 3
    with pytest.raises(WorkdirError) as caught:
        train(changed, tmp_path)
    for line in (
        "model.blocks: 2 -> 3",
        "train.learning_rate: 0.001 -> 0.5",
        "train.update_rule: 2 -> 1",
    ):
        assert line in str(caught.value)
    assert "max_steps" not in str(caught.value)
    same = fake_config(data_dir, max_steps=2)
    same.data.threads, same.log.every_steps, same.checkpoint.keep_last = 1, 1, 5
    assert train(same, tmp_path)["step"] == 2
    # A run of an earlier version does not know the fields that came later.
    stored = json.loads((tmp_path / "config.json").read_text())
    del stored["data"]["augment"], stored["train"]["copy_ema"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert train(same, tmp_path)["step"] == 2
    (tmp_path / "config.json").write_text(json.dumps(stored))
    same.train.copy_ema = 0.5
    with pytest.raises(WorkdirError, match=r"train\.copy_ema: 0\.99 -> 0\.5"):
        train(same, tmp_path)


def test_the_length_is_fixed_where_the_learning_rate_decays():
    old = {"train": {"schedule": "cosine", "max_steps": 5}, "log": {"every_steps": 1}}
    new = {"train": {"schedule": "cosine", "max_steps": 6}, "log": {"every_steps": 2}}
    assert differences(old, new) == ["train.max_steps: 5 -> 6"]
    old["train"]["schedule"] = new["train"]["schedule"] = "constant"
    assert differences(old, new) == []
    assert differences(old, {**new, "seed": 1}) == ["seed: (absent) -> 1"]
    assert differences({"sizes": (1, 2)}, {"sizes": [1, 2]}) == []


def test_one_process_at_a_time(fake, data_dir, tmp_path):
    with locked(tmp_path), pytest.raises(WorkdirError, match="another process"):
        train(fake_config(data_dir), tmp_path)


def test_plan():
    config = fake_config("", epochs=2, max_steps=0, batch_size=4)
    config.eval.every_steps = 0
    config.checkpoint.every_steps = 2
    plan = Plan.of(config, epoch_slices=10)
    assert plan.total == 5
    assert [s for s in range(6) if plan.evaluates(s)] == [3, 5]  # 12 of 10 slices; the end
    assert [s for s in range(1, 6) if plan.saves(s)] == [2, 3, 4, 5]
    config.eval.every_steps, config.train.max_steps = 3, 7
    plan = Plan.of(config, epoch_slices=10)
    assert [s for s in range(8) if plan.evaluates(s)] == [3, 6, 7]


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
    assert told.value.args == (settings,)


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
