"""The paper's numbers: against its text where it is there, and against each other."""

import re

import pytest

from ssm_jax.report import paper
from tests.helpers.shared import SHARED

PAPER = SHARED / "paper.txt"
needs_paper = pytest.mark.skipif(not PAPER.is_file(), reason=f"no text of the paper at {PAPER}")
MODELS = paper.results()["models"]


def test_twelve_systems_once_each():
    keys = [(m["system"], m["backbone"], m["blocks"]) for m in MODELS]
    assert len(set(keys)) == len(keys) == 12
    for key, model in zip(keys, MODELS, strict=True):
        assert paper.find(*key) is model


@pytest.mark.parametrize(("table", "figure"), [("table2", "ap"), ("table3", "f1_weighted")])
def test_ranks_follow_from_the_figures(table, figure):
    ordered = sorted(MODELS, key=lambda model: -model[table][figure])
    assert [model[table]["rank"] for model in ordered] == list(range(1, 13))


def test_percentages_and_fractions():
    assert paper.as_fraction("accuracy", 96.75) == pytest.approx(0.9675)
    assert paper.as_fraction("f1_weighted", 0.9676) == 0.9676


def key_of(name):
    """The paper's "SSM2(ResNet18+FPN)**", as its text has it, as a key."""
    flat = name.replace("∗", "*").replace(" ", "")
    system, depth = re.match(r"(SSM[2S]?)\(ResNet(\d\d)", flat).groups()
    return system, f"resnet{depth}", flat.count("*") + 1


@needs_paper
@pytest.mark.parametrize(("table", "count"), [("table2", 3), ("table3", 5)])
def test_tables_2_and_3_are_as_printed(table, count):
    number = r"([\d.]+)%?\s+"
    pattern = rf"^(SSM[2S]?\(ResNet\d\d\+FPN[^ ]*)\s+{number * count}(\d+)$"
    title = "Table 2: " if table == "table2" else "Table 3: "
    text = PAPER.read_text(encoding="utf-8")
    rows = re.findall(pattern, text[text.index(title) :], re.MULTILINE)[:12]
    assert len(rows) == 12
    for name, *printed in rows:
        expected = list(paper.find(*key_of(name))[table].values())
        assert [float(value) for value in printed] == expected, name


@needs_paper
def test_table_1_is_as_printed():
    text = PAPER.read_text(encoding="utf-8")
    part = text[text.index("Table 1: ") : text.index("Equation 2 is the only")]
    pattern = r"(SSM(?:2,S)? \(ResNet\d\d\+FPN\)∗+) ([\d.]+M) ([\d.]+M)/([\d.]+M)(?: ([\d/]+))?$"
    rows = re.findall(pattern, part, re.MULTILINE)
    assert len(rows) == 8
    first = iter(re.findall(r"^(\d{3})$", part, re.MULTILINE)[:1])  # a line of its own
    shared = iter(re.findall(r"^(\d{3}/\d{3})$", part, re.MULTILINE)[:1])
    for name, total, segmentation, classification, minutes in rows:
        systems = ("SSM2", "SSMS") if "2,S" in name else ("SSM",)
        minutes = minutes or next(shared if "2,S" in name else first)
        for system, printed in zip(systems, minutes.split("/"), strict=True):
            _, backbone, blocks = key_of(name.replace("2,S", ""))
            assert paper.find(system, backbone, blocks)["table1"] == {
                "total_parameters": total,
                "trainable_segmentation": segmentation,
                "trainable_classification": classification,
                "training_minutes": int(printed),
            }
