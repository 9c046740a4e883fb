"""Bounds on the sources that no linter holds: the length of modules."""

import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = ("ssm_jax", "experiments", "benchmarks", "configs")
MODULES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
MAX_MODULE_LINES = 400


def test_modules_are_short():
    assert len(MODULES) > 50
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in MODULES
    }
    assert {name: lines for name, lines in lengths.items() if lines > MAX_MODULE_LINES} == {}
