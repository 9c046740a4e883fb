"""Stage I from start to end, and models of other classes through evaluation and prediction."""

import json
import shutil

import jax
import numpy as np
import pytest

from configs import pretrain, ssm2
from ssm_jax import visualize
from ssm_jax.checkpoints import load_model
from ssm_jax.config import validate
from ssm_jax.data import open_datasets
from ssm_jax.evaluation import predicted_slices
from ssm_jax.predictor import Predictor, load
from ssm_jax.training import state
from ssm_jax.training.evaluate import evaluate_variables
from ssm_jax.training.loop import train
from ssm_jax.training.metrics import read_lines
from tests.helpers import tiny

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def stage_1(tmp_path_factory, data_dir):
    """A run of stage I: (its config, working directory, what train returned)."""
    config = tiny.shrunk(pretrain.get_config("r18_2"), data_dir)
    config.eval.bn_slices = 0
    workdir = tmp_path_factory.mktemp("runs") / "pretrain_r18_2"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "init_variables", lambda model, _: tiny.random_variables(model))
        return config, workdir, train(config, workdir)


def test_stage_1_trains_evaluates_and_resumes(stage_1, tmp_path):
    config, workdir, metrics = stage_1
    assert (metrics["step"], metrics["seg_slices"]) == (6, 3)
    assert {"ap", "ap50", "coco_segm_AP"} <= set(metrics)
    assert not any(name.startswith(("accuracy", "sensitivity", "cls_")) for name in metrics)
    lines = read_lines(workdir)
    assert [line["kind"] for line in lines] == ["train", "evaluation"] * 2
    assert lines[0]["loss_seg"] > 0 and lines[0]["loss_cls"] is None and lines[0]["copied"] == 0
    assert len(list((workdir / "overlays").glob("*.png"))) == 2
    # The best checkpoint goes by the mean AP.
    values = {line["step"]: line["ap"] for line in lines if line["kind"] == "evaluation"}
    model, variables, info = load_model(workdir)
    assert values[info.step] == max(values.values())
    assert (model.image_classes, model.branches) == (0, 1)
    parts = {"backbone", "fpn", "rpn", "segmentation_branch", "mask_head"}
    assert set(variables["params"]) == parts

    again = tmp_path / "resumed"
    shutil.copytree(workdir, again)
    shutil.rmtree(again / "checkpoints" / "6")
    (again / "metrics.json").unlink()
    assert train(config, again) == metrics
    assert (again / "metrics.jsonl").read_bytes() == (workdir / "metrics.jsonl").read_bytes()


def test_stage_1_predicts_lesions_and_no_class(stage_1):
    predictor = load(stage_1[1], score_threshold=0.0)
    image = np.random.default_rng(0).integers(0, 256, (80, 64)).astype(np.uint8)
    prediction = predictor(image)
    assert prediction.predicted_class is None
    assert prediction.class_logits.shape == prediction.class_probabilities.shape == (0,)
    assert len(prediction.boxes) > 0
    entry = json.loads(json.dumps(prediction.to_dict()))
    assert entry["predicted_class"] is entry["predicted_class_name"] is None
    assert entry["class_logits"] == []
    picture = visualize.overlay(image, prediction)
    assert picture.size[0] > 0


@pytest.mark.slow
def test_stage_2_trains_from_stage_1(stage_1, data_dir, tmp_path):
    config = tiny.shrunk(ssm2.get_config("r18_2"), data_dir)
    config.init_from = str(stage_1[1])
    config.train.update(max_steps=2, update_rule=1)
    config.checkpoint.every_steps = 1
    metrics = train(config, tmp_path)
    assert metrics["cls_slices"] == 4 and "accuracy" in metrics
    start = load_model(stage_1[1])[1]["params"]["segmentation_branch"]
    first, last = (load_model(tmp_path / "checkpoints" / step)[1]["params"] for step in "12")
    for params in (first, last):
        jax.tree.map(np.testing.assert_array_equal, params["classification_branch"], start)
    moved = jax.tree.map(lambda a, b: (a != b).any(), last["segmentation_branch"], start)
    assert all(jax.tree.leaves(moved))
    # Resumed where it ended, it needs its checkpoint of stage I no more.
    shutil.rmtree(tmp_path / "checkpoints" / "2")
    elsewhere = tmp_path / "moved"
    stage_1[1].rename(elsewhere)
    try:
        assert train(config, tmp_path) == metrics
    finally:
        elsewhere.rename(stage_1[1])


@pytest.mark.slow
def test_two_lesion_and_two_image_classes_through_evaluation(data_dir, tmp_path, monkeypatch):
    config = tiny.get_config(data_dir)
    config.model.update(num_classes=3, image_classes=2)
    config.data.mask_type = "both"
    config.eval.update(score_threshold=0.0, overlays=2)
    model = validate(config)
    variables = tiny.random_variables(model)
    seen = []

    class Recording(predicted_slices.Evaluator):
        def __init__(self, *args):
            super().__init__(*args)
            seen.append(self)

    monkeypatch.setattr(predicted_slices, "Evaluator", Recording)
    datasets = open_datasets(config)
    pictures = tmp_path / "pictures"
    metrics = evaluate_variables(config, model, datasets, variables, overlays=pictures)
    assert {"sensitivity_normal", "sensitivity_covid", "f1_macro"} <= set(metrics)
    assert "sensitivity_cp" not in metrics and "f1_weighted_paper" not in metrics
    assert np.shape(metrics["confusion"]) == (2, 2)
    assert metrics["cls_slices"] == len(datasets.cls_test) == 3
    assert len(list(pictures.glob("*.png"))) == 2
    (recorder,) = [evaluator.recorder for evaluator in seen]
    categories = [(entry["id"], entry["name"]) for entry in recorder.truth["categories"]]
    assert categories == [(1, "ground glass"), (2, "consolidation")]
    truth = [entry["category_id"] for entry in recorder.truth["annotations"]]
    assert truth == [label for example in datasets.seg_test for label in example.labels]
    assert {entry["category_id"] for entry in recorder.detections} == {1, 2}

    predictor = Predictor(model, variables, score_threshold=0.0)
    prediction = predictor(datasets.cls_test[1].image[..., 0])
    assert prediction.class_logits.shape == (2,)
    entry = prediction.to_dict()
    name = ("normal", "covid")[prediction.predicted_class]
    assert entry["predicted_class_name"] == name
    assert {detection["label"] for detection in entry["detections"]} == {1, 2}
