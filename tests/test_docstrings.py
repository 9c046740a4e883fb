"""The sources themselves: docstrings on all that is public, short modules, nothing left to do."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = sorted((ROOT / "ssm_jax").rglob("*.py"))
PROGRAMS = sorted((ROOT / "experiments").rglob("*.py")) + sorted((ROOT / "configs").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MAX_LINES = 400

# What Flax and dataclasses call by name is described by the docstring of the class.
CALLED_BY_NAME = {"setup"}


def name_of(path):
    """The path in the repository, as the name of a test."""
    return str(path.relative_to(ROOT))


def is_public(name):
    """Neither private nor a dunder method."""
    return not name.startswith("_")


def is_overload(node):
    """A property's setter or a typing overload repeats a function that has its docstring."""
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    return any(d.endswith((".setter", ".deleter", "overload")) for d in decorators)


def undocumented(tree):
    """Names of public classes, and of public functions of the module or of a public class."""
    missing = [] if ast.get_docstring(tree) or not tree.body else ["the module"]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if not is_public(node.name):
                continue
            if not (ast.get_docstring(node) or is_overload(node)):
                missing.append(node.name)
        if isinstance(node, ast.ClassDef):
            missing += [
                f"{node.name}.{method.name}"
                for method in node.body
                if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef)
                and is_public(method.name)
                and method.name not in CALLED_BY_NAME
                and not (ast.get_docstring(method) or is_overload(method))
            ]
    return missing


def test_the_package_was_found():
    assert len(PACKAGE) >= 10


def test_the_check_finds_what_is_missing():
    source = """
def public(): pass
def _private(): pass
class Public:
    "Described."
    def method(self): pass
    def setup(self): pass
    def _private(self): pass
    def __call__(self): pass
class Bare: pass
"""
    assert undocumented(ast.parse(source)) == ["the module", "public", "Public.method", "Bare"]
    assert undocumented(ast.parse("")) == []


@pytest.mark.parametrize("path", PACKAGE, ids=name_of)
def test_everything_public_has_a_docstring(path):
    missing = undocumented(ast.parse(path.read_text(encoding="utf-8")))
    assert not missing, f"{name_of(path)}: no docstring on {', '.join(missing)}"


@pytest.mark.parametrize("path", PACKAGE + PROGRAMS, ids=name_of)
def test_modules_are_short(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{name_of(path)} has {lines} lines, more than {MAX_LINES}"


@pytest.mark.parametrize("path", PACKAGE + PROGRAMS + TESTS, ids=name_of)
def test_nothing_is_left_to_do(path):
    # Written in two parts, so that this file passes its own test.
    marks = re.findall(
        r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X|no" r"qa)\b", path.read_text(encoding="utf-8")
    )
    assert not marks, f"{name_of(path)} holds {', '.join(sorted(set(marks)))}"
