"""Six training iterations, against the recording of the reference (no sampling: all candidates).

Training is chaotic where the RoI batch is concerned: which boxes survive NMS, and in which order,
is discrete, and a box more or less moves all rows behind it. Adam's first steps have the length of
the learning rate whatever the gradient, so that a gradient near zero turns its step around on the
last bit. Single precision, the recording's as much as ours, decides such cases by chance, and so
does double precision against it. The first iteration and everything before the second L_CLS is
compared strictly; what lies behind is compared too, and expected to differ.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from ssm_jax import reference
from ssm_jax.config import ModelConfig, default_config
from ssm_jax.training import optimizer, steps
from ssm_jax.training.state import state_from_variables
from tests.shared import DATA, REFERENCE, needs_data, needs_reference

pytestmark = [needs_reference, needs_data]

OBJECTS = 16
EVERYTHING = 30 * 32 * 32  # all anchors
MODEL = ModelConfig(
    rpn_batch=EVERYTHING,
    rpn_positives=EVERYTHING,
    roi_batch=1000 + OBJECTS,
    roi_positives=1000 + OBJECTS,
)


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


def classification_batch(name):
    image = read_grey(DATA / "ct_classes" / "train" / name)
    return {
        "image": jnp.asarray(image)[None, ..., None],
        "image_size": jnp.asarray([[512, 512]]),
        "label": jnp.asarray([int(name[0])]),
    }


def to_reference(params, batch_stats):
    """Our trees under the reference's names and layouts."""
    return reference.from_variables({"params": params, "batch_stats": batch_stats}, MODEL)


def cosine(a, b):
    return np.dot(a.ravel(), b.ravel()) / (np.linalg.norm(a) * np.linalg.norm(b))


@pytest.fixture(scope="module")
def recorded():
    return dict(np.load(REFERENCE / "train_r18_3.npz"))


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
    config.train.learning_rate = 1e-4
    return config


@pytest.fixture(scope="module")
def trained(recorded, initial):
    """States and metrics of all iterations, as NumPy under the reference's names."""
    config = run_config()
    state = state_from_variables(config, initial[1], jax.random.key(0))
    segmentation_step, classification_step = steps.make_steps(config)
    history = []
    for seg_file, cls_file in zip(recorded["seg_files"], recorded["cls_files"], strict=True):
        state, seg = segmentation_step(state, segmentation_batch(str(seg_file)))
        after_segmentation = to_reference(state.params, state.batch_stats)
        state, cls = classification_step(state, classification_batch(str(cls_file)))
        history.append(
            {
                "seg": {name: np.asarray(value) for name, value in seg.items()},
                "cls": {name: np.asarray(value) for name, value in cls.items()},
                "after_segmentation": after_segmentation,
                "after": to_reference(state.params, state.batch_stats),
            }
        )
    return history


chaotic = pytest.mark.xfail(
    reason="from the second L_CLS on, rounding decides which boxes reach module S", strict=False
)


def segmentation_losses(iteration):
    return np.array([iteration["seg"][name] for name in steps.SEGMENTATION_LOSSES])


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


@pytest.mark.parametrize("step", ["seg", "cls"])
def test_gradients_of_the_first_iteration(recorded, initial, trained, step):
    """The segmentation gradient is taken at the start, the classification one after that step."""
    if step == "seg":
        weights = initial[0]
        loss, batch = steps.segmentation_loss, segmentation_batch(str(recorded["seg_files"][0]))
        groups = optimizer.SEGMENTATION_STEP
    else:
        weights = trained[0]["after_segmentation"]
        loss, batch = steps.classification_loss, classification_batch(str(recorded["cls_files"][0]))
        groups = optimizer.CLASSIFICATION_STEP[2]
    variables = reference.to_variables(weights, MODEL)

    @jax.jit
    def gradient_of(params):
        def value(params):
            return loss(MODEL, params, variables["batch_stats"], batch, jax.random.key(0))[0]

        return jax.grad(value)(params)

    parts = optimizer.split(gradient_of(variables["params"]))
    stepped = {
        group: part if group in groups else jax.tree.map(jnp.zeros_like, part)
        for group, part in parts.items()
    }
    ours = to_reference(optimizer.merge(stepped), variables["batch_stats"])

    names = [str(name) for name in recorded["param_names"]]
    norms = np.array([np.linalg.norm(ours[name]) for name in names])
    expected = recorded[f"{step}_grad_norms"]
    assert ((norms == 0) == (expected == 0)).all()
    np.testing.assert_allclose(norms, expected, rtol=1e-3)
    full = [name for name in recorded if name.startswith(f"{step}_grad/")]
    assert full
    for name in full:
        assert cosine(ours[name.removeprefix(f"{step}_grad/")], recorded[name]) >= 0.9999, name
