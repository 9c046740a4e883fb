"""PyTorch checkpoints of both formats, whole and broken."""

import json

import numpy as np
import pytest

from ssm_jax.interop import torch_file, torch_tensors
from ssm_jax.interop.torch_pickle import Record
from tests.helpers.shared import REFERENCE, needs_reference
from tests.helpers.torch_files import (
    Call,
    Name,
    Outside,
    Then,
    code,
    pickled,
    storage,
    tensor,
    write_legacy,
    write_zip,
)

NUMBERS = np.arange(12, dtype="<f4")


def refused(path, match, **others):
    """Asserts that a file is refused in one line that names it."""
    with pytest.raises(ValueError, match=match) as error:
        torch_file.read(path, **others)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


def both_formats(folder, value, kind="FloatStorage", numbers=NUMBERS):
    """The same value with storage "s" in a file of each format."""
    data, count = pickled(value), len(numbers)
    yield write_zip(folder / "zip.pth", data, [("s", numbers.tobytes())])
    yield write_legacy(folder / "legacy.pth", data, [("s", count, numbers.tobytes())])


def small_files(folder):
    """A file of each format with a bit of everything."""
    first = tensor(storage("s", 12), (2, 3), (3, 1), 6)
    second = tensor(storage("t", 2, "LongStorage"), (), (), 1)
    value = {
        "weights": Call(Name("collections", "OrderedDict"), ()),
        "first": first,
        "second": [second, Call(Name("torch", "Size"), ((2, 3),))],
        "object": Call(Name("models", "Anchors"), (), {"sizes": ((1, 2.5),)}),
    }
    data, longs = pickled(value), np.array([3, 2**40], "<i8").tobytes()
    storages = [("s", NUMBERS.tobytes()), ("t", longs)]
    yield write_zip(folder / "zip.pth", data, storages, version="3\n", byteorder="little")
    storages = [("s", 12, NUMBERS.tobytes()), ("t", 2, longs)]
    yield write_legacy(folder / "legacy.pth", data, storages)


def test_small_files(tmp_path):
    for path in small_files(tmp_path):
        loaded = torch_file.read(path)
        np.testing.assert_array_equal(loaded["first"], [[6, 7, 8], [9, 10, 11]])
        assert loaded["first"].dtype == np.float32
        assert loaded["second"][0].shape == ()
        assert loaded["second"][0] == 2**40
        assert loaded["second"][1] == (2, 3)
        assert loaded["weights"] == {}
        assert loaded["object"].name == "models.Anchors"
        assert loaded["object"].state == {"sizes": ((1, 2.5),)}


@needs_reference
@pytest.mark.parametrize(("name", "count"), [("legacy", 98), ("small_zip", 88)])
def test_the_recorded_files(name, count):
    loaded = torch_file.read(REFERENCE / f"model_r18_2_{name}.pth")
    assert loaded.keys() == {"epoch", "model_weights", "lrate", "anchor_generator"}
    assert (loaded["epoch"], loaded["lrate"]) == ("139", 1e-4)
    recorded = json.loads((REFERENCE / "weights_r18_2_summary.json").read_text())
    weights = loaded["model_weights"]
    assert len(weights) == count
    assert weights.keys() <= recorded.keys()
    assert name != "legacy" or list(weights) == list(recorded)
    for key, array in weights.items():
        expected = recorded[key]
        assert list(array.shape) == expected["shape"]
        assert str(array.dtype) == expected["dtype"]
        values = array.astype(np.float64).ravel()
        np.testing.assert_array_equal(values[:3], expected["first"])
        np.testing.assert_allclose(values.sum(), expected["sum"], atol=1e-9 * values.size)
        np.testing.assert_allclose(np.abs(values).sum(), expected["abs_sum"], rtol=1e-9)
    generator = loaded["anchor_generator"]
    assert isinstance(generator, Record)
    assert generator.name == "models.ssm.rpn.AnchorGenerator"
    assert generator.state["sizes"] == ((2, 4, 8, 16, 32),)
    assert generator.state["aspect_ratios"] == ((0.1, 0.25, 0.5, 1, 1.5, 2),)
    assert generator.state["_cache"].keys() == {((64, 64), (8.0, 8.0))}


@needs_reference
def test_both_recorded_files_hold_the_same():
    legacy, small = (
        torch_file.read(REFERENCE / f"model_r18_2_{name}.pth")["model_weights"]
        for name in ("legacy", "small_zip")
    )
    assert {name for name in legacy if legacy[name].size < 100_000} == set(small)
    for name, array in small.items():
        np.testing.assert_array_equal(array, legacy[name])


KINDS = {
    "DoubleStorage": [0.5, -2.0],
    "FloatStorage": [0.5, -2.0],
    "HalfStorage": [0.5, -2.0],
    "LongStorage": [-1, 2**40],
    "IntStorage": [-1, 2**30],
    "ShortStorage": [-1, 2**14],
    "CharStorage": [-1, 100],
    "ByteStorage": [1, 255],
    "BoolStorage": [True, False],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("module", ["torch", "torch.cuda"])
def test_types(tmp_path, kind, module):
    dtype = torch_tensors.STORAGES[f"torch.{kind}"].newbyteorder("<")
    numbers = np.array(KINDS[kind], dtype)
    value = tensor(storage("s", 2, kind, module), (2,), (1,))
    for path in both_formats(tmp_path, value, kind, numbers):
        loaded = torch_file.read(path)
        assert loaded.dtype == dtype
        assert loaded.tolist() == KINDS[kind]
    swapped = numbers.astype(dtype.newbyteorder(">")).tobytes()
    path = write_zip(tmp_path / "big.pth", pickled(value), [("s", swapped)], byteorder="big")
    assert torch_file.read(path).tolist() == KINDS[kind]


def test_bfloat16(tmp_path):
    value = tensor(storage("s", 2, "BFloat16Storage"), (2,), (1,))
    high_halves = np.array([1.5, -2], np.float32).view(np.uint32) >> 16
    for path in both_formats(tmp_path, value, numbers=high_halves.astype("<u2")):
        assert torch_file.read(path).astype(np.float32).tolist() == [1.5, -2]


def test_views_of_a_storage(tmp_path):
    shared = storage("s", 12)
    value = [
        tensor(shared, (3, 4), (4, 1)),
        tensor(shared, (4, 3), (1, 4)),  # transposed
        tensor(shared, (2, 2), (8, 2), 1),  # every second row and column
        tensor(shared, (5, 2), (0, 1)),  # expanded
        tensor(shared, (0, 4), (4, 1)),
        tensor(shared, (1, 2), (10**9, 1), 10),  # the stride of a single row is never used
        Call(Name("torch._utils", "_rebuild_tensor"), (shared, 2, (2,), (1,))),
        Call(Name("torch._utils", "_rebuild_parameter"), (tensor(shared, (2,), (1,)), True, None)),
    ]
    square = NUMBERS.reshape(3, 4)
    expected = [square, square.T, square[::2, 1::2], np.tile(NUMBERS[:2], (5, 1)), square[:0]]
    expected += [NUMBERS[None, 10:], NUMBERS[2:4], NUMBERS[:2]]
    for path in both_formats(tmp_path, value):
        for ours, theirs in zip(torch_file.read(path), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
            assert not ours.flags.writeable or not ours.size


def test_parts_of_storages_and_classes_of_modules_in_old_files(tmp_path):
    source = ("module", Name("models", "Net"), "net.py", "class Net: pass")
    value = [
        tensor(storage("s", 12, view=(None,)), (12,), (1,)),
        tensor(storage("s", 12, view=(("v", 4, 3),)), (2,), (1,), 1),
        Call(Outside(source), (), {"training": False}),
    ]
    path = write_legacy(tmp_path / "a.pth", pickled(value), [("s", 12, NUMBERS.tobytes())])
    whole, part, module = torch_file.read(path)
    np.testing.assert_array_equal(whole, NUMBERS)
    np.testing.assert_array_equal(part, NUMBERS[5:7])
    assert (module.name, module.state) == ("models.Net", {"training": False})
    for view in (("v", 4, 9), ("v", -1, 3), ("v", 4), 7):
        value = tensor(storage("s", 12, view=(view,)), (2,), (1,))
        write_legacy(path, pickled(value), [("s", 12, NUMBERS.tobytes())])
        refused(path, "outside of it")


IMPOSSIBLE = {
    "beyond the end": ((3, 5), (4, 1), 0),
    "far beyond": ((2,), (2**62,), 0),
    "offset": ((2,), (1,), 11),
    "offset of a number": ((), (), 12),
    "negative offset": ((2,), (1,), -1),
    "negative stride": ((2,), (-1,), 5),
    "negative length": ((-2,), (1,), 0),
    "fewer strides": ((2, 2), (1,), 0),
    "length of text": (("2",), (1,), 0),
    "length of a half": ((1.5,), (1,), 0),
    "length of truth": ((True,), (1,), 0),
    "length of nothing": ((None,), (1,), 0),
    "huge length": ((2**70,), (0,), 0),
    "many dimensions": ((1,) * 40, (1,) * 40, 0),
    "expanded": ((2**40, 2), (0, 1), 0),
    "expanded often": ((2**20,) * 30, (0,) * 30, 0),
    "expanded to nothing": ((0, 2**40), (0, 0), 0),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible_shapes(tmp_path, name):
    value = {"weight": tensor(storage("s", 12), *IMPOSSIBLE[name])}
    for path in both_formats(tmp_path, value):
        refused(path, "impossible shape|reaches to number|hold more numbers")


def test_many_expanded_tensors_count_together(tmp_path):
    value = [tensor(storage("s", 12), (100, 12), (0, 1)) for _ in range(3)]
    for path in both_formats(tmp_path, value):
        assert len(torch_file.read(path, max_bytes=3 * 4800)) == 3
        refused(path, "hold more numbers", max_bytes=3 * 4800 - 1)


TENSOR = tensor(storage("s", 12), (2,), (1,))
MALFORMED = {
    "no storage": tensor(5, (2,), (1,)),
    "storage of an unknown type": tensor(storage("s", 12, "ComplexFloatStorage"), (2,), (1,)),
    "storage of a function": tensor(storage("s", 12, "system", "os"), (2,), (1,)),
    "storage of text": tensor(Outside(("storage", "FloatStorage", "s", "cpu", 12)), (2,), (1,)),
    "storage without a name": tensor(storage(7, 12), (2,), (1,)),
    "storage of negative size": tensor(storage("s", -1), (2,), (1,)),
    "storage of two sizes": [tensor(storage("s", 12), (2,), (1,)), storage("s", 11)],
    "storage of two types": [tensor(storage("s", 12), (2,), (1,)), storage("s", 12, "IntStorage")],
    "another identifier": Outside(("file", "/etc/passwd")),
    "identifier of text": Outside("storage"),
    "identifier of nothing": Outside(()),
    "identifier of a tensor": Outside((tensor(storage("s", 12), (12,), (1,)), 1, 2, 3, 4)),
    "ordered dict of a number": Call(
        Name("collections", "OrderedDict"), (tensor(storage("s", 12), (), ()),)
    ),
    "module of text": Outside(("module", "os", "", "")),
    "tensor of nothing": Call(Name("torch._utils", "_rebuild_tensor_v2"), ()),
    "parameter of nothing": Call(Name("torch._utils", "_rebuild_parameter"), ()),
    "parameter of text": Call(Name("torch._utils", "_rebuild_parameter"), ("x", True, None)),
    "size of nothing": Call(Name("torch", "Size"), ()),
    "size of numbers": Call(Name("torch", "Size"), (1, 2)),
    "state of a storage": tensor(Then(storage("s", 12), code({"dtype": 1}) + b"b"), (2,), (1,)),
    "attributes of a storage": tensor(
        Then(storage("s", 12), code((None, {"shape": (1,)})) + b"b"), (2,), (1,)
    ),
    "state of a tensor": Then(
        TENSOR, code((1, (2**40,), Name("numpy", "dtype"), False, "")) + b"b"
    ),
    "attributes of a tensor": Then(TENSOR, code((None, {"shape": (9,)})) + b"b"),
    "numbers of a tensor": Then(TENSOR, b"K\x00K\x01s"),
    "numbers of a storage": Then(storage("s", 12), b"K\x00K\x01s"),
    "numbers of an empty tensor": Then(tensor(storage("s", 12), (0,), (1,)), b"NK\x01s"),
    "elements of a tensor": Then(TENSOR, b"K\x01a"),
    "elements of a set": Then(TENSOR, b"(K\x01\x90"),
    "tensor as a key": Then({}, code(TENSOR) + b"Ns"),
    "tensor of a tensor": tensor(tensor(storage("s", 12), (12,), (0,)), (12,), (1,)),
    "class of a tensor": Then(TENSOR, b")\x81"),
    "call of a tensor": Then(TENSOR, b")R"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_tensors(tmp_path, name):
    for path in both_formats(tmp_path, MALFORMED[name]):
        refused(path, "cannot be read as a PyTorch checkpoint: .*(again|convert)")


def test_calls_with_tensors_stay_records(tmp_path):
    calls = [Call(Name("builtins", "set"), ([TENSOR],)), Call(Name("_codecs", "encode"), (TENSOR,))]
    for path in both_formats(tmp_path, calls):
        made, encoded = torch_file.read(path)
        assert (made.name, encoded.name) == ("builtins.set", "_codecs.encode")
        np.testing.assert_array_equal(made.args[0][0], encoded.args[0])


def test_storages_of_another_size(tmp_path):
    data = pickled(tensor(storage("s", 12), (2,), (1,)))
    path = tmp_path / "a.pth"
    for numbers in (NUMBERS[:11], np.arange(13, dtype="<f4"), NUMBERS[:0]):
        write_zip(path, data, [("s", numbers.tobytes())])
        refused(path, "storage 's' should hold 12 numbers of 4 bytes, and has")
    for count in (11, 13, 0, -1, 2**62):
        write_legacy(path, data, [("s", count, NUMBERS.tobytes())])
        refused(path, "storage 's' should hold 12 numbers, and has")
    write_legacy(path, data, [("s", 12, NUMBERS.tobytes()[:-1])])
    refused(path, "ends within storage 's'")
    write_zip(path, data)
    refused(path, "entry 'model/data/s' of the archive is missing")
    write_legacy(path, data, [("s", 12, NUMBERS.tobytes())], keys=["s", "t"])
    refused(path, "list of its storages does not fit")
    for keys in ([], "s", [1], ["s", "s"]):
        write_legacy(path, data, [("s", 12, NUMBERS.tobytes())], keys=keys)
        refused(path, "list of its storages")


def test_torch_files_of_both_formats(tmp_path):
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(3, 2)
    value = {
        "state": layer.state_dict(),
        "parameter": layer.weight,
        "half": torch.ones(3).half(),
        "brain": torch.arange(4).bfloat16(),
        "cut": torch.arange(20.0).reshape(4, 5)[1:, ::2],
        "module": layer,
        "others": [torch.device("cuda:1"), torch.Size([1, 2]), torch.float32, None, 0.5],
    }
    for modern in (True, False):
        torch.save(value, tmp_path / "a.pth", _use_new_zipfile_serialization=modern)
        loaded = torch_file.read(tmp_path / "a.pth")
        weight = layer.weight.detach().numpy()
        for ours in (loaded["state"]["weight"], loaded["parameter"]):
            np.testing.assert_array_equal(ours, weight)
        np.testing.assert_array_equal(loaded["module"].state["_parameters"]["weight"], weight)
        assert loaded["half"].dtype == np.float16
        np.testing.assert_array_equal(loaded["brain"].astype(int), range(4))
        np.testing.assert_array_equal(loaded["cut"], value["cut"].numpy())
        device, size, dtype, *plain = loaded["others"]
        assert (device.name, device.args) == ("torch.device", ("cuda", 1))
        assert (size, dtype.name, plain) == ((1, 2), "torch.float32", [None, 0.5])
