"""A recording in a few lines of plain text, no wider than a terminal: its `repr`, and what the shell prints.

It tells what the HTML of `html.summary` tells, so that a terminal, a diff or a mail shows as much as a notebook.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Final

import pandas as pd

from bpfpath_nb.io.text import WIDTH, loss_lines, outcome

if TYPE_CHECKING:
    from bpfpath_nb.recording import Recording

FIGURES_LIMIT: Final = 3_000_000
"""Hops of a recording beyond which a `repr` leaves out paths and functions: showing a name must take no seconds."""

_MOST_PACKETS = 10
_MARGIN = " " * 9
_MOST_LINES = 20
"""Lines of one thing that the capture says of itself, such as a filter; a repr is no place for more."""
_OUTCOME = len("delivered")
_MOST_PATHS = 5
_MOST_DROPS = 5


def summary_text(recording: Recording) -> str:
    """What a recording is."""
    start, packets = recording.start, recording.packets
    lines = [
        f"<{type(recording).__name__}: {len(packets)} packets, {len(recording)} hops>",
        *_told("filter", start.filter or "every packet"),
        *_told("kernel", f"{start.release} on {start.host or 'an unnamed host'}, {start.ladder}"),
    ]
    if start.limits:
        lines += _told("limits", start.limits)
    if len(packets):
        lines += _told("packets", counted(packets))
    for line in loss_lines(recording):
        lines += _told("LOST", line)
    if len(packets):
        lines += ["", *packet_lines(packets, _MOST_PACKETS)]
        if len(recording) <= FIGURES_LIMIT:
            lines += ["", *_path_lines(recording.paths), *_drop_lines(recording.drops)]
    return "\n".join(lines)


def _told(name: str, value: str) -> list[str]:
    """A named value in lines that a terminal has room for."""
    return textwrap.wrap(
        value, WIDTH, initial_indent=name.ljust(len(_MARGIN)), subsequent_indent=_MARGIN, break_on_hyphens=False,
        max_lines=_MOST_LINES, placeholder=" …",
    )  # fmt: skip


def counted(packets: pd.DataFrame) -> str:
    """How many packets there are of each verdict, in words."""
    verdicts = packets["verdict"].value_counts(sort=False)
    return ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items() if count)


def packet_lines(packets: pd.DataFrame, limit: int) -> list[str]:
    """The first packets as a table, a line each.

    A flow beside which there is no room for the figures and a short outcome, as of IPv6, has a line of its own, and so
    has an outcome that is too long.
    """
    shown = packets.head(limit)
    flows = [str(flow) if pd.notna(flow) else "headers not known" for flow in shown["flow"]]
    totals = [microseconds(total) for total in shown["total"]]
    number_width = max(6, len(str(shown.index.max())) if len(shown) else 0)
    hops_width = max(4, len(str(shown["hops"].max())) if len(shown) else 0)
    total_width = max([8, *map(len, totals)])
    room = WIDTH - number_width - hops_width - total_width - _OUTCOME - 4 * 2
    flow_width = min(max([4, *map(len, flows)]), room)
    lines = [
        f"{'packet':>{number_width}}  {'flow':{flow_width}}  {'hops':>{hops_width}}  {'total/us':>{total_width}}"
        "  verdict"
    ]
    for flow, total, (number, packet) in zip(flows, totals, shown.iterrows(), strict=True):
        line = f"{number:>{number_width}}  {flow:{flow_width}}"
        if len(flow) > flow_width:
            lines.append(line)
            line = " " * (number_width + 2 + flow_width)
        line += f"  {packet['hops']:>{hops_width}}  {total:>{total_width}}"
        told = outcome(packet) + ("" if packet["complete"] else " (may lack hops)")
        if len(line) + 2 + len(told) <= WIDTH:
            lines.append(f"{line}  {told}")
        else:
            lines += [line, f"{'':{number_width}}  {told}"]
    if len(shown) < len(packets):
        lines.append(f"... and {len(packets) - len(shown)} more packets")
    return lines


def microseconds(time: pd.Timedelta) -> str:
    """A time as the tables show it."""
    return "" if pd.isna(time) else f"{time.value / 1000:.3f}"


def drop_counts(drops: pd.DataFrame) -> pd.DataFrame:
    """How often each function in each namespace dropped for each reason, the most frequent first."""
    by = ["reason", "func", "netns"]
    counts = drops.astype(dict.fromkeys(by, "object"))[by].value_counts(dropna=False)
    return counts.rename("drops").reset_index()[["drops", *by]]


def _path_lines(paths: pd.DataFrame) -> list[str]:
    lines = ["path          packets  share  hops  median/us       p99/us  verdict"]
    lines += [
        f"{path}  {row['packets']:>7}  {row['share']:>4.0%}  {row['hops']:>5}  {microseconds(row['median']):>9}  "
        f"{microseconds(row['p99']):>11}  {row['verdict']}"
        for path, row in paths.head(_MOST_PATHS).iterrows()
    ]
    return lines + ([f"... and {len(paths) - _MOST_PATHS} more paths"] if len(paths) > _MOST_PATHS else [])


def _drop_lines(drops: pd.DataFrame) -> list[str]:
    if not len(drops):
        return []
    counts = drop_counts(drops)
    lines = ["", "drops  where and why"]
    shown = counts.head(_MOST_DROPS).astype(object).fillna("not told")
    for count, reason, func, netns in shown.itertuples(index=False):
        lines.append(f"{count:>5}  {reason} in {func} ({netns})")
    return lines + ([f"... and {len(counts) - _MOST_DROPS} more"] if len(counts) > _MOST_DROPS else [])
