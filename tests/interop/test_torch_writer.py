"""Files for PyTorch: their opcodes one by one, and what our reader and PyTorch find in them."""

import pickletools
import zipfile

import ml_dtypes
import numpy as np
import pytest

from ssm_jax.interop import torch_file, torch_writer
from ssm_jax.interop.torch_pickle import Dict


def example():
    """A value with everything that can be written."""
    weights = Dict({"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(7)})
    weights["transposed"] = weights["w"].T
    weights["empty"] = np.zeros((0, 3), np.float16)
    weights["mask"] = np.array([True, False])
    weights["short"] = np.array([1.5, -2], ml_dtypes.bfloat16)
    weights["swapped"] = np.arange(3, dtype=">i4")
    anchors = Dict()
    anchors.state = {"sizes": ((2, 4),), "aspect_ratios": ((0.5, 1.0),)}
    return {
        "model_weights": weights,
        "anchor_generator": anchors,
        "plain": [
            None,
            True,
            False,
            0,
            -1,
            2**31 - 1,
            2**31,
            -(2**70),
            0.1,
            "ä",
            (),
            [],
            {},
            ("a",),
        ],
    }


def assert_same(ours, value):
    assert ours["plain"] == value["plain"]
    assert list(map(type, ours["plain"])) == list(map(type, value["plain"]))
    assert ours["anchor_generator"].state == value["anchor_generator"].state
    assert list(ours["model_weights"]) == list(value["model_weights"])
    for name, array in value["model_weights"].items():
        found = ours["model_weights"][name]
        assert found.dtype == array.dtype.newbyteorder("="), name
        np.testing.assert_array_equal(found, array)


def test_round_trip(tmp_path):
    path = tmp_path / "a.pth"
    torch_writer.write(path, example())
    assert_same(torch_file.read(path), example())
    assert list(tmp_path.iterdir()) == [path]


def test_opcodes_and_entries(tmp_path):
    """What `torch.save` writes for an OrderedDict of a tensor, less memos and what is optional."""
    path = tmp_path / "a.pth"
    torch_writer.write(path, Dict(w=np.arange(6, dtype=np.float32).reshape(2, 3)))
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
        stored = {entry.compress_type for entry in archive.infolist()}
    opcodes = [
        (opcode.name, argument)
        for opcode, argument, _ in pickletools.genops(contents.pop("archive/data.pkl"))
    ]
    assert opcodes == [
        ("PROTO", 2),
        ("GLOBAL", "collections OrderedDict"),
        ("EMPTY_TUPLE", None),
        ("REDUCE", None),
        ("MARK", None),
        ("BINUNICODE", "w"),
        ("GLOBAL", "torch._utils _rebuild_tensor_v2"),
        ("MARK", None),
        ("MARK", None),
        ("BINUNICODE", "storage"),
        ("GLOBAL", "torch FloatStorage"),
        ("BINUNICODE", "0"),
        ("BINUNICODE", "cpu"),
        ("BININT1", 6),
        ("TUPLE", None),
        ("BINPERSID", None),
        ("BININT1", 0),  # offset
        ("MARK", None),
        ("BININT1", 2),
        ("BININT1", 3),
        ("TUPLE", None),  # shape
        ("MARK", None),
        ("BININT1", 3),
        ("BININT1", 1),
        ("TUPLE", None),  # strides
        ("NEWFALSE", None),  # requires no gradient
        ("GLOBAL", "collections OrderedDict"),
        ("EMPTY_TUPLE", None),
        ("REDUCE", None),  # hooks
        ("TUPLE", None),
        ("REDUCE", None),
        ("SETITEMS", None),
        ("STOP", None),
    ]
    assert contents == {
        "archive/byteorder": b"little",
        "archive/data/0": np.arange(6, dtype="<f4").tobytes(),
        "archive/version": b"3\n",
    }
    assert stored == {zipfile.ZIP_STORED}


def test_numbers_are_aligned(tmp_path):
    path = tmp_path / "a.pth"
    arrays = {str(k): np.full(k, k / 7) for k in range(1, 40)}
    torch_writer.write(path, arrays)
    content = path.read_bytes()
    for array in arrays.values():
        assert content.find(array.tobytes()) % 64 == 0


def test_equal_values_make_equal_files(tmp_path):
    for name in ("a.pth", "b.pth"):
        torch_writer.write(tmp_path / name, example())
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()


def test_what_cannot_be_written(tmp_path):
    for value in ({1, 2}, b"bytes", np.array(["text"]), np.array([1j]), object(), np.float32(1)):
        with pytest.raises(TypeError, match="cannot be written"):
            torch_writer.write(tmp_path / "a.pth", {"x": value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mapped", [False, True])
def test_torch_reads_it_without_trusting_it(tmp_path, mapped):
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.pth"
    value = example()
    torch_writer.write(path, value)
    loaded = torch.load(path, weights_only=True, mmap=mapped)
    assert loaded["plain"] == value["plain"]
    # All that the reference's scripts ask of it.
    assert loaded["anchor_generator"].sizes == ((2, 4),)
    assert loaded["anchor_generator"].aspect_ratios == ((0.5, 1.0),)
    assert loaded["model_weights"].pop("short").tolist() == [1.5, -2]
    for name, tensor in loaded["model_weights"].items():
        found = tensor.numpy()
        assert found.dtype == value["model_weights"][name].dtype.newbyteorder("=")
        np.testing.assert_array_equal(found, value["model_weights"][name])
