"""A self-contained HTML page: style, script and pictures inside, no request to anywhere."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import importlib.resources
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jinja2
from markupsafe import Markup

NOTICE = (
    "Research software. It is not a medical device and must not be used for diagnosis. Figures "
    "describe this model on these slices only."
)
# The browser itself refuses whatever is not in the page, scripts that were not written into it by
# this program included.
_POLICY = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
    "style-src 'unsafe-inline'; script-src"
)

_PATH = re.compile(r"""(?<=['"])/[^'"]+|(?<![^\s=])/[^\s'"]+""")  # quoted or not


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page: id (for links), title, and content."""

    id: str
    title: str
    content: Markup


@dataclasses.dataclass(frozen=True)
class Card:
    """A figure that stands out: its title, the figure, lines below it, and perhaps a meter."""

    title: str
    figure: str
    notes: Sequence[str] = ()
    meter: Markup | str = ""


def number(value: float | None, form: str = ".4f") -> str:
    """A number as text; a dash where it is not defined."""
    return "–" if value is None or value != value else format(value, form)


def with_interval(
    value: float | None, interval: Sequence[float | None] | None, form: str = ".4f"
) -> Markup | str:
    """A number and, below it, its interval where that is defined."""
    shown = number(value, form)
    if not interval or interval[0] is None or interval[1] is None:
        return shown
    low, high = (format(end, form) for end in interval)
    return Markup("{}<small>{} – {}</small>").format(shown, low, high)


def local(path: str, kept: int = 2) -> str:
    """A path for people elsewhere: of one that begins at the root only its last parts."""
    parts = pathlib.PurePath(path).parts
    return "/".join(("…", *parts[1:][-kept:])) if path.startswith("/") else path


def local_command(command: str) -> str:
    """A command line with its paths for people elsewhere."""
    return _PATH.sub(lambda found: local(found[0]), command)


_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader(__package__),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters["number"] = number


def parts(template: str) -> Any:
    """The macros of a template, as functions that return HTML; arguments are escaped.

    Args:
      template: name of a file in `templates`, such as "scan.html".
    """
    return _TEMPLATES.get_template(template).module


def page(
    title: str,
    lead: str,
    sections: Sequence[Section],
    footer: str,
    styles: Sequence[str] = (),
    scripts: Sequence[str] = (),
    connects: bool = False,
    runs: Sequence[str] = (),
) -> str:
    """The whole document.

    Args:
      title: of the page.
      lead: a line below it.
      sections: in order; each gets a link in the navigation.
      footer: last line.
      styles: names of style sheets that it needs besides the common one, files in `templates`.
      scripts: names of the scripts that it runs, files in `templates`.
      connects: whether its scripts may ask the server that it came from.
      runs: other sources of scripts that are allowed, as the policy of a page names them.

    Returns:
      The text of an HTML file.
    """
    codes = [_resource(name) for name in ("script.js", *scripts)]
    policy = " ".join([_POLICY, *(f"'sha256-{_sha256(code)}'" for code in codes), *runs])
    if connects:
        policy += "; connect-src 'self'"
    return _TEMPLATES.get_template("page.html").render(
        title=title,
        lead=lead,
        notice=NOTICE,
        sections=sections,
        footer=footer,
        policy=policy,
        styles=[Markup(_resource(name)) for name in ("style.css", *styles)],
        scripts=[Markup(code) for code in codes],
    )


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _resource(name: str) -> str:
    files = importlib.resources.files(__package__)
    return files.joinpath("templates", name).read_text(encoding="utf-8")
