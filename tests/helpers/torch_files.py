"""Makes PyTorch checkpoints by hand, opcode by opcode, so that they can be wrong in any way."""

import dataclasses
import struct
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
