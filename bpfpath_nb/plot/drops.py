"""Where packets were given up and why: how many, or when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from bpfpath_nb.errors import OptionError
from bpfpath_nb.plot import style

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

    from bpfpath_nb.recording import RecordingViews

ROWS: Final = 30
_MARKS: Final = 2000
"""Up to so many drops are marked one by one; more are counted in slices of time."""

_SLICES: Final = 120


def drops(
    recording: RecordingViews,
    *,
    over: Literal["time"] | None = None,
    ax: Axes | None = None,
    theme: style.ThemeName | None = None,
) -> Axes:
    """Draw why, by which function and in which namespace packets were dropped.

    Parameters
    ----------
    recording : Recording or Capture
    over : "time", optional
        When each was dropped. By default how many were.
    ax, theme
        Axes to draw on, and "light" or "dark"; by default a new figure and what suits it.

    Returns
    -------
    Axes
        A row for each reason and function; x is the number of drops, or time in ns since the capture's first hop.

    Raises
    ------
    OptionError
        `over` is something else.
    """
    if over not in {None, "time"}:
        raise OptionError(f"Drops cannot be drawn over {over!r}: over='time', or without it as counts.")
    whole = recording.recording
    frame = whole.drops
    if frame.empty:
        ax, colours = style.begin(ax, theme, 1.6)
        style.nothing(ax, colours, "No packet was dropped.", f"{len(whole.packets):,} packets were recorded.")
        style.note(ax, colours, whole)
        return ax
    reason = frame["reason"].astype(object).fillna("no reason told")
    func = frame["func"].astype(object).fillna("function not known")
    row, kinds = pd.factorize(reason + " in " + func)
    rank = np.argsort(-np.bincount(row), kind="stable")
    shown = rank[:ROWS]
    place = np.full(len(kinds), -1)
    place[shown] = np.arange(len(shown))
    row = place[row]
    ax, colours = style.begin(ax, theme, 1.7 + 0.28 * len(shown))
    netns = frame["netns"].astype(object).fillna("namespace not known")
    group, names = pd.factorize(netns, sort=False)
    order = np.argsort(-np.bincount(group), kind="stable").tolist()
    most = len(style.GROUP_COLOURS) - 1
    if over == "time":
        said = _over_time(ax, colours, whole.events.utc, frame, row, group, order[:most])
    else:
        said = _counts(ax, colours, row, group, order[:most], len(shown))
    ax.set_ylim(len(shown) - 0.4, -0.6)
    ax.set_yticks(np.arange(len(shown)), [style.label(ax, kinds[at]) for at in shown])
    ax.tick_params(axis="y", length=0)
    entries: list[tuple[Artist, str]] = [
        (Patch(facecolor=style.GROUP_COLOURS[at]), f"in {style.plain(names[which], 30)}")
        for at, which in enumerate(order[:most])
    ]
    if len(order) > most:
        entries.append((Patch(facecolor=colours.soft), f"in {len(order) - most} others"))
    rows = style.legend(ax, colours, entries, columns=6)
    lost = int((whole.packets["verdict"] == "dropped").sum())
    second = f"{len(frame):,} dropped sk_buffs; {lost:,} of {len(whole.packets):,} packets were dropped"
    style.title(ax, colours, "drops over time" if over else "drops by reason and function", second, rows)
    rest = len(kinds) - len(shown)
    said.append(f"{rest} rarer kinds of drops are not shown." if rest else "")
    style.note(ax, colours, whole, *said)
    return ax


def _colour(theme: style.Theme, at: int) -> str:
    return style.GROUP_COLOURS[at] if at < len(style.GROUP_COLOURS) - 1 else theme.soft


def _counts(
    ax: Axes, theme: style.Theme, row: npt.NDArray[Any], group: npt.NDArray[Any], order: list[int], rows: int
) -> list[str]:
    left = np.zeros(rows)
    for at, which in enumerate([*order, None]):
        mine = (group == which) if which is not None else ~np.isin(group, order)
        width = np.bincount(row[mine & (row >= 0)], minlength=rows)
        if width.any():
            ax.barh(np.arange(rows), width, left=left, height=0.62, color=_colour(theme, at), zorder=3, gid="bar")
        left += width
    for at, count in enumerate(left.astype(int).tolist()):
        ax.annotate(f"{count:,}", (count, at), xytext=(4, 0), textcoords="offset points", va="center_baseline",
                    fontsize=style.SMALL, color=theme.ink)  # fmt: skip
    ax.set_xlim(0, left.max() * 1.12)
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    ax.grid(True, axis="x", color=theme.grid, linewidth=0.8)
    style.axis_label(ax, theme, "drops [sk_buffs]")
    return []


def _over_time(
    ax: Axes, theme: style.Theme, utc: npt.NDArray[np.int64], frame: pd.DataFrame, row: npt.NDArray[Any],
    group: npt.NDArray[Any], order: list[int],
) -> list[str]:  # fmt: skip
    start = int(utc.min())
    span = max(float(utc.max() - start), 1.0)
    time = frame["time"].astype("int64").to_numpy() - start
    rows = int(row.max()) + 1
    ax.set_xlim(-0.01 * span, span * 1.01)
    style.seconds_axis(ax, theme, f"time since {pd.Timestamp(start, tz='UTC'):%Y-%m-%d %H:%M:%S} UTC", span)
    groups = [group == which for which in order]
    groups.append(~np.isin(group, order))
    if len(frame) <= _MARKS:
        for at, mine in enumerate(groups):
            shown = mine & (row >= 0)
            ax.scatter(time[shown], row[shown], marker="|", s=110, linewidths=1.4, color=_colour(theme, at), zorder=3,
                       gid="drop")  # fmt: skip
        return ["Each drop is a mark."]
    piece = np.minimum((time / span * _SLICES).astype(np.int64), _SLICES - 1)
    counts = [np.bincount((row * _SLICES + piece)[mine & (row >= 0)], minlength=rows * _SLICES) for mine in groups]
    most = int(sum(counts).max())  # type: ignore[union-attr]
    base = np.repeat(np.arange(rows) + 0.4, _SLICES)
    middle = np.tile((np.arange(_SLICES) + 0.5) * span / _SLICES, rows)
    for at, count in enumerate(counts):
        height = count * 0.8 / most
        some = count > 0
        ax.bar(middle[some], -height[some], bottom=base[some], width=span / _SLICES, color=_colour(theme, at), zorder=3,
               linewidth=0, gid="drop")  # fmt: skip
        base = base - height
    return [f"Counted in slices of {style.duration(span / _SLICES)}; the highest bar is {most:,} drops."]
