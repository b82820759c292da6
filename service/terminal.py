"""Words from outside on a terminal: nothing in them is markup, an emoji's name, a colour or a control."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text


def words(text: str, style: str = "") -> Text:
    """The text as it is; blanks of all kinds become spaces, and what cannot be printed becomes U+FFFD."""
    return Text("".join(map(_printable, text)), style)


def pairs(title: str, rows: Iterable[tuple[str, str]]) -> Table:
    """A table of names with their values."""
    shown = Table(title=words(title, "table.title"), title_justify="left", show_header=False, expand=False)
    shown.add_column(style="bold", no_wrap=True)
    shown.add_column(overflow="fold")
    for name, value in rows:
        shown.add_row(words(name), words(value))
    return shown


def _printable(character: str) -> str:
    if character.isspace():
        return " "
    return character if character.isprintable() else "\N{REPLACEMENT CHARACTER}"
