"""One packet's way as a picture: who had it when, for how long, and where it changed hands.

Time runs to the right and is linear, so that what is wide is what took long. Each place (a namespace's interface, or a
CPU) is a lane; in it each function has a row of its own, from when the packet came to it until the function returned,
where the capture had returns, so that what was called within it lies under it; else until the packet came to the next.
That way every function can be named beside its bar, however short the bar is: a packet that waits a millisecond in a
queue passes fifty functions in the rest of its life. A packet of more functions than can be read as rows has one row
a lane, with names where they fit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.collections import PolyCollection

from bpfpath_nb.analysis.waits import hop_waits
from bpfpath_nb.errors import OptionError
from bpfpath_nb.io.text import no_such_packet, outcome
from bpfpath_nb.plot import packets, style
from bpfpath_nb.schema import EVENT_FLAGS, QUEUES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from bpfpath_nb.analysis.events import Events
    from bpfpath_nb.recording import Recording, RecordingViews

Lanes = Literal["dev", "netns", "cpu"]

_ROW: Final = 0.155
"""Inches that a row with a name in it takes."""

_LEAST: Final = 2.3
"""Rows that a lane has at least."""

_MOST_ROWS: Final = 90
_BAR: Final = 0.72
"""How much of its row a bar fills."""


@dataclass
class _Way:
    """One packet's hops as columns; times in ns since its first."""

    begin: npt.NDArray[np.float64]
    end: npt.NDArray[np.float64]
    """Of the function, where its return was seen; else as `until`."""
    until: npt.NDArray[np.float64]
    """When the packet's next hop began."""
    returned: npt.NDArray[np.bool_]
    func: list[str]
    colour: list[str]
    layer: list[str]
    netns: list[str]
    copy: npt.NDArray[np.intp]
    queue: npt.NDArray[np.int8]
    lane: npt.NDArray[np.intp]
    lanes: list[str]

    @property
    def span(self) -> float:
        """From the first to the end of all, never zero."""
        return max(float(self.end.max()), 1.0)

    @property
    def waits(self) -> npt.NDArray[np.bool_]:
        """Which hops put the packet into a queue."""
        return self.queue >= 0


def timeline(
    recording: RecordingViews,
    packet: int | Iterable[int] | None = None,
    *,
    lanes: Lanes = "dev",
    detail: bool | None = None,
    ax: Axes | None = None,
    theme: style.ThemeName | None = None,
) -> Axes:
    """Draw the way of one packet through the kernel, or of many side by side.

    Parameters
    ----------
    recording : Recording or Capture
    packet : int or several, optional
        Its number, as in the index of `packets`. Of several, or by default of all, up to 24 have a row each; more
        become one row for each path, every step as long as its median.
    lanes : "dev", "netns" or "cpu"
        Of one packet: what has a lane of its own, each interface of each namespace, each namespace, or each CPU.
    detail : bool, optional
        Of one packet: a row for each function, with its name, or one for each lane. By default rows for packets of up
        to 90 hops.
    ax, theme
        Axes to draw on, and "light" or "dark"; by default a new figure and what suits it.

    Returns
    -------
    Axes
        x is time since each packet's first hop in ns, labelled in the unit that suits.

    Raises
    ------
    OptionError
        There is no such packet, or no such kind of lanes.
    """
    whole = recording.recording
    if lanes not in {"dev", "netns", "cpu"}:
        raise OptionError(f"There are no lanes {lanes!r}: a lane is a 'dev', a 'netns' or a 'cpu'.")
    if packet is None or isinstance(packet, Iterable):
        return packets.draw(whole, packet, ax, theme)
    if packet not in whole.packets.index:
        raise OptionError(no_such_packet(packet, whole.packets))
    at = int(whole.events.packets.searchsorted(packet))
    detail = int(whole.events.counts[at]) <= _MOST_ROWS if detail is None else detail
    way = _way(whole, at, lanes, detail)
    row, tops = _rows(way, detail)
    height = (tops[-1] * _ROW if detail else len(way.lanes) * 0.5) + 1.3
    ax, colours = style.begin(ax, theme, height)
    _lanes(ax, colours, way, tops)
    _moves(ax, colours, way, row)
    _bars(ax, colours, way, row)
    ended = whole.packets.iloc[at]
    dropped = ended["verdict"] == "dropped"
    if detail:
        _names_beside(ax, colours, way, row, outcome(ended) if dropped else "")
    else:
        _names_inside(ax, way, row)
    _end(ax, colours, dropped, way, row)
    ax.set_xlim(-0.015 * way.span, way.span * 1.03)
    ax.set_ylim(tops[-1], 0)
    style.seconds_axis(ax, colours, "time since the first hop", way.span)
    ax.spines["left"].set_visible(False)
    rows = style.legend(ax, colours, style.layer_entries(way.layer, waits=bool(way.waits.any())))
    _title(ax, colours, whole, at, rows)
    named = "" if detail else "Names stand where they fit; `detail=True` gives each function a row."
    lasts = "Functions last until they returned; those whose return is not known, until the packet's next hop."
    style.note(ax, colours, whole, lasts if way.returned.any() else "", named)
    return ax


def _way(recording: Recording, at: int, lanes: Lanes, nested: bool) -> _Way:
    first, count = int(recording.events.first[at]), int(recording.events.counts[at])
    hops = recording.df.iloc[first : first + count]
    begin = style.in_ns(hops["since"].to_numpy())
    until = np.append(begin[1:], begin[-1])
    # In one row for all, what was called within a function would lie over it.
    took = style.in_ns(hops["duration"].to_numpy()) if nested else np.full(count, np.nan)
    # What frees a packet mostly does not know its device any more: it is where it was.
    netns = hops["netns"].ffill().bfill()
    place = pd.Series(_texts(netns), dtype=object)
    if lanes == "dev":
        dev = hops["dev"].astype(object).groupby(_texts(netns)).ffill()
        place = pd.Series([f"{ns}\0{dev}" for ns, dev in zip(place, _texts(dev, "no interface"), strict=True)])
    elif lanes == "cpu":
        place = pd.Series([f"CPU {cpu}" for cpu in hops["cpu"]])
    lane, places = pd.factorize(place)
    layer = _texts(hops["layer"])
    return _Way(
        begin,
        np.where(np.isnan(took), until, begin + took),
        until,
        ~np.isnan(took),
        _texts(hops["func"]),
        [style.LAYER_COLOURS[name] for name in layer],
        layer,
        _texts(netns),
        _copies(recording.events, slice(first, first + count)),
        hop_waits(recording.events, slice(first, first + count)),
        np.asarray(lane, np.intp),
        [str(name) for name in places],
    )


def _copies(events: Events, rows: slice) -> npt.NDArray[np.intp]:
    """Number each hop's sk_buff, from 0. What comes under an address after its end is another one."""
    ended = events.hops["flags"][rows] & EVENT_FLAGS["end"] != 0
    copy = pd.Series(events.copies.of[rows])
    lives = pd.Series(ended).groupby(copy).transform(lambda own: own.shift(fill_value=False).cumsum())
    return np.asarray(pd.factorize(pd.MultiIndex.from_arrays([copy, lives]))[0], np.intp)


def _texts(column: Any, missing: str = "?") -> list[str]:
    return [missing if pd.isna(value) else str(value) for value in column]


def _rows(way: _Way, detail: bool) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Middle of each hop's row, and the edges of the lanes, from 0 at the top."""
    if not detail:
        return way.lane.astype(np.float64) + 0.5, np.arange(len(way.lanes) + 1, dtype=np.float64)
    order = np.argsort(way.lane, kind="stable")
    counts = np.bincount(way.lane, minlength=len(way.lanes))
    # Half a row of air between lanes, and room for a lane's name of two lines.
    heights = np.maximum(counts + 0.5, _LEAST)
    tops = np.concatenate(([0.0], np.cumsum(heights)), dtype=np.float64)
    lane = way.lane[order]
    row = np.empty(len(order), np.float64)
    row[order] = np.arange(len(order)) - (np.cumsum(counts) - counts)[lane] + 0.5 + tops[lane]
    row[order] += (heights - counts)[lane] / 2
    return row, tops


def _lanes(ax: Axes, theme: style.Theme, way: _Way, tops: npt.NDArray[np.float64]) -> None:
    for at in range(0, len(way.lanes), 2):
        ax.axhspan(tops[at], tops[at + 1], color=theme.band, linewidth=0, zorder=0)
    ax.set_yticks(
        (tops[1:] + tops[:-1]) / 2,
        ["\n".join(style.label(ax, part, 32) for part in lane.split("\0")) for lane in way.lanes],
    )
    ax.tick_params(axis="y", length=0)
    for label in ax.get_yticklabels():
        label.set_fontsize(style.TEXT)


def _bars(ax: Axes, theme: style.Theme, way: _Way, row: npt.NDArray[np.float64]) -> None:
    colour = np.array(way.colour, dtype=object)
    # The wait begins when the function has returned; without returns nobody knows how long was worked before.
    since = np.where(way.returned, np.minimum(way.end, way.until), way.begin)
    for which, begin, end, gid in (
        (~way.waits | way.returned, way.begin, way.end, "spans"),
        (way.waits, since, way.until, "waits"),
    ):
        # A bar is at least as wide as can be seen.
        x0, x1, middle = begin[which], np.maximum(end, begin + way.span / 400)[which], row[which]
        low, high = middle - _BAR / 2, middle + _BAR / 2
        corners = np.stack([x0, low, x1, low, x1, high, x0, high], axis=1).reshape(-1, 4, 2)
        bars = PolyCollection(list(corners), facecolors=list(colour[which]), linewidths=0, zorder=3, gid=gid)
        if gid == "waits":
            bars.set(hatch=style.WAIT_HATCH, edgecolor=theme.paper)
        ax.add_collection(bars)


def _moves(ax: Axes, theme: style.Theme, way: _Way, row: npt.NDArray[np.float64]) -> None:
    """From lane to lane a line; where the namespace changes, an arrow.

    Each copy of the packet goes its own way; a new one comes from the hop before.
    """
    # What stands within the axes, here and below, has no say in the layout, which would measure every single name.
    seen: dict[int, int] = {}
    for to, copy in enumerate(way.copy.tolist()):
        of, seen[copy] = seen.get(copy, to - 1), to
        if of < 0 or way.lane[of] == way.lane[to]:
            continue
        crossing = way.copy[of] == copy and way.netns[of] != way.netns[to]
        edge = _BAR / 2 if row[to] > row[of] else -_BAR / 2
        ax.annotate(
            "", (way.begin[to], row[to] - edge), (way.begin[to], row[of] + edge), zorder=2.5,
            arrowprops={
                "arrowstyle": "-|>" if crossing else "-", "color": theme.ink if crossing else theme.soft,
                "linewidth": 1.1 if crossing else 0.7, "linestyle": "-" if crossing else ":",
                "shrinkA": 0, "shrinkB": 0, "mutation_scale": 9,
            },
            gid="crossing" if crossing else "move", in_layout=False,
        )  # fmt: skip


def _names_beside(ax: Axes, theme: style.Theme, way: _Way, row: npt.NDArray[np.float64], ending: str) -> None:
    """Each function's name and time, right of its bar, or left where the right has no room."""
    last = len(way.func) - 1
    for at, func in enumerate(way.func):
        said = style.plain(func, 48) + (" (clone)" if way.copy[at] else "")
        said += f"  {style.duration(way.end[at] - way.begin[at])}" if way.returned[at] else ""
        said += f"  waits: {QUEUES[way.queue[at]]}" if way.waits[at] else ""
        waited_or_took = way.waits[at] or not way.returned[at]
        said += f"  {style.duration(way.until[at] - way.begin[at])}" if waited_or_took and at < last else ""
        ink = theme.ink
        if at == last and ending:
            said, ink = f"{said}  {style.plain(ending, 60)}", theme.alarm
        room = style.text_width(ax, said) * way.span
        ends = max(way.end[at], way.until[at] if way.waits[at] else 0.0)
        x, ha, shift, behind = ends, "left", 4, None
        if ends + room > way.span * 1.03:
            x, ha, shift = way.begin[at], "right", -4
            if x < room and at < last:
                # Neither side has room: over its own long bar, whose ends stay to be seen.
                x, ha, shift = (way.begin[at] + ends) / 2, "center", 0
                behind = {"facecolor": theme.paper, "alpha": 0.85, "linewidth": 0, "pad": 0.5}
        if at == last:
            shift *= 2
        ax.annotate(said, (x, row[at]), xytext=(shift, 0), textcoords="offset points", ha=ha, va="center_baseline",
                    fontsize=style.SMALL, color=ink, zorder=4, gid="function", bbox=behind,
                    in_layout=False)  # fmt: skip


def _names_inside(ax: Axes, way: _Way, row: npt.NDArray[np.float64]) -> None:
    for at in np.flatnonzero(((way.end - way.begin) / way.span > 0.02) & ~way.waits).tolist():
        func = style.plain(way.func[at], 48)
        if style.text_width(ax, func) < (way.end[at] - way.begin[at]) / way.span:
            ax.annotate(func, ((way.begin[at] + way.end[at]) / 2, row[at]), ha="center",
                        va="center_baseline", fontsize=style.SMALL, color=style.text_on(way.colour[at]), zorder=4,
                        gid="function", in_layout=False)  # fmt: skip


def _end(ax: Axes, theme: style.Theme, dropped: bool, way: _Way, row: npt.NDArray[np.float64]) -> None:
    """A cross where the packet was dropped, a dot at any other last hop."""
    ax.plot(way.begin[-1], row[-1], "X" if dropped else "o", color=theme.alarm if dropped else theme.ink, markersize=7,
            markeredgecolor=theme.paper, markeredgewidth=0.8, zorder=5, clip_on=False, gid="end")  # fmt: skip


def _title(ax: Axes, theme: style.Theme, recording: Recording, at: int, rows: int) -> None:
    packet = recording.packets.iloc[at]
    number = recording.packets.index[at]
    flow = packet["flow"] if pd.notna(packet["flow"]) else "headers not known"
    when = f"{packet['first']:%H:%M:%S}.{packet['first'].value % 10**9 // 1000:06d} UTC"
    total = style.duration(packet["total"].value)
    second = f"{outcome(packet)} · {packet['hops']} hops in {total} · from {when}"
    style.title(ax, theme, style.plain(f"packet {number}  {flow}", 100), style.plain(second, 140), rows)
