"""What a notebook shows for a capture or a recording.

First what everybody looks for: filter, state, counts, losses, and the first packets with what became of each. Below,
folded: each way that packets took with one packet as an example, the drops, the functions in which time was spent, and
how far all of it can be trusted. It stays small, whatever the recording's size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from bpfpath_nb.html.frame import frame_html
from bpfpath_nb.html.table import details, facts, preformatted, table, text, warning
from bpfpath_nb.io.summary import FIGURES_LIMIT, counted, drop_counts, microseconds
from bpfpath_nb.io.text import loss_lines, outcome
from bpfpath_nb.schema import QUALITY

if TYPE_CHECKING:
    from bpfpath_nb.recording import Recording

MOST_PACKETS = 20
"""Rows of the table; a saved notebook should stay small and be read."""

_MOST_PATHS = 8
_MOST_LINES = 80
_LIMIT = 150_000
"""Characters, about; what is folded is left out beyond."""


def summary_html(recording: Recording, status: str = "", name: str = "Recording") -> str:
    """A recording as static HTML.

    Parameters
    ----------
    recording : Recording
    status : str, optional
        How a running capture stands, in a few words.
    name : str
        What it is called, a Recording or a Capture.
    """
    start, packets, quality = recording.start, recording.packets, recording.quality
    probes = f"{quality['probes']} attached ({quality['ladder']})"
    if quality["refused"]:
        probes += f", {quality['refused']} refused by this kernel"
    lines: list[tuple[str, object]] = [("filter", start.filter or "every packet")]
    if status:
        lines.append(("state", status))
    lines += [
        ("kernel", f"{start.release} ({start.machine}) on {start.host or 'an unnamed host'}"),
        ("probes", probes),
        *([("limits", start.limits)] if start.limits else []),
        ("packets", f"{len(packets)} in {len(recording)} hops" + (f": {counted(packets)}" if len(packets) else "")),
    ]
    parts = [f"<p><b>{text(name)}</b></p>", facts(lines), warning(loss_lines(recording))]
    if len(packets):
        parts.append(packets_html(packets))
        for part in _folded(recording):
            if sum(map(len, parts)) + len(part) < _LIMIT:
                parts.append(part)
    return "<div>\n" + "\n".join(part for part in parts if part) + "\n</div>"


def packets_html(packets: pd.DataFrame, rows: int = MOST_PACKETS) -> str:
    """The first packets as a table: what each was, where it went, and what became of it."""
    shown = packets.head(rows)
    lines = [
        (number, packet["flow"] if pd.notna(packet["flow"]) else "headers not known", _way(packet), packet["hops"],
         microseconds(packet["total"]), outcome(packet) + ("" if packet["complete"] else " (may lack hops)"))
        for number, packet in shown.iterrows()
    ]  # fmt: skip
    more = len(packets) - len(shown)
    rest = f"<p>… and {more} more packets in <code>.packets</code></p>" if more else ""
    return table(("packet", "flow", "namespaces", "hops", "total/us", "verdict"), lines) + rest


def _way(packet: pd.Series) -> str:
    return str(packet["namespaces"]) if pd.notna(packet["namespaces"]) else ""


def _folded(recording: Recording) -> list[str]:
    if len(recording) > FIGURES_LIMIT:
        return []
    packets, paths, drops = recording.packets, recording.paths, recording.drops
    found = []
    for path, row in paths.head(_MOST_PATHS).iterrows():
        example = packets.index[packets["path"] == path][0]
        lines = recording.text(int(example)).splitlines()
        if len(lines) > _MOST_LINES:
            lines = [*lines[:_MOST_LINES], f"... and {len(lines) - _MOST_LINES} more lines in .text({example})"]
        told = (
            f"path {path}: {row['packets']} packet{'s' * (row['packets'] != 1)} ({row['share']:.0%}), "
            f"{row['hops']} hops, {row['verdict']}, median {microseconds(row['median'])} us, "
            f"99 % within {microseconds(row['p99'])} us"
        )
        found.append(details(told, preformatted("\n".join(lines))))
    if len(paths) > _MOST_PATHS:
        found.append(f"<p>… and {len(paths) - _MOST_PATHS} more in <code>.paths</code></p>")
    if len(drops):
        found.append(details(f"drops: {len(drops)}", frame_html(drop_counts(drops))))
    found.append(
        details("functions in which most time was spent", frame_html(recording.functions.drop(columns="gap_p90")))
    )
    found.append(details("how far this can be trusted", quality_html(recording)))
    return found


def quality_html(recording: Recording) -> str:
    """How far a recording can be trusted, each figure with its meaning."""
    figures, rows = recording.quality, []
    for column in QUALITY:
        if column.name in figures.index:
            value = figures[column.name]
            known = "not known" if pd.isna(value) else f"{value} {column.unit}" if column.unit else str(value)
            rows.append((column.name, known, column.meaning))
    return table(("what", "how much", "meaning"), rows)
