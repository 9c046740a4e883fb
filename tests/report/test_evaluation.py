"""The report: well-formed, complete, self-contained, and every text escaped."""

import base64
import hashlib
import html.parser
import json
import re

import numpy as np
import pytest
from markupsafe import Markup

from ssm_jax.evaluation import infection
from ssm_jax.report import charts, compare, evaluation, paper, selection, slices
from ssm_jax.report.page import Section, local, local_command, page, parts
from tests.helpers.report_tools import HOSTILE, roi_rows, sample

VOID = {"br", "hr", "img", "input", "link", "meta"}
SECTIONS = (
    *("summary", "segmentation", "curves", "classification", "calibration", "slices", "details"),
)


class Page(html.parser.HTMLParser):
    """Tags with attributes in order, the text, and whether every tag is closed in its place."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.open, self.text, self.texts, self.data = [], [], "", {}, []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        element = self.open[-1] if self.open else ""
        if element == "script" and self.tags[-1][1].get("type") == "application/json":
            self.data.append(json.loads(data))
        elif element not in ("script", "style", ""):
            self.text += data
        else:
            self.texts.setdefault(element, []).append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def assert_self_contained(text):
    """No address that a browser would ask for, in attributes, style or script."""
    page = Page(text)
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name in ("src", "href", "data", "action", "poster", "srcset", "xlink:href", "content"):
            value = attributes.get(name, "")
            if name == "content":
                assert "url=" not in (value or "")
            elif value:
                assert value.startswith(("data:", "#")), (tag, name, value[:80])
        assert "url(" not in attributes.get("style", "")
    for block in page.texts.get("style", []) + page.texts.get("script", []):
        assert not re.search(
            r"url\(|@import|https?:|//|fetch\(|XMLHttp|WebSocket",
            re.sub(r"^\s*//.*$", "", block, flags=re.M),
        )
    (policy,) = [m["content"] for m in page.all("meta") if "http-equiv" in m]
    assert policy.startswith("default-src 'none'")
    assert page.tags[0][0] == "html"
    assert "lang" in page.tags[0][1]
    return page


@pytest.fixture(scope="module")
def made():
    result, shown = sample()
    return result, evaluation.report(result, shown)


def test_every_section_is_there_and_linked(made):
    page = assert_self_contained(made[1])
    sections = [attributes["id"] for attributes in page.all("section")]
    assert tuple(sections) == SECTIONS
    links = [a["href"] for a in page.all("a")]
    assert links == ["#content", *(f"#{name}" for name in SECTIONS)]
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {"content", *SECTIONS} <= set(ids)
    for image in page.all("img"):
        assert image["alt"]
        assert image["src"].startswith("data:image/jpeg;base64,")
    for drawing in page.all("svg"):
        assert drawing.get("aria-label") or drawing.get("aria-hidden") == "true"
    assert "not a medical device" in page.text


def test_the_figures_are_those_of_the_metrics(made):
    result, text = made
    page = Page(text)
    figures = ("ap50", "ap75", "ap", "f1_weighted", "f1_macro", "f1_weighted_paper", "ece")
    for name in (*figures, *infection.FIGURES, "auc_covid", "auc_cp", "auc_normal"):
        assert f"{result[name]:.4f}" in page.text, name
    for name in ("accuracy", "sensitivity_covid", "sensitivity_cp", "sensitivity_normal"):
        assert f"{result[name]:.2%}" in page.text, name
    for kind in ("segm", "bbox"):
        for figure in ("AP", "AP50", "AR1", "AR100"):
            assert f"{result[f'coco_{kind}_{figure}']:.3f}" in page.text
    low, high = result["intervals"]["figures"]["ap"]
    assert f"{low:.4f} – {high:.4f}" in page.text
    assert "0.5799" in page.text  # Table 2 of the same system
    assert "93.00%" in page.text  # Table 3
    for row in result["confusion"]:
        assert all(f"<b>{count}</b>" in text for count in row)
    for fact in ("8,267,759", "341.5 minutes", "150,000", result["run"]["date"]):
        assert fact in page.text
    assert result["run"]["command"] in page.text
    assert "8 of 100, evenly spread" in page.text


def test_every_folder_has_figures_of_its_own(made):
    assert "Each folder alone" not in made[1]
    figures = {name: value for name, value in made[0].items() if isinstance(value, float)}
    result = made[0] | {f"home/{name}": 0.123 for name in figures}
    result |= {f"a & b/{name}": None for name in figures if name.startswith(("ap", "infection"))}
    page = Page(evaluation.report(result, []))
    assert page.text.count("Each folder alone") == 2
    assert page.text.count("home") == 2 and page.text.count("a & b") == 1
    assert page.text.count("12.30%") == 4  # sensitivities and accuracy


def test_names_of_files_and_folders_are_text(made):
    _, text = made
    assert HOSTILE not in text
    page = Page(text)
    assert HOSTILE in page.text
    assert "…/runs/<b>first & last/9" in page.text
    assert len(page.all("script")) == 1
    assert not page.all("i")


def test_paths_of_this_machine_are_shortened(made):
    result, text = made
    assert result["model"]["checkpoint"] not in Page(text).text
    assert local("/home/somebody/runs/demo", 3) == "…/somebody/runs/demo"
    assert local("runs/demo") == "runs/demo"
    command = "ssm-jax evaluate --a=/home/a/b/c '/a b/c d/e' --x=runs/a/b --y=1/2 /a/b/c"
    assert local_command(command) == (
        "ssm-jax evaluate --a=…/b/c '…/c d/e' --x=runs/a/b --y=1/2 …/b/c"
    )


def test_slices_show_the_roi_batch(made):
    page = Page(made[1])
    assert "RoI batch: 128 ranked rows, 40 distinct boxes" in page.text
    assert "No box survived: every row is zero." in page.text
    assert "The first 12 distinct rows" in page.text
    # 8 segmentation slices with 4 panels, 3 classification slices with 3.
    assert len(page.all("img")) == 8 * 4 + 3 * 3
    assert "Segmentation: worst slices" in page.text
    assert "Classification: slices drawn at random" in page.text


def test_a_part_alone():
    result, shown = sample(cls=0)
    page = assert_self_contained(evaluation.report(result, shown))
    names = {a["id"] for a in page.all("section")}
    assert names == set(SECTIONS) - {"classification", "calibration"}
    result, shown = sample(seg=0, system=None, training_minutes=None)
    page = assert_self_contained(evaluation.report(result, []))
    names = {a["id"] for a in page.all("section")}
    assert names == set(SECTIONS) - {"segmentation", "curves"}
    assert "No slice was drawn." in page.text
    assert "paper, Table" not in page.text
    assert "minutes" not in page.text


def test_undefined_figures_are_dashes():
    result, shown = sample(seg=1)
    assert result["intervals"]["figures"]["ap"] == [None, None]
    text = evaluation.report(result, shown)
    assert "There is a single patient: intervals are not defined." in Page(text).text
    assert "nan" not in text.replace("nano", "").lower().split("base64")[0]
    result["accuracy"] = None
    assert "–" in Page(evaluation.report(result, shown)).text


def test_runs_of_rows():
    rng = np.random.default_rng(0)
    read = roi_rows(rng, 5)
    found = slices.runs(read.rows)
    assert [first for first, _ in found] == [0, 28, 53, 78, 103]
    assert sum(length for _, length in found) == 128
    assert slices.runs(np.zeros((4, 5))) == [(0, 4)]
    assert slices.runs(np.zeros((0, 5))) == []


def test_choice_of_slices():
    values = [0.5, 0.9, 0.1, 0.9, 0.0, 0.7, 0.3]
    chosen = selection.choose(values, 2, seed=0)
    assert chosen["best"] == [1, 3]
    assert chosen["worst"] == [4, 2]
    assert set(chosen["random"]) < {0, 5, 6}
    assert selection.choose(values, 2, seed=0) == chosen
    ranked = [True, False, True, False, False, True, True]
    only = selection.choose(values, 9, 0, ranked)
    assert only == {"best": [5, 0], "worst": [2, 6], "random": [1, 3, 4]}
    assert selection.choose([0.5], 3, 0) == {"best": [0], "worst": [], "random": []}
    assert selection.choose([], 3, 0) == {"best": [], "worst": [], "random": []}
    assert selection.choose(values, 0, 0) == {"best": [], "worst": [], "random": []}


def test_templates_escape_text_and_attributes():
    shared = parts("macros.html")
    made = shared.table(["<h>"], [["<r>", Markup("<i>&</i>"), 3]], caption="a\"<'", faint=[0])
    assert '<th scope="col">&lt;h&gt;</th>' in made
    assert "<caption>a&#34;&lt;&#39;</caption>" in made
    assert (
        '<tr class="paper"><th scope="row">&lt;r&gt;</th><td><i>&</i></td><td>3</td></tr>' in made
    )
    assert "<b>" not in shared.facts({"<b>": "<b>", "none": None})
    assert "none" not in shared.facts({"none": None})
    meter = Page(shared.shares({HOSTILE: 0.5, "unknown": None})).all("meter")
    assert [(m["aria-label"], m["value"]) for m in meter] == [
        (HOSTILE, "0.5000"),
        ("unknown", "0.0000"),
    ]
    whole = page("<t>", "<l>", [Section("x", "<s>", Markup("<p>&amp;</p>"))], "<f>")
    assert not re.search("<(t|l|s|f)>", whole)
    assert "<p>&amp;</p>" in whole


def test_the_policy_names_the_scripts_of_the_page():
    text = page("t", "l", [], "f", scripts=["viewer.js"])
    read = Page(text)
    (policy,) = [m["content"] for m in read.all("meta") if "http-equiv" in m]
    digests = [hashlib.sha256(script.encode()).digest() for script in read.texts["script"]]
    named = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    assert policy.endswith(f"script-src {named}")
    assert len(digests) == 2


def test_curves_are_drawn_in_their_place():
    drawn = charts.curves([("one", np.array([0, 0.5, 1]), np.array([1, 0.5, 0]))], "x", "y", "t")
    assert 'points="46,12 196,162 346,312"' in drawn


@pytest.fixture(scope="module")
def side_by_side():
    results = [sample(seed, name=f"model {seed}")[0] for seed in range(2)]
    results.append(sample(2, system=None, name="unknown")[0])
    del results[2]["accuracy"]
    names = ("first|run", "second", "<third>")
    return [compare.Evaluation(n, r) for n, r in zip(names, results, strict=True)]


def test_tables_side_by_side(side_by_side):
    sizes, segmentation, classes = compare.tables(side_by_side)
    assert [of_paper for of_paper, _ in sizes.rows] == [False, True, False, True, False]
    assert sizes.rows[0][1][1:] == (
        ["8.27M", "6.00M / 4.03M", "650/650", "–", "8/24", "0.01/0.04", "341.5"]
    )
    assert sizes.rows[1][1][1:] == (
        ["8.27M", "8.27M / 1.90M", "650/3K", "100/20.6K", "-/21.1K", "-/7.06", "341"]
    )
    assert segmentation.rows[1][1] == (
        ["paper", "0.5799", "0.3828", "0.4245", *[""] * 5, "3 of 12"]
    )
    assert classes.rows[3][1] == (
        ["paper", "93.00%", "96.53%", "98.64%", "96.75%", "0.9676", "", "", "1 of 12"]
    )
    result = side_by_side[0].result
    low, high = result["intervals"]["figures"]["ap50"]
    assert segmentation.rows[0][1][1] == f"{result['ap50']:.4f} [{low:.4f}, {high:.4f}]"
    assert segmentation.rows[0][1][6].startswith(f"{result['infection_dice']:.4f} [")
    assert classes.rows[0][1][7].startswith(f"{result['auc_covid']:.4f} [")
    places = [row[-1] for of_paper, row in segmentation.rows if not of_paper]
    order = np.argsort([-e.result["ap"] for e in side_by_side])
    assert [places[k] for k in order] == ["1", "2", "3"]
    assert classes.rows[4][1][4] == "–"
    for item in (sizes, segmentation, classes):
        assert {len(cells) for _, cells in item.rows} == {len(item.head)}


def test_markdown(side_by_side):
    text = compare.markdown(side_by_side)
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len(tables) == 3 * (2 + 5)
    columns = [len(re.findall(r"(?<!\\)\|", line)) - 1 for line in tables]
    assert columns == [8] * 7 + [10] * 7 + [9] * 7
    assert "model 0, first\\|run" in text
    assert "\\<third\\>" in text
    assert "| *paper* | *0.5799* | *0.3828* | *0.4245* |" in text


def test_comparison_as_a_page(side_by_side):
    page = assert_self_contained(compare.html(side_by_side, "a <b>", "2020-12-01"))
    assert [a["id"] for a in page.all("section")] == ["table-1", "table-2", "table-3", "sources"]
    assert "unknown, <third>" in page.text
    assert "93.00%" in page.text
    assert "a <b>" in page.text


def test_the_system_of_a_model():
    model = {"branches": 2, "image_classes": 3}
    trained = {"train": {"copy_rule": "best"}}
    assert paper.system_of(model, trained) == "SSMS"
    assert paper.system_of(model, {"train": {"copy_rule": "never"}}) == "SSM2"
    assert paper.system_of(model, None) is None
    assert paper.system_of({**model, "branches": 1}, trained) == "SSM"
    assert paper.system_of({"branches": 1, "image_classes": 0}, trained) is None
    assert paper.label("SSM2", "resnet34", 2) == "SSM² (ResNet34+FPN)*"
    assert paper.find("SSM3", "resnet18", 2) is None
