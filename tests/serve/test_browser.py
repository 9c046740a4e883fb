"""A user of the server in a headless Chromium: a zip dropped in, its result looked at."""

import pytest
from playwright.sync_api import expect

from ssm_jax.serve.app import Limits, make_app
from tests.helpers import browsers
from tests.helpers.browsers import opened
from tests.helpers.serve_tools import Fake, running, zipped

pytestmark = browsers.needed


@pytest.fixture(scope="module")
def browser():
    with browsers.launched() as browser:
        yield browser


@pytest.fixture
def served():
    """(address, fake model) of a server."""
    fake = Fake(slices=24)
    with running(make_app(fake.model(), Limits(upload_bytes=10_000, files=3))) as address:
        yield address, fake
        fake.gate.set()


def assert_silent(page, address):
    assert page.said == []
    outside = [url for url in page.asked if not url.startswith(("data:", address + "/"))]
    assert outside == []


def test_a_zip_is_uploaded_and_its_result_browsed(browser, served, tmp_path):
    address, fake = served
    page = opened(browser, address)
    page.set_input_files("#file", zipped(tmp_path / "series.zip"))
    fake.wait()
    page.wait_for_selector("#progress:not([hidden])")
    expect(page.locator("#state")).to_contain_text("reading")
    assert page.inner_text("#label") == "series.zip"
    fake.gate.set()
    page.wait_for_url("**/report.html")
    assert page.locator(".scan-viewer").count() == 2
    slider = page.locator("#scan-1 .slice-slider")
    slider.fill("1")
    page.locator("#scan-1 .stage").hover()
    for number in range(2, 22):
        page.mouse.wheel(0, 100)
        expect(slider).to_have_value(str(number))
    page.uncheck("#scan-1 .overlay")
    assert not page.locator("#scan-1 .stage canvas").is_visible()
    with page.expect_download() as download:
        page.click("text=Masks as NIfTI")
    assert download.value.suggested_filename == "masks-nifti.zip"
    with page.expect_download() as download:
        page.click("text=Predictions (JSON)")
    assert download.value.suggested_filename == "predictions.json"
    # Back at the start the result is still there, until it is deleted.
    page.click("text=Another scan")
    page.wait_for_selector("#open:not([hidden])")
    assert page.inner_text("#state") == "Done."
    page.click("#delete")
    page.wait_for_selector("#progress", state="hidden")
    assert page.url == address + "/"
    assert_silent(page, address)


def test_files_are_dropped(browser, served):
    address, fake = served
    fake.gate.set()
    page = opened(browser, address)
    page.evaluate(
        """() => {
          const data = new DataTransfer();
          for (const name of ["a.dcm", "b.dcm"]) data.items.add(new File(["DICM"], name));
          const event = (type) => new DragEvent(type, { dataTransfer: data, bubbles: true });
          document.querySelector("#drop").dispatchEvent(event("dragover"));
          document.querySelector("#drop").dispatchEvent(event("drop"));
        }"""
    )
    page.wait_for_url("**/report.html")
    assert page.inner_text(".lead") == "a.dcm and 1 more"
    assert_silent(page, address)


@pytest.fixture
def series(tmp_path):
    """A folder with slices in it and below it, and what lies beside slices."""
    folder = tmp_path / "series"
    (folder / "inner").mkdir(parents=True)
    for name in ("a.dcm", "inner/a.dcm", "README.TXT"):
        (folder / name).write_bytes(name.encode())
    return folder


def dropped(page, folder):
    """Drags a folder from elsewhere onto the page."""
    box = page.locator("#drop").bounding_box()
    data = {"items": [], "files": [str(folder)], "dragOperationsMask": 1}
    session = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        event = {"type": kind, "x": box["x"] + 20, "y": box["y"] + 20, "data": data}
        session.send("Input.dispatchDragEvent", event)


@pytest.mark.parametrize("way", ["dropped", "chosen"])
def test_folders_are_walked(browser, served, series, way):
    address, fake = served
    fake.gate.set()
    page = opened(browser, address)
    if way == "dropped":
        dropped(page, series)
    else:
        page.set_input_files("#folder", series)
    page.wait_for_url("**/report.html")
    ((_, files),) = fake.opened
    assert sorted(files.values()) == [b"a.dcm", b"inner/a.dcm"]
    assert page.inner_text(".lead") in ("series/a.dcm and 1 more", "series/inner/a.dcm and 1 more")
    assert "README.TXT" in page.inner_text(".warnings")
    assert_silent(page, address)


def test_what_goes_wrong_is_said(browser, served, tmp_path):
    address, fake = served
    fake.gate.set()
    page = opened(browser, address)
    file = tmp_path / "mine.nii"
    file.write_bytes(b"bad")
    page.set_input_files("#file", file)
    page.wait_for_selector("#error:not([hidden])")
    assert "mine.nii: not a scan" in page.inner_text("#error")
    file.write_bytes(b"x" * 10_001)
    page.set_input_files("#file", file)
    assert "too many: this server takes 10000" in page.inner_text("#error")
    assert_silent(page, address)
    (tmp_path / "a.exe").write_bytes(b"x")
    page.set_input_files("#file", tmp_path / "a.exe")
    expect(page.locator("#error")).to_contain_text("a.exe")
    page.goto(address + "/#" + "A" * 22)
    expect(page.locator("#error")).to_contain_text("deleted")


def test_positions_are_shown(browser, served, tmp_path):
    address, fake = served
    file = tmp_path / "a.png"
    file.write_bytes(b"x")
    first, second = opened(browser, address), opened(browser, address)
    first.set_input_files("#file", file)
    fake.wait()
    second.set_input_files("#file", file)
    expect(second.locator("#state")).to_contain_text("number 1")
    fake.gate.set()
    second.wait_for_url("**/report.html")
    first.wait_for_url("**/report.html")
    assert_silent(second, address)
