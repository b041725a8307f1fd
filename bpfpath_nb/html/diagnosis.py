"""A diagnosis as static HTML: a block for each finding, the gravest first; commands to copy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from bpfpath_nb.html.table import text
from bpfpath_nb.io.diagnosis import example, headline, place

if TYPE_CHECKING:
    from bpfpath_nb.diagnosis import Diagnosis

MOST_FINDINGS: Final = 40
MOST_CHARACTERS: Final = 150_000
"""Blocks shown, and how long they may be together: long names of others, escaped, must not swell a notebook."""

_COMMAND_CHARACTERS: Final = 400
# Of the palette of Okabe and Ito, which the colour-blind can tell apart; the word stands beside the colour.
_COLOURS: Final = {"fault": "#d55e00", "warning": "#e69f00", "note": "#0072b2"}


def diagnosis_html(diagnosis: Diagnosis) -> str:
    """All findings as static HTML; values are escaped."""
    blocks: list[str] = []
    left = MOST_CHARACTERS
    for row in diagnosis.findings.head(MOST_FINDINGS).itertuples(index=False):
        block = _block(row)
        left -= len(block)
        if left < 0:
            break
        blocks.append(block)
    more = len(diagnosis) - len(blocks)
    if more > 0:
        blocks.append(f"<p>… and {more} more in <code>.findings</code></p>")
    return f"<div>\n<p><b>{text(headline(diagnosis), 1000)}</b></p>\n" + "\n".join(blocks) + "\n</div>"


def _block(row: Any) -> str:
    commands = "\n".join(text(line, _COMMAND_CHARACTERS) for line in row.check.splitlines())
    parts = [
        f'<p style="margin:4px 0"><b>{text(row.severity)}: {text(row.title)}</b><br>',
        f"{text(place(row), 500)}<br>",
        f"{text(example(row))}</p>",
        f'<p style="margin:4px 0">{text(row.meaning, 1000)}</p>',
    ]
    if commands:
        parts.append(f'<pre style="margin:4px 0">{commands}</pre>')
    colour = _COLOURS[str(row.severity)]
    return (
        f'<div style="border-left:4px solid {colour};padding:2px 8px;margin:8px 0">\n' + "\n".join(parts) + "\n</div>"
    )
