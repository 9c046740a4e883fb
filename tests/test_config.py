"""Settings: what is possible is checked before anything is made."""

import dataclasses
import math

import pytest

from ssm_jax.config import ModelConfig, default_config, validate
from ssm_jax.possible import MODEL_VALUES, RUN_VALUES
from ssm_jax.training.loop import train
from tests.helpers.tiny import get_config

NAN = math.nan
ABSURD = {
    "train.learning_rate": [NAN, -1.0, 0.0, math.inf],
    "train.batch_size": [0, 10**6],
    "train.epochs": [0],
    "train.max_steps": [-5],
    "train.warmup_steps": [-1],
    "train.weight_decay": [NAN, -1.0],
    "train.copy_ema": [NAN, 5.0],
    "train.copy_rule": ["x"],
    "train.classification_from": [-1, 6, 999],
    "train.segmentation_every": [-1],
    "model.image_size": [0, -32, 33, 32.0],
    "model.max_size": [0, -1],
    "model.anchor_sizes": [(), (0.0,), (-4.0,)],
    "model.anchor_ratios": [(), (-1.0,), (NAN,)],
    "model.rpn_pre_nms": [0],
    "model.rpn_post_nms": [0, -1],
    "model.rpn_batch": [0],
    "model.rpn_positives": [-1, 17],
    "model.roi_batch": [0],
    "model.roi_positives": [-1, 17],
    "model.selection_size": [0, -1],
    "model.max_detections": [0, -1],
    "model.rpn_nms_threshold": [NAN, -1.0],
    "model.bn_momentum": [NAN, 5.0],
    "model.blocks": [1, 3.0, True],
    "data.threads": [0, -1],
    "data.prefetch": [-1],
    "data.min_area": [-1],
    "data.max_objects": [-1, 256],
    "data.phantom.size": [0, 100_000_000],
    "data.phantom.seg_train": [0],
    "data.phantom.seed": [-1],
    "data.train_split": ["../../x", "..", "", "a/b"],
    "data.seg_dir": ["\0"],
    "log.every_steps": [0, -1],
    "eval.every_steps": [-1],
    "eval.batch_size": [0, -1],
    "eval.max_slices": [-1],
    "eval.score_threshold": [NAN, 7.0],
    "eval.bn_slices": [-1],
    "eval.overlays": [-1],
    "checkpoint.every_steps": [-1],
    "checkpoint.keep_last": [0],
    "checkpoint.best_metric": ["nothing", "ece"],
    "seed": [-1, 2**70],
}


def names(section, prefix=""):
    for name, value in section.items():
        if hasattr(value, "items"):
            yield from names(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_every_field_has_its_values():
    fields = set(names(default_config()))
    assert fields == {*RUN_VALUES, *(f"model.{name}" for name in MODEL_VALUES)}
    assert list(MODEL_VALUES) == [field.name for field in dataclasses.fields(ModelConfig)]


@pytest.mark.parametrize(
    ("name", "value"), [(n, v) for n, values in ABSURD.items() for v in values]
)
def test_absurd_settings_are_refused_in_one_line(name, value, tmp_path):
    config = get_config(str(tmp_path / "data"))
    *sections, field = name.split(".")
    section = config
    for part in sections:
        section = section[part]
    with config.ignore_type():
        section[field] = value
    with pytest.raises(ValueError) as caught:
        train(config, tmp_path / "run")
    text = str(caught.value)
    assert text.startswith(f"config.{name}={value!r} is not possible; choose from ")
    assert "\n" not in text
    assert not list(tmp_path.iterdir())  # nothing was made


def test_lists_of_a_configuration_may_be_tuples_or_lists():
    config = get_config()
    for sizes in ((8, 16.0), [8, 16]):
        with config.ignore_type():
            config.model.anchor_sizes = sizes
        assert validate(config).anchor_sizes == (8, 16)
