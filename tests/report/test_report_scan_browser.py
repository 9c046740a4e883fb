"""The viewer of scans in a headless Chromium: what a user does, and what is seen then."""

import numpy as np
import pytest

from ssm_jax.report.scan import scan_report
from tests.helpers import browsers
from tests.helpers.browsers import assert_silent, opened
from tests.helpers.scan_tools import HEIGHT, WIDTH, lesions
from tests.helpers.scan_tools import scan as made_up

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect
pytestmark = browsers.needed
MASKS = """() => {
  const canvas = document.querySelector(".stage canvas");
  const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  return [canvas.height, canvas.width, ...data.filter((_, k) => k % 4 == 3)];
}"""


@pytest.fixture(scope="module")
def browser():
    with browsers.launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("scan") / "report.html"
    path.write_text(scan_report([made_up()], {"Model": "made up"}, 0.5), encoding="utf-8")
    return path


@pytest.fixture
def page(browser, path):
    page = opened(browser, path)
    yield page
    assert_silent(page, path)
    page.close()


def current(page):
    """Number of the slice that is shown, from 1 on, by all that tells it."""
    number = int(page.input_value(".slice-slider"))
    assert page.inner_text(".where").startswith(f"Slice {number} of 30")
    step = float(page.get_attribute(".along svg", "data-step"))
    cursor = float(page.get_attribute(".cursor", "x1"))
    assert cursor == pytest.approx(46 + step * (number - 0.5), abs=0.01)
    return number


def masks(page):
    height, width, *alpha = page.evaluate(MASKS)
    assert set(alpha) <= {0, 255}
    return np.reshape(alpha, (height, width)) > 0


def set_range(page, name, value):
    page.eval_on_selector(
        name,
        "(e, v) => { e.value = v; e.dispatchEvent(new Event('input', { bubbles: true })); }",
        str(value),
    )


def test_it_starts_with_the_most_telling_slice(page):
    assert current(page) == 13
    assert page.inner_text(".name") == "slice_12.dcm"
    assert "30.0 mm" in page.inner_text(".where")
    size = (
        "[document.querySelector('.stage img').naturalWidth, "
        "document.querySelector('.stage img').naturalHeight]"
    )
    page.locator(".stage img").evaluate("e => e.decode()")
    assert page.evaluate(size) == [WIDTH, HEIGHT]
    box = page.locator(".stage").bounding_box()
    assert box["width"] / box["height"] == pytest.approx(WIDTH / HEIGHT, rel=0.01)
    assert page.evaluate("document.documentElement.scrollWidth") == 1280
    assert len(page.screenshot()) > 20_000


def test_twenty_slices_by_wheel_and_by_keys(page):
    page.locator(".slice-slider").fill("1")
    page.locator(".stage").hover()
    top = page.evaluate("window.scrollY")
    seen = []
    for _ in range(20):
        page.mouse.wheel(0, 100)
        expect(page.locator(".slice-slider")).to_have_value(str(len(seen) + 2))
        seen.append(current(page))
    assert seen == list(range(2, 22))
    assert page.evaluate("window.scrollY") == top
    page.mouse.wheel(0, -100)
    expect(page.locator(".slice-slider")).to_have_value("20")
    assert current(page) == 20
    page.keyboard.press("ArrowRight")
    assert current(page) == 21
    page.locator(".stage").focus()
    for key, number in (
        *(("ArrowLeft", 20), ("ArrowUp", 19), ("ArrowDown", 20), ("PageDown", 30)),
        *(("PageUp", 20), ("End", 30), ("ArrowRight", 30), ("Home", 1), ("ArrowLeft", 1)),
    ):
        page.keyboard.press(key)
        assert current(page) == number, key
    page.click(".on")
    page.click(".on")
    page.click(".back")
    assert current(page) == 2


def test_the_threshold_filters_masks_boxes_and_the_list(page):
    page.click(".jumps button[data-slice='3']")
    assert current(page) == 4
    expected = lesions(3)
    # The masks as NumPy drew them, decoded by the page.
    for threshold, left in ((0.5, 3), (0.64, 3), (0.7, 2), (0.9, 1), (1, 0), (0.5, 3)):
        set_range(page, ".threshold", threshold)
        union = np.any(expected[:left], axis=0) if left else np.zeros((HEIGHT, WIDTH), bool)
        np.testing.assert_array_equal(masks(page), union)
        assert page.locator(".stage rect").count() == left
        assert page.locator(".lesions tbody tr").count() == left
        assert page.inner_text(".found") == f"{left} of 3 lesions shown"
    # The threshold stays from slice to slice.
    set_range(page, ".threshold", 0.9)
    page.click(".on")
    np.testing.assert_array_equal(masks(page), lesions(4)[0])
    page.click(".on")
    assert page.inner_text(".found") == "No lesion was found."
    assert not masks(page).any()


def test_boxes_lie_around_masks(page):
    page.click(".jumps button[data-slice='3']")
    stage = page.locator(".stage").bounding_box()
    scale = stage["width"] / WIDTH
    drawn = [r.bounding_box() for r in page.locator(".stage rect").all()]
    for mask, box in zip(reversed(lesions(3)), drawn, strict=True):
        columns = np.flatnonzero(mask.any(0))
        middle = (columns[0] + columns[-1] + 1) / 2
        assert box["x"] + box["width"] / 2 - stage["x"] == pytest.approx(middle * scale, abs=1.5)
        assert box["width"] == pytest.approx(len(columns) * scale, abs=4)


def test_overlay_opacity_and_boxes_can_be_switched(page):
    canvas, boxes = page.locator(".stage canvas"), page.locator(".stage svg")
    assert canvas.is_visible()
    page.uncheck(".outlines")
    assert canvas.is_visible()
    assert not boxes.is_visible()
    page.uncheck(".overlay")
    assert not canvas.is_visible()
    page.locator(".stage").focus()
    page.keyboard.press("o")
    assert canvas.is_visible()
    set_range(page, ".opacity", 0.8)
    assert canvas.evaluate("e => getComputedStyle(e).opacity") == "0.8"
    page.check(".outlines")
    assert boxes.is_visible()


def test_overlays_change_pixels_on_the_screen(page):
    page.locator(".stage img").evaluate("e => e.decode()")
    shown = page.locator(".stage").screenshot()
    page.uncheck(".overlay")
    hidden = page.locator(".stage").screenshot()
    page.check(".overlay")
    assert shown != hidden
    assert page.locator(".stage").screenshot() == shown


def test_the_chart_leads_to_a_slice(page):
    chart = page.locator(".along svg")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    for number in (1, 21, 30):
        x = (46 + 30 * (number - 0.5)) / 960 * box["width"]
        chart.click(position={"x": x, "y": box["height"] / 3})
        assert current(page) == number


def test_a_slice_that_could_not_be_read(page):
    page.click("button.to-slice")
    assert current(page) == 8
    assert "damaged" in page.inner_text(".unreadable")
    assert not page.locator(".stage img").is_visible()
    assert not page.locator(".stage canvas").is_visible()
    page.click(".on")
    assert page.locator(".stage img").is_visible()
    assert not page.locator(".unreadable").is_visible()


def test_several_scans_do_not_mix(browser, tmp_path):
    path = tmp_path / "report.html"
    scans = [
        made_up(5, name="first"),
        made_up(4, unread=(), classes=0, masks=False, name="second"),
        made_up(1, unread=(0,), name="third"),
        made_up(0, name="empty"),
    ]
    path.write_text(scan_report(scans, {}, 0.05), encoding="utf-8")
    page = opened(browser, path, color_scheme="dark")
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    page.click("#scan-2 .back")
    assert page.inner_text("#scan-1 .where").startswith("Slice 4 of 5")
    assert page.inner_text("#scan-2 .where").startswith("Slice 3 of 4")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#scan-2 .where").startswith("Slice 2 of 4")
    assert "damaged" in page.inner_text("#scan-3 .unreadable")
    assert_silent(page, path)
