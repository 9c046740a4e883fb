"""Both steps on a tiny model: what they touch, gradients, schedules and copy rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssm_jax.config import ModelConfig, default_config, validate
from ssm_jax.training import optimizer, steps
from ssm_jax.training.state import state_from_variables
from tests.helpers.tiny import random_variables

pytestmark = pytest.mark.usefixtures("quickly_compiled")
SIZE, OBJECTS = 64, 3
MODEL = {
    "blocks": 2,
    "image_size": SIZE,
    "rpn_pre_nms": 60,
    "rpn_post_nms": 40,
    "roi_batch": 32,
    "roi_positives": 8,
    "selection_size": 16,
}


def make_config(**train):
    config = default_config()
    config.model.update(MODEL)
    config.train.learning_rate = 1e-3
    config.train.update(train)
    return config


def make_state(config):
    return state_from_variables(random_variables(validate(config)), jax.random.key(3))


def make_steps(config):
    return steps.make_steps(validate(config), config.train)


def segmentation_batch(counts):
    """Slices with so many objects each, of ten pixels a side or more."""
    rng = np.random.default_rng(0)
    batch = len(counts)
    instances = np.zeros((batch, SIZE, SIZE), np.uint8)
    boxes = np.zeros((batch, OBJECTS, 4), np.float32)
    for row, count in enumerate(counts):
        for k in range(count):
            left, top = 4 + 20 * k, int(rng.integers(0, 40))
            instances[row, top : top + 14, left : left + 12] = k + 1
            boxes[row, k] = left, top, left + 12, top + 14
    return {
        "image": rng.integers(0, 255, (batch, SIZE, SIZE, 1)).astype(np.uint8),
        "image_size": np.full((batch, 2), SIZE, np.int32),
        "instances": instances,
        "boxes": boxes,
        "labels": np.ones((batch, OBJECTS), np.int32),
        "valid": np.arange(OBJECTS) < np.asarray(counts)[:, None],
    }


def classification_batch(batch):
    rng = np.random.default_rng(1)
    return {
        "image": rng.integers(0, 255, (batch, SIZE, SIZE, 1)).astype(np.uint8),
        "image_size": np.full((batch, 2), SIZE, np.int32),
        "label": np.arange(batch, dtype=np.int32) % 3,
    }


def on_host(tree):
    """A copy that outlives the donation of the original."""
    return jax.tree.map(np.array, tree)


def changed_groups(before, after):
    old, new = optimizer.split(before), optimizer.split(after)
    return {g for g in old if any((old[g][name] != new[g][name]).any() for name in old[g])}


@pytest.fixture(scope="module")
def default_steps():
    return make_steps(make_config())


@pytest.mark.parametrize("count", [0, 1, OBJECTS])
def test_segmentation_step_with_any_number_of_objects(default_steps, count):
    state = make_state(make_config())
    before = on_host(state)
    state, metrics = default_steps[0](state, segmentation_batch([count]))
    after = on_host(state)
    assert bool(metrics["skipped"]) == (count == 0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))
    if count == 0:
        for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
            np.testing.assert_array_equal(old, new)
        assert np.isnan(metrics["loss_seg"])
        return
    assert np.isfinite(metrics["seg_grad_norm"])
    # The classification branch changes by the copy alone, and takes the weights before the step.
    stepped = {"backbone", "backbone_bn", "segmentation", "copied"}
    assert changed_groups(before.params, after.params) == stepped
    copied = after.params["classification_branch"]
    for source, target in zip(
        jax.tree.leaves(before.params["segmentation_branch"]), jax.tree.leaves(copied), strict=True
    ):
        np.testing.assert_array_equal(source, target)
    assert metrics["best_seg_loss"] == metrics["loss_seg"]
    counts = {g: int(s[1].count) for g, s in after.opt_state.items()}
    assert counts == {"backbone": 1, "backbone_bn": 1, "segmentation": 1, "module_s": 0}


@pytest.mark.slow
def test_both_steps_on_accelerators(default_steps, request):
    """Whole steps by the path of accelerators give the losses and gradients of those on a CPU."""

    def taken(both):
        results = []
        for step, batch in zip(
            both, (segmentation_batch([2]), classification_batch(1)), strict=True
        ):
            state, metrics = step(make_state(make_config()), batch)
            moments = {group: adam.mu for group, (_, adam) in state.opt_state.items()}
            results.append(on_host((metrics, moments)))
        return results

    expected = taken(default_steps)
    request.getfixturevalue("as_on_accelerators")
    for (metrics, moments), (metrics_of_cpu, moments_of_cpu) in zip(
        taken(make_steps(make_config())), expected, strict=True
    ):
        for name, value in metrics.items():
            np.testing.assert_allclose(value, metrics_of_cpu[name], rtol=1e-4, err_msg=name)
        named = jax.tree_util.tree_leaves_with_path(moments)
        for (path, one), other in zip(named, jax.tree.leaves(moments_of_cpu), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-3 * abs(other).max(), err_msg=str(path))


def test_no_copy_without_a_better_loss(default_steps):
    state = make_state(make_config()).replace(best_seg_loss=jnp.float32(1e-3))
    branch = on_host(state.params["classification_branch"])
    state, metrics = default_steps[0](state, segmentation_batch([2]))
    assert not metrics["copied"]
    assert metrics["best_seg_loss"] == np.float32(1e-3)
    for old, new in zip(
        jax.tree.leaves(branch),
        jax.tree.leaves(state.params["classification_branch"]),
        strict=True,
    ):
        np.testing.assert_array_equal(old, new)


def test_a_slice_without_objects_takes_no_part_in_a_batch():
    """Whatever it shows, nothing depends on it; the loss is that of the other slice twice."""
    mixed = segmentation_batch([2, 0])
    different = mixed | {"image": np.stack([mixed["image"][0], 255 - mixed["image"][1]])}
    twice = {name: value[[0, 0]] for name, value in mixed.items()}
    model = ModelConfig.from_mapping(make_config().model.to_dict())
    model = ModelConfig(**{**vars(model), "roi_batch": 43, "roi_positives": 43})
    model = ModelConfig(**{**vars(model), "rpn_batch": 1920, "rpn_positives": 1920})
    variables = random_variables(model)

    @jax.jit
    def loss(variables, batch):
        args = (variables["params"], variables["batch_stats"], batch, jax.random.key(0))
        return steps.segmentation_loss(model, *args)

    total, (stats, _) = loss(variables, mixed)
    expected, (expected_stats, _) = loss(variables, different)
    np.testing.assert_allclose(total, expected, rtol=1e-4)
    for a, b in zip(jax.tree.leaves(stats), jax.tree.leaves(expected_stats), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(total, loss(variables, twice)[0], rtol=1e-4)


def loss_of_all(model, params, batch_stats, batch, key):
    """In place of the loss: one that depends on every parameter, and is soon compiled."""
    loss = sum((leaf**2).sum() for leaf in jax.tree.leaves(params))
    return loss, {"loss_cls": loss}


@pytest.mark.parametrize("rule", [1, 2, 3])
def test_classification_step_by_update_rule(default_steps, monkeypatch, rule):
    config = make_config(update_rule=rule)
    step = default_steps[1]
    if rule != make_config().train.update_rule:
        monkeypatch.setattr(steps, "classification_loss", loss_of_all)
        step = make_steps(config)[1]
    state = make_state(config)
    before = on_host(state)
    state, metrics = step(state, classification_batch(1))
    after = on_host(state)
    assert changed_groups(before.params, after.params) == set(optimizer.CLASSIFICATION_STEP[rule])
    for old, new in zip(
        jax.tree.leaves(before.batch_stats), jax.tree.leaves(after.batch_stats), strict=True
    ):
        np.testing.assert_array_equal(old, new)
    assert after.step == before.step + 1
    assert np.isfinite(metrics["loss_cls"])
    counts = {g: int(s[1].count) for g, s in after.opt_state.items()}
    expected = {g: int(g in optimizer.CLASSIFICATION_STEP[rule]) for g in counts}
    assert counts == expected


@pytest.mark.parametrize("rule", ["every_step", "ema", "best", "never"])
def test_copy_rules(rule):
    model = ModelConfig.from_mapping(make_config().model.to_dict())
    source, target = {"w": jnp.full(3, 4.0)}, {"w": jnp.full(3, 2.0)}
    params = {"segmentation_branch": source, "classification_branch": target}
    copy = steps.make_copy(model, rule, 0.75)
    for improved in (True, False):
        value = copy(params, jnp.asarray(improved))["classification_branch"]["w"]
        best = 4.0 if improved else 2.0
        expected = {"every_step": 4.0, "ema": 2.5, "best": best, "never": 2.0}[rule]
        np.testing.assert_allclose(value, expected)
    one_branch = ModelConfig(**{**vars(model), "branches": 1})
    assert steps.make_copy(one_branch, rule, 0.75)({"a": 1}, True) == {"a": 1}


def test_schedules():
    train = make_config(warmup_steps=10).train
    constant = optimizer.make_schedules(train, 100)
    assert sorted(constant) == ["backbone", "backbone_bn", "module_s", "segmentation"]
    for schedule in constant.values():
        np.testing.assert_allclose([schedule(0), schedule(5), schedule(10)], [0, 5e-4, 1e-3])
    train.schedule = "cosine"
    for schedule in optimizer.make_schedules(train, 110).values():
        rates = [schedule(10), schedule(60), schedule(110)]
        np.testing.assert_allclose(rates, [1e-3, 5e-4, 0], atol=1e-9)


def test_schedules_of_two_phases():
    train = make_config(warmup_steps=10, classification_from=110).train
    train.update(schedule="cosine", end_learning_rate=2e-4, module_s_learning_rate=1e-2)
    schedules = optimizer.make_schedules(train, 220)
    module_s, backbone = schedules["module_s"], schedules["backbone"]
    rates = [backbone(s) for s in (5, 10, 60, 110, 200)]
    np.testing.assert_allclose(rates, [5e-4, 1e-3, 6e-4, 2e-4, 2e-4], rtol=1e-5)
    rates = [module_s(s) for s in (109, 110, 115, 120, 170, 220)]
    np.testing.assert_allclose(rates, [0, 0, 5e-3, 1e-2, 5e-3, 0], atol=1e-8)


def test_adam_by_groups_equals_plain_adam_with_l2():
    """A group steps like the textbook; a group without gradient keeps moments and count."""
    params = {"fpn": {"w": np.float32([1.0, -2.0])}, "module_s": {"w": np.float32([3.0])}}
    opt_state = optimizer.init(params)
    gradients = [np.float32([0.5, 0.1]), np.float32([-0.2, 0.3])]
    expected, m, v = params["fpn"]["w"].astype(float), 0.0, 0.0
    for t, gradient in enumerate(gradients, 1):
        decayed = gradient + 0.1 * expected
        m, v = 0.9 * m + 0.1 * decayed, 0.999 * v + 0.001 * decayed**2
        direction = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        expected = expected - 0.01 * direction
        params, opt_state = optimizer.apply_gradients(
            params, opt_state, {"backbone": {"fpn/w": gradient}}, {"backbone": 0.01}, 0.1
        )
    np.testing.assert_allclose(params["fpn"]["w"], expected, rtol=1e-5)
    assert params["module_s"]["w"] == 3
    assert opt_state["module_s"][1].count == 0
    assert opt_state["backbone"][1].count == 2
