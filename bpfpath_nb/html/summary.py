"""What a notebook shows for a capture or a recording: filter, state, counts, losses, and the first packets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from bpfpath_nb.html.table import facts, table, text, warning
from bpfpath_nb.io.text import loss_lines, outcome

if TYPE_CHECKING:
    from bpfpath_nb.recording import Recording

MOST_PACKETS = 20
"""Rows of the table; a saved notebook should stay small and be read."""


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
    verdicts = packets["verdict"].value_counts(sort=False)
    counted = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items() if count)
    probes = f"{quality['probes']} attached ({quality['ladder']})"
    if quality["refused"]:
        probes += f", {quality['refused']} refused by this kernel"
    lines: list[tuple[str, object]] = [("filter", start.filter or "every packet")]
    if status:
        lines.append(("state", status))
    lines += [
        ("kernel", f"{start.release} ({start.machine}) on {start.host or 'an unnamed host'}"),
        ("probes", probes),
        ("packets", f"{len(packets)} in {len(recording)} hops" + (f": {counted}" if counted else "")),
    ]
    parts = [f"<p><b>{text(name)}</b></p>", facts(lines), warning(loss_lines(recording))]
    if len(packets):
        parts.append(_packets(packets))
    return "<div>\n" + "\n".join(part for part in parts if part) + "\n</div>"


def _packets(packets: pd.DataFrame) -> str:
    shown = packets.head(MOST_PACKETS)
    rows = [
        (number, packet["flow"] if pd.notna(packet["flow"]) else "headers not known", _way(packet), packet["hops"],
         f"{packet['total'].value / 1000:.3f}", outcome(packet) + ("" if packet["complete"] else " (may lack hops)"))
        for number, packet in shown.iterrows()
    ]  # fmt: skip
    more = len(packets) - len(shown)
    rest = f"<p>… and {more} more packets in <code>.packets</code></p>" if more else ""
    return table(("packet", "flow", "namespaces", "hops", "total/us", "verdict"), rows) + rest


def _way(packet: pd.Series) -> str:
    return str(packet["namespaces"]) if pd.notna(packet["namespaces"]) else ""
