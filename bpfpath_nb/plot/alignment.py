"""Two paths side by side as a picture: what both pass, what one alone does, and how long each stayed.

The functions stand in the middle, in the order of the paths. To the left of each grows the time until the next hop in
a, to the right that in b, both logarithmic. What one path alone passes has a bar on that side only, a tinted row and
the other side's name with a dash; where the two part for the first time is said. Long stretches in common are folded,
as a diff does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.patches import Rectangle

from bpfpath_nb.plot import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from bpfpath_nb.analysis.alignment import Alignment
    from bpfpath_nb.comparison import Comparison

_MOST_ROWS: Final = 70
_CONTEXT: Final = 3
"""Rows in common that stay beside a difference when the rest is folded."""

_NAMES: Final = 0.42
"""Share of the picture's width that the names in the middle take."""


def alignment(
    comparison: Comparison,
    path_a: str | None = None,
    path_b: str | None = None,
    *,
    ax: Axes | None = None,
    theme: style.ThemeName | None = None,
) -> Axes:
    """Draw two paths aligned, function by function, with the median time after each.

    Parameters
    ----------
    comparison : Comparison
    path_a, path_b : str, optional
        Ids, as in the index of its `paths`; by default the two that tell most of the difference (`Comparison.align`).
    ax, theme
        Axes to draw on, and "light" or "dark"; by default a new figure and what suits it.

    Returns
    -------
    Axes
        One row per hop; times grow logarithmically to both sides.

    Raises
    ------
    OptionError
        No packet of that side took that path.
    """
    aligned = comparison.align(path_a, path_b)
    recordings = list(dict.fromkeys((comparison.a, comparison.b)))
    if aligned is None:
        ax, colours = style.begin(ax, theme, 2)
        return style.nothing(ax, colours, "There are no paths to align.", "One side has no packet without losses.")
    rows = _folded(aligned)
    shown = aligned.frame.iloc[[row for row in rows if row >= 0]]
    ax, colours = style.begin(ax, theme, 1.9 + 0.165 * len(rows))
    gaps = [style.in_ns(aligned.frame[f"gap_{side}"].to_numpy()) for side in "ab"]
    scale = _Scale(np.concatenate(gaps))
    layer = comparison.functions["layer"].astype(str)
    _draw(ax, colours, aligned, rows, gaps, scale, layer)
    _axis(ax, colours, scale, len(rows))
    entries = style.layer_entries(layer.get(str(func), "") for func in shown["func"])
    lines = style.legend(ax, colours, entries)
    names = [style.plain(name, 30) for name in comparison.names]
    _heads(ax, colours, aligned, names)
    same = int((aligned.frame["side"] == "both").sum())
    only = [int((aligned.frame["side"] == side).sum()) for side in "ab"]
    second = f"{same} hops in common, {only[0]} in {names[0]} alone, {only[1]} in {names[1]} alone"
    style.title(ax, colours, f"{names[0]} and {names[1]}: two paths aligned", second, lines + 1)
    beyond = f"{aligned.beyond:,} further hops of the longer path are not shown." if aligned.beyond else ""
    style.note(ax, colours, recordings, "Bars: median time until the packet's next hop.", beyond)
    return ax


class _Scale:
    """Times as lengths from 0 to 1, a decade always as long as another."""

    def __init__(self, ns: npt.NDArray[np.float64]) -> None:
        known = ns[~np.isnan(ns) & (ns > 0)]
        self.low = float(np.floor(np.log10(known.min()))) if len(known) else 0.0
        self.high = max(float(np.ceil(np.log10(known.max()))) if len(known) else 1.0, self.low + 1)

    def length(self, ns: float) -> float:
        """0.02 at least, so that every bar is seen."""
        if np.isnan(ns):
            return 0.0
        return float(max((np.log10(max(ns, 1.0)) - self.low) / (self.high - self.low), 0.02))

    def ticks(self) -> list[tuple[float, str]]:
        """Where a power of ten stands, with its name."""
        step = 1 if self.high - self.low <= 4 else 2
        decades = np.arange(self.low, self.high + 0.5, step)
        return [((one - self.low) / (self.high - self.low), style.duration(10**one)) for one in decades.tolist()]


def _folded(aligned: Alignment) -> list[int]:
    """Rows to show; a negative one stands for so many in common that are not."""
    count = len(aligned)
    if count <= _MOST_ROWS:
        return list(range(count))
    differs = (aligned.frame["side"] != "both").to_numpy().copy()
    if aligned.divergence is not None:
        differs[min(_first_divergence(aligned), count - 1)] = True
    near = np.convolve(differs, np.ones(2 * _CONTEXT + 1), "same") > 0
    near[:_CONTEXT] = True
    rows: list[int] = []
    for at, keep in enumerate(near.tolist()):
        if keep:
            rows.append(at)
        elif rows and rows[-1] < 0:
            rows[-1] -= 1
        else:
            rows.append(-1)
    if len(rows) > _MOST_ROWS:
        rows = [*rows[: _MOST_ROWS - 1], -(count - sum(1 if row >= 0 else -row for row in rows[: _MOST_ROWS - 1]))]
    return rows


def _first_divergence(aligned: Alignment) -> int:
    assert aligned.divergence is not None
    at = aligned.divergence.hop
    in_a, in_b = (aligned.frame[name].to_numpy("int64", na_value=-1) for name in ("hop_a", "hop_b"))
    return int(np.flatnonzero((in_a >= at) | (in_b >= at))[0]) if ((in_a >= at) | (in_b >= at)).any() else len(in_a)


def _draw(
    ax: Axes,
    theme: style.Theme,
    aligned: Alignment,
    rows: list[int],
    gaps: list[npt.NDArray[np.float64]],
    scale: _Scale,
    layer: Any,
) -> None:
    parts = None if aligned.divergence is None else _first_divergence(aligned)
    half = _NAMES / 2
    places: list[list[tuple[int, str]]] = [[], []]
    for y, at in enumerate(rows):
        if at < 0:
            said = f"⋯ {-at} more hops, the same in both ⋯" if y < len(rows) - 1 else f"⋯ {-at} more hops ⋯"
            ax.text(0, y, said, ha="center", va="center", fontsize=style.SMALL, color=theme.soft, gid="fold")
            continue
        row = aligned.frame.iloc[at]
        side, func = str(row["side"]), str(row["func"])
        if side != "both":
            ax.add_patch(Rectangle((-1, y - 0.5), 2, 1, color=theme.band, linewidth=0, zorder=0, gid=f"only {side}"))
        ax.text(
            0, y, {"both": "", "a": "◀ ", "b": ""}[side] + style.plain(func, 40) + (" ▶" if side == "b" else ""),
            ha="center", va="center_baseline", fontsize=style.TEXT if len(rows) <= 45 else style.SMALL,
            color=theme.ink, weight="normal" if side == "both" else "bold", gid="function",
        )  # fmt: skip
        colour = style.LAYER_COLOURS.get(layer.get(func, ""), theme.soft)
        for which, way in ((0, -1.0), (1, 1.0)):
            if side == "ab"[1 - which]:
                ax.text(way * (half + 0.02), y, "-", ha="center", va="center", fontsize=style.SMALL, color=theme.soft)
                continue
            places[which].append((y, _place(row, "ab"[which])))
            gap = gaps[which][at]
            length = scale.length(gap) * (0.5 - half) * 1.35
            ax.barh(y, way * length, left=way * half, height=0.66, color=colour, linewidth=0, zorder=3, gid="gap")
            said = style.duration(gap) if not np.isnan(gap) else "ends"
            ax.text(way * (half + length + 0.01), y, said, ha="left" if way > 0 else "right", va="center_baseline",
                    fontsize=style.SMALL, color=theme.soft)  # fmt: skip
        if at == parts:
            ax.axhline(y - 0.5, color=theme.alarm, linewidth=1.2, linestyle="--", zorder=4, gid="divergence")
    for which, at_x in ((0, -1.0), (1, 1.0)):
        _places(ax, theme, places[which], at_x)


def _place(row: Any, side: str) -> str:
    return " ".join(str(part) for part in (row[f"netns_{side}"], row[f"dev_{side}"]) if pd.notna(part))


def _places(ax: Axes, theme: style.Theme, places: list[tuple[int, str]], x: float) -> None:
    """Where the packet is, named where it comes to be there."""
    before = ""
    for y, place in places:
        if place and place != before:
            ax.text(x, y, style.plain(place, 26), ha="left" if x < 0 else "right", va="center_baseline",
                    fontsize=style.SMALL, color=theme.ink, gid="place")  # fmt: skip
        before = place or before


def _axis(ax: Axes, theme: style.Theme, scale: _Scale, rows: int) -> None:
    half = _NAMES / 2
    ticks = [(way * (half + length * (0.5 - half) * 1.35), name) for way in (-1, 1) for length, name in scale.ticks()]
    ax.set_xlim(-1, 1)
    ax.set_ylim(rows - 0.4, -0.6)
    ax.set_xticks([at for at, _ in ticks], [name for _, name in ticks], fontsize=style.SMALL)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    for at, _ in ticks:
        ax.axvline(at, color=theme.grid, linewidth=0.7, zorder=1)
    style.axis_label(ax, theme, "median time until the next hop (logarithmic, to both sides)")


def _heads(ax: Axes, theme: style.Theme, aligned: Alignment, names: list[str]) -> None:
    for x, ha, name, path in ((0, "left", names[0], aligned.path_a), (1, "right", names[1], aligned.path_b)):
        ax.annotate(
            f"{name}: path {path}", (x, 1), xycoords="axes fraction", xytext=(0, 18), textcoords="offset points",
            ha=ha, va="bottom", fontsize=style.TEXT, weight="bold", color=theme.ink, annotation_clip=False,
        )  # fmt: skip
