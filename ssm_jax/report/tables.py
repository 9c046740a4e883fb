"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table: the first column to the left, the others to the right.

    Args:
      head: names of the columns, in Markdown.
      rows: cells of each row, in Markdown; `escaped` makes it of plain text.
    """
    rule = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)]


def escaped(text: str) -> str:
    """Plain text that Markdown shows as it is, in a table or outside."""
    for character in "\\`*_{}[]<>|#":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())
