"""Models on disk: exact, self-describing, clear about damage."""

import dataclasses
import json
import math
import os
import shutil

import jax
import numpy as np
import pytest

from ssm_jax import checkpoints
from ssm_jax.checkpoints import (
    DIGESTS_FILE,
    FOLDER,
    CheckpointError,
    config_item,
    load_model,
    metric_value,
    read_info,
    save_model,
    write_step,
)
from ssm_jax.class_set import ClassSet
from ssm_jax.classes import PAPER, paper
from ssm_jax.config import ModelConfig, default_config
from ssm_jax.data.class_files import with_classes
from tests.helpers.tiny import get_config, random_variables
from tests.test_classes import OWN

MODEL = ModelConfig.from_mapping(get_config().model.to_dict())


@pytest.fixture(scope="module")
def variables():
    return random_variables(MODEL)


@pytest.fixture(scope="module")
def saved(variables, tmp_path_factory):
    """The folder of the only step."""
    return save_model(tmp_path_factory.mktemp("saved") / "imported", MODEL, variables)


def test_metric_value_ranks_what_is_no_number_last():
    assert metric_value({"a": 1}, "a") == 1
    for metrics in (None, {}, {"a": None}, {"a": math.nan}, {"a": [1]}):
        assert metric_value(metrics, "a") == -math.inf


def test_weights_alone(saved, variables):
    assert saved.parts[-3:] == ("imported", "checkpoints", "0")
    for path in (saved, saved.parent, saved.parent.parent):
        model_config, restored, info = load_model(path)
        assert model_config == MODEL
        assert jax.tree.structure(restored) == jax.tree.structure(variables)
        jax.tree.map(np.testing.assert_array_equal, restored, variables)
        assert (info.step, info.metrics, info.config, info.seconds) == (0, None, None, None)
    with pytest.raises(CheckpointError, match="not empty"):
        save_model(saved.parent.parent, MODEL, variables)


def test_classes_of_weights_alone(saved, variables, tmp_path):
    assert load_model(saved)[2].classes == PAPER
    named = ClassSet.from_json({"image": ["a", "b", "c"], "lesion": ["x"]})
    save_model(tmp_path / "named", MODEL, variables, named)
    assert load_model(tmp_path / "named")[2].classes == named


def test_classes_of_a_run_are_those_of_its_configuration(tmp_path):
    run = json.loads(with_classes(default_config(), OWN).to_json_best_effort())
    old = {name: section for name, section in run.items() if name != "classes"}
    old["model"] = {**run["model"], "image_classes": 2, "num_classes": 2}
    for number, (config, expected) in enumerate([(run, OWN), (old, paper(2))]):
        item = config_item(config["model"], config)
        step = write_step(tmp_path, number, {}, {"config": item})
        assert read_info(step).classes == expected
    broken = {**run, "classes": {"lesion": ["x", "x"]}}
    step = write_step(tmp_path, 9, {}, {"config": config_item(run["model"], broken)})
    with pytest.raises(CheckpointError, match="unusable classes: two lesion classes"):
        read_info(step)


def test_what_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="there is no checkpoint at"):
        load_model(tmp_path)
    (tmp_path / "checkpoints" / "3" / "model").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"checkpoints/3 is not a checkpoint"):
        load_model(tmp_path)


def changed(step, **fields):
    """Writes other fields into the config of a checkpoint."""
    path = step / "config" / "metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def truncate(folder):
    largest = max(folder.rglob("*"), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda step: shutil.rmtree(step / "model"), "lacks model"),
        (lambda step: shutil.rmtree(step / "model" / "ocdbt.process_0"), "damaged: model/ocdbt"),
        (lambda step: (step / "model" / "manifest.ocdbt").unlink(), "damaged: model/manifest"),
        (lambda step: (step / "config" / "metadata").write_text('{"format": "ss'), "damaged: conf"),
        (lambda step: truncate(step / "model"), "damaged: model/.* is not as it was written"),
        (lambda step: changed(step, format="something else"), "not a checkpoint of this project"),
        (lambda step: changed(step, version=99), "version 99; this program reads version 2"),
        (lambda step: changed(step, model={"depth": 3}), "damaged: config/metadata is not as"),
        (lambda step: (step / DIGESTS_FILE).write_text("[]"), "damaged: digests.json"),
    ],
)
def test_damage_is_named(saved, tmp_path, damage, message):
    step = tmp_path / "3"
    shutil.copytree(saved, step)
    damage(step)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(step)
    assert str(step) in str(caught.value) and "\n" not in str(caught.value)


def test_every_flipped_bit_is_noticed(tmp_path):
    """Whatever the file, nothing is read that was not written."""
    rng = np.random.default_rng(0)
    arrays = {"w": rng.standard_normal((30, 40)), "b": np.zeros(3, np.int32)}
    documents = {"config": config_item(dataclasses.asdict(MODEL), None), "time": {"seconds": 1.5}}
    good = write_step(tmp_path / FOLDER, 0, {"model": arrays}, documents)

    def read(step):
        return checkpoints.read_items(step, {"model": arrays}, ["time"])

    jax.tree.map(np.testing.assert_array_equal, read(good)["model"], arrays)
    files = sorted(path for path in good.rglob("*") if path.is_file())
    for number in range(8 * len(files)):
        step = tmp_path / str(number)
        shutil.copytree(good, step)
        path = step / files[number % len(files)].relative_to(good)
        data = bytearray(path.read_bytes())
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        if path.parent == step and path.name != DIGESTS_FILE:
            assert read(step)["time"] == {"seconds": 1.5}  # a file of orbax, for others
            continue
        with pytest.raises(CheckpointError, match=f"/{number}"):
            read(step)


def test_older_checkpoints_have_no_digests(saved, variables, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "VERSION", checkpoints.WITHOUT_DIGESTS)
    step = save_model(tmp_path / "old", MODEL, variables)
    (step / DIGESTS_FILE).unlink()
    monkeypatch.undo()
    restored = load_model(step)[1]
    jax.tree.map(np.testing.assert_array_equal, restored, variables)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("image_size", 0), ("image_size", -64), ("image_size", 64.0), ("max_detections", 0)),
        *(("blocks", 3.0), ("selection_size", "x"), ("anchor_sizes", []), ("depth", 3)),
        *(("rpn_nms_threshold", None), ("anchor_ratios", [1, math.nan]), ("num_classes", True)),
    ],
)
def test_settings_in_a_checkpoint_are_checked(variables, tmp_path, field, value):
    model = dataclasses.asdict(MODEL) | {field: value}
    write_step(tmp_path / FOLDER, 0, {"model": variables}, {"config": config_item(model, None)})
    with pytest.raises(CheckpointError, match=f"unusable configuration: config.model.*{field}"):
        load_model(tmp_path)


def test_another_model(variables, tmp_path):
    model = dataclasses.asdict(MODEL) | {"blocks": 3}
    write_step(tmp_path / FOLDER, 0, {"model": variables}, {"config": config_item(model, None)})
    with pytest.raises(CheckpointError, match="damaged or of another model"):
        load_model(tmp_path)


def test_a_number_that_is_not_finite_is_damage(variables, tmp_path):
    bad = jax.tree.map(np.copy, variables)
    bad["params"]["rpn"]["objectness"]["bias"][0] = np.inf
    save_model(tmp_path, MODEL, bad)
    with pytest.raises(CheckpointError, match="damaged: params/rpn/objectness/bias is not finite"):
        load_model(tmp_path)
