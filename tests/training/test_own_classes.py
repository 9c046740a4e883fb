"""Classes of one's own from data to every output, and a model that is adapted to other classes."""

import json
import logging

import jax
import numpy as np
import pytest
from flax import traverse_util
from PIL import Image

from ssm_jax.checkpoints import load_model, save_model
from ssm_jax.class_set import ClassSet
from ssm_jax.config import validate
from ssm_jax.data import TrainBatches, open_datasets
from ssm_jax.data.class_files import CLASSES_FILE, named_classes, with_classes
from ssm_jax.files import write_json
from ssm_jax.predictor import Predictor
from ssm_jax.report import compare
from ssm_jax.report.evaluate import Options, evaluate_checkpoint
from ssm_jax.report.scan import scan_report, viewer_data
from ssm_jax.scans.open import open_scans
from ssm_jax.scans.options import InputOptions
from ssm_jax.scans.output import to_json
from ssm_jax.scans.predict import predict_scan
from ssm_jax.training.loop import train
from ssm_jax.training.state import create_state
from ssm_jax.training.steps import make_steps
from tests.helpers.data_tools import noise, save
from tests.helpers.tiny import get_config, random_variables
from tests.test_classes import OWN

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def own_folder(root, classes):
    """Slices of 64 pixels of both splits, with every class and an object of every lesion class."""
    values = [value for lesion in classes.lesion for value in lesion.values]
    for split in ("train", "test"):
        for k in range(2):
            mask = np.zeros((64, 64), np.uint8)
            for place, value in enumerate(values):
                mask[8 + 14 * place : 18 + 14 * place, 10 : 40 + k] = value
            save(root / "seg" / split / "imgs" / f"s_{k}.png", noise(k, 64, 64))
            save(root / "seg" / split / "masks" / f"s_{k}.png", mask)
        for k, one in enumerate(classes.image):
            save(root / "cls" / split / f"{one.number}_p_1_{k}.png", noise(40 + k, 64, 64))
    for part in ("seg", "cls"):
        if (root / part).is_dir():
            write_json(root / part / CLASSES_FILE, classes.to_json())
    return root


def own_config(root, **changes):
    config = get_config(str(root / "prepared"))
    config.data.seg_dir = str(root / "seg")
    config.data.cls_dir = str(root / "cls") if (root / "cls").is_dir() else ""
    config.train.max_steps = 1
    config.eval.update(every_steps=9, bn_slices=0, overlays=1, score_threshold=0.0)
    config.update_from_flattened_dict(changes)
    return config


MODEL = validate(with_classes(get_config(), OWN))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of five image and three lesion classes with random weights, and data: a folder."""
    root = own_folder(tmp_path_factory.mktemp("own"), OWN)
    save_model(root / "model", MODEL, random_variables(MODEL), OWN)
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of one iteration on these classes: (folder, metrics)."""
    root = own_folder(tmp_path_factory.mktemp("run"), OWN)
    return root, train(own_config(root), root / "run")


def test_both_steps_take_any_number_of_classes(tmp_path):
    """Both are traced on a batch of such data; what is traced is what is compiled."""
    config = named_classes(own_config(own_folder(tmp_path, OWN)))
    assert validate(config) == MODEL
    batch = TrainBatches(open_datasets(config), 0, 1)[0]
    assert set(batch["seg"]["labels"].flat) <= {0, 1, 2, 3}
    state = jax.eval_shape(lambda key: create_state(MODEL, key), jax.random.key(0))
    for part, step in zip(("seg", "cls"), make_steps(MODEL, config.train), strict=True):
        after, metrics = jax.eval_shape(step, state, batch[part])
        assert jax.tree.structure(after) == jax.tree.structure(state)
        assert f"loss_{part}" in metrics
    assert state.params["module_s"]["logits"]["bias"].shape == (5,)
    assert state.params["mask_head"]["logits"]["bias"].shape == (4,)


def test_an_evaluation_names_them(model, tmp_path):
    options = {"seg_dir": str(model / "seg"), "cls_dir": str(model / "cls")}
    options |= {"data_dir": str(model / "prepared"), "score_threshold": 0.05}
    made = Options(samples=0, overlays=1, batch_size=1, **options)
    result = evaluate_checkpoint(str(model / "model"), tmp_path, made)
    assert result["data"]["cls"]["classes"] == [1] * 5
    assert {f"sensitivity_{name}" for name in "abcde"} <= set(result)
    assert not any("covid" in name or name.endswith("_paper") for name in result)
    page = (tmp_path / "report.html").read_text()
    for title in (*OWN.titles, *OWN.lesion_titles.values()):
        assert title in page
    assert "COVID" not in page
    truth = json.loads((tmp_path / "truth.json").read_text())
    assert [c["name"] for c in truth["categories"]] == ["Cell", "Dirt", "Scratch"]
    entry = json.loads((tmp_path / "image_probabilities.json").read_text())[0]
    assert list(entry["probabilities"]) == list("abcde")
    table = compare.markdown([compare.Evaluation("own", result)])
    assert "| E | D | C | B | A | Overall" in table and "| COVID-19" not in table


def test_predictions_name_them(model, tmp_path):
    config, variables, info = load_model(model / "model")
    # As the evaluation has them, so that nothing is compiled again.
    predictor = Predictor(config, variables, 0.05, roi_batch=True, classes=info.classes)
    Image.fromarray(noise(5, 64, 64)).save(tmp_path / "x.png")
    (scan,) = open_scans([str(tmp_path / "x.png")], InputOptions())
    result = predict_scan(predictor, scan)
    content = json.loads(json.dumps(to_json([result])))
    assert ClassSet.from_json(content["classes"]) == OWN
    (entry,) = content["slices"]
    assert entry["predicted_class_name"] in OWN.names
    assert entry["detections"]
    for detection in entry["detections"]:
        assert detection["label_name"] == OWN.lesion_names[detection["label"]]
    assert content["scans"][0]["summary"]["predicted_class_name"] in OWN.names
    data = viewer_data(result, 10_000)
    assert data["lesions"] == ["Cell", "Dirt", "Scratch"] and list(data["classes"]) == [*"ABCDE"]
    page = scan_report([result], {}, 0.0)
    assert "(least A)" in page and "Scratch" in page and "COVID" not in page


def test_other_data_than_the_models_are_refused(model, tmp_path):
    other = own_folder(tmp_path, ClassSet.from_json({"image": ["a", "x"], "lesion": ["cell"]}))
    options = Options(cls_dir=str(other / "cls"), seg_dir=str(model / "seg"))
    with pytest.raises(ValueError, match=r"cls/classes.json .*number 1 is x there and b here"):
        evaluate_checkpoint(str(model / "model"), tmp_path / "out", options)


@pytest.mark.slow
def test_a_run_learns_the_classes_of_its_data(run):
    root, metrics = run
    model, _, info = load_model(root / "run")
    assert model == MODEL
    assert info.classes == OWN
    stored = json.loads((root / "run" / "config.json").read_text())
    assert ClassSet.from_json(stored["classes"]) == OWN
    assert {f"sensitivity_{name}" for name in "abcde"} <= set(metrics)
    assert metrics["objects"] == 8 and len(metrics["confusion"]) == 5
    # Started again with the same data, it is the same run.
    assert train(own_config(root), root / "run") == metrics


@pytest.mark.slow
def test_a_model_adapts_to_other_classes(run, tmp_path, caplog):
    """Lesions alone of two other classes, from the weights of the run, with frozen layers."""
    root, _ = run
    other = own_folder(tmp_path, ClassSet.from_json({"lesion": ["nut", "bolt"]}))
    frozen = "backbone/*,fpn/*"
    config = own_config(
        other,
        init_from=str(root / "run"),
        **{"train.freeze": frozen, "train.lr_factors": "*=0.5,rpn/*=0.001"},
    )
    config.checkpoint.best_metric = "ap"
    logging.getLogger("ssm_jax").propagate = True
    with caplog.at_level(logging.INFO, "ssm_jax"):
        train(config, tmp_path / "run")
    told = [record.getMessage().strip() for record in caplog.records]
    assert "taken: backbone, fpn, rpn" in told
    (fresh,) = [line for line in told if line.startswith("fresh, of another shape there: ")]
    assert sorted(fresh.partition(": ")[2].split(", ")) == [
        "mask_head/logits",
        *("segmentation_branch/deltas", "segmentation_branch/logits"),
    ]
    model, after, info = load_model(tmp_path / "run")
    assert (model.image_classes, model.num_classes, model.branches) == (0, 3, 1)
    assert info.classes.lesion_names == {1: "nut", 2: "bolt"}
    before = load_model(root / "run")[1]
    changed = {}
    for section in ("params", "batch_stats"):
        old, new = (traverse_util.flatten_dict(v[section], sep="/") for v in (before, after))
        for path, array in new.items():
            if path in old and old[path].shape == array.shape:
                changed[path] = np.abs(np.asarray(old[path]) - np.asarray(array)).max()
    still = [path for path in changed if path.startswith(("backbone/", "fpn/"))]
    assert len(still) > 40 and all(changed[path] == 0 for path in still)
    # The first step of Adam moves every weight by about its learning rate.
    assert changed["segmentation_branch/fc7/kernel"] == pytest.approx(0.5e-3, rel=0.05)
    assert changed["rpn/conv/kernel"] == pytest.approx(1e-6, rel=0.2)
    assert jax.tree.leaves(after)
