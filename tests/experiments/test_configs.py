"""Every file under configs/, in each variant: it builds, has the paper's size, and trains."""

import importlib
import inspect
import pathlib

import jax
import numpy as np
import pytest

from ssm_jax.config import VARIANTS, ModelConfig, default_config, paper_config, validate, variant_of
from ssm_jax.models import ssm
from ssm_jax.training import initialize, optimizer
from ssm_jax.training.state import state_from_variables
from ssm_jax.training.steps import make_steps
from ssm_jax.training.workdir import flatten
from tests.helpers import tiny
from tests.models.test_models import PARAMETERS, STEPPED_IN_CLASSIFICATION
from tests.training.test_steps import (
    changed_groups,
    classification_batch,
    on_host,
    segmentation_batch,
)

CONFIGS = sorted(
    path.stem
    for path in (pathlib.Path(__file__).parents[2] / "configs").glob("*.py")
    if path.stem != "__init__"
)
# Of each system: RoI branches, image classes, whether it starts from stage I, rule of the copies.
SYSTEMS = {
    "pretrain": (1, 0, False, "best"),
    "ssm": (1, 3, True, "never"),
    "ssm2": (2, 3, True, "never"),
    "ssm_s": (2, 3, False, "best"),
}
SINGLE = ("demo", "scratch_r18")  # files without variants
BENCHMARKS = ("covid19_ct_seg", "covid_ct")
EVERY = [(name, variant) for name in SYSTEMS for variant in VARIANTS]
MODULE_S = 640 * 512 + 512 + 512 * 512 + 512 + 512 * 3 + 3


def load(name, *variant):
    return importlib.import_module(f"configs.{name}").get_config(*variant)


def test_no_file_is_left_out():
    assert sorted([*SYSTEMS, *SINGLE, *BENCHMARKS]) == CONFIGS
    for name in CONFIGS:
        parameters = inspect.signature(importlib.import_module(f"configs.{name}").get_config)
        assert bool(parameters.parameters) == (name not in SINGLE)


@pytest.mark.parametrize("name", CONFIGS)
def test_builds_and_is_possible(name):
    for variant in VARIANTS if name in SYSTEMS else [None]:
        config = load(name, *filter(None, [variant]))
        assert validate(config).stride in (8, 16)
        # A config changes fields; it makes none up.
        assert set(flatten(config.to_dict())) == set(flatten(default_config().to_dict()))
        assert variant is None or variant_of(config.model) == variant


def test_an_unknown_variant_is_named():
    with pytest.raises(ValueError, match=r"'r50_3'.*r18_2, r18_3, r34_2, r34_3"):
        load("ssm2", "r50_3")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks_differ_from_the_papers_recipe_in_what_they_compare(name):
    """Both variants measure the same, on the same data, after as many iterations."""
    recipe, of_paper = load(name, "recipe"), load(name, "paper")
    assert flatten(load(name).to_dict()) == flatten(recipe.to_dict())
    validate(recipe)
    model = validate(of_paper)
    ours, papers = flatten(recipe.to_dict()), flatten(of_paper.to_dict())
    different = {field for field in ours if ours[field] != papers[field]}
    kinds = ("model.", "train.", "data.augment.", "eval.bn_slices", "init_from")
    assert all(field.startswith(kinds) for field in different)
    assert not {"train.max_steps", "model.image_classes", "model.branches"} & different
    usual = flatten(load("scratch_r18").to_dict())
    measured = ("eval.", "checkpoint.", "classes.", "data.dev_share", "train.max_steps")
    changed = {f for f in papers if papers[f] != usual[f] and not f.startswith(measured)}
    assert changed - {"model.branches", "model.image_classes"} == {"train.learning_rate"}
    assert (papers["train.learning_rate"], model.image_size) == (1e-4, 512)
    with pytest.raises(ValueError, match=r"'big'; choose from recipe, .*paper"):
        load(name, "big")


def test_the_second_run_on_covid_ct_goes_on_from_the_first():
    first, second = load("covid_ct"), load("covid_ct", "second")
    assert second.init_from == f"runs/covid_ct/checkpoints/{first.train.max_steps}"
    assert validate(second) == validate(first)
    ours, theirs = flatten(first.to_dict()), flatten(second.to_dict())
    different = {field for field in ours if ours[field] != theirs[field]} - {"init_from"}
    assert different and all(field.startswith("train.") for field in different)
    assert set(second.train.freeze.split(",")) <= {
        f"backbone/{part}" for part in ("conv1/*", "bn1/*", "layer1_*")
    }


@pytest.mark.parametrize(("name", "variant"), EVERY)
def test_parameters_are_those_of_table_1(name, variant):
    config = load(name, variant)
    model = validate(config)
    variables = jax.eval_shape(lambda key: ssm.init_variables(model, key), jax.random.key(0))
    count = sum(array.size for array in jax.tree.leaves(variables["params"]))
    architecture = (model.backbone, model.blocks, model.branches)
    if name == "pretrain":
        assert count == PARAMETERS[architecture] - MODULE_S
        assert "module_s" not in variables["params"]
        return
    assert count == PARAMETERS[architecture]
    groups = optimizer.CLASSIFICATION_STEP[config.train.update_rule]
    stepped = optimizer.stepped_count(variables["params"], groups)
    assert stepped == STEPPED_IN_CLASSIFICATION[architecture[:2]]


@pytest.mark.parametrize(("name", "variant"), EVERY)
def test_recipes_are_the_papers(name, variant):
    config = load(name, variant)
    train, model = config.train, config.model
    branches, classes, pretrained, copy_rule = SYSTEMS[name]
    assert (model.backbone, model.blocks) == VARIANTS[variant]
    assert (model.branches, model.image_classes) == (branches, classes)
    assert (train.pretrained, train.copy_rule) == (pretrained, copy_rule)
    assert (train.epochs, train.max_steps, train.batch_size, train.update_rule) == (50, 0, 1, 2)
    assert (train.learning_rate, train.weight_decay) == (1e-5, 1e-3)
    assert (train.module_s_learning_rate, train.warmup_steps) == (0, 0)
    assert (train.schedule, train.classification_from) == ("constant", 0)
    assert (config.data.mask_type, config.backbone.init) == ("merge", "random")
    assert config.checkpoint.best_metric == ("ap" if name == "pretrain" else "accuracy")


def test_scratch_r18_is_the_papers_recipe():
    config = load("scratch_r18")
    assert flatten(config.to_dict()) == flatten(load("ssm_s", "r18_3").to_dict())
    assert config.data.phantom.cls_train == 3000


# Systems with one branch and with two train in test_stages and test_loop too.
@pytest.mark.slow
@pytest.mark.parametrize(("name", "variant"), [*EVERY, ("demo", None)])
def test_trains_one_step(name, variant, quickly_compiled):
    config = tiny.shrunk(load(name, *filter(None, [variant])))
    model = validate(config)
    total = 10
    config.train.max_steps = total
    config.train.warmup_steps = 0
    state = state_from_variables(tiny.random_variables(model), jax.random.key(3))
    if config.train.pretrained:
        # What stage I hands on; the second branch starts as its copy.
        branch = state.params["segmentation_branch"]
        given = {"classification_branch": branch} if model.branches == 2 else {}
        state = initialize.take_over(state, {"params": given})

    segmentation_step, classification_step = make_steps(model, config.train, total)
    batch = segmentation_batch([2])
    before = on_host(state)
    state, metrics = segmentation_step(state, batch)
    after = on_host(state)
    assert np.isfinite(metrics["loss_seg"]) and np.isfinite(metrics["seg_grad_norm"])
    copies = model.branches == 2 and config.train.copy_rule != "never"
    assert bool(metrics["copied"]) == copies
    expected = {"backbone", "backbone_bn", "segmentation"} | ({"copied"} if copies else set())
    assert changed_groups(before.params, after.params) == expected
    if not model.image_classes:
        return

    batch = classification_batch(1)
    state = state.replace(step=state.step + config.train.classification_from)
    state, metrics = classification_step(state, batch)
    assert np.isfinite(metrics["loss_cls"]) and np.isfinite(metrics["cls_grad_norm"])
    last = on_host(state)
    groups = set(optimizer.CLASSIFICATION_STEP[config.train.update_rule])
    if name == "demo":
        groups.discard("backbone_bn")  # at its low rate a step can be below float32
        assert groups <= changed_groups(after.params, last.params)
    else:
        assert changed_groups(after.params, last.params) == groups


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("train", "update_rule", 4),
        ("train", "copy_rule", "sometimes"),
        ("train", "batch_size", 0),
        ("train", "classification_from", -1),
        ("data", "mask_type", "lung"),
        ("model", "image_classes", 1),
        ("model", "num_classes", 1),
    ],
)
def test_impossible_values_are_named(section, field, value):
    config = default_config()
    config[section][field] = value
    with pytest.raises(ValueError, match=rf"{section}\.{field}={value!r}"):
        validate(config)


def test_fields_that_contradict_each_other():
    config = paper_config("r18_2")
    config.data.mask_type = "both"
    with pytest.raises(ValueError, match=r"mask_type='both'.*num_classes=2.*to 3"):
        validate(config)
    config.model.num_classes = 3
    assert validate(config).num_classes == 3
    config.data.mask_type = "ggo"
    with pytest.raises(ValueError, match=r"mask_type='ggo'.*num_classes=3.*to 2"):
        validate(config)
    with pytest.raises(ValueError, match=r"model\.branches=2"):
        ModelConfig(image_classes=0)
    config = paper_config("r18_2")
    config.init_from, config.backbone.init = "runs/x", "resnet18.npz"
    with pytest.raises(ValueError, match="both give a backbone"):
        validate(config)
