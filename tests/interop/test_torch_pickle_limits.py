"""Pickles that ask for more memory, depth or time than a checkpoint needs."""

import io
import tracemalloc

import pytest

from ssm_jax.interop import torch_pickle
from ssm_jax.interop.torch_pickle import Reader, is_name
from tests.helpers.torch_files import Call, Name, code, pickled
from tests.interop.test_torch_pickle import load

# Instead of a million, so that the pickles are short.
WORK = 10_000
NESTED = b"\x85" * 7000
BOMBS = {
    "nested more than 200 deep": {
        "tuples": b"\x80\x02)" + NESTED + b".",
        "lists": b"\x80\x02" + b"]" * 4000 + b"a" * 3999 + b".",
        "lists, the outermost first": b"]p0\n0"
        + b"".join(b"]p%d\n0g%d\ng%d\na0" % (k + 1, k, k + 1) for k in range(300))
        + b"g0\n.",
        "marks": b"(" * 4000 + b"t" * 4000 + b".",
        "states": b"cos\nx\n)R" * 300 + b"N" + b"b" * 300 + b".",
    },
    "keys that are too large": {
        "tuple": b"\x80\x02})" + NESTED + b"K\x01s.",
        "tuple in a set": b"\x80\x04\x8f()" + NESTED + b"\x90.",
        "size": b"\x80\x02}ctorch\nSize\n)" + b"\x85" * 2000 + b"\x85RK\x01s.",
        "one long tuple": b"((" + b"N" * 3000 + b"tp0\n0}" + b"g0\nNs" * 2000 + b".",
        "tuple of itself": b"}K\x00" + b"2\x86" * 60 + b"Ns.",
        "frozen set of itself": b"\x80\x04}(K\x00\x91" + b"2\x86" * 60 + b"Ns.",
        "many that collide": b"}" + b"K\x05K\x05\x86Ns" * 1100 + b".",
    },
    # Each line copies all elements of one tuple or dict, or hashes it.
    "more than 10000 steps": {
        "keys of one tuple": b"((" + b"N" * 900 + b"tp0\n0}" + b"g0\nNs" * 20 + b".",
        "calls": b"(" + b"N" * 2000 + b"tp0\n0cos\nx\np1\n0(" + b"g1\ng0\nR" * 5 + b"t.",
        "objects": b"(" + b"N" * 2000 + b"tp0\n0cos\nx\np1\n0(" + b"g1\ng0\n\x81" * 5 + b"t.",
        # The dict is kept while it is empty, and filled later.
        "objects with one dict": b"}p0\n("
        + b"".join(code(str(k)) + b"N" for k in range(1000))
        + b"u0cos\nx\np1\n0("
        + b"g1\n)g0\n\x92" * 5
        + b"t.",
        "sets": b"(" + b"K\x01" * 2000 + b"lp0\n" + b"0cbuiltins\nset\n(g0\ntR" * 2000 + b".",
        "ordered dicts": b"]p0\n" + b"0ccollections\nOrderedDict\n(g0\ntR" * 2000 + b"N.",
        "records": b"cos\nx\n" * 3000 + b")" + b"R\x85" * 2999 + b"R.",
        "opcodes": b"K\x010" * 6000 + b"N.",
    },
    "more than 200 characters": {
        "names": code("a" * 10_000) + b"p0\n0" + b"g0\ng0\n\x930" * 1000 + b"N.",
    },
    "more than 1000 functions": {
        "names": b"".join(b"ca\n%d\n0" % k for k in range(1001)) + b"N.",
    },
}
CASES = [(reason, name) for reason, bombs in BOMBS.items() for name in bombs]


@pytest.mark.parametrize(("reason", "name"), CASES)
def test_bombs(reason, name, monkeypatch):
    monkeypatch.setattr(torch_pickle, "MAX_WORK", WORK)
    functions = {"torch.Size": lambda sizes: sizes}
    with pytest.raises(ValueError, match=f"its pickle is damaged: .*{reason}"):
        load(BOMBS[reason][name], functions=functions)


def test_the_pairs_of_an_ordered_dict_are_read_once():
    first = b"ccollections\nOrderedDict\n(" + code([["a", 1]])[:-1] + b"ep0\ntR"
    second = b"ccollections\nOrderedDict\n(g0\ntR"
    assert load(b"(" + first + second + b"t.") == ({"a": 1}, {})


def test_a_key_that_would_end_python():
    """Python's unpickler hashes it, which takes more of the C stack than there is."""
    with pytest.raises(ValueError, match="keys that are too large"):
        load(b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s.")


@pytest.mark.parametrize("opcode", [b"R", b"\x81"])
def test_calls_with_one_tuple_take_little_memory(opcode):
    data = b"(" + b"N" * 10_000 + b"tp0\n0cos\nx\np1\n0(" + b"g1\ng0\n" + opcode
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="more than 1000000 steps"):
            load(data + (b"g1\ng0\n" + opcode) * 1000 + b"t.")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40e6


def test_a_value_that_holds_itself_is_read():
    loaded = load(b"]p0\ng0\na.")
    assert loaded[0] is loaded


def test_values_that_hold_one_another_twice_are_read_in_no_time():
    loaded = load(b"\x80\x02)" + b"2\x86" * 100 + b".")
    assert loaded[0] is loaded[1]


def test_names_are_told_apart():
    names = load(pickled([Name("a", "b"), Name("a", "b"), Name("a.b", "c"), Name("a", "b.c")]))
    assert [name.name for name in names] == ["a.b", "a.b", "a.b.c", "a.b.c"]
    assert all(map(is_name, names))
    assert not any(map(is_name, (Call, None, "a.b", load(pickled(Call(Name("a", "b"), ()))))))


def test_the_limits_are_for_all_pickles_of_a_file(monkeypatch):
    monkeypatch.setattr(torch_pickle, "MAX_WORK", WORK)
    reader = Reader()
    stream = io.BytesIO((b"K\x010" * 1000 + b"N.") * 10)
    with pytest.raises(ValueError, match="more than 10000 steps"):
        for _ in range(10):
            assert reader.load(stream) is None
    assert stream.tell() > 10_000


def test_a_limit_of_bytes():
    stream = io.BytesIO(pickled("x" * 1000))
    with pytest.raises(ValueError, match="damaged or cut off"):
        load(stream.getvalue(), limit=1000)
    assert load(stream.getvalue(), limit=1100) == "x" * 1000
