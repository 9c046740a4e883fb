"""Convolution and its gradients against plain NumPy; gray slices against three equal channels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from ssm_jax import sharding
from ssm_jax.models import winograd
from ssm_jax.models.convolution import convolve, kernel_gradient
from ssm_jax.models.resnet import Stem
from ssm_jax.ops.images import gray_and_inside, normalize

pytestmark = pytest.mark.usefixtures("quickly_compiled")

CASES = [  # batch, height, width, channels, features, kernel, stride, padding
    (1, 8, 12, 5, 3, 3, 1, 1),
    (2, 16, 10, 6, 4, 3, 2, 1),
    (3, 7, 9, 5, 2, 3, 1, 1),
    (2, 8, 8, 8, 6, 1, 2, 0),
    (1, 6, 4, 5, 3, 1, 1, 0),
    (1, 16, 12, 3, 4, 7, 2, 3),
    (2, 12, 12, 2, 4, 7, 2, 3),
    (1, 9, 9, 1, 2, 3, 2, 1),
    (2, 38, 8, 5, 3, 3, 1, 1),  # strips of a third of each map, the last one not full
    (1, 74, 8, 2, 3, 7, 2, 3),
    (5, 16, 64, 5, 3, 3, 1, 1),  # strips of two maps, the last one not full
]


def plain(x, kernel, stride, padding):
    """The output, and the patch behind each of its places."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    size = kernel.shape[0]
    height, width = ((length - size) // stride + 1 for length in x.shape[1:3])
    patches = np.stack(
        [
            np.stack(
                [
                    x[:, i * stride : i * stride + size, j * stride : j * stride + size]
                    for j in range(width)
                ],
                1,
            )
            for i in range(height)
        ],
        1,
    )
    return np.einsum("bijyxc,yxcf->bijf", patches, kernel), patches


@pytest.mark.parametrize("case", CASES, ids=str)
def test_output_and_gradients(case):
    batch, height, width, channels, features, size, stride, padding = case
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, height, width, channels))
    kernel = rng.standard_normal((size, size, channels, features))
    expected, patches = plain(x, kernel, stride, padding)
    gradient = rng.standard_normal(expected.shape)

    def of(x, kernel):
        return convolve(x, kernel, stride, padding)

    output, pull = jax.vjp(of, jnp.float32(x), jnp.float32(kernel))
    of_x, of_kernel = pull(jnp.float32(gradient))
    np.testing.assert_allclose(output, expected, atol=1e-4)
    wanted = np.einsum("bijyxc,bijf->yxcf", patches, gradient)
    np.testing.assert_allclose(of_kernel, wanted, atol=2e-4)
    products = kernel_gradient(jnp.float32(x), jnp.float32(gradient), size, stride, padding)
    np.testing.assert_allclose(products, wanted, atol=2e-4)
    # The convolution is linear in x, so that its gradient is what makes the products equal.
    other = rng.standard_normal(x.shape)
    response = plain(other, kernel, stride, padding)[0]
    np.testing.assert_allclose((of_x * other).sum(), (gradient * response).sum(), rtol=1e-4)


@pytest.mark.parametrize(
    "shape",
    [
        (1, 24, 20, 128, 128),  # one map
        (1, 22, 20, 64, 65),
        (3, 22, 20, 130, 128),  # maps one after the other
        (2, 14, 14, 128, 128),  # small maps together
    ],
    ids=str,
)
def test_winograd(shape):
    """The bound is twice the largest error of the compiler's convolution and gradients here."""
    batch, height, width, channels, features = shape
    rng = np.random.default_rng(0)
    x, kernel, gradient = arrays = [
        rng.standard_normal(sides).astype(np.float32)
        for sides in (
            (batch, height, width, channels),
            (3, 3, channels, features),
            (batch, height, width, features),
        )
    ]
    convolve_3x3 = functools.partial(convolve, stride=1, padding=1)
    on_device = [jnp.asarray(array) for array in arrays]
    assert "conv_general_dilated" not in str(jax.make_jaxpr(convolve_3x3)(*on_device[:2]))

    output, pull = jax.vjp(convolve_3x3, *on_device[:2])
    of_x, of_kernel = pull(on_device[2])
    expected, patches = plain(np.float64(x), kernel, 1, 1)
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    expected_of_x, _ = plain(np.float64(gradient), turned, 1, 1)
    expected_of_kernel = np.einsum("bijyxc,bijf->yxcf", patches, gradient, optimize=True)
    by_points = winograd.kernel_gradient(on_device[0], on_device[2])
    for ours, exact in (
        (output, expected),
        (of_x, expected_of_x),
        (of_kernel, expected_of_kernel),
        (by_points, expected_of_kernel),
    ):
        np.testing.assert_allclose(ours, exact, rtol=0, atol=2e-6 * np.abs(exact).max())


def test_odd_sides_few_channels_and_strides_go_by_the_compiler():
    for batch, side, features, stride in (
        (1, 25, 64, 1),
        (1, 24, 63, 1),
        (1, 24, 64, 2),
        (2, 24, 64, 1),
    ):
        x, kernel = jnp.ones((batch, side, side, 64)), jnp.ones((3, 3, 64, features))
        program = jax.make_jaxpr(lambda x, k, s=stride: convolve(x, k, s, 1))(x, kernel)
        assert "conv_general_dilated" in str(program)


@pytest.mark.parametrize("channels", [8, 128])
def test_the_gradient_of_a_kernel_is_summed_over_devices_once(channels):
    """Of whole batches; where each device works on its own part, as on masks, by who asked."""
    mesh = AbstractMesh((2,), (sharding.AXIS,), axis_types=(AxisType.Auto,))
    of_kernel = jax.grad(lambda kernel, x: convolve(x, kernel, 1, 1).sum())
    arrays = jnp.ones((3, 3, channels, channels)), jnp.ones((2, 8, 8, channels))
    specs = (sharding.REPLICATED, sharding.SPLIT)
    with jax.sharding.use_abstract_mesh(mesh):
        of_batch = jax.make_jaxpr(of_kernel)(*arrays)
        of_parts = jax.make_jaxpr(sharding.per_device(of_kernel, specs))(*arrays)
    assert [str(program).count("psum") for program in (of_batch, of_parts)] == [1, 0]


def test_bfloat16_keeps_the_types_of_its_inputs():
    x, kernel = jnp.ones((1, 8, 8, 8), jnp.bfloat16), jnp.ones((3, 3, 8, 4), jnp.bfloat16)
    output, pull = jax.vjp(lambda x, kernel: convolve(x, kernel, 1, 1), x, kernel)
    assert {array.dtype for array in (output, *pull(output))} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_gray_slices_are_three_equal_channels(dtype):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (2, 32, 48, 1)).astype(np.uint8)
    images = images if dtype == np.uint8 else (images / 255).astype(np.float32)
    images, sizes = jnp.asarray(images), jnp.array([[32, 48], [20, 31]])
    stem = Stem(4)
    variables = stem.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))

    def loss(variables, pixels):
        output = stem.apply(variables, pixels)
        return (output * jnp.cos(jnp.arange(output.size)).reshape(output.shape)).sum(), output

    results = [
        jax.value_and_grad(loss, has_aux=True)(variables, pixels(images, sizes))
        for pixels in (gray_and_inside, normalize)
    ]
    ((_, gray), of_gray), ((_, three), of_three) = results
    np.testing.assert_allclose(gray, three, atol=2e-5)
    np.testing.assert_allclose(
        of_gray["params"]["kernel"], of_three["params"]["kernel"], rtol=1e-4, atol=1e-3
    )
