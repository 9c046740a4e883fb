"""Every file under configs/ builds, and says what it promises."""

import importlib
import pathlib

import pytest

from ssm_jax.config import default_config, validate
from ssm_jax.training.workdir import flatten

CONFIGS = sorted(
    path.stem
    for path in (pathlib.Path(__file__).parent.parent / "configs").glob("*.py")
    if path.stem != "__init__"
)


def load(name):
    return importlib.import_module(f"configs.{name}").get_config()


@pytest.mark.parametrize("name", CONFIGS)
def test_builds_and_is_possible(name):
    config = load(name)
    assert validate(config).stride in (8, 16)
    # A config changes fields; it makes none up.
    assert set(flatten(config.to_dict())) == set(flatten(default_config().to_dict()))


def test_scratch_r18_is_the_papers_recipe():
    config = load("scratch_r18")
    train, model = config.train, config.model
    assert (model.backbone, model.blocks, model.branches) == ("resnet18", 3, 2)
    assert (train.epochs, train.batch_size, train.update_rule) == (50, 1, 2)
    assert (train.learning_rate, train.weight_decay) == (1e-5, 1e-3)
    assert (train.schedule, train.copy_rule) == ("constant", "best")
    assert config.data.phantom.cls_train == 3000


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("train", "update_rule", 4),
        ("train", "copy_rule", "never"),
        ("train", "batch_size", 0),
        ("train", "classification_from", -1),
    ],
)
def test_impossible_values_are_named(section, field, value):
    config = default_config()
    config[section][field] = value
    with pytest.raises(ValueError, match=rf"{section}\.{field}={value!r}"):
        validate(config)
