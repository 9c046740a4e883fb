"""Six training iterations on whole CT slices, against recordings beside the repository.

The first steps of Adam have the length of the learning rate whatever the gradient: where a
gradient is near zero, rounding decides which way the parameter goes. At the learning rate of the
recording, 1e-4, this suffices to change the order of the 128 rows that module S reads, whose scores
may be 1e-8 apart. So what is compared at this rate is what comes before the first step: losses,
gradients, batch statistics and the copy of the branch. At 1e-6 rounding stays small, and all six
iterations are compared with another run of the reference, recordings/full_train_r18_3_slow.npz.
See docs/parity.md.
"""

import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from ssm_jax.config import ModelConfig, default_config, validate
from ssm_jax.interop import reference_names
from ssm_jax.training import optimizer, steps
from ssm_jax.training.state import state_from_variables
from tests.helpers.shared import DATA, REFERENCE, needs_data, needs_reference
from tests.training.test_steps import on_host

pytestmark = [pytest.mark.slow, needs_reference, needs_data]

RECORDINGS = pathlib.Path(__file__).parent / "recordings"
OBJECTS = 16
EVERYTHING = 30 * 32 * 32  # all anchors
MODEL = ModelConfig(
    rpn_batch=EVERYTHING,
    rpn_positives=EVERYTHING,
    roi_batch=1000 + OBJECTS,
    roi_positives=1000 + OBJECTS,
)
# Both runs share their compiled steps: iterations count from SLOW where the learning rate is low.
SLOW = 1000
LEARNING_RATE, SLOW_LEARNING_RATE, WEIGHT_DECAY = 1e-4, 1e-6, 1e-3
SAMPLES = 200  # of the numbers of a parameter, in the recording of the slow run


def read_gray(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("L"))


def segmentation_batch(name):
    folder = DATA / "ct_lesion_seg" / "train"
    image = read_gray(folder / "imgs" / name)
    mask = np.asarray(Image.open(folder / "masks" / name.replace(".jpg", ".png")))
    components, count = ndimage.label(mask >= 2, structure=np.ones((3, 3)))
    instances = np.zeros((512, 512), np.uint8)
    boxes = np.zeros((OBJECTS, 4), np.float32)
    kept = 0
    for component in range(1, count + 1):
        y, x = np.nonzero(components == component)
        if len(y) > 100:
            boxes[kept] = x.min(), y.min(), x.max() + 1, y.max() + 1
            kept += 1
            instances[y, x] = kept
    return {
        "image": jnp.asarray(image)[None, ..., None],
        "image_size": jnp.asarray([[512, 512]]),
        "instances": jnp.asarray(instances)[None],
        "boxes": jnp.asarray(boxes)[None],
        "labels": jnp.ones((1, OBJECTS), jnp.int32),
        "valid": (jnp.arange(OBJECTS) < kept)[None],
    }


def classification_batch(name):
    image = read_gray(DATA / "ct_classes" / "train" / name)
    return {
        "image": jnp.asarray(image)[None, ..., None],
        "image_size": jnp.asarray([[512, 512]]),
        "label": jnp.asarray([int(name[0])]),
    }


def to_reference(params, batch_stats):
    """Our trees under the reference's names and layouts."""
    return reference_names.from_variables({"params": params, "batch_stats": batch_stats}, MODEL)


def applied_gradient(before, after):
    """What a step between two states went by, by the reference's names; zero where it went not.

    The first moment of Adam tells: it moves by a tenth of the gradient, decay of weights included.
    """
    parts = optimizer.split(before.params)
    for group, part in parts.items():
        stepped = group != optimizer.COPIED
        if stepped:
            (_, old), (_, new) = (state.opt_state[group] for state in (before, after))
            stepped = new.count > old.count
        for name, values in part.items():
            gradient = np.zeros_like(values)
            if stepped:
                mean = np.float64(new.mu[name]) - 0.9 * np.float64(old.mu[name])
                gradient = mean / 0.1 - WEIGHT_DECAY * np.float64(values)
            part[name] = gradient
    return to_reference(optimizer.merge(parts), before.batch_stats)


def samples(array):
    return array.ravel()[:: -(-array.size // SAMPLES)]


def cosine(a, b):
    return np.dot(a.ravel(), b.ravel()) / (np.linalg.norm(a) * np.linalg.norm(b))


@pytest.fixture(scope="module")
def recorded():
    return dict(np.load(REFERENCE / "train_r18_3.npz"))


@pytest.fixture(scope="module")
def recorded_slow():
    """Of updates and gradients, `samples`; their scale is the learning rate or the maximum."""
    return dict(np.load(RECORDINGS / "full_train_r18_3_slow.npz"))


@pytest.fixture(scope="module")
def initial():
    weights = dict(np.load(REFERENCE / "weights_r18_3.npz"))
    return weights, reference_names.to_variables(weights, MODEL)


def run_config():
    config = default_config()
    config.model.update(
        rpn_batch=MODEL.rpn_batch,
        rpn_positives=MODEL.rpn_positives,
        roi_batch=MODEL.roi_batch,
        roi_positives=MODEL.roi_positives,
    )
    return config


@pytest.fixture(scope="module")
def iterate(recorded, initial):
    """Runs all iterations: metrics and states of each, as NumPy under the reference's names.

    Of the first iteration the gradients too.
    """
    config = run_config()

    def learning_rate(step):
        return jnp.where(step < SLOW, LEARNING_RATE, SLOW_LEARNING_RATE)

    def make_schedules(train, total_steps):
        groups = (*optimizer.SEGMENTATION_STEP, optimizer.MODULE_S)
        return dict.fromkeys(groups, learning_rate)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimizer, "make_schedules", make_schedules)
        segmentation_step, classification_step = steps.make_steps(validate(config), config.train)

        def iterations(first_step):
            state = state_from_variables(initial[1], jax.random.key(0))
            state = state.replace(step=jnp.asarray(first_step, jnp.int32))
            files = zip(recorded["seg_files"], recorded["cls_files"], strict=True)
            for index, (seg_file, cls_file) in enumerate(files):
                kept = [on_host(state)] if index == 0 else None
                state, seg = segmentation_step(state, segmentation_batch(str(seg_file)))
                after_segmentation = to_reference(state.params, state.batch_stats)
                if kept:
                    kept.append(on_host(state))
                state, cls = classification_step(state, classification_batch(str(cls_file)))
                iteration = {
                    "seg": {name: np.asarray(value) for name, value in seg.items()},
                    "cls": {name: np.asarray(value) for name, value in cls.items()},
                    "after_segmentation": after_segmentation,
                    "after": to_reference(state.params, state.batch_stats),
                }
                if kept:
                    iteration["seg_gradient"] = applied_gradient(*kept)
                    iteration["cls_gradient"] = applied_gradient(kept[1], on_host(state))
                yield iteration

        yield iterations


@pytest.fixture(scope="module")
def trained(iterate):
    """The first three iterations at the learning rate of the recording."""
    return list(itertools.islice(iterate(0), 3))


@pytest.fixture(scope="module")
def trained_slowly(iterate, initial, recorded):
    """The run at the low learning rate, which keeps less: updates since the start, no states."""
    history = []
    for iteration in iterate(SLOW):
        after = iteration.pop("after")
        if history:
            del iteration["after_segmentation"]
        updates = {
            name: after[name] - initial[0][name] for name in map(str, recorded["param_names"])
        }
        iteration["update_norms"] = [np.linalg.norm(update) for update in updates.values()]
        iteration["updates"] = {name: samples(update) for name, update in updates.items()}
        history.append(iteration)
    return history


def segmentation_losses(iteration):
    return np.array([iteration["seg"][name] for name in steps.SEGMENTATION_LOSSES])


def test_losses_of_the_first_segmentation_step(recorded, trained):
    np.testing.assert_allclose(
        segmentation_losses(trained[0]), recorded["seg_losses"][0], rtol=1e-4
    )


def test_the_slice_without_lesions_is_skipped(recorded, trained):
    for iteration, expected in zip(trained, recorded["seg_losses"][:3], strict=True):
        assert bool(iteration["seg"]["skipped"]) == np.isnan(expected).all()
        assert np.isnan(segmentation_losses(iteration)).all() == np.isnan(expected).all()
    before, after = trained[1]["after"], trained[2]["after_segmentation"]
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array, err_msg=name)


def test_batch_norm_statistics_after_the_first_segmentation_step(recorded, trained):
    names = [name for name in recorded if name.startswith("bn_after_seg/")]
    assert names
    for name in names:
        ours = trained[0]["after_segmentation"][name.removeprefix("bn_after_seg/")]
        assert np.abs(ours - recorded[name]).max() <= 1e-4 * np.abs(recorded[name]).max(), name


def test_branch_is_copied_before_the_update(initial, trained):
    """The first copy hands over the initial weights of the segmentation branch, not the updated."""
    for name in ("box_head{}.fc6.weight", "box_predictor{}.bbox_pred.bias"):
        source = initial[0]["roi_heads." + name.format("")]
        np.testing.assert_array_equal(
            trained[0]["after"]["roi_heads." + name.format("_s2")], source
        )
        assert (trained[0]["after"]["roi_heads." + name.format("")] != source).any()


def assert_gradients_agree(ours, recorded, step, names):
    norms = np.array([np.linalg.norm(ours[str(name)]) for name in names])
    expected = recorded[f"{step}_grad_norms"]
    assert ((norms == 0) == (expected == 0)).all()
    np.testing.assert_allclose(norms, expected, rtol=1e-3)
    prefix = f"{step}_grad/"
    compared = [name for name in recorded if name.startswith(prefix)]
    assert compared
    for name in compared:
        gradient, expected = ours[name.removeprefix(prefix)], recorded[name].astype(np.float32)
        gradient = gradient if gradient.size == expected.size else samples(gradient)
        assert cosine(gradient, expected) >= 0.9999, name


def test_gradients_of_the_first_segmentation_step(recorded, trained):
    ours = trained[0]["seg_gradient"]
    assert_gradients_agree(ours, recorded, "seg", recorded["param_names"])


def test_slow_gradients_of_the_first_classification_step(recorded, recorded_slow, trained_slowly):
    ours = trained_slowly[0]["cls_gradient"]
    assert_gradients_agree(ours, recorded_slow, "cls", recorded["param_names"])


def test_slow_losses_of_all_iterations(recorded_slow, trained_slowly):
    seg = [segmentation_losses(iteration) for iteration in trained_slowly]
    np.testing.assert_allclose(seg, recorded_slow["seg_losses"], rtol=1e-3)
    cls = [iteration["cls"]["loss_cls"] for iteration in trained_slowly]
    np.testing.assert_allclose(cls, recorded_slow["cls_losses"], rtol=1e-3)


def test_slow_copies_and_best_loss(recorded_slow, trained_slowly):
    copied = [bool(iteration["seg"]["copied"]) for iteration in trained_slowly]
    assert copied == recorded_slow["copied"].tolist()
    best = trained_slowly[-1]["seg"]["best_seg_loss"]
    np.testing.assert_allclose(best, recorded_slow["best_seg_loss"], rtol=1e-3)


@pytest.mark.parametrize("last", [1, 6])
def test_slow_updates_of_parameters(recorded_slow, trained_slowly, last):
    prefix = f"update_after_{last}/"
    names = [name.removeprefix(prefix) for name in recorded_slow if name.startswith(prefix)]
    assert len(names) >= 10
    for name in names:
        expected = recorded_slow[prefix + name].astype(np.float32)
        assert cosine(trained_slowly[last - 1]["updates"][name], expected) >= 0.99, name


def test_slow_update_norms(recorded_slow, trained_slowly):
    ours = [iteration["update_norms"] for iteration in trained_slowly]
    np.testing.assert_allclose(ours, recorded_slow["update_norms"], rtol=1e-2)
