"""Training iterations against recordings of the author's loop, each from a state of its own.

Both samplers take every candidate, so that nothing is random. See docs/parity.md.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssm_jax.config import VARIANTS, default_config, validate
from ssm_jax.interop import reference_names
from ssm_jax.training import optimizer, steps
from ssm_jax.training.state import state_from_variables
from tests.parity import seeded
from tests.parity.comparing import recording, relative_error, samples
from tests.training.test_steps import on_host

pytestmark = pytest.mark.usefixtures("quickly_compiled")

OBJECTS = 4  # room for the lesions of a slice, and one more
SAMPLES = 24  # numbers kept of each tensor
# Below a ReLU of the backbone that is zero but for rounding, the gradient comes or goes with the
# last bit. Among its hundred thousand outputs there is often one: bounds are wider there.
BACKBONE = "backbone.body."


@dataclasses.dataclass
class Iteration:
    """One iteration of ours and what was recorded of it.

    Attributes:
      before: the state it starts from, as the reference's state dict.
      recorded: arrays of the recording by name.
      seg: metrics of the segmentation step.
      cls: metrics of the classification step.
      states: before, between and after the steps.
    """

    before: dict
    recorded: dict
    seg: dict
    cls: dict
    states: list


class Run:
    """Our steps with the numbers of a recording."""

    def __init__(self, recorded, variant):
        self.recorded = recorded
        backbone, blocks = VARIANTS[variant]
        anchors = 30 * np.prod(recorded["size"]) // (8 if blocks == 2 else 16) ** 2
        rois = int(recorded["rpn_post_nms"]) + OBJECTS
        config = default_config()
        config.model.update(
            backbone=backbone,
            blocks=blocks,
            branches=int(recorded["branches"]),
            rpn_batch=int(anchors),
            rpn_positives=int(anchors),
            roi_batch=rois,
            roi_positives=rois,
            **{n: int(recorded[n]) for n in ("rpn_pre_nms", "rpn_post_nms", "selection_size")},
        )
        config.train.learning_rate = float(recorded["learning_rate"])
        config.train.weight_decay = float(recorded["weight_decay"])
        self.model = validate(config)
        self.shapes = reference_names.reference_shapes(self.model)
        self.stepped = [str(name) for name in recorded["stepped"]]
        self.steps = steps.make_steps(self.model, config.train)

    def iteration(self, index):
        prefix = f"{index}/"
        recorded = {
            name.removeprefix(prefix): array
            for name, array in self.recorded.items()
            if name.startswith(prefix)
        }
        weights = seeded.weights(self.shapes, int(recorded["weights_seed"]))
        state = self.state(weights, recorded)
        seed = int(recorded["seed"])
        image, instances = seeded.slice_with_lesions(1000 + seed, *self.recorded["size"])
        if not recorded["lesions"]:
            instances[:] = 0
        other, _ = seeded.slice_with_lesions(2000 + seed, *self.recorded["size"])
        assert image.astype(np.int64).sum() + other.sum() == recorded["slice_sum"]
        states = [on_host(state)]
        state, seg = self.steps[0](state, segmentation_batch(image, instances))
        states.append(on_host(state))
        state, cls = self.steps[1](state, classification_batch(other, recorded["label"]))
        states.append(on_host(state))
        return Iteration(weights, recorded, on_host(seg), on_host(cls), states)

    def state(self, weights, recorded):
        """The state that the recorded iteration starts from."""
        seed = int(recorded["seed"])
        variables = reference_names.to_variables(weights, self.model)
        state = state_from_variables(variables, jax.random.key(0))
        scales = dict(zip(self.stepped, recorded["scales"], strict=True))
        first, second = (
            optimizer.split(reference_names.to_variables(weights | part, self.model)["params"])
            for part in seeded.moments(self.shapes, scales, seed)
        )
        counts = self.counts(seed)
        opt_state = {}
        for group, (decay, adam) in state.opt_state.items():
            mu, nu = (jax.tree.map(jnp.asarray, part[group]) for part in (first, second))
            count = jnp.asarray(counts[group], jnp.int32)
            opt_state[group] = (decay, adam._replace(count=count, mu=mu, nu=nu))
        best = jnp.asarray(recorded["best_before"], jnp.float32)
        return state.replace(opt_state=opt_state, best_seg_loss=best)

    def counts(self, seed):
        """Steps taken before, by group; each parameter of a group has taken as many."""
        of_group = {}
        for name in self.stepped:
            path = "/".join(reference_names.name_map(self.model)[name][0][1:])
            of_group.setdefault(optimizer.group_of(path), set()).add(seeded.step_count(name, seed))
        assert all(len(counts) == 1 for counts in of_group.values())
        return {group: counts.pop() for group, counts in of_group.items()}

    def by_name(self, groups, state):
        """Arrays by group and path -> by the reference's name, those that are stepped."""
        copied = optimizer.split(state.params).get(optimizer.COPIED, {})
        params = optimizer.merge(groups | {optimizer.COPIED: copied})
        variables = {"params": params, "batch_stats": state.batch_stats}
        named = reference_names.from_variables(variables, self.model)
        return {name: named[name].astype(np.float64) for name in self.stepped}

    def moment(self, state, kind):
        return self.by_name(
            {group: getattr(adam, kind) for group, (_, adam) in state.opt_state.items()}, state
        )

    def params(self, state):
        return self.by_name(optimizer.split(state.params), state)

    def gradient(self, before, after):
        """What a step between two states went by; zero where it went not.

        The first moment of Adam tells: it moves by a tenth of the gradient and the decay of the
        weights.
        """
        old, new, weights = self.moment(before, "mu"), self.moment(after, "mu"), self.params(before)
        counts = [self.step_counts(state) for state in (before, after)]
        decay = float(self.recorded["weight_decay"])
        return {
            name: (new[name] - 0.9 * old[name]) / 0.1 - decay * weights[name]
            if counts[1][name] > counts[0][name]
            else np.zeros_like(old[name])
            for name in self.stepped
        }

    def step_counts(self, state):
        counts = {
            group: {path: np.full_like(value, adam.count) for path, value in adam.mu.items()}
            for group, (_, adam) in state.opt_state.items()
        }
        return {name: int(array.flat[0]) for name, array in self.by_name(counts, state).items()}

    def samples_by_name(self, flat):
        """Recorded samples of all parameters that are stepped, in one row -> by name."""
        sizes = [samples(np.empty(self.shapes[name]), SAMPLES).size for name in self.stepped]
        return dict(zip(self.stepped, np.split(flat, np.cumsum(sizes)[:-1]), strict=True))

    def assert_close(self, ours, flat, bound, of_backbone, scales=0.0):
        """Samples of every parameter agree, to a share of their norm.

        Args:
          ours: arrays by name.
          flat: recorded samples of all of them.
          bound: the share, for all but the backbone.
          of_backbone: the share for the backbone, see `BACKBONE`.
          scales: how large a number usually is, by parameter; where samples are smaller it counts.
        """
        scales = np.broadcast_to(scales, len(self.stepped))
        for (name, theirs), scale in zip(self.samples_by_name(flat).items(), scales, strict=True):
            share = of_backbone if name.startswith(BACKBONE) else bound
            deviation = np.linalg.norm(samples(ours[name], SAMPLES) - theirs)
            size = max(np.linalg.norm(theirs), scale * np.sqrt(theirs.size))
            assert deviation <= share * size, (name, deviation / size)

    def assert_norms_close(self, ours, recorded, bound, of_backbone):
        """The norm of every parameter, to a share of it; none where none was recorded."""
        for name, theirs in zip(self.stepped, recorded, strict=True):
            share = of_backbone if name.startswith(BACKBONE) else bound
            norm = np.linalg.norm(ours[name])
            assert (norm == 0) == (theirs == 0), name
            assert abs(norm - theirs) <= share * theirs, (name, norm, theirs)


# Name of the recording, backbone, and the iterations in it.
RECORDED = [
    *(("train_r18_3", "r18_3", index) for index in range(4)),
    # Another program to compile; two branches cover all of its code.
    pytest.param(("train_r34_2_one_branch", "r34_2", 0), marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def runs():
    """Each recording's run, built once."""
    return {}


@pytest.fixture(scope="module", params=RECORDED, ids=lambda case: f"{case[0]}-{case[2]}")
def case(request, runs):
    """A run and one of its iterations."""
    name, variant, index = request.param
    if name not in runs:
        runs[name] = Run(recording(name), variant)
    return runs[name], runs[name].iteration(index)


def segmentation_batch(image, instances):
    boxes = np.zeros((OBJECTS, 4), np.float32)
    found = seeded.boxes_of(instances)
    boxes[: len(found)] = found
    return {
        "image": jnp.asarray(image)[None, ..., None],
        "image_size": jnp.asarray([image.shape]),
        "instances": jnp.asarray(instances)[None],
        "boxes": jnp.asarray(boxes)[None],
        "labels": jnp.ones((1, OBJECTS), jnp.int32),
        "valid": (jnp.arange(OBJECTS) < len(found))[None],
    }


def classification_batch(image, label):
    return {
        "image": jnp.asarray(image)[None, ..., None],
        "image_size": jnp.asarray([image.shape]),
        "label": jnp.asarray([int(label)]),
    }


def test_losses(case):
    _, iteration = case
    ours = [iteration.seg[name] for name in steps.SEGMENTATION_LOSSES]
    np.testing.assert_allclose(ours, iteration.recorded["losses"], rtol=2e-5)
    np.testing.assert_allclose(iteration.cls["loss_cls"], iteration.recorded["loss_cls"], rtol=2e-5)


def test_copy_and_best_loss(case):
    """The segmentation branch is copied where it is the best so far, as it was before its step."""
    run, iteration = case
    recorded, after = iteration.recorded, iteration.states[-1]
    assert bool(iteration.seg["copied"]) == bool(recorded["copied"])
    np.testing.assert_allclose(after.best_seg_loss, recorded["best"], rtol=2e-5)
    if run.model.branches == 1:
        return
    variables = {"params": after.params, "batch_stats": after.batch_stats}
    ours = reference_names.from_variables(variables, run.model)
    twins = [name for name in ours if "_s2." in name]
    assert len(twins) == 8
    for name in twins:
        source = name.replace("_s2.", ".") if recorded["copied"] else name
        np.testing.assert_array_equal(ours[name], iteration.before[source], err_msg=name)


def test_skipped_where_there_is_no_lesion(case):
    _, iteration = case
    lesions = bool(iteration.recorded["lesions"])
    assert bool(iteration.seg["skipped"]) == (not lesions)
    if not lesions:
        before, between, _ = iteration.states
        jax.tree.map(np.testing.assert_array_equal, between, before)


def test_batch_norm_statistics(case):
    """Running means and variances, each to a share of what is largest in its layer."""
    run, iteration = case
    after = iteration.states[-1]
    variables = {"params": after.params, "batch_stats": after.batch_stats}
    ours = reference_names.from_variables(variables, run.model)
    names = [str(name) for name in run.recorded["statistics"]]
    sizes = [ours[name].size for name in names]
    theirs = np.split(iteration.recorded["statistics"], np.cumsum(sizes)[:-1])
    for name, expected in zip(names, theirs, strict=True):
        assert relative_error(ours[name], expected) <= 2e-5, name
    updates = [int(value) for name, value in ours.items() if name.endswith("num_batches_tracked")]
    assert updates == iteration.recorded["bn_updates"].tolist()


@pytest.mark.parametrize("step", ["seg", "cls"])
def test_gradients(case, step):
    """Those of the classification step are taken after the segmentation step."""
    run, iteration = case
    first = 0 if step == "seg" else 1
    ours = run.gradient(*iteration.states[first : first + 2])
    recorded = iteration.recorded
    run.assert_norms_close(ours, recorded[f"{step}_grad_norms"], 1e-3, 5e-3)
    run.assert_close(ours, recorded[f"{step}_grad"], 1e-3, 3e-2, recorded["scales"])


def test_moments_and_step_counts(case):
    run, iteration = case
    before, _, after = iteration.states
    recorded = iteration.recorded
    assert list(run.step_counts(after).values()) == recorded["steps"].tolist()
    run.assert_close(run.moment(after, "mu"), recorded["first"], 5e-4, 5e-3)
    old, new = run.moment(before, "nu"), run.moment(after, "nu")
    change = {name: new[name] - old[name] for name in new}
    run.assert_close(change, recorded["second_change"], 1e-3, 1e-2)


def test_updates_of_parameters(case):
    run, iteration = case
    before, _, after = iteration.states
    old, new = run.params(before), run.params(after)
    updates = {name: new[name] - old[name] for name in new}
    run.assert_norms_close(updates, iteration.recorded["update_norms"], 1e-4, 1e-3)
    run.assert_close(updates, iteration.recorded["updates"], 1e-3, 5e-3)
