"""Pickles are read without running what they name."""

import collections
import contextlib
import copyreg
import io
import os
import pickle
import sys
import time
import types

import pytest

from ssm_jax.interop.torch_pickle import Dict, Reader, Record, is_name
from tests.helpers.torch_files import Call, Name, Outside, code, pickled


def load(data, **others):
    return Reader().load(io.BytesIO(data), **others)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_are_what_python_reads(protocol):
    shared = [1, 2]
    value = {
        "numbers": [0, 1, 255, 256, 65536, -1, 2**31, -(2**31), 2**70, -(2**2100)],
        "floats": (0.5, -1e300, float("inf")),
        "text": ["", "ä\n'\\", "x" * 300],
        "none": (None, True, False, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        ("a", ("b", 2)): {1: {2: []}, None: [], 1.5: {}},
        "sets": {1, "a", (2, 3)},
        "shared": [shared, shared],
        "bytes": b"\x00\xff" * 5 if protocol > 2 else 0,
    }
    loaded = load(pickle.dumps(value, protocol))
    if protocol < 4:  # which write sets as calls
        assert isinstance(loaded.pop("sets"), Record)
        del value["sets"]
    assert loaded == value
    assert loaded["shared"][0] is loaded["shared"][1]
    assert [type(x) for x in loaded["none"]] == [type(x) for x in value["none"]]


def test_opcodes_that_protocols_differ_in():
    for protocol in (2, 3, 4, 5):
        ordered = load(pickle.dumps(collections.OrderedDict(b=1, a=2), protocol))
        assert type(ordered) is Dict
        assert list(ordered.items()) == [("b", 1), ("a", 2)]
        text, numbers = load(pickle.dumps(b"\xe4\x00", protocol)), load(pickle.dumps({1}, protocol))
        if protocol == 2:
            assert (text.name, text.args) == ("_codecs.encode", ("ä\x00", "latin1"))
        else:
            assert text == b"\xe4\x00"
        if protocol < 4:
            module = "__builtin__" if protocol == 2 else "builtins"
            assert (numbers.name, numbers.args) == (f"{module}.set", ([1],))
        else:
            assert numbers == {1}
    assert load(pickle.dumps(frozenset({1, 2}), protocol=4)) == {1, 2}
    # Python 2: an OrderedDict of pairs, and text that is bytes.
    pairs = Call(Name("collections", "OrderedDict"), ([["b", 1], ["a", 2]],), {"_metadata": 3})
    ordered = load(pickled(pairs))
    assert list(ordered) == ["b", "a"]
    assert ordered.state == {"_metadata": 3}
    assert load(b"(S'old'\nU\x03oldT\x03\x00\x00\x00oldt.") == ("old",) * 3
    assert load(b"(lp0\nI01\naI5\naL7L\naF0.5\naVx\na(dS'k'\nI1\nsa.") == [
        *(True, 5, 7, 0.5, "x"),
        {"k": 1},
    ]
    assert load(b"N0(K\x01K\x020K\x011K\x052.") == 5  # POP, POP_MARK and DUP


def test_objects_become_records():
    loaded = load(pickle.dumps(types.SimpleNamespace(a=1, b=[2])))
    assert loaded.name == "types.SimpleNamespace"
    assert loaded.state == {"a": 1, "b": [2]}
    counted = load(pickle.dumps(collections.defaultdict(list, x=1)))
    assert (counted.name, counted.items) == ("collections.defaultdict", [("x", 1)])
    assert [arg.name for arg in counted.args] == ["builtins.list"]
    queue = load(pickle.dumps(collections.deque([1, 2])))
    assert queue.items == [1, 2]
    assert load(pickle.dumps(os.getcwd)).name in ("posix.getcwd", "nt.getcwd")
    assert load(b"(S'x'\nios\nsystem\n.").args == ("x",)
    assert load(b"(cos\nsystem\nS'x'\no.").args == ("x",)
    keywords = load(b"\x80\x04cos\nsystem\n)}X\x01\x00\x00\x00kK\x01s\x92.")
    assert (keywords.name, keywords.state) == ("os.system", {"k": 1})
    assert repr(keywords) == "Record('os.system')"


SYSTEM = Name("os", "system")


def builtin(name, *args):
    return Call(Name("builtins", name), args)


def partial(*args, state=None):
    return Call(Name("functools", "partial"), args, state)


# By name: from a shell command and a Python expression that both make a file to a pickle.
HOSTILE = {
    "os.system": lambda command, _: pickled(Call(SYSTEM, (command,))),
    "eval": lambda _, expression: pickled(builtin("eval", expression)),
    "exec": lambda _, expression: pickled(builtin("exec", expression)),
    "getattr chain": lambda command, _: pickled(
        Call(builtin("getattr", builtin("__import__", "os"), "system"), (command,))
    ),
    "partial": lambda command, _: pickled(Call(partial(SYSTEM, command), ())),
    "state": lambda command, _: pickled(
        Call(partial(Name("builtins", "print"), state=(SYSTEM, (command,), {}, {})), ())
    ),
    "map": lambda command, _: pickled(builtin("list", builtin("map", SYSTEM, [command]))),
    "key of a dict": lambda command, _: b"}" + code(Call(SYSTEM, (command,))) + b"Ns.",
    "inside": lambda command, _: pickled({"a": [(Call(SYSTEM, (command,)),)]}),
    "dropped": lambda command, _: code(Call(SYSTEM, (command,))) + b"0N.",
    "cut off later": lambda command, _: pickled([Call(SYSTEM, (command,))])[:-2],
    "INST": lambda command, _: b"(" + code(command) + b"ios\nsystem\n.",
    "OBJ": lambda command, _: b"(csubprocess\nPopen\n" + code(command.split()) + b"o.",
    "STACK_GLOBAL": lambda command, _: (
        code("os") + code("system") + b"\x93" + code((command,)) + b"R."
    ),
    "in a state": lambda command, _: pickled(
        Call(Name("os", "system"), (command,), {"_metadata": Call(SYSTEM, (command,))})
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_runs(tmp_path, name):
    marker = tmp_path / "ran"
    data = HOSTILE[name](f"touch {marker}", f"open({str(marker)!r}, 'w').close()")
    if name == "cut off later":
        with pytest.raises(ValueError, match="its pickle is damaged or cut off"):
            load(data)
    else:
        load(data)
    time.sleep(0.05)
    assert not marker.exists()
    # The same bytes are no dud: Python runs them.
    with contextlib.suppress(Exception):
        process = pickle.loads(data)
        getattr(process, "wait", lambda: None)()
    assert marker.exists()


def test_nothing_is_imported(tmp_path, monkeypatch):
    (tmp_path / "a_planted_module.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    for data in (
        pickled(Call(Name("a_planted_module", "run"), ())),
        pickled(Name("a_planted_module", "run")),
        b"\x80\x04\x8c\x10a_planted_module\x8c\x03run\x93)R.",
        b"\x80\x02ca_planted_module\nrun\n)\x81}b.",
        b"(ia_planted_module\nrun\n.",
    ):
        assert load(data).name == "a_planted_module.run"
        assert "a_planted_module" not in sys.modules
    assert not (tmp_path / "ran").exists()


def function_of_ours(*_):
    """What the pickles below try to change."""


SLOTS = ({}, {"__defaults__": (1,), "name": "changed", "__code__": None})
CHANGES = {
    "class": (Name("ssm_jax.interop.torch_pickle", "Record"), {"name": "changed"}),
    "class, by its slots": (Name("os", "system"), (None, SLOTS[1])),
    "function": (Name("a", "function"), {"__wrapped__": 1, "attribute": 2}),
    "function, by its slots": (Name("a", "function"), (None, SLOTS[1])),
    "record": (Call(Name("os", "system"), ()), (SLOTS[0], SLOTS[1])),
    "ordered dict": (Call(Name("collections", "OrderedDict"), ()), (None, {"update": 1})),
    "outside": (Outside("x"), {"anything": 1}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_state_stays_outside_of_classes_and_functions(name):
    """BUILD on a class, a function or an object would let Python's unpickler change it."""
    target, state = CHANGES[name]
    outside = object()
    before = [{**vars(thing)} for thing in (Record, Dict, function_of_ours)]
    functions = {"a.function": function_of_ours}
    try:
        value = load(
            pickled(target)[:-1] + code(state) + b"b.",
            functions=functions,
            persistent=lambda _: outside,
        )
    except ValueError as error:
        assert "its pickle is damaged" in str(error)
    else:
        assert name in ("record", "ordered dict", "function")
        assert getattr(value, "state", state) == state
    assert [{**vars(thing)} for thing in (Record, Dict, function_of_ours)] == before
    assert function_of_ours.__defaults__ is None
    assert not is_name(Record("x")) and Record.name == "call"


def test_extensions_are_refused():
    copyreg.add_extension("collections", "OrderedDict", 0xF0)
    try:
        data = pickle.dumps(collections.OrderedDict(), 2)
        assert b"\x82\xf0" in data
        with pytest.raises(ValueError, match="registered extensions"):
            load(data)
    finally:
        copyreg.remove_extension("collections", "OrderedDict", 0xF0)
    for opcode in (b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\x00\x00\x00"):
        with pytest.raises(ValueError, match="registered extensions"):
            load(b"\x80\x02" + opcode + b".")


CALLS = {
    "set of a number": pickled(Call(Name("builtins", "set"), (1,))),
    "bytes of a number": pickled(Call(Name("_codecs", "encode"), (1,))),
    "bytes of bytes": pickled(Call(Name("_codecs", "encode"), ("x", ["latin1"]))),
    "bytes of a code page": pickled(Call(Name("_codecs", "encode"), ("x", "rot13"))),
    "bytes of a length": pickled(Call(Name("builtins", "bytearray"), (2**60,))),
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_that_make_no_values_of_python_stay_records(name):
    assert isinstance(load(CALLS[name]), Record)


BROKEN = {
    "empty": b"",
    "text": b"this is no pickle\n",
    "no stop": b"\x80\x02K\x01",
    "unknown opcode": b"\x80\x02\xff.",
    "nothing on the stack": b"\x80\x02.",
    "pop of nothing": b"0.",
    "no mark": b"K\x01t.",
    "no memo": b"h\x05.",
    "tuple of too few": b"K\x01\x86.",
    "append to a number": b"K\x01K\x02a.",
    "append to a tuple": b")K\x02a.",
    "append to a dict": b"}K\x02a.",
    "key of a list": b"]K\x01K\x02s.",
    "list as a key": b"}]K\x01s.",
    "dict as a key": b"}}K\x01s.",
    "number whose hash is zero as a key": pickled({2**61 - 1: 0}),
    "key without value": b"}(K\x01u.",
    "set of lists": b"\x80\x04\x8f(]\x90.",
    "call of a number": b"K\x01)R.",
    "call of text": b"X\x02\x00\x00\x00os)R.",
    "call without a tuple": b"cos\nsystem\nK\x01R.",
    "object of nothing": b"(o.",
    "object of a number": b"(K\x01o.",
    "state of a number": b"K\x01}b.",
    "state of a list": b"]}b.",
    "names of numbers": b"K\x01K\x02\x93.",
    "persistent id": b"K\x01Q.",
    "persistent text": b"P1\n.",
    "buffer": b"\x97.",
    "read-only buffer": b"]\x98.",
    "ordered dict of a number": pickled(Call(Name("collections", "OrderedDict"), (1,))),
    "ordered dict of text": pickled(Call(Name("collections", "OrderedDict"), (["ab", "c"],))),
    "ordered dict of tuples as keys": pickled(
        Call(Name("collections", "OrderedDict"), ([[("a",), 1]],))
    ),
    "ordered dict of two": pickled(Call(Name("collections", "OrderedDict"), ([], []))),
    "ordered dict of lists": pickled(Call(Name("collections", "OrderedDict"), ([[[], 1]],))),
    "long text that is not there": b"X\xff\xff\xff\x7fab.",
    "longer text": b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fab.",
    "long number": b"\x8b\xff\xff\xff\x7fab.",
    "negative length": b"\x8b\xff\xff\xff\xffab.",
    "not utf-8": b"X\x01\x00\x00\x00\xff.",
    "number of letters": b"Iabc\n.",
    "number of many digits": b"L" + b"9" * 10_000 + b"L\n.",
    "protocol of the future": b"\x80\x06N.",
    "longer frame": b"\x80\x04\x95\xff\xff\xff\x7f\x00\x00\x00\x00N.",
    "endless frame": b"\x80\x04\x95" + b"\xff" * 8 + b"N.",
    "huge memo index": b"K\x07r\xff\xff\xff\x7f0j\xff\xff\xff\x7f.",
    "large memo index": b"K\x07r\x41\x42\x0f\x00.",
    "memo index of many digits": b"K\x07p" + b"9" * 30 + b"\n.",
    "negative memo index": b"K\x07p-1\n.",
    "memo of nothing": b"q\x00.",
    "memo of a mark": b"(q\x00.",
    "large number as a key": pickled({2**62: 0}),
    "large number in a key": pickled({(1, (2**62,)): 0}),
    "large number in a set": b"\x80\x04\x8f(" + code(2**62) + b"\x90.",
    "large number in a frozen set": b"\x80\x04(" + code(2**62) + b"\x91.",
    "large number in a dict by marks": b"(" + code(2**62) + b"Nd.",
    "long tuple as a key": pickled({(0,) * 1000: 0}),
    "element of a number": b"K\x01K\x01a.",
    "key of a number": b"K\x01K\x01K\x01s.",
    "keywords that are none": b"\x80\x04cos\nsystem\n)K\x01\x92.",
    "keywords of numbers": b"\x80\x04cos\nsystem\n)}K\x01K\x01s\x92.",
    "object of a function": b"\x80\x02ccollections\nOrderedDict\n)\x81.",
    "long name": b"ca\n" + b"b" * 200 + b"\n.",
    "long name on the stack": b"\x80\x04" + code("a" * 200) + code("b") + b"\x93.",
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_pickles(name):
    with pytest.raises(ValueError, match="its pickle is damaged") as error:
        load(BROKEN[name])
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 250


def test_the_stream_is_left_behind_the_pickle():
    stream = io.BytesIO(pickle.dumps([1]) + pickle.dumps("two") + b"rest")
    assert Reader().load(stream) == [1]
    assert Reader().load(stream) == "two"
    assert stream.read() == b"rest"


def test_functions_and_persistent_ids():
    data = pickled([Call(Name("a.b", "c"), (1, 2))])
    assert load(data, functions={"a.b.c": max}) == [2]
    assert load(b"K\x05Q.", persistent=lambda identifier: identifier * 2) == 10
    with pytest.raises(ValueError, match="objects outside of it"):
        load(b"K\x05Q.")
