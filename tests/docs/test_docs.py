"""The documentation: its commands, its notebook, its references to code."""

import dataclasses
import importlib
import json
import pathlib
import re
import shlex
import sys

import ml_collections
import pytest

from ssm_jax import __main__ as program
from ssm_jax.cli import configs, flags
from ssm_jax.config import default_config

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
sys.path.insert(0, str(ROOT / "docs"))
hooks = importlib.import_module("hooks")
sys.path.remove(str(ROOT / "docs"))


def commands_of(page):
    """The commands of `ssm-jax` and of the main job in a page, each as a list of words."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    inline = re.findall(r"`((?:ssm-jax|python -m experiments\.main) [^`]*=[^`]*)`", text)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines() + inline
    for line in lines:
        for words in (shlex.split(part, comments=True) for part in re.split("&&|;", line)):
            if words[:1] == ["ssm-jax"] and len(words) > 1:
                yield words[1:]
            elif words[:3] == ["python", "-m", "experiments.main"]:
                yield ["train", *words[3:]]


COMMANDS = sorted({tuple(words) for page in PAGES for words in commands_of(page)})


def test_pages_hold_commands():
    assert {words[0] for words in COMMANDS} == set(program.COMMANDS)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_flags_of_documented_commands_exist(words):
    name, *arguments = words
    if "--help" in arguments or name == "COMMAND":
        return
    kind = importlib.import_module(f"ssm_jax.cli.{name.replace('-', '_')}").Flags
    given = flags.parse(kind, arguments)
    if name == "train":
        config = configs.changed(configs.load(given.config), given.changes)
        assert isinstance(config, ml_collections.ConfigDict)
    else:
        assert dataclasses.is_dataclass(given)


def test_every_field_is_in_the_config_reference_with_its_meaning():
    text = hooks.on_page_markdown((ROOT / "docs" / "config.md").read_text(encoding="utf-8"))
    rows = re.findall(r"^\| `([\w.]+)` \| `.*` \| (.*) \|$", text, re.MULTILINE)

    def fields(section, prefix=""):
        for name, value in section.items():
            if isinstance(value, ml_collections.ConfigDict):
                yield from fields(value, f"{prefix}{name}.")
            else:
                yield prefix + name

    assert sorted(name for name, _ in rows) == sorted(fields(default_config()))
    assert [name for name, meaning in rows if not meaning.strip()] == []


def test_links_between_pages_lead_somewhere():
    missing = [
        f"{page.relative_to(ROOT)}: {link}"
        for page in PAGES
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
        if not (page.parent / link).exists()
    ]
    assert missing == []


def test_files_that_pages_name_exist():
    named = {
        path
        for page in PAGES
        for path in re.findall(
            r"`((?:ssm_jax|experiments|benchmarks|configs|docs|tests)/[\w/.]+)`",
            page.read_text(encoding="utf-8"),
        )
    }
    assert named and [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_tests_that_pages_name_exist():
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) > 50
    missing = [
        f"{path}::{name}"
        for path, name in named
        if not re.search(rf"^def {name}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert missing == []


@pytest.mark.slow
@pytest.mark.usefixtures("quickly_compiled")
def test_the_notebook_runs():
    cells = json.loads((ROOT / "docs" / "first_steps.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "first_steps.ipynb", "exec"), names)
    assert int(names["state"].step) == 1
    assert all(float(value) == float(value) for value in names["metrics"].values())
