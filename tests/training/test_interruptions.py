"""The training loop with steps that compute nothing: signals, bad numbers, other configurations."""

import json
import os
import shutil
import signal
from concurrent.futures import Future

import numpy as np
import pytest

from ssm_jax.data import open_datasets
from ssm_jax.training import loop
from ssm_jax.training.interrupt import StopRequest
from ssm_jax.training.loop import TrainingError, train
from ssm_jax.training.metrics import read_lines
from ssm_jax.training.plan import Plan
from ssm_jax.training.run_checkpoints import RunCheckpoints
from ssm_jax.training.workdir import WorkdirError, differences, locked
from tests.helpers.tiny import get_config
from tests.training.test_loop import saved_steps


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


def fake_config(data_dir, **train):
    config = get_config(data_dir)
    config.eval.bn_slices = 0
    config.train.update(train)
    return config


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


def test_segmentation_steps_can_be_rarer(fake, data_dir, tmp_path):
    taken = []
    fake.on_step = taken.append
    config = fake_config(data_dir, classification_from=2, segmentation_every=3)
    train(config, tmp_path / "whole")
    assert taken == [1, 2, 3, 6]
    lines = [line for line in read_lines(tmp_path / "whole") if line["kind"] == "train"]
    assert [line["loss_seg"] for line in lines] == pytest.approx([(1 + 1 / 2 + 1 / 3) / 3, 1 / 6])
    assert all(line["best_seg_loss"] == 0.5 and line["loss_cls"] > 0 for line in lines)
    taken.clear()
    train(fake_config(data_dir, segmentation_every=0), tmp_path / "none")
    assert taken == []
    assert saved_steps(tmp_path / "none")[-1] == 6


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


def test_a_folder_without_its_configuration_is_known_by_its_checkpoints(fake, data_dir, tmp_path):
    train(fake_config(data_dir, max_steps=4), tmp_path)
    (tmp_path / "config.json").unlink()
    shutil.rmtree(tmp_path / "checkpoints" / "4" / "config")  # an older one is asked then
    with pytest.raises(WorkdirError, match=r"train\.copy_ema: 0\.99 -> 0\.5"):
        train(fake_config(data_dir, max_steps=4, copy_ema=0.5), tmp_path)
    assert train(fake_config(data_dir, max_steps=4), tmp_path)["step"] == 4
    assert (tmp_path / "config.json").exists()


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
