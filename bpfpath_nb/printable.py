"""Names that others chose, made safe to print.

A process picks its own comm, whoever may create an interface or a namespace names it, and a filter or a file can come
from anywhere. Printed as they are, such names could move the cursor, recolour the terminal or break a table apart.
They are made printable once, where they enter (`start`, `analysis.events`), so that nothing behind that has to think
of it. HTML is escaped where it is written (`html`), as any text must be.
"""

from __future__ import annotations


def printable(text: str, limit: int = 256) -> str:
    r"""The text with everything that is not printable written as an escape, cut to `limit` characters.

    Applying it twice changes nothing more.

    >>> printable("dig\x1b[2J\n")
    'dig\\x1b[2J\\n'
    """
    if not text.isprintable():
        text = "".join(
            char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode("ascii")
            for char in text
        )
    return text if len(text) <= limit else text[: limit - 1] + "…"


def printable_lines(text: str, limit: int = 4000) -> str:
    r"""A message of several lines made printable, its line breaks and tabs kept.

    >>> printable_lines("two\nlines\x1b[2J")
    'two\nlines\\x1b[2J'
    """
    text = "\n".join(printable(line, limit) for line in text.replace("\r\n", "\n").expandtabs().split("\n"))
    return text if len(text) <= limit else text[: limit - 1] + "…"
