"""Rules of the sources that no linter holds: lengths, and how docstrings begin."""

import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = ("ssm_jax", "experiments", "benchmarks", "configs")
MODULES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 80


def test_modules_are_short():
    assert min(len(MODULES), len(TESTS)) > 50
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in (*MODULES, *TESTS)
    }
    assert {name: lines for name, lines in lengths.items() if lines > MAX_MODULE_LINES} == {}


def test_functions_are_short():
    long, found = {}, 0
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found += 1
                lines = node.end_lineno - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    long[f"{path.relative_to(ROOT)}: {node.name}"] = lines
    assert found > 500
    assert long == {}


def test_docstrings_begin_with_a_noun_or_a_verb():
    riddles = [
        f"{path.relative_to(ROOT)}: {node.lineno if hasattr(node, 'lineno') else 1}"
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and (ast.get_docstring(node) or "").startswith("What ")
    ]
    assert riddles == []


# What may name the paper's classes: their set, the readers of published data, the paper's tables,
# and the phantom.
NAMING = (
    "ssm_jax/classes.py",
    "ssm_jax/cli/prepare_data.py",
    "ssm_jax/data/phantom/",
    "ssm_jax/data/published/",
    "ssm_jax/report/paper.py",
    "ssm_jax/report/paper_results.json",
)


def test_the_papers_classes_are_named_in_one_place():
    words = re.compile(r"covid|pneumonia|ggo|consolidation", re.IGNORECASE)
    kinds = (".py", ".html", ".css", ".js", ".json")
    files = [path for path in sorted((ROOT / "ssm_jax").rglob("*")) if path.suffix in kinds]
    naming = {
        str(path.relative_to(ROOT))
        for path in files
        if words.search(path.read_text(encoding="utf-8"))
    }
    assert sorted(name for name in naming if not name.startswith(NAMING)) == []
    assert [start for start in NAMING if not any(n.startswith(start) for n in naming)] == []
