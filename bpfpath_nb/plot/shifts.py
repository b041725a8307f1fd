"""How much longer it takes in b than in a, as a picture: each median's shift with its interval.

A shift of nanoseconds and one of milliseconds stand on one axis, so it is logarithmic to both sides, with a linear
stretch around zero. A filled marker is a claim, a hollow one may be chance; what is left of zero is faster, what is
right of it slower, so that nothing is told by colour alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from bpfpath_nb.errors import OptionError
from bpfpath_nb.plot import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from bpfpath_nb.comparison import Comparison

Of = Literal["functions", "transitions", "places", "verdicts"]

_MOST: Final = 60
_KEY: Final = (
    "Marker and line: shift of the median and its 95 % interval. Hollow: may be chance.",
    "Filled: beyond what chance can do, everything else that is compared taken into account.",
)


def shifts(
    comparison: Comparison,
    of: Of = "functions",
    *,
    top: int = 30,
    ax: Axes | None = None,
    theme: style.ThemeName | None = None,
) -> Axes:
    """Draw how the median durations differ between the two sides of a comparison.

    Parameters
    ----------
    comparison : Comparison
    of : "functions", "transitions", "places" or "verdicts"
        Of which of its tables.
    top : int
        How many rows to show: those with a claim first, the largest shift on top.
    ax, theme
        Axes to draw on, and "light" or "dark"; by default a new figure and what suits it.

    Returns
    -------
    Axes
        x is the shift in ns, logarithmic to both sides of 0.

    Raises
    ------
    OptionError
        There are no such rows.
    """
    if of not in get_args(Of):
        raise OptionError(f"There are no shifts of {of!r}: they are of {', '.join(map(repr, get_args(Of)))}.")
    table: pd.DataFrame = getattr(comparison, of)
    known = table[table["shift"].notna()]
    shown = known.head(max(1, min(top, _MOST)))
    ax, colours = style.begin(ax, theme, 1.7 + 0.2 * len(shown))
    recordings = list(dict.fromkeys((comparison.a, comparison.b)))
    if not len(shown):
        return style.nothing(
            ax, colours, "There is no shift to show.", "The two sides have no packets in common places to compare."
        )
    shift, low, high = (style.in_ns(shown[name].to_numpy()) for name in ("shift", "shift_low", "shift_high"))
    claimed = shown["shift_p"].lt(0.05).to_numpy()
    row = np.arange(len(shown))
    layer = comparison.functions["layer"].astype(str)
    keys = [key if isinstance(key, tuple) else (key,) for key in shown.index]
    layers = [layer.get(key[-1] if of == "places" else key[0], "") for key in keys]
    ink = [style.LAYER_COLOURS.get(name, colours.soft) for name in layers]
    ax.hlines(row, low, high, colors=ink, linewidth=2.2, zorder=3).set_gid("interval")
    for filled, gid in ((True, "claim"), (False, "chance")):
        at = np.flatnonzero(claimed == filled)
        edges = [ink[one] for one in at]
        faces = edges if filled else colours.paper
        ax.scatter(shift[at], row[at], s=34, c=faces, edgecolors=edges, linewidths=1.3, zorder=4, gid=gid)
    ax.axvline(0, color=colours.ink, linewidth=1.0, zorder=2)
    _axis(ax, colours, comparison, np.concatenate((low, high)))
    ax.set_ylim(len(shown) - 0.4, -0.6)
    ax.set_yticks(row, [_name(key, of) for key in keys])
    ax.tick_params(axis="y", length=0, labelsize=style.TEXT if len(shown) <= 30 else style.SMALL)
    for label, is_claim in zip(ax.get_yticklabels(), claimed, strict=True):
        label.set_fontweight("bold" if is_claim else "normal")
    _beside(ax, colours, shown)
    rows = style.legend(ax, colours, style.layer_entries(layers))
    first, second = (style.plain(name, 30) for name in comparison.names)
    count = int(table["shift_p"].lt(0.05).sum())
    style.title(ax, colours, f"{of}: {second} against {first}", f"{count} of {len(known)} differ beyond chance", rows)
    rest = len(known) - len(shown)
    style.note(ax, colours, recordings, *_KEY, f"{rest} more are not shown; `top=` shows more." if rest else "")
    return ax


def _name(key: tuple[Any, ...], of: Of) -> str:
    between = "  " if of == "places" else " → "
    return style.plain(between.join(str(part) for part in key if pd.notna(part)), 64)


def _axis(ax: Axes, theme: style.Theme, comparison: Comparison, ends: npt.NDArray[np.float64]) -> None:
    most = max(float(np.abs(ends).max()), 10.0)
    # Linear about as far as the shorter half of the intervals reaches; nobody wants to read decades of less.
    usual = 10 ** np.round(np.log10(max(float(np.median(np.abs(ends))), 1.0)))
    linear = float(min(max(usual, 10 ** np.floor(np.log10(most / 1e6))), 10 ** np.floor(np.log10(most))))
    ax.set_xscale("symlog", linthresh=linear, linscale=1.0)
    ax.set_xlim(min(1.3 * float(ends.min()), -0.3 * linear), max(1.3 * float(ends.max()), 0.3 * linear))
    axis = ax.xaxis
    decades = int(np.ceil(np.log10(most / linear))) + 1
    powers = linear * 10.0 ** np.arange(0, decades, 2 if decades > 5 else 1)
    axis.set_major_locator(FixedLocator([*-powers[::-1], 0.0, *powers]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda ns, _: "0" if ns == 0 else f"{'+' if ns > 0 else ''}{_signed(ns)}"))
    axis.set_minor_formatter(NullFormatter())
    ax.grid(True, axis="x", which="major", color=theme.grid, linewidth=0.8)
    second = style.plain(comparison.names[1], 30)
    style.axis_label(
        ax, theme, f"← {second} is faster      shift of the median (logarithmic)      {second} is slower →"
    )


def _signed(ns: float) -> str:
    return style.duration(ns).replace("-", "\N{MINUS SIGN}")


def _beside(ax: Axes, theme: style.Theme, shown: pd.DataFrame) -> None:
    columns = [shown[name] for name in ("median_a", "median_b", "compared_a", "compared_b")]
    for at, (median_a, median_b, count_a, count_b) in enumerate(zip(*columns, strict=True)):
        said = f"{style.duration(median_a.value)} → {style.duration(median_b.value)} ({count_a:,}, {count_b:,})"
        ax.annotate(
            said, (1, at), xycoords=("axes fraction", "data"), xytext=(4, 0), textcoords="offset points", va="center",
            fontsize=style.SMALL, color=theme.soft, annotation_clip=False,
        )  # fmt: skip
    ax.annotate(
        "medians (packets)", (1, 1), xycoords="axes fraction", xytext=(4, 2), textcoords="offset points", va="bottom",
        fontsize=style.SMALL, color=theme.soft, annotation_clip=False,
    )  # fmt: skip
