"""Many packets' ways side by side, all beginning at the left edge.

Few packets have a row each. Many would be noise: those that took one path through the same namespaces are one row
then, each step as long as its median, and the picture says so. Marks under a bar tell where the packet came to its
next namespace.

One packet that waited for seconds would press all others against the left edge; the axis ends where nearly all have
ended, and what goes on is marked with the time it took in all.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.collections import PolyCollection

from bpfpath_nb.analysis.quantiles import quantiles
from bpfpath_nb.analysis.waits import hop_waits
from bpfpath_nb.errors import OptionError
from bpfpath_nb.io.text import no_such_packet
from bpfpath_nb.plot import style

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

    from bpfpath_nb.recording import Recording

ROWS: Final = 24
"""Up to so many packets have a row each, and so many paths are shown."""


@dataclass
class _Rows:
    """What is drawn: bars of hops, row by row, times in ns since each row's beginning."""

    row: npt.NDArray[np.intp]
    hop: npt.NDArray[np.intp]
    begin: npt.NDArray[np.float64]
    end: npt.NDArray[np.float64]
    names: list[str]
    aside: list[str]
    dropped: list[bool]
    total: npt.NDArray[np.float64]


def draw(recording: Recording, wanted: Iterable[int] | None, ax: Axes | None, theme: style.ThemeName | None) -> Axes:
    """Draw these packets, or all; `timeline` is its public name."""
    at = _positions(recording, wanted)
    single = len(at) <= ROWS
    if not len(at):
        ax, colours = style.begin(ax, theme, 2)
        return style.nothing(ax, colours, "There are no packets to show.",
                             "Check that traffic that the filter matches was sent while the capture ran.")  # fmt: skip
    rows, said = _each(recording, at) if single else _by_path(recording, at)
    ax, colours = style.begin(ax, theme, 1.7 + 0.27 * len(rows.names))
    limit = _limit(ax, rows)
    entries = _bars(ax, colours, recording, rows, limit)
    _ends(ax, colours, rows, limit)
    ax.set_ylim(len(rows.names) - 0.4, -0.6)
    ax.set_yticks(np.arange(len(rows.names)), [style.label(ax, name, 48) for name in rows.names])
    ax.tick_params(axis="y", length=0)
    ax.set_xlim(0, limit)
    style.seconds_axis(ax, colours, "time since each packet's first hop", limit)
    legend_rows = style.legend(ax, colours, entries, columns=9)
    flows = recording.packets["flow"].iloc[at].nunique()
    style.title(ax, colours, f"{len(at):,} packets" + ("" if single else ", by path"), f"{flows:,} flows", legend_rows)
    style.note(ax, colours, recording, *said)
    return ax


def _positions(recording: Recording, wanted: Iterable[int] | None) -> npt.NDArray[np.intp]:
    numbers = recording.events.packets
    if wanted is None:
        return np.arange(len(numbers))
    wanted = list(dict.fromkeys(wanted))
    for packet in wanted:
        if packet not in recording.packets.index:
            raise OptionError(no_such_packet(packet, recording.packets))
    return np.asarray(numbers.searchsorted(np.array(wanted, np.int64)), np.intp)


def _hops(recording: Recording, at: npt.NDArray[np.intp]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Rows of some packets' hops, and of each the position of its packet among them."""
    first, counts = recording.events.first[at], recording.events.counts[at]
    which = np.repeat(np.arange(len(at)), counts)
    begins = np.cumsum(counts) - counts
    return first[which] + np.arange(len(which)) - begins[which], which


def _each(recording: Recording, at: npt.NDArray[np.intp]) -> tuple[_Rows, list[str]]:
    hop, which = _hops(recording, at)
    utc, events = recording.events.utc, recording.events
    begin = (utc[hop] - utc[events.first[at]][which]).astype(np.float64)
    packets = recording.packets.iloc[at]
    total = (utc[events.last[at]] - utc[events.first[at]]).astype(np.float64)
    end = np.append(begin[1:], 0.0)
    last = np.cumsum(events.counts[at]) - 1
    end[last] = begin[last]
    dropped = (packets["verdict"] == "dropped").tolist()
    aside = [
        str(reason) if drop and pd.notna(reason) else str(verdict)
        for reason, verdict, drop in zip(packets["reason"], packets["verdict"], dropped, strict=True)
    ]
    ways = packets["namespaces"].astype(object).fillna("")
    names = [f"{number}  {way}" for number, way in zip(packets.index, ways, strict=True)]
    return _Rows(which, hop, begin, end, names, aside, dropped, total), []


def _by_path(recording: Recording, at: npt.NDArray[np.intp]) -> tuple[_Rows, list[str]]:
    packets, events = recording.packets.iloc[at], recording.events
    way = packets["path"].cat.codes.to_numpy().astype(np.int64) * (len(packets["namespaces"].cat.categories) + 1)
    way += packets["namespaces"].cat.codes.to_numpy()
    which, ways = pd.factorize(way)
    count = np.bincount(which, minlength=len(ways))
    shown = np.argsort(-count, kind="stable")[:ROWS]
    rank = np.full(len(ways), -1, np.intp)
    rank[shown] = np.arange(len(shown))
    row_of = rank[which]
    kept = np.flatnonzero(row_of >= 0)
    hop, of = _hops(recording, at[kept])
    example = np.zeros(len(shown), np.intp)
    example[row_of[kept][::-1]] = kept[::-1]
    length = events.counts[at[example]]
    step = np.cumsum(length) - length
    # Of each step of each path the median of its packets' gaps; a path has the same steps in each.
    cell = step[row_of[kept]][of] + events.hop[hop].astype(np.intp)
    gap = np.append(np.diff(events.utc), 0)
    gap[events.last] = 0
    median = quantiles(cell, int(length.sum()), gap[hop])["p50"].astype(np.float64)
    row = np.repeat(np.arange(len(shown)), length)
    until = np.cumsum(median)
    base = np.append(0.0, until)[step]
    begin, end = until - median - base[row], until - base[row]
    total = end[step + length - 1]
    some = packets.iloc[example]
    names = [f"{count[which]:,} x {ns}" for which, ns in zip(shown, some["namespaces"].astype(object), strict=True)]
    dropped = (some["verdict"] == "dropped").tolist()
    aside = [
        f"{reason if drop and pd.notna(reason) else verdict}  {path}"
        for reason, verdict, drop, path in zip(some["reason"], some["verdict"], dropped, some["path"], strict=True)
    ]
    hop_of_example, _ = _hops(recording, at[example])
    said = ["Packets of one path through the same namespaces are one bar: each step as long as its median."]
    if len(ways) > len(shown):
        rest = len(at) - len(kept)
        said.append(f"{len(ways) - len(shown):,} rarer ways of {rest:,} packets in all are not shown.")
    return _Rows(row, hop_of_example, begin, end, names, aside, dropped, total), said


def _limit(ax: Axes, rows: _Rows) -> float:
    """Where the axis ends: with the longest and what is said of it, unless a few are much longer than nearly all."""
    longest, most = float(rows.total.max()), float(np.quantile(rows.total, 0.85))
    inside = rows.total <= (longest if longest <= 4 * most else 2 * most)
    said = np.array([style.text_width(ax, _said(rows, at)) for at in range(len(rows.names))])
    return max(float((rows.total[inside] / (0.97 - said[inside].clip(max=0.5))).max()), 1.0)


def _said(rows: _Rows, at: int) -> str:
    return f"{style.plain(rows.aside[at], 40)}  {style.duration(rows.total[at])}"


def _bars(ax: Axes, theme: style.Theme, recording: Recording, rows: _Rows, limit: float) -> list[tuple[Artist, str]]:
    frame = recording.df[["layer", "netns"]].iloc[rows.hop]
    layers, netns = frame["layer"].cat, frame["netns"].cat
    waits = hop_waits(recording.events)[rows.hop] >= 0
    end = np.maximum(rows.end, rows.begin + limit / 600)

    def bars(which: npt.NDArray[np.bool_], low: float, high: float, colours: npt.NDArray[np.object_], gid: str) -> None:
        x0, x1, y0, y1 = rows.begin[which], end[which], rows.row[which] + low, rows.row[which] + high
        corners = np.stack([x0, y0, x1, y0, x1, y1, x0, y1], axis=1).reshape(-1, 4, 2)
        own = PolyCollection(list(corners), facecolors=list(colours[which]), linewidths=0, zorder=3, gid=gid)
        if gid == "waits":
            own.set(hatch=style.WAIT_HATCH, edgecolor=theme.paper)
        ax.add_collection(own)

    of_layer = np.array([style.LAYER_COLOURS[str(name)] for name in layers.categories], dtype=object)
    by_layer = of_layer[layers.codes.to_numpy()]
    bars(~waits, -0.38, 0.2, by_layer, "spans")
    bars(waits, -0.38, 0.2, by_layer, "waits")
    place = netns.codes.to_numpy()
    moved = np.flatnonzero((np.diff(rows.row) == 0) & (np.diff(place) != 0)) + 1
    entries = style.layer_entries(frame["layer"].astype(str).unique(), waits=bool(waits.any()))
    if len(moved):
        ax.plot(rows.begin[moved], rows.row[moved] + 0.3, "^", color=theme.ink, markersize=4, markeredgewidth=0,
                linestyle="none", zorder=4, gid="crossing")  # fmt: skip
        entries.append(style.line_entry(theme.ink, "next namespace", marker="^", markersize=5, linestyle="none"))
    return entries


def _ends(ax: Axes, theme: style.Theme, rows: _Rows, limit: float) -> None:
    for at, (total, dropped) in enumerate(zip(rows.total.tolist(), rows.dropped, strict=True)):
        beyond = total > limit
        if not beyond:
            ax.plot(
                total, at - 0.09, "X" if dropped else "o", color=theme.alarm if dropped else theme.ink, markersize=6,
                markeredgecolor=theme.paper, markeredgewidth=0.7, zorder=5, clip_on=False, gid="end",
            )  # fmt: skip
        ax.annotate(
            f"{_said(rows, at)} ▶" if beyond else _said(rows, at), (min(total, limit), at - 0.09),
            xytext=(-7 if beyond else 7, 0), textcoords="offset points", ha="right" if beyond else "left",
            va="center_baseline", fontsize=style.SMALL, color=theme.alarm if dropped else theme.soft, zorder=4,
            annotation_clip=False, gid="outcome",
            bbox={"facecolor": theme.paper, "alpha": 0.85, "linewidth": 0, "pad": 0.8} if beyond else None,
        )  # fmt: skip
