"""Reads pickles without running them: whatever a pickle names stays a name.

Python's unpickler imports the functions and classes that a pickle names and calls them, so that
opening a file from elsewhere can run anything. Here the opcodes are interpreted by hand. Plain
values and containers become themselves, the few functions that the caller knows are replaced by its
own, and every other function, class or object becomes an inert `Record`. Nothing is imported.
"""

from __future__ import annotations

import dataclasses
import io
import pickletools
import sys
from collections.abc import Callable, Hashable, Mapping
from typing import Any

MAX_STEPS = 1_000_000  # opcodes, and elements that these copy; a checkpoint has some ten thousand
MAX_DEPTH = 200  # containers within containers
KEY_DEPTH = 2  # tuples within tuples as keys of a dict, each of
KEY_LENGTH = 32  # elements

Builder = Callable[[tuple], Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Global:
    """A function or class that a pickle names. It was not looked up.

    Attributes:
      name: module and name, with a dot between them.
    """

    name: str


@dataclasses.dataclass(eq=False, repr=False)
class Record:
    """What stands for an object or a call that is not known: inert.

    Attributes:
      name: of the class or function, see `Global`; "call" if it was itself a result.
      args: what it was called with; of a "call", the callee and its arguments.
      state: what the object would have restored itself from, most often its attributes; or None.
      items: elements, or pairs of key and value, where the object is a container.
    """

    name: str
    args: tuple = ()
    state: Any = None
    items: list = dataclasses.field(default_factory=list)

    def __repr__(self) -> str:
        return f"Record({shown(self.name)})"


class Dict(dict):
    """An OrderedDict of a pickle.

    Attributes:
      state: its attributes, as a dict; None where it had none.
    """

    state: Any = None


def shown(value: Any) -> str:
    """A value for an error message: text quoted and cut, of everything else the type."""
    if isinstance(value, str):
        return repr(value if len(value) <= 80 else f"{value[:77]}...")
    return type(value).__name__


def load(
    stream: io.BytesIO,
    builders: Mapping[str, Builder] | None = None,
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Reads one pickle.

    Args:
      stream: where the pickle starts; afterwards where it ended.
      builders: by the name of a function (see `Global`), what makes its result from a tuple of
        arguments. Builders check their arguments: these are whatever the file says.
      persistent: makes the object of a persistent id; None: there may be none.

    Returns:
      None, bool, int, float, str, bytes, bytearray, list, tuple, set, frozenset, dict, `Dict`,
      `Global`, `Record`, or what the functions returned.

    Raises:
      ValueError: not a pickle, cut off, damaged, or built to use up memory. One line that says what
        is wrong; it does not name the file.
    """
    machine = _Machine(builders or {}, persistent)
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == "STOP":
                break
            machine.step(opcode.name, argument)
    except _Malformed:
        raise
    except (ValueError, OverflowError) as error:
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise ValueError(f"its pickle is damaged or cut off ({reason})") from error
    value = machine.pop()
    _check_depth(value)
    return value


class _Malformed(ValueError):
    """A pickle that no pickler writes."""


def _malformed(what: str) -> _Malformed:
    return _Malformed(f"its pickle is damaged: {what}")


class _Machine:
    """The stack machine that a pickle is a program of."""

    def __init__(self, builders, persistent):
        self.builders = {**_PLAIN_BUILDERS, **builders}
        self.persistent = persistent
        self.stack: list = []
        self.outer: list[list] = []  # the stacks below the marks
        self.memo: dict[int, Any] = {}
        self.steps = 0

    def step(self, name: str, argument: Any) -> None:
        """Interprets one opcode."""
        self.spend(1)
        if name in _OPERATIONS:
            _OPERATIONS[name](self, argument)
        elif name.startswith("EXT"):
            raise _malformed("it uses registered extensions, which checkpoints never do")
        else:
            raise _malformed(f"opcode {name} is not for files")

    def spend(self, steps: int) -> None:
        """Counts work; a small file must not make much of it."""
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise _malformed(f"more than {MAX_STEPS} steps, no checkpoint is so long")

    def pop(self) -> Any:
        """The top of the stack."""
        if not self.stack:
            raise _malformed("it takes a value where there is none")
        return self.stack.pop()

    def pop_mark(self) -> list:
        """All above the topmost mark."""
        if not self.outer:
            raise _malformed("it looks for a mark where there is none")
        items, self.stack = self.stack, self.outer.pop()
        return items

    def top(self) -> Any:
        """The top of the stack, which stays."""
        value = self.pop()
        self.stack.append(value)
        return value

    def mark(self, _):
        """MARK."""
        self.outer.append(self.stack)
        self.stack = []

    def pop_one(self, _):
        """POP; it takes a mark where that is on top."""
        if self.stack or not self.outer:
            self.pop()
        else:
            self.pop_mark()

    def put(self, index):
        """PUT in all its forms; MEMOIZE takes the next index."""
        self.memo[len(self.memo) if index is None else index] = self.top()

    def get(self, index):
        """GET in all its forms."""
        if index not in self.memo:
            raise _malformed("it refers to a value that it does not hold")
        self.stack.append(self.memo[index])

    def tuple_of(self, count):
        """TUPLE1, TUPLE2 and TUPLE3."""
        self.stack.append(tuple([self.pop() for _ in range(count)][::-1]))

    def append(self, items):
        """APPEND, APPENDS and ADDITEMS."""
        container = self.top()
        if isinstance(container, list):
            container.extend(items)
        elif isinstance(container, set):
            container.update(map(_key, items))
        elif isinstance(container, Record):
            container.items.extend(items)
        else:
            raise _malformed(f"it adds elements to a {shown(container)}")

    def set_items(self, items):
        """SETITEM and SETITEMS: keys and values in turn."""
        container = self.top()
        if isinstance(container, dict):
            container.update(_pairs(items))
        elif isinstance(container, Record):
            container.items.extend(zip(items[::2], items[1::2], strict=False))
        else:
            raise _malformed(f"it sets keys of a {shown(container)}")

    def call(self, callee, args, keywords=None):
        """REDUCE, NEWOBJ, NEWOBJ_EX, INST and OBJ: nothing is called but the builders."""
        if not isinstance(args, tuple):
            raise _malformed("it calls something without a tuple of arguments")
        if isinstance(callee, Global):
            builder = self.builders.get(callee.name)
            if builder is None or keywords:
                self.stack.append(Record(callee.name, args, keywords))
                return
            if args and isinstance(args[0], str | list | tuple | set | frozenset):
                self.spend(len(args[0]))  # which the builder may copy
            self.stack.append(builder(args))
        elif isinstance(callee, Record):
            self.stack.append(Record("call", (callee, args)))
        else:
            raise _malformed(f"it calls a {shown(callee)}")

    def reduce(self, _):
        """REDUCE and NEWOBJ."""
        args = self.pop()
        self.call(self.pop(), args)

    def new_with_keywords(self, _):
        """NEWOBJ_EX."""
        keywords, args = self.pop(), self.pop()
        self.call(self.pop(), args, keywords)

    def obj(self, _):
        """OBJ."""
        items = self.pop_mark()
        if not items:
            raise _malformed("it makes an object of no class")
        self.call(items[0], tuple(items[1:]))

    def build(self, _):
        """BUILD: records keep the state; what else may have one needs none here."""
        state = self.pop()
        target = self.top()
        if isinstance(target, Record | Dict):
            target.state = state
        elif isinstance(target, dict | list | tuple | set | str | bytes | int | float | None):
            raise _malformed(f"it sets the state of a {shown(target)}")

    def global_by_stack(self, _):
        """STACK_GLOBAL."""
        name, module = self.pop(), self.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise _malformed("a name in it is not text")
        self.spend(len(module) + len(name))
        self.stack.append(Global(f"{module}.{name}"))

    def persistent_id(self, identifier):
        """PERSID and BINPERSID."""
        if self.persistent is None:
            raise _malformed("it refers to objects outside of it")
        self.stack.append(self.persistent(identifier))


def _key(value: Any, depth: int = 0) -> Hashable:
    """Checks that a value can be hashed, in little time and without going deep."""
    if isinstance(value, tuple) and depth < KEY_DEPTH and len(value) <= KEY_LENGTH:
        for item in value:
            _key(item, depth + 1)
        return value
    # Hashes of larger numbers collide at will, and a dict of those takes hours.
    limit = sys.hash_info.modulus
    small = not isinstance(value, int) or -limit < value < limit
    if value is None or (isinstance(value, str | bytes | int | float | Global | Record) and small):
        return value
    raise _malformed(f"a {shown(value)} as a key")


def _pairs(items: list) -> dict:
    if len(items) % 2:
        raise _malformed("a key without a value")
    return {_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


def _ordered_dict(args: tuple) -> Dict:
    pairs = args[0] if args else []
    if len(args) > 1 or not isinstance(pairs, list | tuple):
        raise _malformed("an OrderedDict of no pairs")
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in pairs):
        raise _malformed("an OrderedDict of no pairs")
    return Dict((_key(key), value) for key, value in pairs)


def _elements(args: tuple) -> list | tuple | set | frozenset:
    elements = args[0] if args else ()
    if len(args) > 1 or not isinstance(elements, list | tuple | set | frozenset):
        raise _malformed("a container of no elements")
    return elements


def _set(args: tuple) -> set:
    return set(map(_key, _elements(args)))


def _encode(args: tuple) -> bytes:
    text_only = args and all(isinstance(arg, str) for arg in args)
    if not text_only or args[1:] not in ((), ("latin1",), ("latin-1",)):
        raise _malformed("bytes that are none")
    return args[0].encode("latin-1")  # how protocol 2 writes bytes


_PLAIN_BUILDERS: dict[str, Builder] = {
    "collections.OrderedDict": _ordered_dict,
    "_codecs.encode": _encode,
    "builtins.set": _set,
    "__builtin__.set": _set,
}


def _push(machine: _Machine, value: Any) -> None:
    machine.stack.append(value)


def _push_marked(machine: _Machine, make: Callable[[list], Any]) -> None:
    items = machine.pop_mark()  # which changes the stack
    machine.stack.append(make(items))


_OPERATIONS: dict[str, Callable[[_Machine, Any], Any]] = {
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"), _push),
    **dict.fromkeys(("FLOAT", "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING"), _push),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"), _push),
    **dict.fromkeys(("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _push),
    **dict.fromkeys(("PROTO", "FRAME"), lambda m, _: None),
    "NONE": lambda m, _: m.stack.append(None),
    "NEWTRUE": lambda m, _: m.stack.append(True),
    "NEWFALSE": lambda m, _: m.stack.append(False),
    "EMPTY_LIST": lambda m, _: m.stack.append([]),
    "EMPTY_TUPLE": lambda m, _: m.stack.append(()),
    "EMPTY_DICT": lambda m, _: m.stack.append({}),
    "EMPTY_SET": lambda m, _: m.stack.append(set()),
    "MARK": _Machine.mark,
    "POP": _Machine.pop_one,
    "POP_MARK": lambda m, _: m.pop_mark(),
    "DUP": lambda m, _: m.stack.append(m.top()),
    "LIST": lambda m, _: _push_marked(m, list),
    "TUPLE": lambda m, _: _push_marked(m, tuple),
    "DICT": lambda m, _: _push_marked(m, _pairs),
    "FROZENSET": lambda m, _: _push_marked(m, lambda items: frozenset(map(_key, items))),
    "TUPLE1": lambda m, _: m.tuple_of(1),
    "TUPLE2": lambda m, _: m.tuple_of(2),
    "TUPLE3": lambda m, _: m.tuple_of(3),
    "APPEND": lambda m, _: m.append([m.pop()]),
    **dict.fromkeys(("APPENDS", "ADDITEMS"), lambda m, _: m.append(m.pop_mark())),
    "SETITEM": lambda m, _: m.set_items([m.pop(), m.pop()][::-1]),
    "SETITEMS": lambda m, _: m.set_items(m.pop_mark()),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    "GLOBAL": lambda m, name: m.stack.append(Global(name.replace(" ", ".", 1))),
    "STACK_GLOBAL": _Machine.global_by_stack,
    **dict.fromkeys(("REDUCE", "NEWOBJ"), _Machine.reduce),
    "NEWOBJ_EX": _Machine.new_with_keywords,
    "INST": lambda m, name: m.call(Global(name.replace(" ", ".", 1)), tuple(m.pop_mark())),
    "OBJ": _Machine.obj,
    "BUILD": _Machine.build,
    "PERSID": _Machine.persistent_id,
    "BINPERSID": lambda m, _: m.persistent_id(m.pop()),
}


def _check_depth(value: Any) -> None:
    """Refuses what code that walks the value could not walk; it does not recurse itself."""
    seen: set[int] = set()
    level = [value]
    for _ in range(MAX_DEPTH):
        inner: list = []
        for item in level:
            if id(item) not in seen:
                seen.add(id(item))
                inner += _children(item)
        if not inner:
            return
        level = inner
    raise _malformed(f"containers are nested more than {MAX_DEPTH} deep")


def _children(value: Any) -> list:
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    if isinstance(value, Record):
        return [value.args, value.state, value.items]
    if isinstance(value, dict):
        return [*value.keys(), *value.values(), getattr(value, "state", None)]
    return []
