"""Makes PyTorch checkpoints by hand, opcode by opcode, so that they can be wrong in any way."""

import dataclasses
import io
import struct
import tarfile
import zipfile
from typing import Any

MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
VERSION = b"\x80\x02M\xe9\x03."
SYSTEM = b"\x80\x02}X\x0d\x00\x00\x00little_endian\x88s."


@dataclasses.dataclass
class Name:
    """A function or class."""

    module: str
    name: str


@dataclasses.dataclass
class Call:
    """The result of a function."""

    function: Any
    args: tuple
    state: Any = None


@dataclasses.dataclass
class Outside:
    """An object that lies outside of the pickle."""

    identifier: Any


@dataclasses.dataclass
class Then:
    """A value, and the opcodes that a pickle goes on with."""

    value: Any
    opcodes: bytes

    def __hash__(self):
        return id(self)


def code(value):
    """The opcodes that put a value on the stack."""
    match value:
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            digits = value.to_bytes(17, "little", signed=True)
            return b"\x8a" + bytes([len(digits)]) + digits
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + b"".join(map(code, value)) + b"t"
        case list():
            return b"](" + b"".join(map(code, value)) + b"e"
        case dict():
            return b"}(" + b"".join(code(k) + code(v) for k, v in value.items()) + b"u"
        case Name():
            return f"c{value.module}\n{value.name}\n".encode()
        case Call():
            state = b"" if value.state is None else code(value.state) + b"b"
            return code(value.function) + code(value.args) + b"R" + state
        case Then():
            return code(value.value) + value.opcodes
        case Outside():
            return code(value.identifier) + b"Q"
    raise TypeError(value)


def pickled(value):
    """A whole pickle."""
    return b"\x80\x02" + code(value) + b"."


def storage(key, count, kind="FloatStorage", module="torch", view=()):
    """A storage; `view` is (None,) or ((key, offset, count),) in files before version 1.6."""
    return Outside(("storage", Name(module, kind), key, "cpu", count, *view))


def tensor(stored, shape, strides, offset=0):
    """A tensor of a storage."""
    hooks = Call(Name("collections", "OrderedDict"), ())
    args = (stored, offset, tuple(shape), tuple(strides), False, hooks)
    return Call(Name("torch._utils", "_rebuild_tensor_v2"), args)


def write_zip(path, pickle_bytes, storages=(), compression=zipfile.ZIP_STORED, **others):
    """A file as of version 1.6; storages are (key, bytes), others further entries."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("model/data.pkl", pickle_bytes)
        for key, numbers in storages:
            archive.writestr(f"model/data/{key}", numbers)
        for name, content in others.items():
            archive.writestr(f"model/{name}", content)
    return path


def write_legacy(path, pickle_bytes, storages=(), keys=None):
    """A file as before version 1.6; storages are (key, count, bytes)."""
    keys = [key for key, _, _ in storages] if keys is None else keys
    blocks = [struct.pack("<q", count) + numbers for _, count, numbers in storages]
    start = MAGIC + VERSION + SYSTEM
    path.write_bytes(start + pickle_bytes + pickled(keys) + b"".join(blocks))
    return path


def old_parameter(data):
    """A parameter as torchvision's oldest files hold it: an object with a state."""
    return Then(
        Name("torch.nn.parameter", "Parameter"),
        b")\x81" + code((data, None, None, True, False)) + b"b",
    )


def tar_storages(storages, views=()):
    """The entry "storages" of a file as before version 0.1.10.

    Storages are (key, kind, count, bytes); views (key, key of the whole, offset, count).
    """
    parts = [pickled(len(storages))]
    for key, kind, count, numbers in storages:
        parts += [pickled((key, "cpu", Name("torch", kind))), struct.pack("<q", count), numbers]
    return b"".join([*parts, pickled([tuple(view) for view in views])])


def tar_tensors(tensors):
    """The entry "tensors"; tensors are (key, key of the storage, shape, strides, offset)."""
    parts = [pickled(len(tensors))]
    for key, stored, shape, strides, offset in tensors:
        parts.append(pickled((key, stored, Name("torch", "FloatTensor"))))
        # PyTorch wrote eight bytes where the count has four: the others can be anything.
        parts.append(struct.pack("<iI", len(shape), 7))
        parts.append(struct.pack(f"<{2 * len(shape) + 1}q", *shape, *strides, offset))
    return b"".join(parts)


TAR_SYSTEM = pickled(
    {
        "protocol_version": 1000,
        "little_endian": True,
        "type_sizes": {"short": 2, "int": 4, "long": 4},
    }
)


def write_tar(path, pickle_bytes, storages, tensors, replaced=None):
    """A file as before version 0.1.10; entries are replaced, or left out where that is None."""
    entries = {"sys_info": TAR_SYSTEM, "pickle": pickle_bytes}
    entries |= {"tensors": tensors, "storages": storages} | (replaced or {})
    with tarfile.open(path, "w:", format=tarfile.PAX_FORMAT) as archive:
        for name, content in entries.items():
            if content is not None:
                entry = tarfile.TarInfo(name)
                entry.size, entry.mtime = len(content), 1483719550.98  # makes a header of its own
                archive.addfile(entry, io.BytesIO(content))
    return path
