"""Steps without a model, for tests of the training loop alone."""

from concurrent.futures import Future

import numpy as np
import pytest

from ssm_jax.evaluation.predicted_slices import Stopped
from ssm_jax.training import loop
from ssm_jax.training.state import TrainState


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

    def create(model, key, module_s_output_scale=1.0):
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
