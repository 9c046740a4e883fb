"""Parameter counts, structure, and the parts of the network that no recording covers."""

import functools

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from ssm_jax.config import ModelConfig
from ssm_jax.models import layers, ssm
from ssm_jax.models.roi_heads import Upsample2x, interleave
from ssm_jax.training import optimizer

pytestmark = pytest.mark.usefixtures("quickly_compiled")

# Backbone, blocks, RoI branches -> all parameters (paper, table 1, to the digit).
PARAMETERS = {
    ("resnet18", 2, 1): 4_511_717,
    ("resnet18", 3, 1): 6_644_197,
    ("resnet34", 2, 1): 5_176_549,
    ("resnet34", 3, 1): 12_031_717,
    ("resnet18", 2, 2): 6_135_279,
    ("resnet18", 3, 2): 8_267_759,
    ("resnet34", 2, 2): 6_800_111,
    ("resnet34", 3, 2): 13_655_279,
}
STEPPED_IN_CLASSIFICATION = {
    ("resnet18", 2): 1_898_563,
    ("resnet34", 2): 2_563_395,
    ("resnet18", 3): 4_031_043,
    ("resnet34", 3): 9_418_563,
}


def abstract_params(backbone, blocks, branches):
    config = ModelConfig(backbone=backbone, blocks=blocks, branches=branches)
    init = functools.partial(ssm.init_variables, config)
    return jax.eval_shape(init, jax.random.key(0))["params"]


@pytest.mark.parametrize("architecture", PARAMETERS)
def test_parameter_count(architecture):
    params = abstract_params(*architecture)
    assert sum(array.size for array in jax.tree.leaves(params)) == PARAMETERS[architecture]


@pytest.mark.parametrize("architecture", PARAMETERS)
def test_stepped_by_the_classification_loss(architecture):
    params = abstract_params(*architecture)
    stepped = optimizer.stepped_count(params, optimizer.CLASSIFICATION_STEP[2])
    assert stepped == STEPPED_IN_CLASSIFICATION[architecture[:2]]


def test_groups_cover_every_parameter_once():
    params = abstract_params("resnet18", 2, 2)
    parts = optimizer.split(params)
    assert set(parts) == {"backbone", "backbone_bn", "segmentation", "module_s", "copied"}
    names = [name for part in parts.values() for name in part]
    assert sorted(names) == sorted(traverse_util.flatten_dict(params, sep="/"))
    assert jax.tree.structure(optimizer.merge(parts)) == jax.tree.structure(params)
    bn = {name.split("/")[-1] for name in parts["backbone_bn"]}
    assert bn == {"scale", "bias"}
    assert all("conv" in name or name.startswith("fpn") for name in parts["backbone"])


def test_initial_weights_follow_the_reference():
    params = ssm.init_variables(ModelConfig(blocks=2), jax.random.key(0))["params"]

    def check(array, std, rtol=0.05):
        np.testing.assert_allclose(np.std(array), std, rtol=rtol)

    check(params["backbone"]["layer2_0"]["conv1"]["kernel"], (2 / (9 * 128)) ** 0.5)
    check(params["rpn"]["conv"]["kernel"], 0.01)
    check(params["module_s"]["fc1"]["kernel"], (2 / 512) ** 0.5)
    check(params["mask_head"]["upsample"]["kernel"], (2 / 512) ** 0.5)
    fpn = np.asarray(params["fpn"]["layer"]["kernel"])
    assert np.abs(fpn).max() <= (3 / (9 * 256)) ** 0.5
    check(fpn, (1 / (9 * 256)) ** 0.5)
    fc6 = params["segmentation_branch"]["fc6"]
    for array in fc6.values():
        assert np.abs(array).max() <= 1 / 12544**0.5
    check(fc6["kernel"], (1 / (3 * 12544)) ** 0.5)
    assert not np.asarray(params["rpn"]["conv"]["bias"]).any()


def test_batch_norm_equals_its_definition_with_and_without_a_mask():
    """Against flax's own layer for values and gradients, and NumPy for the running statistics."""
    x = jax.random.normal(jax.random.key(0), (3, 4, 5, 6)) * 2 + 1
    cotangent = jax.random.normal(jax.random.key(1), x.shape)
    ours, theirs = layers.BatchNorm(0.1), nn.BatchNorm(use_running_average=False, epsilon=1e-5)
    params = {
        "scale": jax.random.normal(jax.random.key(2), (6,)),
        "bias": jax.random.normal(jax.random.key(3), (6,)),
    }
    mask = jnp.array([True, False, True])
    stats = ours.init(jax.random.key(0), x, train=True)["batch_stats"]
    for example_mask in (None, mask):
        weight = jnp.ones(3) if example_mask is None else mask.astype(float)
        weight = weight[:, None, None, None]

        def our_value(params, x, example_mask=example_mask, weight=weight):
            variables = {"params": params, "batch_stats": stats}
            y, updated = ours.apply(variables, x, True, example_mask, mutable=["batch_stats"])
            return (y * cotangent * weight).sum(), (y, updated["batch_stats"])

        def their_value(params, x, example_mask=example_mask, weight=weight):
            flax_mask = None if example_mask is None else example_mask[:, None, None, None]
            y, _ = theirs.apply({"params": params}, x, mask=flax_mask, mutable=["batch_stats"])
            return (y * cotangent * weight).sum(), y

        ours_grad, (y, updated) = jax.grad(our_value, (0, 1), has_aux=True)(params, x)
        theirs_grad, expected = jax.grad(their_value, (0, 1), has_aux=True)(params, x)
        chosen = np.asarray(x if example_mask is None else x[np.asarray(mask)])
        np.testing.assert_allclose(y, expected, atol=2e-5)
        for a, b in zip(jax.tree.leaves(ours_grad), jax.tree.leaves(theirs_grad), strict=True):
            np.testing.assert_allclose(a, b, atol=3e-5)
        mean, var = chosen.mean((0, 1, 2)), chosen.var((0, 1, 2), ddof=1)
        np.testing.assert_allclose(updated["mean"], 0.1 * mean, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(updated["var"], 0.9 + 0.1 * var, rtol=1e-5)
        assert updated["count"] == 1


@pytest.mark.parametrize("shape", [(1, 8, 8, 3), (2, 7, 10, 1)])
def test_max_pool_equals_the_window_reduction(shape):
    x = jax.random.normal(jax.random.key(0), shape)
    expected = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
    np.testing.assert_array_equal(layers.max_pool_3x3_stride_2(x), expected)
    cotangent = jax.random.normal(jax.random.key(1), expected.shape)
    ours = jax.vjp(layers.max_pool_3x3_stride_2, x)[1](cotangent)[0]
    window = jax.vjp(lambda x: nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1))), x)[1](cotangent)[0]
    np.testing.assert_allclose(ours, window, atol=1e-6)


def test_upsampling_equals_a_transposed_convolution():
    """Output pixel (2i + a, 2j + b) is the input pixel (i, j) times the kernel's tap (a, b)."""
    x = np.random.default_rng(0).normal(size=(1, 2, 3, 4)).astype(np.float32)
    layer = Upsample2x(5)
    variables = layer.init(jax.random.key(0), jnp.asarray(x))
    kernel, bias = (np.asarray(variables["params"][name]) for name in ("kernel", "bias"))
    y = np.asarray(interleave(layer.apply(variables, jnp.asarray(x))))
    for i, j, a, b in np.ndindex(2, 3, 2, 2):
        expected = x[0, i, j] @ kernel[a, b] + bias
        np.testing.assert_allclose(y[0, 2 * i + a, 2 * j + b], expected, atol=1e-5)


@pytest.mark.parametrize("field", [{"blocks": 4}, {"backbone": "vgg"}, {"image_size": 500}])
def test_impossible_models_are_refused(field):
    with pytest.raises(ValueError, match=next(iter(field))):
        ModelConfig(**field)


def test_unknown_fields_are_named():
    with pytest.raises(ValueError, match="depth"):
        ModelConfig.from_mapping({"depth": 18})


@pytest.mark.parametrize("counts", [[0, 0], [0, 3], [8, 0], [9, 16], [1, 8], [20, 17]])
def test_masks_in_use_are_visited_once(counts):
    """Every RoI in use once, those of other images never, and few that are not in use."""
    entries = ssm.pad_to_chunks(jnp.arange(1, 1 + 2 * 20).reshape(2, 20))

    def visit(visits, image, start):
        chunk = ssm.chunk_of(entries, image, start)
        return visits.at[image, jnp.where(chunk > 0, chunk - 1 - 20 * image, 99)].add(1)

    run = jax.jit(lambda counts: ssm.for_masks_in_use(counts, visit, jnp.zeros((2, 20), int)))
    visits = np.asarray(run(jnp.array(counts)))
    for image, count in enumerate(counts):
        visited = min(20, -(-count // ssm.MASK_CHUNK) * ssm.MASK_CHUNK)
        np.testing.assert_array_equal(visits[image], np.arange(20) < visited)


@pytest.mark.parametrize("count", [0, 3, 8, 9, 40])
def test_masks_in_use_make_one_batch(count):
    """All RoIs in use, once each, in the smallest batch that holds them."""
    in_use = np.zeros(40, bool)
    in_use[np.random.default_rng(count).permutation(40)[:count]] = True

    def visit(chosen):
        return jnp.zeros(40, int).at[chosen].add(1), jnp.array(len(chosen))

    visits, size = jax.jit(lambda x: ssm.with_masks_in_use(x, visit))(in_use.reshape(2, 20))
    assert size == min(size for size in (8, 32, 40) if size >= count)
    assert (np.asarray(visits)[in_use] == 1).all()
    assert visits.sum() == size


def test_masks_in_use_of_any_number_of_images():
    run = jax.jit(lambda x: ssm.with_masks_in_use(x, lambda chosen: jnp.zeros(3).at[chosen].add(1)))
    in_use = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("b"), 20), bool)
    assert jax.export.export(run)(in_use).mlir_module().count("stablehlo.case") == 1
