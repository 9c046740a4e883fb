"""Tracking by MLflow, of which a fake stands in."""

import sys
import types

import pytest

from ssm_jax.training.metrics import MetricsWriter, read_lines
from ssm_jax.training.tracking import RUN_FILE, Tracker


class Fake(types.ModuleType):
    """What of MLflow is called, as a list of calls; `broken` names a function that fails."""

    def __init__(self, broken=""):
        super().__init__("mlflow")
        self.calls, self.broken = [], broken

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)

        def call(*args, **kwargs):
            if name == self.broken:
                raise ConnectionError("no server\nat all")
            self.calls.append((name, *args, kwargs))
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id="abc"))

        return call


@pytest.fixture
def mlflow(monkeypatch):
    fake = Fake()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    return fake


def test_a_run_its_settings_and_the_numbers_of_the_lines(mlflow, tmp_path):
    with MetricsWriter(tmp_path, 0, True, Tracker(tmp_path, {"a": {"b": 1}, "c": (2,)})) as writer:
        writer.write(3, "train", {"loss_seg": 0.5, "loss_cls": float("nan"), "confusion": [[1]]})
        writer.write_scalars(3, "speed", {"iterations_per_second": 2.0})
    assert mlflow.calls == [
        ("start_run", {"run_id": None, "run_name": tmp_path.name}),
        ("log_params", {"a.b": "1", "c": "(2,)"}, {}),
        ("log_metrics", {"train/loss_seg": 0.5}, {"step": 3}),
        ("log_metrics", {"speed/iterations_per_second": 2.0}, {"step": 3}),
        ("end_run", {}),
    ]


def test_a_run_that_goes_on_is_the_same_there(mlflow, tmp_path):
    with MetricsWriter(tmp_path, 0, True, Tracker(tmp_path, {})) as writer:
        writer.write(3, "train", {"loss_seg": 0.5})
    assert (tmp_path / RUN_FILE).read_text() == "abc\n"
    mlflow.calls.clear()
    with MetricsWriter(tmp_path, 3, True, Tracker(tmp_path, {})) as writer:
        writer.write(4, "train", {"loss_seg": 0.4})
    # Neither settings nor the line of the step that it goes on from are sent again.
    assert mlflow.calls == [
        ("start_run", {"run_id": "abc", "run_name": None}),
        ("log_metrics", {"train/loss_seg": 0.4}, {"step": 4}),
        ("end_run", {}),
    ]


@pytest.mark.parametrize("broken", ["start_run", "log_params", "log_metrics"])
def test_a_server_that_fails_ends_no_training(mlflow, tmp_path, caplog, broken, monkeypatch):
    mlflow.broken = broken
    monkeypatch.setattr("ssm_jax.training.tracking.logger.propagate", True)
    with MetricsWriter(tmp_path, 0, True, Tracker(tmp_path, {"a": 1})) as writer:
        for step in (1, 2):
            writer.write(step, "train", {"loss_seg": 0.5})
    assert [line["step"] for line in read_lines(tmp_path)] == [1, 2]
    (told,) = [record.getMessage() for record in caplog.records]
    assert told == f"MLflow is left out from here on: {broken}: no server"


def test_without_mlflow_the_remedy_is_told(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ValueError, match=r"pip install 'ssm-jax\[tracking\]'"):
        Tracker(tmp_path, {})
