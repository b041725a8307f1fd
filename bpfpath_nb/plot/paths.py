"""All paths in one picture, as a graph that is read like text.

Each namespace that packets come to is a line, and along it stands what they pass there, left to right; where they go on
to another namespace, its line follows below. A namespace has a line for each way on which packets came to it, so that a
query and its answer, which pass one router in opposite directions, do not lie over each other. Edges are as wide as
packets are many. What ends leaves its line downwards, into a cross for a drop and a dot for anything else.

What a packet passes is its functions or, where these would be too many to read, the layers of each interface. A
function or layer is one place of its line, however often a packet comes back to it. The places are in the order in
which most packets first come to them: each is compared with each other one, and stands the further right the more come
before it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from bpfpath_nb.plot import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from bpfpath_nb.recording import Recording, RecordingViews

_MOST_FUNCTIONS: Final = 26
"""A line of more functions is folded into layers, unless asked for."""

_MOST_UNFOLDED: Final = 6
"""More lines than this are folded too: with slanted names each is two inches high."""

_LINES: Final = 14
_WAYS: Final = 400
_WIDEST: Final = 11.0
"""Points, of an edge that all packets took."""

_MARGIN: Final = -0.035
"""Where, left of all nodes, edges go down to a line."""

_LEFT: Final = 0.05
"""Where the first node may stand; left of it is said how many packets came."""

_LEVEL: Final = 0.18
"""Inches from one end below a line to the next."""

_INCHES: Final = 7.6
"""How wide the lines are in a figure of the usual size."""

Key = tuple[str, ...]
"""A line: the namespaces on the way to it, with its own."""


@dataclass
class _Line:
    """One namespace on one way to it: what is passed there, and how often."""

    packets: int = 0
    layers: dict[str, str] = field(default_factory=dict)
    before: Counter[tuple[str, str]] = field(default_factory=Counter)
    edges: Counter[tuple[str, str]] = field(default_factory=Counter)
    entries: Counter[tuple[Key, str, str]] = field(default_factory=Counter)
    ends: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    x: dict[str, float] = field(default_factory=dict)
    y: float = 0.0
    channel: float = 0.0
    levels: dict[tuple[str, str, str], tuple[int, bool]] = field(default_factory=dict)

    def place(self, inches: float, exits: set[str]) -> None:
        """Put the nodes in order, and the ends below them where they have room beside what leaves downwards."""
        names = list(self.layers)
        ahead = np.array([[self.before[a, b] for b in names] for a in names]).reshape(len(names), len(names))
        score = np.sign(ahead - ahead.T).sum(axis=1)
        order = np.argsort(-score, kind="stable").tolist()
        # Few nodes do not spread over the whole width.
        step = 1 / max(len(names), 6)
        self.x = {names[at]: _LEFT + (place + 0.5) * step * (1 - _LEFT) for place, at in enumerate(order)}
        leaving = [(self.x[name] - 0.012, self.x[name] + 0.012) for name in exits if name in self.x]
        taken: list[list[tuple[float, float]]] = []
        for end, packets in sorted(self.ends.items(), key=lambda item: (-item[1], self.x[item[0][0]])):
            x, room = self.x[end[0]], (len(_said(end, packets)) * style.SMALL * 0.58 / 72 + 0.25) / inches
            sides = [(x - 0.015, x + room), (x - room, x + 0.015)]
            right = [other for other in leaving if other[0] > x]
            left = x + room > 1.02 or any(sides[0][1] > other[0] for other in right)
            own = sides[left]
            level = 0
            while level < len(taken) and any(own[0] < other[1] and other[0] < own[1] for other in taken[level]):
                level += 1
            if level == len(taken):
                taken.append([])
            # Its stem crosses all levels above.
            for above in taken[:level]:
                above.append((x - 0.01, x + 0.01))
            taken[level].append(own)
            self.levels[end] = level, left

    def skipped(self, a: str, b: str) -> int:
        """How many nodes an edge passes by."""
        return round(abs(self.x[b] - self.x[a]) / (1 - _LEFT) * max(len(self.x), 6)) - 1


def paths(
    recording: RecordingViews,
    *,
    fold: bool | None = None,
    ax: Axes | None = None,
    theme: style.ThemeName | None = None,
) -> Axes:
    """Draw all paths that packets took as one graph.

    Parameters
    ----------
    recording : Recording or Capture
    fold : bool, optional
        One node for each layer of a namespace instead of each function. By default where functions would be too many.
    ax, theme
        Axes to draw on, and "light" or "dark"; by default a new figure and what suits it.

    Returns
    -------
    Axes
        A line for each namespace on the way; edges are as wide as packets are many. y is inches from the top.
    """
    whole = recording.recording
    if not len(whole.packets):
        ax, colours = style.begin(ax, theme, 1.6)
        style.nothing(ax, colours, "There are no paths to show.", "No packet was recorded.")
        style.note(ax, colours, whole)
        return ax
    examples, count, left_out = _ways(whole)
    lines = {} if fold else _lines(whole, examples, count, folded=False)
    if fold is None:
        fold = len(lines) > _MOST_UNFOLDED or max(len(line.layers) for line in lines.values()) > _MOST_FUNCTIONS
    if fold:
        lines = _lines(whole, examples, count, folded=True)
    order = _order(lines)
    height = _arrange(lines, order[:_LINES], bool(fold))
    ax, colours = style.begin(ax, theme, height + 1.3)
    for key in order[:_LINES]:
        _draw(ax, colours, lines, key, len(whole.packets), bool(fold))
    ax.set_xlim(-0.05, 1.03)
    ax.set_ylim(height, 0)
    ax.set_xticks([])
    labels = [f"{'↳ ' if len(key) > 1 else ''}{style.plain(key[-1], 32)}" for key in order[:_LINES]]
    ax.set_yticks([lines[key].y for key in order[:_LINES]], labels)
    ax.tick_params(axis="y", length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    there = {layer for key in order[:_LINES] for layer in lines[key].layers.values()}
    rows = style.legend(ax, colours, style.layer_entries(there))
    distinct = len(whole.paths)
    style.title(ax, colours, f"{distinct:,} path{'s' * (distinct != 1)}",
                f"{len(whole.packets):,} packets; an edge is as wide as packets took it", rows)  # fmt: skip
    said = ["A node is a layer; `fold=False` shows the functions."] if fold else []
    if len(order) > _LINES:
        rest = sum(lines[key].packets for key in order[_LINES:])
        said.append(f"{len(order) - _LINES} lines with {rest:,} visits of packets are not drawn.")
    style.note(ax, colours, whole, *said, left_out)
    return ax


def _ways(whole: Recording) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64], str]:
    """A packet of each way (path, namespaces and outcome), how many went it, and what is left out."""
    packets = whole.packets
    way = np.zeros(len(packets), np.int64)
    for column in ("path", "namespaces", "verdict", "reason"):
        values = packets[column].cat
        way = pd.factorize(way * (len(values.categories) + 1) + values.codes.to_numpy() + 1)[0].astype(np.int64)
    count = np.bincount(way)
    example = np.zeros(len(count), np.intp)
    example[way[::-1]] = np.arange(len(way))[::-1]
    order = np.argsort(-count, kind="stable")
    shown = order[:_WAYS]
    rest = len(order) - len(shown)
    told = f"{rest:,} rarer ways of {count[order[_WAYS:]].sum():,} packets are not drawn." if rest else ""
    return example[shown], count[shown].astype(np.int64), told


def _lines(
    whole: Recording, examples: npt.NDArray[np.intp], count: npt.NDArray[np.int64], *, folded: bool
) -> dict[Key, _Line]:
    events, df = whole.events, whole.df
    lines: dict[Key, _Line] = {}
    for at, packets in zip(examples.tolist(), count.tolist(), strict=True):
        rows = df.iloc[int(events.first[at]) : int(events.last[at]) + 1]
        layers = rows["layer"].astype(str).tolist()
        names = _per_interface(rows, layers) if folded else rows["func"].astype(str).tolist()
        visited: dict[str, tuple[Key, list[str]]] = {}
        way: Key = ()
        last: tuple[Key, str] | None = None
        for netns, name, layer in zip(rows["netns"].astype(object).fillna("?"), names, layers, strict=True):
            if netns not in visited:
                way = (*way, str(netns))
                visited[netns] = way, []
                line = lines.setdefault(way, _Line())
                line.packets += packets
                if last is not None:
                    line.entries[*last, name] += packets
            key, own = visited[netns]
            lines[key].layers.setdefault(name, layer)
            if name not in own:
                own.append(name)
            last = key, name
        for key, own in visited.values():
            line = lines[key]
            for place, name in enumerate(own):
                for later in own[place + 1 :]:
                    line.before[name, later] += packets
            for pair in pairwise(own):
                line.edges[pair] += packets
        packet = whole.packets.iloc[at]
        if last is not None:
            reason = str(packet["reason"]) if pd.notna(packet["reason"]) else ""
            lines[last[0]].ends[last[1], str(packet["verdict"]), reason] += packets
    return lines


def _per_interface(rows: pd.DataFrame, layers: list[str]) -> list[str]:
    """Layers with the interface: a router's driver that receives is another place than the one that sends."""
    netns = rows["netns"].astype(object).fillna("?")
    dev = rows["dev"].astype(object).groupby(netns).ffill().fillna("")
    # The first and the second interface, whatever they are called: what a host sends through one or another is alike.
    met: dict[tuple[str, str], int] = {}
    for place in zip(netns, dev, strict=True):
        met.setdefault(place, sum(other[0] == place[0] and other[1] != "" for other in met))
    return [f"{layer}\0{met[place]}" for layer, place in zip(layers, zip(netns, dev, strict=True), strict=True)]


def _order(lines: dict[Key, _Line]) -> list[Key]:
    """Each line before those that follow it, the busiest first."""
    ordered: list[Key] = []

    def walk(key: Key) -> None:
        ordered.append(key)
        below = [other for other in lines if other[:-1] == key]
        for other in sorted(below, key=lambda one: -lines[one].packets):
            walk(other)

    for key in sorted((key for key in lines if len(key) == 1), key=lambda one: -lines[one].packets):
        walk(key)
    return ordered


def _arrange(lines: dict[Key, _Line], order: list[Key], folded: bool) -> float:
    """Give each line its height; returns that of all, in inches."""
    y = 0.0
    for key in order:
        line = lines[key]
        line.place(_INCHES, {a for other in order for of, a, _ in lines[other].entries if of == key})
        names = max((len(name) for name in line.layers), default=0)
        skips = any(line.skipped(a, b) for a, b in line.edges)
        # Slanted names above, or the arcs of what is passed by; then the ends, then where the next line is reached.
        y += (0.3 + 0.25 * skips) if folded else 0.25 + min(names, 40) * style.SMALL * 0.58 / 72 * 0.77
        line.y = y
        y += 0.16 if folded else 0.16 + 0.3 * skips
        y += _LEVEL * (1 + max((level for level, _ in line.levels.values()), default=-1)) + 0.12
        line.channel = y
        y += 0.12
    return y


def _said(end: tuple[str, str, str], packets: int) -> str:
    return f"{packets:,} {style.plain(end[2], 40) if end[2] else end[1]}"


def _width(packets: int, of: int) -> float:
    return 0.8 + (_WIDEST - 0.8) * packets / of


def _draw(ax: Axes, theme: style.Theme, lines: dict[Key, _Line], key: Key, of: int, folded: bool) -> None:
    line = lines[key]
    for (a, b), packets in line.edges.most_common():
        _edge(ax, theme, line, a, b, _width(packets, of), folded)
    if line.entries:
        for (before, a, b), packets in line.entries.most_common():
            _entry(ax, theme, (lines[before], a), (line, b), _width(packets, of))
        ax.annotate(f"{line.packets:,}", (_MARGIN + 0.05, line.y), ha="center", va="center", fontsize=style.SMALL,
                    zorder=4, color=theme.ink, gid="entered",
                    bbox={"facecolor": theme.paper, "linewidth": 0, "pad": 1.2})  # fmt: skip
    depth = line.channel - 0.12 - _LEVEL * (1 + max((level for level, _ in line.levels.values()), default=-1))
    for end, packets in line.ends.items():
        level, left = line.levels[end]
        _end(ax, theme, line, end, packets, of, (depth + _LEVEL * (level + 0.5), left))
    for name, layer in line.layers.items():
        _node(ax, theme, line, name, layer, folded)


def _edge(ax: Axes, theme: style.Theme, line: _Line, a: str, b: str, width: float, folded: bool) -> None:
    xa, xb = line.x[a], line.x[b]
    skipped = line.skipped(a, b)
    lift = 0.0 if skipped == 0 and xb > xa else min(0.16 + 0.06 * skipped, 0.5)
    # Names stand above functions, so arcs go below them.
    lift *= -1 if folded else 1
    points = [(xa, line.y), (xa, line.y + lift), (xb, line.y + lift), (xb, line.y)]
    _curve(ax, points, [Path.MOVETO, *[Path.CURVE4] * 3], theme.soft, width, "edge" if xb > xa else "back")


def _entry(ax: Axes, theme: style.Theme, of: tuple[_Line, str], to: tuple[_Line, str], width: float) -> None:
    """From a node down, along between the lines, and into the next one from the left."""
    xa, xb, low, y = of[0].x[of[1]], to[0].x[to[1]], of[0].channel, to[0].y
    r, ry = 0.02, 0.12
    points = [
        (xa, of[0].y), (xa, low - ry), (xa, low), (xa - r, low),
        (_MARGIN + r, low), (_MARGIN, low), (_MARGIN, low + ry), (_MARGIN, y - ry),
        (_MARGIN, y), (_MARGIN + r, y), (xb, y),
    ]  # fmt: skip
    bend = [Path.LINETO, Path.CURVE3, Path.CURVE3]
    _curve(ax, points, [Path.MOVETO, *bend, *bend, *bend, Path.LINETO], theme.soft, width, "crossing")


def _curve(ax: Axes, points: list[tuple[float, float]], codes: list[Any], colour: str, width: float, gid: str) -> None:
    way = PathPatch(Path(points, codes), facecolor="none", edgecolor=colour, linewidth=width, alpha=0.55, zorder=2)
    way.set(capstyle="butt", joinstyle="round", gid=gid)
    ax.add_patch(way)


def _end(
    ax: Axes, theme: style.Theme, line: _Line, end: tuple[str, str, str], packets: int, of: int,
    where: tuple[float, bool],
) -> None:  # fmt: skip
    dropped = end[1] == "dropped"
    colour = theme.alarm if dropped else theme.ink
    x, (foot, left) = line.x[end[0]], where
    _curve(ax, [(x, line.y), (x, foot)], [Path.MOVETO, Path.LINETO], colour if dropped else theme.soft,
           _width(packets, of), "stem")  # fmt: skip
    ax.plot(x, foot, "X" if dropped else "o", color=colour, markersize=7, markeredgecolor=theme.paper, zorder=5,
            clip_on=False, gid="drop" if dropped else "end")  # fmt: skip
    ax.annotate(
        _said(end, packets), (x, foot), xytext=(-9 if left else 9, 0), textcoords="offset points", zorder=5,
        ha="right" if left else "left", va="center_baseline", fontsize=style.SMALL, color=colour,
        bbox={"facecolor": theme.paper, "alpha": 0.8, "linewidth": 0, "pad": 0.5},
    )  # fmt: skip


def _node(ax: Axes, theme: style.Theme, line: _Line, name: str, layer: str, folded: bool) -> None:
    colour, at = style.LAYER_COLOURS[layer], (line.x[name], line.y)
    if folded:
        box = {"boxstyle": "round,pad=0.3", "facecolor": colour, "edgecolor": theme.paper}
        ax.annotate(layer, at, ha="center", va="center_baseline", fontsize=style.SMALL, zorder=5, gid="node", bbox=box,
                    color=style.text_on(colour))  # fmt: skip
        return
    ax.plot(*at, "o", color=colour, markersize=8, markeredgecolor=theme.paper, zorder=5, gid="node")
    ax.annotate(
        style.plain(name, 40), at, xytext=(1, 7), textcoords="offset points", rotation=50, ha="left", va="center",
        rotation_mode="anchor", fontsize=style.SMALL, color=theme.ink, zorder=6,
    )  # fmt: skip
