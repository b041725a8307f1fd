"""Small pieces of static HTML.

Nothing here runs: no script, no outside address. Styles are few and inline, because a notebook viewer may strip them
(GitHub does) and what is left has to read as text: tables keep their grid as `border`, emphasis is a tag, order
carries the meaning, what is folded away is simply there where `details` is not known. Every value is escaped in
`text`, the only way into a page; packets, process names, namespaces and filters are chosen by others.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

_CELL = ' style="text-align:left;padding:2px 8px;white-space:nowrap"'
_NUMBER_CELL = ' style="text-align:right;padding:2px 8px;white-space:nowrap"'
_LONG_CELL = ' style="text-align:left;padding:2px 8px;min-width:20em"'
_LONG = 60
"""Text of more characters than this may break into lines within its cell."""

_MOST_TEXT = 1500
"""Characters of one cell."""


def text(value: object, limit: int = 200) -> str:
    """Any value as escaped text, cut to `limit` characters."""
    shown = str(value)
    return html.escape(shown if len(shown) <= limit else shown[: limit - 1] + "…", quote=True)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of escaped values under a head line; columns of nothing but numbers stand at the right."""
    shown = [[str(value) for value in row] for row in rows]
    numbers = [all(map(_is_number, column)) for column in zip(*shown, strict=True)]
    top = "".join(f"<th{_CELL}>{text(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(map(_cell, row, numbers)) + "</tr>\n" for row in shown)
    grid = '<table border="1" style="border-collapse:collapse">'
    return f"{grid}\n<thead><tr>{top}</tr></thead>\n<tbody>\n{body}</tbody></table>"


def _is_number(shown: str) -> bool:
    return shown.replace(".", "", 1).isdecimal() or not shown


def _cell(shown: str, number: bool) -> str:
    style = _NUMBER_CELL if number else _LONG_CELL if len(shown) > _LONG else _CELL
    return f"<td{style}>{text(shown, _MOST_TEXT)}</td>"


def facts(rows: Iterable[tuple[str, object]]) -> str:
    """Names and values, one pair a line."""
    return "<p>" + "<br>\n".join(f"<b>{text(name)}</b>: {text(value, 1000)}" for name, value in rows) + "</p>"


def details(summary: str, inner: str) -> str:
    """HTML folded away under one line of text; open where the viewer cannot fold."""
    return f'<details style="margin:4px 0"><summary>{text(summary, 400)}</summary>\n{inner}\n</details>'


def preformatted(lines: str) -> str:
    """Text whose columns stand below one another, such as a packet's path."""
    return f'<pre style="line-height:1.25">{html.escape(lines, quote=True)}</pre>'


def warning(lines: Sequence[str]) -> str:
    """What must not be overlooked; nothing where there is nothing."""
    if not lines:
        return ""
    inner = "<br>\n".join(text(line) for line in lines)
    mark = '<p style="border-left:4px solid #d55e00;padding:2px 8px">'
    return f"{mark}<b>⚠ Not everything was recorded.</b><br>\n{inner}</p>"
