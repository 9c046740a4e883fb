"""A self-contained HTML page: style, script and pictures inside, no request to anywhere."""

from __future__ import annotations

import dataclasses
import importlib.resources
from collections.abc import Mapping, Sequence
from typing import Any

from ssm_jax.report.html import Html, element, join

NOTICE = (
    "Research software. It is not a medical device and must not be used for diagnosis. Figures "
    "describe this model on these slices only."
)
# The browser itself then refuses whatever is not in the page.
ALONE = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page: id (for links), title, and content."""

    id: str
    title: str
    content: Html


def page(
    title: str,
    lead: str,
    sections: Sequence[Section],
    footer: str,
    style: str = "",
    script: str = "",
    policy: str = ALONE,
) -> str:
    """The whole document.

    Args:
      title: of the page.
      lead: a line below it.
      sections: in order; each gets a link in the navigation.
      footer: last line.
      style: a style sheet that the page needs besides the common one.
      script: the same.
      policy: its Content-Security-Policy; by default that of a page that asks for nothing.

    Returns:
      The text of an HTML file.
    """
    links = [element("li", element("a", s.title, href=f"#{s.id}")) for s in sections]
    tools = [
        element("button", "Unfold all", id="fold", type="button"),
        element("button", "Dark", id="theme", type="button", aria_label="switch light and dark"),
    ]
    body = [
        element("a", "Skip to the content", class_="skip", href="#content"),
        element(
            "header",
            element("h1", title),
            element("p", lead, class_="lead"),
            element("p", NOTICE, class_="notice", role="note"),
            class_="top",
        ),
        element(
            "nav",
            element("ul", links, element("li", tools, class_="tools")),
            aria_label="Sections",
        ),
        element("main", [_section(s) for s in sections], id="content"),
        element("footer", footer),
        [element("script", Html(text)) for text in (resource("script.js"), script) if text],
    ]
    head = [
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("link", rel="icon", href="data:,"),
        element("title", title),
        [element("style", Html(text)) for text in (resource("style.css"), style) if text],
    ]
    whole = element("html", element("head", head), element("body", body), lang="en")
    return f"<!DOCTYPE html>\n{whole}\n"


def facts(rows: Mapping[str, Any]) -> Html:
    """A table of names and values; None is left out."""
    cells = [[name, value] for name, value in rows.items() if value is not None]
    body = [element("tr", element("th", n, scope="row"), element("td", v)) for n, v in cells]
    return element("div", element("table", element("tbody", body), class_="facts"), class_="scroll")


def number(value: float | None, form: str = ".4f") -> str:
    """A number in a table; a dash where it is not defined."""
    return "–" if value is None or value != value else format(value, form)


def with_interval(
    value: float | None, interval: Sequence[float | None] | None, form: str = ".4f"
) -> Html:
    """A number and, below it, its interval where that is defined."""
    shown = join(number(value, form))
    if not interval or interval[0] is None or interval[1] is None:
        return shown
    low, high = (format(end, form) for end in interval)
    return join(shown, element("small", f"{low} – {high}"))


def resource(name: str, package: str = __package__) -> str:
    """The text of a style sheet or script that lies beside the modules of a package."""
    return importlib.resources.files(package).joinpath(name).read_text(encoding="utf-8")


def _section(section: Section) -> Html:
    heading = element("h2", section.title, id=f"{section.id}-title")
    labelled = f"{section.id}-title"
    return element("section", heading, section.content, id=section.id, aria_labelledby=labelled)
