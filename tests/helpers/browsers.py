"""A headless Chromium that notes what its pages say and ask for."""

import contextlib
import importlib.util
import shutil

import pytest

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
_PLAYWRIGHT = importlib.util.find_spec("playwright") is not None
needed = pytest.mark.skipif(
    CHROMIUM is None or not _PLAYWRIGHT, reason="needs playwright and an installed Chromium"
)
# As root and without a network a browser needs these.
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)


@contextlib.contextmanager
def launched():
    """The browser, while the context lasts."""
    from playwright import sync_api

    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


def opened(browser, path, **settings):
    """A page of a file or an address, with what it said and asked for so far."""
    page = browser.new_page(viewport={"width": 1280, "height": 900}, **settings)
    page.said, page.asked = [], []
    page.on("console", lambda message: page.said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: page.said.append(f"error: {error}"))
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("dialog", lambda dialog: (page.said.append("dialog"), dialog.dismiss()))
    page.goto(path if isinstance(path, str) else path.as_uri())
    return page


def assert_silent(page, path):
    """Nothing on the console, and no request but for the page itself."""
    assert page.said == []
    assert [url for url in page.asked if not url.startswith("data:")] == [path.as_uri()]
