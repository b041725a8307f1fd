"""Where packets spend their time: a bar for each namespace, its parts the layers.

A gap counts for the function, and so for the layer and the namespace, that it follows. Lengths are means over the
packets that passed the namespace, so that the parts add up and a namespace that few packets saw can be compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from bpfpath_nb.analysis.waits import hop_waits
from bpfpath_nb.plot import style
from bpfpath_nb.schema import LAYERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from bpfpath_nb.recording import RecordingViews

ROWS: Final = 24


def namespaces(recording: RecordingViews, *, ax: Axes | None = None, theme: style.ThemeName | None = None) -> Axes:
    """Draw how long packets are in each layer of each namespace.

    Parameters
    ----------
    recording : Recording or Capture
    ax, theme
        Axes to draw on, and "light" or "dark"; by default a new figure and what suits it.

    Returns
    -------
    Axes
        A row for each namespace, those first in which packets are longest in all; x is the mean time per packet in ns.
    """
    whole = recording.recording
    frame = whole.namespaces
    shown = frame.sort_values("time", ascending=False, kind="stable").head(ROWS)
    if shown.empty:
        ax, colours = style.begin(ax, theme, 1.6)
        style.nothing(ax, colours, "No namespace was seen.", "No packet was recorded, or none of a known namespace.")
        style.note(ax, colours, whole)
        return ax
    ax, colours = style.begin(ax, theme, 1.7 + 0.44 * len(shown))
    parts = _parts(whole.df, hop_waits(whole.events), list(shown.index)) / shown["packets"].to_numpy()[:, None, None]
    longest = max(float(parts.sum(axis=(1, 2)).max()), 1.0)
    left = np.zeros(len(shown))
    for layer, name in enumerate(LAYERS):
        for waiting in (0, 1):
            width = parts[:, layer, waiting]
            if width.any():
                _part(ax, colours, name, width, left, longest, bool(waiting))
            left += width
    ax.set_ylim(len(shown) - 0.4, -0.6)
    ax.set_yticks(np.arange(len(shown)), [style.label(ax, name, 32) for name in shown.index])
    ax.tick_params(axis="y", length=0)
    for at, (end, row) in enumerate(zip(left, shown.itertuples(), strict=True)):
        packets: Any = row.packets
        said = f"{style.duration(end)} a packet\n{packets:,} packets"
        ax.annotate(said, (end, at), xytext=(5, 0), textcoords="offset points", va="center", fontsize=style.SMALL,
                    color=colours.soft, linespacing=1.1)  # fmt: skip
    ax.set_xlim(0, longest * 1.16)
    style.seconds_axis(ax, colours, "mean time per packet", longest)
    there = [name for layer, name in enumerate(LAYERS) if parts[:, layer].any()]
    rows = style.legend(ax, colours, style.layer_entries(there, waits=bool(parts[:, :, 1].any())))
    share = float(parts[:, :, 1].sum()) / max(float(parts.sum()), 1.0)
    style.title(
        ax, colours, "time by namespace and layer", f"{share:.0%} of the time shown is waiting in a queue", rows
    )
    rest = len(frame) - len(shown)
    style.note(ax, colours, whole, f"{rest} namespaces with less time are not shown." if rest else "")
    return ax


def _parts(df: Any, queue: npt.NDArray[np.int8], netns: list[str]) -> npt.NDArray[np.float64]:
    """Of each namespace, layer, and work or wait the time in all, in ns."""
    names = [str(name) for name in df["netns"].cat.categories]
    to = np.full(len(names) + 1, -1)
    for at, name in enumerate(netns):
        to[names.index(name)] = at
    place = to[df["netns"].cat.codes.to_numpy()]
    gap = df["gap"].to_numpy().view(np.int64)
    rows = np.flatnonzero((place >= 0) & (gap > 0))
    cell = (place[rows] * len(LAYERS) + df["layer"].cat.codes.to_numpy()[rows].astype(np.intp)) * 2 + (queue[rows] >= 0)
    total = np.bincount(cell, gap[rows], minlength=len(netns) * len(LAYERS) * 2)
    return np.asarray(total, np.float64).reshape(len(netns), len(LAYERS), 2)


def _part(
    ax: Axes, theme: style.Theme, layer: str, width: npt.NDArray[np.float64], left: npt.NDArray[np.float64],
    longest: float, waits: bool,
) -> None:  # fmt: skip
    colour = style.LAYER_COLOURS[layer]
    options: dict[str, Any] = {"gid": "spans"}
    if waits:
        options = {"gid": "waits", "hatch": style.WAIT_HATCH, "edgecolor": theme.paper, "linewidth": 0}
    ax.barh(np.arange(len(width)), width, left=left, height=0.64, color=colour, zorder=3, **options)
    if waits:
        return
    for at in np.flatnonzero(width > 0).tolist():
        if style.text_width(ax, layer) < width[at] / longest / 1.16:
            ax.annotate(layer, (left[at] + width[at] / 2, at), ha="center", va="center_baseline", fontsize=style.SMALL,
                        color=style.text_on(colour), zorder=4)  # fmt: skip
