"""A packet's path as plain text: for a terminal, a ticket, a diff.

The paper's tool prints a line per hop with the raw time, the process, the namespace, the interface and the function.
Here a packet begins with a line that says what it was and what became of it, times count from its first hop with the
gap to the next one beside, and what does not change from line to line is left out, so that a move to another
namespace or interface is seen at once::

    packet 1  udp 10.0.1.2:40312 > 10.0.2.2:53  70 bytes
        dropped: NETFILTER_DROP in nf_hook_slow
    14:03:52.120034512 UTC  path 3f9c0a77e1d2  client > router  7 hops in 41.210 us
          since/us     gap/us  netns   dev    cpu  function
             0.000      2.104  client  eth0     1  net:net_dev_queue
    ...

Lines fit into a terminal of 80 columns unless names are very long.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from unicodedata import combining, east_asian_width

import numpy as np
import pandas as pd

from bpfpath_nb.analysis.losses import losses
from bpfpath_nb.errors import OptionError
from bpfpath_nb.schema import BROKEN_OFF

if TYPE_CHECKING:
    from bpfpath_nb.recording import Recording

WIDTH: Final = 80
"""Columns of a terminal."""

_MOST_HOPS = 1000


def recording_text(recording: Recording, packet: int | None = None, limit: int = 50) -> str:
    """One packet's path, or the first `limit` packets', as text."""
    packets = recording.packets
    if not isinstance(limit, (int, np.integer)):
        raise OptionError(f"limit= is how many packets to write, a whole number and not {limit!r}.")
    if packet is not None:
        if not isinstance(packet, (int, np.integer)):
            raise OptionError(f"text() writes the packet of one number, and {packet!r} is none: text(3), or text().")
        if packet not in packets.index:
            raise OptionError(no_such_packet(packet, packets))
        return "\n".join(_packet_lines(recording, packets.index.get_loc(packet)))  # type: ignore[arg-type]
    shown = min(len(packets), max(limit, 0))
    parts = ["\n".join(_packet_lines(recording, at)) for at in range(shown)]
    if shown < len(packets):
        parts.append(f"... and {len(packets) - shown} more packets; text(packet) writes one, text(limit=...) more")
    parts += [f"Lost: {line}" for line in loss_lines(recording)]
    return "\n\n".join(parts) if parts else "no packets"


def no_such_packet(packet: int, packets: pd.DataFrame) -> str:
    if not len(packets):
        return (
            f"There is no packet {packet}: nothing was captured. Check that traffic that the filter matches was sent."
        )
    return (
        f"There is no packet {packet}; the recording has {len(packets)}, numbered {packets.index[0]} to "
        f"{packets.index[-1]}. `packets` lists them."
    )


def _packet_lines(recording: Recording, at: int) -> list[str]:
    packet = recording.packets.iloc[at]
    first, count = int(recording.events.first[at]), int(recording.events.counts[at])
    rows = recording.df.iloc[first : first + min(count, _MOST_HOPS)]
    text = {name: _texts(rows[name]) for name in ("netns", "dev", "func", "reason")}
    widths = {name: max([len(name), *map(columns, text[name])]) for name in ("netns", "dev")}
    since, gap = (_microseconds(rows[name].to_numpy()) for name in ("since", "gap"))
    header = f"{'since/us':>14} {'gap/us':>10}  {'netns':{widths['netns']}}  {'dev':{widths['dev']}}  cpu  function"
    lines = [*_head(recording.packets.index[at], packet), header.rstrip()]
    before = ("", "")
    for row in range(len(rows)):
        place = text["netns"][row], text["dev"][row]
        netns, dev = ("", "") if place == before else place
        before = place
        reason = f"  {text['reason'][row]}" if text["reason"][row] != "-" else ""
        lines.append(
            f"{since[row]:>14} {gap[row]:>10}  {padded(netns, widths['netns'])}  {padded(dev, widths['dev'])}  "
            f"{rows['cpu'].iat[row]:>3}  {text['func'][row]}{reason}"
        )
    if count > len(rows):
        lines.append(f"... and {count - len(rows)} more hops")
    return lines


def _head(number: int, packet: pd.Series) -> list[str]:
    flow = packet["flow"] if pd.notna(packet["flow"]) else "headers not known"
    parent = f"made of packet {packet['parent']}" if pd.notna(packet["parent"]) else ""
    into = f"merged into packet {packet['merged_into']}" if pd.notna(packet["merged_into"]) else ""
    lacking = "" if packet["complete"] else "MAY LACK HOPS: events were lost"
    where = packet["namespaces"] if pd.notna(packet["namespaces"]) else "namespace not known"
    total = _microseconds(np.array([packet["total"].to_timedelta64()]))[0]
    time = f"{packet['first']:%H:%M:%S}.{packet['first'].value % 10**9:09d} UTC"
    took = f"{packet['hops']} hops in {total} us"
    return [
        *_folded(f"packet {number}", flow, f"{packet['length']} bytes", outcome(packet)),
        *_folded(time, f"path {packet['path']}", where, took, parent, into, lacking),
    ]


def _folded(*parts: str) -> list[str]:
    """Parts of a line, those for which there is no room in lines below it."""
    lines = [parts[0]]
    for part in filter(None, parts[1:]):
        if columns(lines[-1]) + 2 + columns(part) <= WIDTH:
            lines[-1] += f"  {part}"
        else:
            lines.append(f"    {part}")
    return lines


def columns(text: str) -> int:
    """How many columns of a terminal a text takes: two for a wide character, none for one that joins another."""
    if text.isascii():
        return len(text)
    return sum(0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1 for char in text)


def padded(text: str, width: int) -> str:
    """The text with blanks after it, up to so many columns."""
    return text + " " * (width - columns(text))


def outcome(packet: pd.Series) -> str:
    """A packet's verdict in words, with reason and function where it was dropped."""
    if packet["verdict"] != "dropped":
        return str(packet["verdict"])
    reason = f": {packet['reason']}" if pd.notna(packet["reason"]) else ""
    return f"dropped{reason} in {packet['where']}"


def _texts(column: pd.Series) -> list[str]:
    return ["-" if value is None or value != value else str(value) for value in column.tolist()]  # noqa: PLR0124


def _microseconds(values: np.ndarray) -> list[str]:
    return ["" if np.isnat(value) else f"{value.astype(np.int64) / 1000:.3f}" for value in values]


def loss_lines(recording: Recording) -> list[str]:
    """One sentence per thing that was lost; nothing where the recording is whole."""
    quality = recording.quality
    told = {
        "events_lost": "events were lost, the ring was full: {} packets may lack hops".format(quality["incomplete"]),
        "events_over": "events came after `max_events` was reached and were not kept",
        "facts_lost": "headers or process names were lost: some flows and names are unknown",
        "packets_untracked": "matching packets were not followed, too many were under way",
        "probe_misses": "probe hits were skipped by the kernel: packets may lack hops",
        "returns_lost": "calls were not seen to return",
    }
    lines = [f"{count} {told[name]}" for name, count in losses(recording.events).items()]
    if quality["end"] == BROKEN_OFF:
        lines.append("the end: the capture was not stopped but broken off, what came later is not in the file")
    return lines
