"""Six training iterations, against recordings of the reference (no sampling: all candidates).

Training is chaotic where the RoI batch is concerned. Module S reads 128 ranked rows, every place
with weights of its own, and neighboring scores may be 1e-8 apart: rounding decides their order.
Adam's first steps have the length of the learning rate whatever the gradient, so that a gradient
near zero turns its step around on the last bit, as a ReLU near zero does with the gradient of all
below it. The reference departs from its own recording as far as we do when nothing but its rounding
changes: by threads, by vector instructions, in double precision. Two runs take the chaos out:

- At the learning rate 1e-4 the order of the rows is given and nothing else:
  recordings/train_r18_3_rows.npz names the anchor behind each row of the reference's RoI batches,
  and the proposal that we make of this anchor is read in its place. All of the first iteration and
  the segmentation losses of the second are compared strictly. Behind them rounding has grown too
  far, in the reference as here; what lies there is compared too, and expected to differ.
- At the learning rate 1e-6 rounding stays small. Nothing is given, and all six iterations are
  compared strictly, with another run of the reference: recordings/train_r18_3_slow.npz.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from ssm_jax import reference
from ssm_jax.config import ModelConfig, default_config
from ssm_jax.models import ssm
from ssm_jax.models.rpn import Proposals
from ssm_jax.ops import boxes as box_ops
from ssm_jax.training import optimizer, steps
from ssm_jax.training.state import state_from_variables
from tests.shared import DATA, REFERENCE, needs_data, needs_reference

pytestmark = [needs_reference, needs_data]

RECORDINGS = pathlib.Path(__file__).parent / "recordings"
OBJECTS = 16
EVERYTHING = 30 * 32 * 32  # all anchors
MODEL = ModelConfig(
    rpn_batch=EVERYTHING,
    rpn_positives=EVERYTHING,
    roi_batch=1000 + OBJECTS,
    roi_positives=1000 + OBJECTS,
)
ROWS = MODEL.selection_size
# Both runs share their compiled steps: iterations count from SLOW where the learning rate is low.
SLOW = 1000
LEARNING_RATE, SLOW_LEARNING_RATE = 1e-4, 1e-6
SAMPLES = 200  # of the numbers of a parameter, in the recording of the slow run


def read_grey(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("L"))


def segmentation_batch(name):
    folder = DATA / "ct_lesion_seg" / "train"
    image = read_grey(folder / "imgs" / name)
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


def classification_batch(name, anchors=None):
    """A slice; with `anchors` [ROWS], the rows of its RoI batch are these anchors' proposals."""
    image = read_grey(DATA / "ct_classes" / "train" / name)
    return {
        "image": jnp.asarray(image)[None, ..., None],
        "image_size": jnp.asarray([[512, 512]]),
        "label": jnp.asarray([int(name[0])]),
        "rows_given": jnp.asarray(anchors is not None),
        "row_anchors": jnp.asarray(np.zeros(ROWS) if anchors is None else anchors, jnp.int32),
    }


def classification_loss(model, params, batch_stats, batch, key, loss=steps.classification_loss):
    """The loss of `steps`, where the batch says which proposals are the rows of its RoI batch.

    The proposals of the given anchors come after all others and are no valid ones, so that our own
    selection does not see them. Metrics tell how far it agrees with what is given.
    """
    own_propose, own_select, agreement = ssm.propose, ssm.select_rois, {}

    def propose(config, objectness, deltas, anchors, image_sizes):
        own = own_propose(config, objectness, deltas, anchors, image_sizes)
        rows = batch["row_anchors"]
        anchors = jnp.asarray(anchors)[rows]
        boxes = box_ops.decode(deltas[:, rows], anchors, box_ops.RPN_WEIGHTS)
        boxes = box_ops.clip_to_image(boxes, image_sizes[0])
        given = Proposals(boxes, objectness[:, rows], jnp.zeros((1, ROWS), bool))
        return Proposals(*(jnp.concatenate(both, axis=1) for both in zip(own, given, strict=True)))

    def select_rois(config, outputs, proposals, image_sizes, keys):
        own = own_select(config, outputs, proposals, image_sizes, keys)
        given = proposals.boxes.shape[1] - ROWS + jnp.arange(ROWS)
        distances = jnp.abs(proposals.boxes[0, given, None] - proposals.boxes[0, own.indices[0]])
        scores = jax.nn.softmax(outputs.logits)[given, ssm.LESION]
        agreement["rows_shared"] = (distances.max(axis=-1) < 1e-3).any(axis=1).sum()
        agreement["score_rise"] = (scores[1:] - scores[:-1]).max()
        return own._replace(indices=jnp.where(batch["rows_given"], given, own.indices))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssm, "propose", propose)
        patch.setattr(ssm, "select_rois", select_rois)
        value, metrics = loss(model, params, batch_stats, batch, key)
    return value, metrics | agreement


def to_reference(params, batch_stats):
    """Our trees under the reference's names and layouts."""
    return reference.from_variables({"params": params, "batch_stats": batch_stats}, MODEL)


def samples(array):
    return array.ravel()[:: -(-array.size // SAMPLES)]


def cosine(a, b):
    return np.dot(a.ravel(), b.ravel()) / (np.linalg.norm(a) * np.linalg.norm(b))


@pytest.fixture(scope="module")
def recorded():
    return dict(np.load(REFERENCE / "train_r18_3.npz"))


@pytest.fixture(scope="module")
def row_anchors():
    """Of the reference's run that was recorded: [iterations, ROWS] int."""
    return np.load(RECORDINGS / "train_r18_3_rows.npz")["anchors"]


@pytest.fixture(scope="module")
def recorded_slow():
    """Of updates and gradients, `samples`; their scale is the learning rate or the maximum."""
    return dict(np.load(RECORDINGS / "train_r18_3_slow.npz"))


@pytest.fixture(scope="module")
def initial():
    weights = dict(np.load(REFERENCE / "weights_r18_3.npz"))
    return weights, reference.to_variables(weights, MODEL)


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
    """Runs all iterations: metrics and states of each, as NumPy under the reference's names."""
    config = run_config()

    def learning_rate(step):
        return jnp.where(step < SLOW, LEARNING_RATE, SLOW_LEARNING_RATE)

    def make_schedules(train, total_steps):
        groups = (*optimizer.SEGMENTATION_STEP, optimizer.MODULE_S)
        return dict.fromkeys(groups, learning_rate)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimizer, "make_schedules", make_schedules)
        patch.setattr(steps, "classification_loss", classification_loss)
        segmentation_step, classification_step = steps.make_steps(config)

        def iterations(first_step, row_anchors):
            state = state_from_variables(config, initial[1], jax.random.key(0))
            state = state.replace(step=jnp.asarray(first_step, jnp.int32))
            files = zip(recorded["seg_files"], recorded["cls_files"], row_anchors, strict=True)
            for seg_file, cls_file, anchors in files:
                state, seg = segmentation_step(state, segmentation_batch(str(seg_file)))
                after_segmentation = to_reference(state.params, state.batch_stats)
                batch = classification_batch(str(cls_file), anchors)
                state, cls = classification_step(state, batch)
                yield {
                    "seg": {name: np.asarray(value) for name, value in seg.items()},
                    "cls": {name: np.asarray(value) for name, value in cls.items()},
                    "after_segmentation": after_segmentation,
                    "after": to_reference(state.params, state.batch_stats),
                }

        yield iterations


@pytest.fixture(scope="module")
def trained(iterate, row_anchors):
    """The recorded run, with the order of the rows given."""
    return list(iterate(0, row_anchors))


@pytest.fixture(scope="module")
def trained_slowly(iterate, initial, recorded):
    """The run at the low learning rate, which keeps less: updates since the start, no states."""
    history = []
    for iteration in iterate(SLOW, [None] * len(recorded["cls_files"])):
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


chaotic = pytest.mark.xfail(
    reason="rounding grows too far, even with the order of the rows given", strict=False
)


def segmentation_losses(iteration):
    return np.array([iteration["seg"][name] for name in steps.SEGMENTATION_LOSSES])


def test_rows_are_our_own_selection_but_for_near_ties(trained):
    """What is given is what we would choose, and ranked as we would rank it, but for rounding."""
    shared = [int(iteration["cls"]["rows_shared"]) for iteration in trained]
    rises = [float(iteration["cls"]["score_rise"]) for iteration in trained]
    assert shared[0] == ROWS
    assert max(rises[:3]) < 1e-4
    # Rounding then grows, and moves boxes across the threshold of NMS.
    assert min(shared) >= 100


def test_losses_of_the_first_iteration(recorded, trained):
    np.testing.assert_allclose(
        segmentation_losses(trained[0]), recorded["seg_losses"][0], rtol=1e-4
    )
    np.testing.assert_allclose(trained[0]["cls"]["loss_cls"], recorded["cls_losses"][0], rtol=1e-4)


def test_segmentation_losses_of_the_second_iteration(recorded, trained):
    """They feel both updates of the first: of the segmentation and of the classification step."""
    np.testing.assert_allclose(
        segmentation_losses(trained[1]), recorded["seg_losses"][1], rtol=1e-3
    )


def test_the_slice_without_lesions_is_skipped(recorded, trained):
    for iteration, expected in zip(trained, recorded["seg_losses"], strict=True):
        assert bool(iteration["seg"]["skipped"]) == np.isnan(expected).all()
        assert np.isnan(segmentation_losses(iteration)).all() == np.isnan(expected).all()
    before, after = trained[1]["after"], trained[2]["after_segmentation"]
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array, err_msg=name)


@chaotic
@pytest.mark.parametrize("index", range(1, 6))
def test_losses_of_later_iterations(recorded, trained, index):
    ours = [*segmentation_losses(trained[index]), trained[index]["cls"]["loss_cls"]]
    expected = [*recorded["seg_losses"][index], recorded["cls_losses"][index]]
    np.testing.assert_allclose(ours, expected, rtol=1e-3)


def test_copies_and_best_loss(recorded, trained):
    copied = [bool(iteration["seg"]["copied"]) for iteration in trained]
    assert copied == recorded["copied"].tolist()
    # The last copy was in the second iteration.
    best = trained[-1]["seg"]["best_seg_loss"]
    np.testing.assert_allclose(best, recorded["best_seg_loss"], rtol=1e-3)


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


@pytest.mark.parametrize("last", [1, pytest.param(6, marks=chaotic)])
def test_updates_of_parameters(recorded, initial, trained, last):
    prefix = f"param_after_{last}/"
    names = [name.removeprefix(prefix) for name in recorded if name.startswith(prefix)]
    assert len(names) >= 10
    for name in names:
        ours = trained[last - 1]["after"][name] - initial[0][name]
        assert cosine(ours, recorded[prefix + name] - initial[0][name]) >= 0.99, name


@pytest.mark.parametrize(
    "iteration", [1, 2, *(pytest.param(i, marks=chaotic) for i in (3, 4, 5, 6))]
)
def test_parameter_norms(recorded, trained, iteration):
    expected = recorded[f"param_norms_after_{iteration}"]
    after = trained[iteration - 1]["after"]
    ours = [np.linalg.norm(after[str(name)]) for name in recorded["param_names"]]
    np.testing.assert_allclose(ours, expected, rtol=1e-3)


@functools.cache
def gradient_function(loss, groups):
    @jax.jit
    def gradient(params, batch_stats, batch):
        def value(params):
            return loss(MODEL, params, batch_stats, batch, jax.random.key(0))[0]

        parts = optimizer.split(jax.grad(value)(params))
        return optimizer.merge(
            {
                group: part if group in groups else jax.tree.map(jnp.zeros_like, part)
                for group, part in parts.items()
            }
        )

    return gradient


def segmentation_gradient(weights, batch):
    """What the step applies, by the reference's names."""
    gradient = gradient_function(steps.segmentation_loss, optimizer.SEGMENTATION_STEP)
    variables = reference.to_variables(weights, MODEL)
    return to_reference(gradient(**variables, batch=batch), variables["batch_stats"])


def classification_gradient(weights, batch):
    gradient = gradient_function(classification_loss, optimizer.CLASSIFICATION_STEP[2])
    variables = reference.to_variables(weights, MODEL)
    return to_reference(gradient(**variables, batch=batch), variables["batch_stats"])


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


def test_gradients_of_the_first_segmentation_step(recorded, initial):
    ours = segmentation_gradient(initial[0], segmentation_batch(str(recorded["seg_files"][0])))
    assert_gradients_agree(ours, recorded, "seg", recorded["param_names"])


def test_gradients_of_the_first_classification_step(recorded, trained, row_anchors):
    """They are taken after the segmentation step, which has turned near-zero gradients around."""
    batch = classification_batch(str(recorded["cls_files"][0]), row_anchors[0])
    ours = classification_gradient(trained[0]["after_segmentation"], batch)
    assert_gradients_agree(ours, recorded, "cls", recorded["param_names"])


def test_slow_gradients_of_the_first_classification_step(recorded, recorded_slow, trained_slowly):
    batch = classification_batch(str(recorded["cls_files"][0]))
    ours = classification_gradient(trained_slowly[0]["after_segmentation"], batch)
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
