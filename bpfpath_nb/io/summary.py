"""A recording in a few lines of plain text, no wider than a terminal: its `repr`, and what the shell prints.

It tells what the HTML of `html.summary` tells, so that a terminal, a diff or a mail shows as much as a notebook.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pandas as pd

from bpfpath_nb.io.text import WIDTH, loss_lines, outcome

if TYPE_CHECKING:
    from bpfpath_nb.recording import Recording

FIGURES_LIMIT: Final = 3_000_000
"""Hops of a recording beyond which a `repr` leaves out paths and functions: showing a name must take no seconds."""

_MOST_PACKETS = 10
_WIDEST_FLOW = 40
"""Beside it there is room for the figures and a short outcome. A longer one, of IPv6, has a line of its own."""
_MOST_PATHS = 5
_MOST_DROPS = 5


def summary_text(recording: Recording) -> str:
    """What a recording is."""
    start, packets = recording.start, recording.packets
    lines = [
        f"<{type(recording).__name__}: {len(packets)} packets, {len(recording)} hops>",
        f"filter   {start.filter or 'every packet'}",
        f"kernel   {start.release} on {start.host or 'an unnamed host'}, {start.ladder}",
    ]
    if start.limits:
        lines.append(f"limits   {start.limits}")
    if len(packets):
        lines.append(f"packets  {counted(packets)}")
    lines += [f"LOST     {line}" for line in loss_lines(recording)]
    if len(packets):
        lines += ["", *packet_lines(packets, _MOST_PACKETS)]
        if len(recording) <= FIGURES_LIMIT:
            lines += ["", *_path_lines(recording.paths), *_drop_lines(recording.drops)]
    return "\n".join(lines)


def counted(packets: pd.DataFrame) -> str:
    """How many packets there are of each verdict, in words."""
    verdicts = packets["verdict"].value_counts(sort=False)
    return ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items() if count)


def packet_lines(packets: pd.DataFrame, limit: int) -> list[str]:
    """The first packets as a table, a line each; an outcome for which there is no room has a line of its own."""
    shown = packets.head(limit)
    flows = [str(flow) if pd.notna(flow) else "headers not known" for flow in shown["flow"]]
    flow_width = min(max([4, *map(len, flows)]), _WIDEST_FLOW)
    number_width = max(6, len(str(shown.index.max())) if len(shown) else 0)
    lines = [f"{'packet':>{number_width}}  {'flow':{flow_width}}  {'hops':>5}  {'total/us':>12}  verdict"]
    for flow, (number, packet) in zip(flows, shown.iterrows(), strict=True):
        line = f"{number:>{number_width}}  {flow:{flow_width}}"
        if len(flow) > flow_width:
            lines.append(line)
            line = " " * (number_width + 2 + flow_width)
        line += f"  {packet['hops']:>5}  {microseconds(packet['total']):>12}"
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
