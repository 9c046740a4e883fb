"""The report in a headless Chromium: nothing on the console, no request, everything in sight."""

import pytest

from ssm_jax.report import compare, evaluation
from tests.helpers import browsers
from tests.helpers.browsers import assert_silent, opened
from tests.helpers.report_tools import sample
from tests.report.test_evaluation import SECTIONS

pytestmark = browsers.needed


@pytest.fixture(scope="module")
def browser():
    with browsers.launched() as browser:
        yield browser


def test_the_report(browser, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(evaluation.report(*sample()), encoding="utf-8")
    page = opened(browser, path, color_scheme="light", reduced_motion="reduce")
    for name in SECTIONS:
        box = page.locator(f"section#{name}").bounding_box()
        assert box["height"] > 100, name
        assert box["width"] > 900, name
    broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
    assert page.evaluate("document.images.length") == 41
    assert page.evaluate(broken) == 0
    assert page.evaluate("document.documentElement.scrollWidth") == 1280
    # The style sheet works, and the buttons do.
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.click("#theme")
    assert page.evaluate(background) != light
    closed = "[...document.querySelectorAll('details')].filter(d => !d.open).length"
    assert page.evaluate(closed) > 0
    page.click("#fold")
    assert page.evaluate(closed) == 0
    page.click("nav a[href='#details']")
    assert page.locator("#details").evaluate("e => e.getBoundingClientRect().top") < 900
    assert len(page.screenshot()) > 20_000
    assert_silent(page, path)


def test_the_dark_report_on_a_narrow_screen(browser, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(evaluation.report(*sample()), encoding="utf-8")
    page = opened(browser, path, color_scheme="dark")
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == 400  # only tables scroll
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(232, 236, 243)"
    assert_silent(page, path)


def test_a_comparison(browser, tmp_path):
    path = tmp_path / "compare.html"
    evaluations = [compare.Evaluation(f"run{k}", sample(k)[0]) for k in range(2)]
    path.write_text(compare.html(evaluations, "command", "today"), encoding="utf-8")
    page = opened(browser, path)
    assert page.locator("section").count() == 4
    assert not page.locator("#fold").is_visible()
    assert_silent(page, path)


def test_the_browser_would_have_noticed(browser, tmp_path):
    path = tmp_path / "page.html"
    path.write_text("<img src='http://127.0.0.1:9/x.png'><script>nowhere()</script>")
    page = opened(browser, path)
    assert any("nowhere" in line for line in page.said)
    assert len(page.asked) == 2
