"""HTML from nested calls. Text is always escaped; only what `element` made is taken as HTML."""

from __future__ import annotations

import base64
import html
import io
from typing import Any

from PIL import Image

_VOID = {"br", "hr", "img", "input", "link", "meta"}


class Html(str):
    """A string that is HTML already."""

    __slots__ = ()


def element(tag: str, *children: Any, **attributes: Any) -> Html:
    """An element.

    Args:
      tag: its name.
      *children: `Html`, taken as it is; None, left out; lists of children; anything else becomes
        escaped text.
      **attributes: a trailing underscore is dropped (`class_`), others become hyphens
        (`aria_label`, but not in SVG names, which have none). None and False leave an attribute
        out, True gives it without a value.

    Returns:
      The HTML.
    """
    parts = []
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        name = name.rstrip("_").replace("_", "-")
        parts.append(f" {name}" if value is True else f' {name}="{html.escape(str(value))}"')
    start = f"<{tag}{''.join(parts)}>"
    return Html(start if tag in _VOID else f"{start}{join(*children)}</{tag}>")


def join(*children: Any) -> Html:
    """Several pieces of HTML or text, one after another; see `element`."""
    pieces = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, Html):
            pieces.append(child)
        elif isinstance(child, list | tuple):
            pieces.append(join(*child))
        else:
            pieces.append(html.escape(str(child)))
    return Html("".join(pieces))


def table(
    head: list[Any], rows: list[list[Any]], caption: Any = None, class_: str | None = None
) -> Html:
    """A table whose first column names the rows.

    Args:
      head: H cells.
      rows: H cells each: the row's name first. A cell that is a `td` or `th` element stays as it
        is.
      caption: above it.
      class_: of the table.

    Returns:
      The HTML, in a box that scrolls sideways where the page is narrow.
    """

    def cell(tag: str, content: Any, **attributes: Any) -> Html:
        made = isinstance(content, Html) and content.startswith(("<td", "<th"))
        return content if made else element(tag, content, **attributes)

    body = [
        element("tr", cell("th", row[0], scope="row"), [cell("td", value) for value in row[1:]])
        for row in rows
    ]
    whole = element(
        "table",
        element("caption", caption) if caption is not None else None,
        element("thead", element("tr", [cell("th", name, scope="col") for name in head])),
        element("tbody", body),
        class_=class_,
    )
    return element("div", whole, class_="scroll")


def details(summary: Any, *content: Any, open_: bool = False, class_: str | None = None) -> Html:
    """A section that can be folded."""
    return element("details", element("summary", summary), *content, open=open_, class_=class_)


def picture(image: Image.Image, alt: str) -> Html:
    """A picture inside the page: JPEG as a data URI."""
    width, height = image.size
    return element(
        "img",
        src=data_uri(jpeg(image.convert("RGB"), 84)),
        alt=alt,
        width=width,
        height=height,
    )


def jpeg(image: Image.Image, quality: int) -> bytes:
    """A picture, grey or RGB, as the bytes of a JPEG file of some quality (1 to 95)."""
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality, optimize=True)
    return data.getvalue()


def data_uri(data: bytes) -> str:
    """The address of a JPEG file that is inside the page."""
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode('ascii')}"
