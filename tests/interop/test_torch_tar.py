"""Files of PyTorch before version 0.1.10, whole and broken, made from a description."""

import re
import struct
import tarfile

import numpy as np
import pytest

from ssm_jax.interop import torch_file, weight_files
from ssm_jax.interop.torch_pickle import is_name
from tests.helpers.torch_files import (
    Call,
    Name,
    Outside,
    Then,
    code,
    old_parameter,
    pickled,
    tar_storages,
    tar_tensors,
    write_tar,
)

NUMBERS = np.arange(12, dtype="<f4")
STORAGES = tar_storages([(101, "FloatStorage", 12, NUMBERS.tobytes())])
TENSORS = tar_tensors([(201, 101, (3, 4), (4, 1), 0)])
VALUE = pickled({"w": Outside("201")})


def refused(path, match, **others):
    """Asserts that a file is refused in one line that names it and says what to do."""
    with pytest.raises(ValueError, match=match) as error:
        torch_file.read(path, **others)
    assert str(path) in str(error.value)
    assert re.search("again|convert|limit", str(error.value))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


def small_file(folder):
    """A state dict as torchvision wrote it, with storages of several kinds and a view."""
    longs, bytes_ = np.array([5, 2**40], "<i8"), np.array([1, 255], "u1")
    storages = tar_storages(
        [
            (101, "FloatStorage", 12, NUMBERS.tobytes()),
            (2**40, "LongStorage", 2, longs.tobytes()),
            (103, "ByteStorage", 2, bytes_.tobytes()),
        ],
        views=[(104, 101, 2, 10)],
    )
    tensors = tar_tensors(
        [
            (201, 101, (3, 4), (4, 1), 0),
            (202, 101, (4, 3), (1, 4), 0),
            (203, 2**40, (2,), (1,), 0),
            (204, 103, (1, 1), (7, 9), 1),
            (205, 104, (2, 2), (5, 1), 1),
        ]
    )
    value = Then(
        Call(Name("collections", "OrderedDict"), ()),
        b"("
        + b"".join(
            code(part)
            for part in (
                *("conv1.weight", old_parameter(Outside("201"))),
                *("fc.weight", Call(Name("torch.nn.parameter", "Parameter"), (Outside("202"),))),
                *("count", Outside("203")),
                *("bytes", Outside("204")),
                *("view", Outside("205")),
            )
        )
        + b"u",
    )
    return write_tar(folder / "a.pth", pickled(value), storages, tensors)


def assert_small(arrays):
    square = NUMBERS.reshape(3, 4)
    expected = {
        "conv1.weight": square,
        "fc.weight": square.T,
        "count": np.array([5, 2**40]),
        "bytes": np.array([[255]], np.uint8),
        "view": np.array([[3, 4], [8, 9]], np.float32),
    }
    assert list(arrays) == list(expected)
    for name, array in expected.items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array)
        assert not arrays[name].flags.writeable


def test_a_state_dict(tmp_path):
    assert_small(weight_files.read_weights(small_file(tmp_path)).arrays)


def test_torch_reads_the_same(tmp_path):
    torch = pytest.importorskip("torch")
    loaded = torch.load(small_file(tmp_path), weights_only=False)
    arrays = {name: tensor.detach().numpy() for name, tensor in loaded.items()}
    for array in arrays.values():
        array.flags.writeable = False
    assert_small(arrays)


def test_other_values(tmp_path):
    value = [
        Outside("101"),
        Outside((Name("models", "Net"), "net.py", "class Net: pass")),
        Outside((Name("models", "Net"), None, None)),
        Call(Name("os", "system"), ("true",)),
        {"epoch": 3},
    ]
    path = write_tar(tmp_path / "a.pth", pickled(value), STORAGES, TENSORS)
    stored, net, again, call, plain = torch_file.read(path)
    np.testing.assert_array_equal(stored, NUMBERS)
    assert is_name(net) and net is again and net.name == "models.Net"
    assert (call.name, plain) == ("os.system", {"epoch": 3})


def test_parameters_without_a_tensor_are_no_weights(tmp_path):
    parameter = Name("torch.nn.parameter", "Parameter")
    for value in (
        Call(parameter, ()),
        Call(parameter, (1,)),
        Call(parameter, (), ("text", None, None)),
        Call(parameter, (), {"data": Outside("201")}),
        Call(Name("os", "system"), (Outside("201"),)),
    ):
        path = write_tar(tmp_path / "a.pth", pickled({"w": value}), STORAGES, TENSORS)
        with pytest.raises(
            ValueError, match=r"its entry 'w' is a '(torch|os)\.[\w.]*' and no tensor"
        ):
            weight_files.read_weights(path)


def storages_with(count, numbers=b"", kind="FloatStorage", key=101):
    return tar_storages([(key, kind, count, numbers)])


def tensors_with(shape=(2,), strides=(1,), offset=0, stored=101, key=201):
    return tar_tensors([(key, stored, shape, strides, offset)])


def raw_tensor(*numbers, axes, form="q"):
    """An entry "tensors" with one tensor of any count of axes and numbers."""
    head = pickled(1) + pickled((201, 101, None)) + struct.pack("<iI", axes, 0)
    return head + struct.pack(f"<{len(numbers)}{form}", *numbers)


BAD_STORAGES = {
    "one number too many": storages_with(13, NUMBERS.tobytes()),
    "one number too few": storages_with(11, NUMBERS.tobytes()),
    "huge": storages_with(2**61, NUMBERS.tobytes()),
    "larger than any file": storages_with(2**63 - 1),
    "negative": storages_with(-1),
    "unknown type": storages_with(12, NUMBERS.tobytes(), kind="ComplexFloatStorage"),
    "type of text": pickled(1) + pickled((101, "cpu", "FloatStorage")) + bytes(8) + pickled([]),
    "key of text": storages_with(12, NUMBERS.tobytes(), key="101"),
    "key of nothing": storages_with(12, NUMBERS.tobytes(), key=None),
    "key of a list of itself": pickled(1)
    + b"(K\x00" + b"2\x86" * 60 + code("cpu") + code(Name("torch", "FloatStorage")) + b"t."
    + struct.pack("<q", 0)
    + pickled([]),
    "huge key": storages_with(12, NUMBERS.tobytes(), key=2**100),
    "two of one key": tar_storages([(101, "FloatStorage", 12, NUMBERS.tobytes())] * 2),
    "not a triple": pickled(1) + pickled((101, "cpu")) + bytes(8) + pickled([]),
    "count of text": pickled("1"),
    "count of nothing": pickled(None),
    "endless count": pickled(2**70),
    "more than there are": pickled(2) + STORAGES[len(pickled(1)) :],
    "no views": STORAGES[: -len(pickled([]))],
    "views of a number": STORAGES[: -len(pickled([]))] + pickled(5),
    "views of text": STORAGES[: -len(pickled([]))] + pickled(["abcd"]),
    "view of three": STORAGES[: -len(pickled([]))] + pickled([(104, 101, 0)]),
    "empty": b"",
    "a command": pickled(Call(Name("os", "system"), ("true",))),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_STORAGES)
def test_bad_storages(tmp_path, name):
    refused(write_tar(tmp_path / "a.pth", VALUE, BAD_STORAGES[name], TENSORS), "PyTorch checkpoint")


BAD_VIEWS = {
    "beyond the end": (104, 101, 3, 10),
    "far beyond": (104, 101, 0, 2**62),
    "sum that overflows": (104, 101, 2**63 - 1, 2),
    "negative offset": (104, 101, -1, 3),
    "negative count": (104, 101, 3, -1),
    "offset of text": (104, 101, "0", 3),
    "of a storage that is not there": (104, 99, 0, 1),
    "of itself": (104, 104, 0, 1),
    "of a key that is a list": (104, [101], 0, 1),
    "key of another": (101, 101, 0, 1),
}


@pytest.mark.parametrize("name", BAD_VIEWS)
def test_bad_views(tmp_path, name):
    storages = STORAGES[: -len(pickled([]))] + pickled([BAD_VIEWS[name]])
    refused(write_tar(tmp_path / "a.pth", VALUE, storages, TENSORS), "PyTorch checkpoint")


def test_views_that_overlap_share_their_numbers(tmp_path):
    views = [(104 + k, 101, k, 12 - k) for k in range(12)]
    storages = STORAGES[: -len(pickled([]))] + pickled([*views, (150, 105, 0, 11)])
    keys = [key for key, *_ in views] + [150]
    tensors = tar_tensors([(200 + key, key, (1,), (1,), 0) for key in keys])
    value = pickled([Outside("101"), *(Outside(str(200 + key)) for key in keys)])
    whole, *parts = torch_file.read(write_tar(tmp_path / "a.pth", value, storages, tensors))
    assert [array.item() for array in parts] == [*range(12), 1]
    assert all(np.shares_memory(array, whole) for array in parts)
    # Together they count as what they hold, though the file does not.
    tensors = tar_tensors([(200 + k, 104, (1000, 12), (0, 1), 0) for k in range(3)])
    path = write_tar(tmp_path / "a.pth", pickled(1), storages, tensors)
    refused(path, "hold more numbers", max_bytes=3 * 48_000 - 1)
    assert torch_file.read(path, max_bytes=3 * 48_000) == 1


BAD_TENSORS = {
    "beyond the end": tensors_with((3, 5), (4, 1)),
    "far beyond": tensors_with((2,), (2**62,)),
    "offset": tensors_with((2,), (1,), 11),
    "offset of a number": tensors_with((), (), 12),
    "negative offset": tensors_with(offset=-1),
    "negative stride": tensors_with((2,), (-1,), 5),
    "negative length": tensors_with((-2,), (1,)),
    "expanded": tensors_with((2**40, 2), (0, 1)),
    "expanded to nothing": tensors_with((0, 2**40), (0, 0)),
    "many axes": tensors_with((1,) * 40, (1,) * 40),
    "all axes": raw_tensor(1, 1, 0, axes=2**31 - 1),
    "negative axes": raw_tensor(1, 1, 0, axes=-1),
    "lengths cut off": raw_tensor(1, axes=1),
    "offset cut off": raw_tensor(1, 1, axes=1),
    "storage that is not there": tensors_with(stored=99),
    "storage of nothing": tensors_with(stored=None),
    "storage of text": tensors_with(stored="os"),
    "storage of a list": tensors_with(stored=[101]),
    "storage that is a tensor": tar_tensors(
        [(201, 101, (12,), (0,), 0), (202, 201, (12,), (1,), 0)]
    ),
    "key of a storage": tensors_with(key=101),
    "key of text": tensors_with(key="201"),
    "negative key": tensors_with(key=-1),
    "two of one key": tar_tensors([(201, 101, (1,), (1,), 0)] * 2),
    "more than there are": pickled(2) + TENSORS[len(pickled(1)) :],
    "endless": pickled(2**70) + TENSORS[len(pickled(1)) :],
    "empty": b"",
    "a command": pickled(Call(Name("os", "system"), ("true",))),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_bad_tensors(tmp_path, name):
    refused(write_tar(tmp_path / "a.pth", VALUE, STORAGES, BAD_TENSORS[name]), "PyTorch checkpoint")


BAD_VALUES = {
    "tensor that is not there": Outside("999"),
    "tensor of a path": Outside("../../etc/passwd"),
    "identifier of a number": Outside(1.5),
    "identifier of nothing": Outside(()),
    "identifier of a tensor": Outside((Outside("201"), None, None)),
    "storage of later versions": Outside(("storage", Name("torch", "FloatStorage"), "0", "cpu", 1)),
    "state of a storage": Then(Outside("101"), code({"dtype": 1}) + b"b"),
    "state of a tensor": Then(Outside("201"), code((1, (99,), None, False, "")) + b"b"),
    "numbers of a tensor": Then(Outside("201"), b"K\x00K\x01s"),
}


@pytest.mark.parametrize("name", BAD_VALUES)
def test_bad_values(tmp_path, name):
    refused(
        write_tar(tmp_path / "a.pth", pickled([BAD_VALUES[name]]), STORAGES, TENSORS), "checkpoint"
    )


@pytest.mark.parametrize("name", ["sys_info", "storages", "tensors", "pickle"])
def test_nothing_runs_in_any_entry(tmp_path, name):
    marker, path = tmp_path / "ran", tmp_path / "a.pth"
    shell = pickled(Call(Name("os", "system"), (f"touch {marker}",)))
    write_tar(path, VALUE, STORAGES, TENSORS, {name: shell})
    if name == "pickle":
        assert torch_file.read(path).name == "os.system"
    else:
        refused(path, "PyTorch checkpoint")
    key = b"\x80\x02})" + b"\x85" * 2000 + b"Ns."
    refused(write_tar(path, VALUE, STORAGES, TENSORS, {name: key}), "damaged")
    assert not marker.exists()


@pytest.mark.parametrize(
    "system",
    [
        {"protocol_version": 1001, "little_endian": True},
        {"protocol_version": 1000, "little_endian": False},
        {"protocol_version": 1000},
        {},
        [1000, True],
        None,
    ],
)
def test_other_versions_and_machines(tmp_path, system):
    path = write_tar(tmp_path / "a.pth", VALUE, STORAGES, TENSORS, {"sys_info": pickled(system)})
    refused(path, "format is not version 1000 of a little-endian machine")


@pytest.mark.parametrize("name", ["sys_info", "storages", "tensors", "pickle"])
def test_missing_and_doubled_entries(tmp_path, name):
    path = write_tar(tmp_path / "a.pth", VALUE, STORAGES, TENSORS, {name: None})
    refused(path, f"a tar archive, but not one of torch.save .no {name}")
    others = {f"../{name}": b"", f"./{name}": b"", f"/{name}": b"", name.upper(): b""}
    write_tar(path, VALUE, STORAGES, TENSORS, {name: None} | others)
    refused(path, f"not one of torch.save .no {name}")
    write_tar(path, VALUE, STORAGES, TENSORS)
    with tarfile.open(path, "a:") as archive:
        archive.addfile(tarfile.TarInfo(name))
    refused(path, f"two entries of the archive are named '{name}'")


def test_links_and_folders_are_no_entries(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(VALUE)
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, b"S", b"?"):
        path = write_tar(tmp_path / "a.pth", VALUE, STORAGES, TENSORS, {"pickle": None})
        with tarfile.open(path, "a:") as archive:
            entry = tarfile.TarInfo("pickle")
            entry.type, entry.linkname = kind, str(secret)
            archive.addfile(entry)
        refused(path, "not one of torch.save .no pickle|damaged or cut off")


def test_entries_beside_are_passed_over(tmp_path):
    outside = tmp_path / "outside"
    others = {str(outside): b"x", "../outside": b"x", "notes": b"x" * 5000}
    path = write_tar(tmp_path / "a.pth", VALUE, STORAGES, TENSORS, others)
    np.testing.assert_array_equal(torch_file.read(path)["w"], NUMBERS.reshape(3, 4))
    assert [file.name for file in tmp_path.iterdir()] == ["a.pth"]
    write_tar(path, VALUE, STORAGES, TENSORS, {str(k): b"" for k in range(100)})
    refused(path, "more than 100 entries")
