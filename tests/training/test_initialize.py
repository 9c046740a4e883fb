"""What a run starts from: a checkpoint of stage I, or a state dict of torchvision's ResNet."""

import copy
import dataclasses
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from configs import pretrain, ssm, ssm2, ssm_s
from ssm_jax.checkpoints import save_model
from ssm_jax.config import ModelConfig, class_set, validate
from ssm_jax.interop import reference_names, torch_writer
from ssm_jax.models.ssm import stage
from ssm_jax.training import initialize
from ssm_jax.training import state as state_module
from ssm_jax.training.loop import train
from ssm_jax.training.state import create_state, state_from_variables
from tests.helpers import tiny

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")


def model_of(config):
    return ModelConfig.from_mapping(config.model.to_dict())


@pytest.fixture(scope="module")
def stage_1(tmp_path_factory):
    """A checkpoint of stage I with random weights and statistics: (folder, variables)."""
    model = model_of(tiny.shrunk(pretrain.get_config("r18_2")))
    rng = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda x: (
            rng.uniform(0.5, 2, x.shape).astype(x.dtype) if x.ndim else np.asarray(7, x.dtype)
        ),
        tiny.random_variables(model),
    )
    folder = tmp_path_factory.mktemp("stage_1")
    save_model(folder, model, variables)
    return folder, variables


def test_module_s_can_start_with_all_classes_alike(monkeypatch):
    model = validate(tiny.get_config())
    weights = jax.tree.map(lambda x: x + np.asarray(1, x.dtype), tiny.random_variables(model))
    monkeypatch.setattr(state_module, "init_variables", lambda *_: copy.deepcopy(weights))
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 5)), jnp.float32)
    key = jax.random.key(0)
    drawn, alike = create_state(model, key), create_state(model, key, module_s_output_scale=0.0)
    logits = [
        stage(model, {"params": state.params}, "read_class", rows) for state in (drawn, alike)
    ]
    assert np.ptp(logits[0], axis=1).min() > 0.1
    np.testing.assert_array_equal(logits[1], 0)
    different = jax.tree.map(lambda a, b: not np.array_equal(a, b), drawn.params, alike.params)
    changed = {path for path, is_changed in flat(different).items() if is_changed}
    assert changed == {"module_s/logits/kernel", "module_s/logits/bias"}


def started(config):
    """The state of a fresh run, before and after the weights are taken over."""
    model = model_of(config)
    state = state_from_variables(tiny.random_variables(model), jax.random.key(0))
    return state, initialize.take_over(state, initialize.initial_weights(config, model)[0])


@pytest.mark.parametrize("system", [ssm, ssm2, ssm_s])
def test_stage_2_starts_from_stage_1(stage_1, system):
    folder, variables = stage_1
    config = tiny.shrunk(system.get_config("r18_2"))
    config.init_from = str(folder)
    fresh, state = started(config)
    for part in ("backbone", "fpn", "rpn", "segmentation_branch", "mask_head"):
        jax.tree.map(np.testing.assert_array_equal, state.params[part], variables["params"][part])
    jax.tree.map(np.testing.assert_array_equal, state.batch_stats, variables["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, state.params["module_s"], fresh.params["module_s"])
    assert jax.tree.structure(state) == jax.tree.structure(fresh)
    if system is ssm:
        assert "classification_branch" not in state.params
        return
    branches = [state.params[f"{name}_branch"] for name in ("segmentation", "classification")]
    jax.tree.map(np.testing.assert_array_equal, *branches)
    # Both are donated to the steps: they must not share memory.
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(branches)]
    assert len(set(pointers)) == len(pointers)


def test_random_weights_stay():
    fresh, state = started(tiny.shrunk(ssm_s.get_config("r18_2")))
    assert jax.tree.leaves(state)[0] is jax.tree.leaves(fresh)[0]


@pytest.mark.parametrize("system", [ssm, ssm2])
def test_stage_2_refuses_to_start_without_stage_1(system, tmp_path):
    config = system.get_config("r34_2")
    config.data.seg_dir = "my slices"
    config.data.cls_dir = "classes"
    config.model.anchor_sizes = (4, 8)
    with pytest.raises(ValueError) as caught:
        train(config, tmp_path / "run")
    command, again = str(caught.value).splitlines()[1:]
    program, changed = shlex.split(command)[:3], shlex.split(command)[3:]
    assert program == ["ssm-jax", "train", "--config=pretrain:r34_2"]
    expected = {"--config.model.anchor_sizes=(4, 8)", "--config.data.seg_dir=my slices"}
    assert set(changed) == expected
    assert again.endswith("--config.init_from=runs/pretrain_r34_2")
    assert not (tmp_path / "run").exists()


def test_the_command_changes_nothing_else():
    command = initialize.pretraining_command(ssm2.get_config("r18_3"))
    assert command == "ssm-jax train --config=pretrain:r18_3"


def test_a_checkpoint_of_another_model_is_one_error(stage_1):
    config = tiny.shrunk(ssm2.get_config("r34_3"))
    config.init_from = str(stage_1[0])
    config.model.anchor_ratios = (0.5, 2.0)
    with pytest.raises(ValueError) as caught:
        initialize.initial_weights(config, model_of(config))
    text = str(caught.value)
    for line in (
        "model.backbone is 'resnet18' there and 'resnet34' here",
        "model.blocks is 2 there and 3 here",
        "model.anchor_ratios is (0.5, 1.0) there and (0.5, 2.0) here",
        "pretrain:r34_3",
    ):
        assert line in text
    assert "num_classes" not in text


def test_a_model_of_other_classes_gives_all_that_fits(tmp_path, caplog, monkeypatch):
    """From two branches and three classes to one branch and four lesion classes, and back."""
    config = tiny.shrunk(ssm_s.get_config("r18_2"))
    one = tiny.shrunk(pretrain.get_config("r18_2"))
    one.classes.lesion, one.model.num_classes = ("a", "b", "c", "d"), 5
    monkeypatch.setattr(initialize.logger, "propagate", True)
    for name, given, wanted in (("two", config, one), ("one", one, config)):
        caplog.clear()
        model = validate(given)
        variables = tiny.random_variables(model, seed=3)
        save_model(tmp_path / name, model, variables, class_set(given))
        wanted = wanted.copy_and_resolve_references()
        wanted.init_from = str(tmp_path / name)
        with caplog.at_level("INFO"):
            fresh, state = started(wanted)
        old, new, there = (
            traverse_util.flatten_dict(tree, sep="/")
            for tree in (fresh.params, state.params, variables["params"])
        )
        taken = set()
        for path, array in new.items():
            branch = path.replace("classification", "segmentation")
            source = there.get(path, there.get(branch))
            if source is not None and source.shape == array.shape:
                taken.add(path)
                np.testing.assert_array_equal(array, source)
            else:
                np.testing.assert_array_equal(array, old[path])
        reshaped = {path.rpartition("/")[0] for path in set(new) - taken}
        branches = [f"{b}_branch" for b in ("segmentation", "classification")][
            : 1 + (name == "one")
        ]
        outputs = {f"{branch}/{layer}" for branch in branches for layer in ("logits", "deltas")}
        modules = {path.rpartition("/")[0] for path in new if path.startswith("module_s")}
        assert reshaped == outputs | {"mask_head/logits"} | modules
        told = [record.getMessage().strip() for record in caplog.records]
        assert any("taken: backbone, fpn, rpn" in line for line in told)
        assert any(line.startswith("fresh, of another shape there: ") for line in told)
        assert ("fresh, not there: module_s" in told) == (name == "one")


def test_a_missing_checkpoint_says_how_to_make_it(tmp_path):
    config = tiny.shrunk(ssm2.get_config("r18_2"))
    config.init_from = str(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"no such folder; make its checkpoint with\n.*:r18_2"):
        initialize.initial_weights(config, model_of(config))


@pytest.fixture(scope="module")
def torchvision():
    """State dict of a whole ResNet-18 under torchvision's names, and our variables of its start."""
    config = ModelConfig(backbone="resnet18", blocks=3)
    variables = tiny.random_variables(config)
    names = reference_names.from_variables(variables, config)
    body = "backbone.body."
    state_dict = {n.removeprefix(body): a for n, a in names.items() if n.startswith(body)}
    state_dict["layer4.0.conv1.weight"] = np.zeros((512, 256, 3, 3), np.float32)
    state_dict["fc.weight"] = np.zeros((1000, 512), np.float32)
    return state_dict, variables


@pytest.mark.parametrize("blocks", [2, 3])
@pytest.mark.parametrize(("counts", "suffix"), [(True, ".npz"), (False, ".npz"), (True, ".pth")])
def test_a_backbone_from_torchvision(torchvision, tmp_path, blocks, counts, suffix):
    state_dict, variables = torchvision
    kept = {n: a for n, a in state_dict.items() if counts or "num_batches" not in n}
    path = tmp_path / f"resnet18{suffix}"
    if suffix == ".npz":
        np.savez(path, **kept)
    else:
        torch_writer.write(path, kept)
    config = tiny.shrunk(ssm_s.get_config(f"r18_{blocks}"))
    config.backbone.init = str(path)
    fresh, state = started(config)
    assert jax.tree.structure(state) == jax.tree.structure(fresh)
    for section in ("params", "batch_stats"):
        ours = traverse_util.flatten_dict(getattr(state, section))
        theirs = traverse_util.flatten_dict(variables[section])
        old = traverse_util.flatten_dict(getattr(fresh, section))
        for path, array in ours.items():
            expected = theirs[path] if path[0] == "backbone" else old[path]
            np.testing.assert_array_equal(array, expected)


def test_a_backbone_that_does_not_fit(torchvision, tmp_path):
    state_dict, _ = torchvision
    path = tmp_path / "resnet.npz"
    config = tiny.shrunk(ssm_s.get_config("r18_2"))
    config.backbone.init = str(path)

    def refused(match, **changed):
        named = {name.replace("/", "."): array for name, array in changed.items()}
        np.savez(path, **{n: a for n, a in (state_dict | named).items() if a is not None})
        with pytest.raises(ValueError, match=match) as caught:
            initialize.initial_weights(config, model_of(config))
        assert str(path) in str(caught.value)

    missing = {"conv1/weight": None, "layer2/0/bn1/running_var": None}
    listed = r"missing: conv1.weight\n  missing: layer2.0.bn1.running_var"
    refused(rf"resnet18, 2 blocks\):\n  {listed}$", **missing)
    refused("unknown: layer1.2.conv1.weight", **{"layer1/2/conv1/weight": np.zeros(1)})  # deeper
    wrong = np.zeros((64, 1, 7, 7), np.float32)
    refused(r"shape: conv1.weight is \(64, 1, 7, 7\)", **{"conv1/weight": wrong})
    refused("not finite: bn1.bias", **{"bn1/bias": np.full(64, np.nan, np.float32)})
    config.backbone.init = str(tmp_path / "absent.npz")
    with pytest.raises(ValueError, match=r"absent\.npz cannot be read"):
        initialize.initial_weights(config, model_of(config))
    config.backbone.init = "imagenet.safetensors"
    with pytest.raises(ValueError, match=r"imagenet.safetensors: only .*\.npz.* can be read"):
        initialize.initial_weights(config, model_of(config))


def test_all_that_shapes_the_taken_parts_is_compared():
    """A field that changes a shape of these parts is among those that are compared."""

    def shapes(model):
        params = tiny.random_variables(model)["params"]
        return {
            path: array.shape
            for path, array in traverse_util.flatten_dict(params).items()
            if path[0] in initialize.TAKEN
        }

    usual = model_of(tiny.shrunk(pretrain.get_config("r18_2")))
    other = {"backbone": "resnet34", "blocks": 3, "num_classes": 3, "anchor_sizes": (2.0,)}
    other |= {"anchor_ratios": (1.0,), "image_size": 96, "rpn_post_nms": 9, "bn_momentum": 0.5}
    for field, value in other.items():
        changed = shapes(dataclasses.replace(usual, **{field: value})) != shapes(usual)
        assert changed == (field in initialize.SHARED_FIELDS), field
