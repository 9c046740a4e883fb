"""Reads pickles without running them: whatever a pickle names stays a name.

Python's unpickler imports the functions and classes that a pickle names and calls them, so that
opening a file from elsewhere can run anything. Here it gets inert classes in their place, and
nothing is imported. Before it reads a pickle, the opcodes are followed without making a value:
a small file could otherwise take all memory, hours, or more of the C stack than there is.
"""

from __future__ import annotations

import gc
import io
import pickle
import pickletools
import sys
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

MAX_BYTES = 2**26  # of a pickle
MAX_WORK = 1_000_000  # opcodes, and what calls and keys are made of; a checkpoint has some 10,000
MAX_DEPTH = 200  # containers within containers
MAX_NAMES = 1000  # functions and classes, each of
MAX_NAME = 200  # characters
MAX_KEY_SIZE = 1000  # values that one key of a dict consists of
MAX_LARGE_KEYS = 1000  # keys that are tuples and the like
AGAIN = "copy or download it again"


class Refused(ValueError):
    """A file that is damaged, hostile or of another kind: one line says why and what to do."""


def damaged(what: str) -> Refused:
    """The error for a pickle that no pickler writes."""
    return Refused(f"its pickle is damaged: {what}; {AGAIN}")


def first_line(error: Exception) -> str:
    """The first line of an error of a library, cut to 200 characters."""
    return (str(error) or type(error).__name__).splitlines()[0][:200]


class Record:
    """Stands for an object or for the result of a call: inert, whatever its name.

    Each function or class that a pickle names becomes a subclass; it is not looked up.

    Attributes:
      name: of the class or function, its module and a dot before it; "call" for the result of
        calling a record.
      args: what it was called with; of a "call" also what was called, as the first.
      state: what the object would have restored itself from, most often its attributes; or None.
      items: elements, or pairs of key and value, where the object is a container.
    """

    __slots__ = ("args", "items", "state")
    name = "call"
    args: tuple[Any, ...]
    state: Any
    items: list[Any]

    def __new__(cls, /, *args: Any, **keywords: Any) -> Record:
        """Called by the unpickler, as what follows."""
        record = super().__new__(cls)
        record.args, record.state, record.items = args, keywords or None, []
        return record

    def __call__(self, *args: Any) -> Record:
        """The result of calling a result."""
        return Record(self, *args)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append((key, value))

    def extend(self, items: list) -> None:
        """Adds elements."""
        self.items.extend(items)

    def __repr__(self) -> str:
        return f"Record({shown(self.name)})"


class Dict(dict):
    """An OrderedDict of a pickle.

    Attributes:
      state: its attributes, as a dict; None where it had none.
    """

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


def is_name(value: Any) -> bool:
    """Whether a value is a function or class that a pickle names, as a subclass of `Record`."""
    return isinstance(value, type) and issubclass(value, Record)


def shown(value: Any) -> str:
    """A value for an error message: text quoted and cut, of everything else the type."""
    if isinstance(value, str):
        return repr(value if len(value) <= 80 else f"{value[:77]}...")
    return type(value).__name__


class Reader:
    """Reads the pickles of a file; the limits of time and memory are for all of them together."""

    def __init__(self) -> None:
        self.work = 0
        self.large_keys = 0
        self.names: dict[str, type[Record]] = {}

    def load(
        self,
        stream: BinaryIO,
        functions: Mapping[str, Callable] | None = None,
        persistent: Callable[[Any], Any] | None = None,
        limit: int = MAX_BYTES,
    ) -> Any:
        """Reads one pickle.

        Args:
          stream: where the pickle starts; afterwards where it ended.
          functions: what is called for a function that a pickle names, by module and name with a
            dot between them. The arguments are whatever the file says.
          persistent: makes the object of a persistent id; None: there may be none.
          limit: bytes of the pickle.

        Returns:
          None, bool, int, float, str, bytes, bytearray, list, tuple, set, frozenset, dict, `Dict`,
          `Record`, a subclass of it for what is only named, or what the functions returned.

        Raises:
          Refused: not a pickle, cut off, damaged, or built to use up time or memory. It does not
            name the file.
        """
        start = stream.tell()
        code = stream.read(limit)
        try:
            length = self._follow(code)
            functions = {"collections.OrderedDict": _ordered_dict, **(functions or {})}
            value = _Unpickler(code[:length], self.names, functions, persistent).load()
        except (Refused, MemoryError):
            raise
        # The unpickler raises almost anything.
        except Exception as error:
            reason = first_line(error)[:100]
            raise Refused(f"its pickle is damaged or cut off ({reason}); {AGAIN}") from error
        _check_depth(value)
        stream.seek(start + length)
        return value

    def _follow(self, code: bytes) -> int:
        """Refuses opcodes that would take much time or memory, and says where the pickle ends.

        The stack holds, for each value, a list of one number: how many values it consists of, those
        counted again that it holds more than once. No hash of the value and no call with it takes
        more steps. All references to a container share the list, and so see it grow.
        """
        stack: list[list[int] | None] = []  # None is a mark
        memo: dict[int, list[int]] = {}
        length = 0
        for opcode, argument, position in pickletools.genops(code):
            name = opcode.name
            if name not in _TAKES:
                raise damaged(f"{name}: checkpoints use no registered extensions or buffers")
            if name == "POP" and stack and stack[-1] is None:
                stack.pop()
                continue
            taken = _take(stack, *_TAKES[name])
            size = min(sum(map(sum, taken), 1), MAX_WORK + 1) if taken else 1
            self.work += size if name in _CALLS else 1
            if name in _KEYS:
                self._count_keys(taken[_KEYS[name]])
            if self.work > MAX_WORK:
                raise damaged(f"more than {MAX_WORK} steps, no checkpoint is so long")
            if name in _PUTS:
                (value,) = taken or _take(stack, False, 1)
                index = len(memo) if argument is None else argument
                if not 0 <= index <= MAX_WORK:  # the unpickler makes a list as long
                    raise damaged("the index of a value is too large")
                memo[index] = value
                stack.append(value)
            elif name in _GETS:
                if argument not in memo:
                    raise damaged("it refers to a value that it does not hold")
                stack.append(memo[argument])
            elif name == "DUP":
                stack += taken * 2
            elif name in _CHANGES:
                taken[0][:] = [size]
                stack.append(taken[0])
            elif name == "MARK":
                stack.append(None)
            elif opcode.stack_after:
                # Large numbers are no keys: their hashes collide at will.
                large = type(argument) is int and abs(argument) >= sys.hash_info.modulus
                stack.append([MAX_KEY_SIZE + 1 if large else size])
            length = (position or 0) + 1
        return length

    def _count_keys(self, keys: list[list[int]]) -> None:
        # A dict of many keys whose hashes collide takes hours, and those of tuples do so at will.
        for (size,) in keys:
            self.work += size
            self.large_keys += size > 1
            if size > MAX_KEY_SIZE or self.large_keys > MAX_LARGE_KEYS:
                raise damaged("keys that are too large, or too many that are tuples")


# By opcode: whether it takes the stack down to a mark, and how many values (below the mark).
_TAKES = {
    code.name: (True, code.stack_before.index(pickletools.markobject))
    if pickletools.markobject in code.stack_before
    else (False, len(code.stack_before))
    for code in pickletools.opcodes
    if code.name not in ("EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER")
}
_CALLS = {"REDUCE", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST"}
_CHANGES = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
_GETS = {"GET", "BINGET", "LONG_BINGET"}
# Which of the values that an opcode takes become keys of a dict or elements of a set.
_KEYS = {
    "SETITEM": slice(1, 2),
    "SETITEMS": slice(1, None, 2),
    "DICT": slice(0, None, 2),
    "ADDITEMS": slice(1, None),
    "FROZENSET": slice(None),
}


def _take(stack: list[list[int] | None], to_mark: bool, count: int) -> list[list[int]]:
    """Takes values off the stack, the lowest first: all above a mark, and a count of others."""
    taken: list[list[int]] = []
    try:
        if to_mark:
            while (value := stack.pop()) is not None:
                taken.append(value)
        for _ in range(count):
            if (value := stack.pop()) is None:
                raise IndexError
            taken.append(value)
    except IndexError as error:
        raise damaged("it takes a value or a mark where there is none") from error
    return taken[::-1]


class _Unpickler(pickle.Unpickler):
    def __init__(
        self,
        code: bytes,
        names: dict[str, type[Record]],
        functions: Mapping[str, Callable],
        persistent: Callable[[Any], Any] | None,
    ):
        super().__init__(io.BytesIO(code), encoding="latin1")  # of text that Python 2 wrote
        self.names, self.functions, self.persistent = names, functions, persistent

    def find_class(self, module: str, name: str) -> Any:
        if len(module) + len(name) > MAX_NAME:
            raise damaged(f"it names a function or class in more than {MAX_NAME} characters")
        full = f"{module}.{name}"
        function = self.functions.get(full)
        if function is not None:
            return lambda *args: function(*args)  # a pickle can set attributes of what it finds
        if full not in self.names:
            if len(self.names) == MAX_NAMES:
                raise damaged(f"it names more than {MAX_NAMES} functions and classes")
            self.names[full] = type("Record", (Record,), {"__slots__": (), "name": full})
        return self.names[full]

    def persistent_load(self, identifier: Any) -> Any:
        if self.persistent is None:
            raise damaged("it refers to objects outside of it")
        return self.persistent(identifier)


def _ordered_dict(*args: Any) -> Dict:
    """An OrderedDict: empty, or of a list of pairs as Python 2 writes it."""
    match args:
        case ():
            return Dict()
        case (list() as pairs,) if all(map(_is_pair, pairs)):
            result = Dict(pairs)
            pairs.clear()  # else a short pickle could have them copied again and again
            return result
    raise damaged("an OrderedDict of no pairs")


def _is_pair(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and isinstance(value[0], str)


def _check_depth(value: Any) -> None:
    """Refuses what code that walks the value could not walk; it does not recurse itself."""
    seen: set[int] = set()
    level = [value]
    containers = (list, tuple, set, frozenset, dict, Record)
    for _ in range(MAX_DEPTH):
        found = {id(x): x for x in gc.get_referents(*level) if isinstance(x, containers)}
        level = [container for key, container in found.items() if key not in seen]
        if not level:
            return
        seen |= found.keys()
    raise damaged(f"containers are nested more than {MAX_DEPTH} deep")
