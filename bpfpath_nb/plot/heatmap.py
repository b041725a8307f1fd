"""Latency over time: when it was slow, and whether all were or only some.

Many packets become counts in cells of time and latency; few are points. The median and the 99th percentile of each
slice of time are drawn over them where a slice has enough packets for that to mean something.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bpfpath_nb.analysis.quantiles import quantiles
from bpfpath_nb.errors import FunctionError, OptionError
from bpfpath_nb.plot import style

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

    from bpfpath_nb.recording import Recording, RecordingViews

POINTS: Final = 400
"""Up to so many are points."""

_ACROSS, _UP, _SLICES, _ENOUGH = 120, 48, 40, 20


def heatmap(
    recording: RecordingViews,
    func: str | None = None,
    *,
    of: Literal["gap", "duration"] = "gap",
    ax: Axes | None = None,
    theme: style.ThemeName | None = None,
) -> Axes:
    """Draw latency over time.

    Parameters
    ----------
    recording : Recording or Capture
    func : str, optional
        Time at this function, by each hop. By default from each packet's first hop to its last.
    of : "gap" or "duration"
        Of a function: the time to the next, or inside it.
    ax, theme
        Axes to draw on, and "light" or "dark"; by default a new figure and what suits it.

    Returns
    -------
    Axes
        x is time in ns since the first hop of all, y the latency in ns, logarithmic.

    Raises
    ------
    FunctionError
        The function was not seen.
    OptionError
        There is no such time of a function.
    """
    whole = recording.recording
    if of not in {"gap", "duration"}:
        raise OptionError(f"There is no time {of!r} of a function: it is 'gap' or 'duration'.")
    time, latency, dropped, what, unit = _values(whole, func, of)
    ax, colours = style.begin(ax, theme, 4.0)
    if not len(latency):
        why = (
            "No packet was recorded."
            if not len(whole)
            else f"No {what} was measured: it needs a next hop, or returns=True."
        )
        style.nothing(ax, colours, "There is no latency to show.", why)
        style.note(ax, colours, whole)
        return ax
    start = int(whole.events.utc.min())
    time = time - start
    span = max(float(time.max()), 1.0)
    latency = np.maximum(latency, 1)
    ax.set_yscale("log")
    low, high = float(latency.min()), float(latency.max())
    low, high = low / 1.5, max(high * 1.5, low * 10)
    said, entries = f"Each point is one of the {unit}.", list[tuple["Artist", str]]()
    if len(latency) <= POINTS:
        entries = _points(ax, colours, time, latency, dropped)
    else:
        _cells(ax, colours, time, latency, (span, low, high), unit)
        said = "Counted in cells of time and latency."
        entries += _quantile_lines(ax, colours, time, latency, span)
    drawn = style.legend(ax, colours, entries)
    ax.set_xlim((0, span) if len(latency) > POINTS else (-0.015 * span, span * 1.015))
    ax.set_ylim(low, high)
    style.seconds_axis(ax, colours, f"time since {pd.Timestamp(start, tz='UTC'):%Y-%m-%d %H:%M:%S} UTC", span)
    ax.yaxis.set_major_locator(LogLocator(10, (1.0,) if high / low > 300 else (1.0, 2.0, 5.0), numticks=20))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda ns, _: style.duration(ns)))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.grid(True, axis="y", color=colours.grid, linewidth=0.8)
    style.axis_label(ax, colours, ax.get_xlabel(), f"{what} (logarithmic)")
    style.title(ax, colours, "latency over time", f"{len(latency):,} {unit}", drawn)
    style.note(ax, colours, whole, said)
    return ax


def _values(
    whole: Recording, func: str | None, of: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bool_], str, str]:
    if func is None:
        total = whole.packets["total"].to_numpy().view(np.int64)
        rows = np.flatnonzero(whole.packets["hops"].to_numpy() > 1)
        dropped = (whole.packets["verdict"] == "dropped").to_numpy()[rows]
        return whole.events.utc[whole.events.first][rows], total[rows], dropped, "first hop to last", "packets"
    if not isinstance(func, str):
        raise FunctionError(f"A function is meant by its name, and {func!r} is none; `functions` lists them.")
    names = whole.df["func"].cat.categories
    if func not in names:
        near = [name for name in names if func in name or name in func][:5]
        known = f"Near it: {', '.join(near)}." if near else "`functions` lists those that were."
        raise FunctionError(f"The function {func!r} was not seen in this recording. {known}")
    values = whole.df[of].to_numpy().view(np.int64)
    rows = np.flatnonzero((whole.df["func"].cat.codes.to_numpy() == names.get_loc(func)) & (values >= 0))
    what = f"{style.plain(func)} to the next" if of == "gap" else f"inside {style.plain(func)}"
    return whole.events.utc[rows], values[rows], np.zeros(len(rows), bool), what, "hops"


def _cells(
    ax: Axes, theme: style.Theme, time: npt.NDArray[np.int64], latency: npt.NDArray[np.int64],
    limits: tuple[float, float, float], unit: str,
) -> None:  # fmt: skip
    span, low, high = limits
    across = np.linspace(0, span, _ACROSS + 1)
    up = np.geomspace(low, high, _UP + 1)
    x = np.minimum((time / span * _ACROSS).astype(np.intp), _ACROSS - 1)
    y = np.minimum((np.log(latency / low) / np.log(high / low) * _UP).astype(np.intp), _UP - 1)
    count = np.bincount(y * _ACROSS + x, minlength=_ACROSS * _UP).reshape(_UP, _ACROSS)
    most = int(count.max())
    norm: Normalize = LogNorm(1, most) if most > 20 else Normalize(0, max(most, 2))
    # One hue; the more, the further from the paper.
    ends = ("#bcd3ee", "#2f6fb5", "#0a2347") if theme is style.LIGHT else ("#1d3c63", "#4f8fd6", "#e3f1ff")
    colours = LinearSegmentedColormap.from_list("count", ends)
    mesh = ax.pcolormesh(across, up, np.ma.masked_equal(count, 0), cmap=colours, norm=norm, zorder=2, gid="cells")
    figure: Any = ax.get_figure()
    bar = figure.colorbar(mesh, ax=ax, pad=0.015, fraction=0.04)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=theme.ink, labelsize=style.SMALL, which="both")
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else ""))
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    bar.set_label(f"{unit} in a cell", fontsize=style.TEXT, color=theme.ink)


def _points(
    ax: Axes, theme: style.Theme, time: npt.NDArray[np.int64], latency: npt.NDArray[np.int64],
    dropped: npt.NDArray[np.bool_],
) -> list[tuple[Artist, str]]:  # fmt: skip
    blue = style.GROUP_COLOURS[0] if theme is style.LIGHT else style.GROUP_COLOURS[4]
    ax.scatter(time[~dropped], latency[~dropped], s=16, color=blue, linewidths=0, zorder=3, gid="point")
    if not dropped.any():
        return []
    ax.scatter(
        time[dropped], latency[dropped], s=30, marker="X", color=theme.alarm, linewidths=0, zorder=3, gid="point"
    )
    return [
        style.line_entry(theme.alarm, "dropped", marker="X", linestyle="none"),
        style.line_entry(blue, "not dropped", marker="o", linestyle="none", markersize=4),
    ]


def _quantile_lines(
    ax: Axes, theme: style.Theme, time: npt.NDArray[np.int64], latency: npt.NDArray[np.int64], span: float
) -> list[tuple[Artist, str]]:
    piece = np.minimum((time / span * _SLICES).astype(np.intp), _SLICES - 1)
    enough = np.bincount(piece, minlength=_SLICES) >= _ENOUGH
    if enough.sum() < 3:
        return []
    found = quantiles(piece, _SLICES, latency)
    middle = (np.arange(_SLICES) + 0.5) * span / _SLICES
    for name, dashes in (("p50", "-"), ("p99", "--")):
        line = np.where(enough, found[name].astype(np.float64), np.nan)
        ax.plot(middle, line, dashes, color=theme.paper, linewidth=3.2, zorder=3.9)
        ax.plot(middle, line, dashes, color=theme.alarm, linewidth=1.5, zorder=4, gid=name)
    return [
        style.line_entry(theme.alarm, "median of each slice of time", linestyle="-"),
        style.line_entry(theme.alarm, "99th percentile", linestyle="--"),
    ]
