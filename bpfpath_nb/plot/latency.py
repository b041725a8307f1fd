"""How long things took, as distributions: one row of a box or one curve for each function, or for whatever is asked.

Network latencies spread over many powers of ten, and it is the slow tail that people look for, so time is logarithmic
and the slowest is always shown. Where a group has only few values they are drawn as points: a box over five values
would claim to know more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.collections import LineCollection

from bpfpath_nb.analysis.latency import grouping
from bpfpath_nb.analysis.quantiles import sort_within
from bpfpath_nb.errors import OptionError
from bpfpath_nb.plot import style
from bpfpath_nb.schema import LAYERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from bpfpath_nb.recording import Recording, RecordingViews

Of = Literal["gap", "duration", "total"]
Kind = Literal["box", "ecdf"]

FEW: Final = 12
"""Up to so many values are shown one by one."""

_MOST_BOXES: Final = 60
_BOXES: Final = 30
_CURVES: Final = 8
_CURVE_POINTS: Final = 1000
_OF_HOPS: Final = ("func", "layer", "probe", "netns", "dev", "cpu", "comm", "flow", "transition")
_OF_PACKETS: Final = ("path", "verdict", "proto", "namespaces", "reason")
_SAYS: Final = {
    "gap": "time from one function to the next",
    "duration": "time inside the function",
    "total": "time from a packet's first hop to its last",
}

_KEY: Final = (
    f"Bar: the middle half; line: 1 % to 99 %; tick: median; ring: slowest. Up to {FEW} values: each a point. "
    "At the right: how many, their median, their share of all the time."
)


@dataclass
class _Groups:
    """Values in ns, sorted within each group; the groups with the most of what counts first."""

    values: npt.NDArray[np.int64]
    first: npt.NDArray[np.intp]
    count: npt.NDArray[np.intp]
    names: list[str]
    layers: list[str]
    colours: list[str]
    total: npt.NDArray[np.float64]

    def quantile(self, q: float) -> npt.NDArray[np.int64]:
        """Of each group the value at `q`, the lower one where it falls between two."""
        rows = self.first + np.floor((self.count - 1) * q).astype(np.intp)
        return np.asarray(self.values[rows])


def latency(
    recording: RecordingViews | Mapping[str, RecordingViews],
    by: str | Sequence[str] = "func",
    *,
    of: Of = "gap",
    kind: Kind | None = None,
    top: int | None = None,
    ax: Axes | None = None,
    theme: style.ThemeName | None = None,
) -> Axes:
    """Draw how latencies are distributed.

    Parameters
    ----------
    recording : Recording or Capture, or a mapping of names to several
        Several are compared with ``by="capture"``.
    by : str or list of str
        What makes a group: a column of `df` (func, layer, probe, netns, dev, cpu, comm, flow), "transition" (from one
        function to the next), a column of `packets` (path, verdict, proto, namespaces, reason) or "capture".
    of : "gap", "duration" or "total"
        Time from a function to the next; inside it (needs a capture with ``returns=True``); or from a packet's first
        hop to its last, for columns of `packets`, "netns" and "capture".
    kind : "box" or "ecdf", optional
        A row each with quartiles, or a curve each of how many were at most so slow. By default boxes of hops and
        curves of packets.
    top : int, optional
        How many groups to show, by default 30 boxes or 8 curves: those with the most time in all, or, where packets
        are counted, with the most packets.
    ax, theme
        Axes to draw on, and "light" or "dark"; by default a new figure and what suits it.

    Returns
    -------
    Axes
        x is time in ns, logarithmic.

    Raises
    ------
    OptionError
        An argument makes no sense, or the recording lacks what it asks for.
    """
    named = recording if isinstance(recording, Mapping) else {"": recording}
    wholes = {name: one.recording for name, one in named.items()}
    columns = grouping(by)
    if top is not None and not isinstance(top, (int, np.integer)):
        raise OptionError(f"top= is how many groups to show, a whole number and not {top!r}.")
    _check(columns, of, kind, wholes)
    kind = kind or ("ecdf" if of == "total" else "box")
    groups = _groups(wholes, columns, of)
    most = top if top is not None else _BOXES if kind == "box" else _CURVES
    most = max(1, min(most, _MOST_BOXES if kind == "box" else len(style.GROUP_COLOURS)))
    shown = min(most, len(groups.names))
    what = ", ".join({"func": "function", "netns": "namespace"}.get(column, column) for column in columns)
    height = 1.6 + 0.19 * shown if kind == "box" else 3.6
    ax, colours = style.begin(ax, theme, height)
    if not shown:
        return style.nothing(ax, colours, "There is no latency to show.", _why_nothing(of, wholes))
    (_boxes if kind == "box" else _curves)(ax, colours, groups, shown, of)
    counted = f"{len(groups.values):,} {'packets' if of == 'total' else 'hops'}"
    packets = sum(len(whole.packets) for whole in wholes.values())
    second = counted if of == "total" else f"{counted} of {packets:,} packets"
    rows = style.legend(ax, colours, style.layer_entries(groups.layers[:shown])) if kind == "box" else 0
    style.title(ax, colours, f"latency by {what}", second, rows)
    rest = len(groups.names) - shown
    said = [f"{rest} smaller groups are not shown; `top=` shows more." if rest else ""]
    if kind == "box":
        said.insert(0, _KEY)
    style.note(ax, colours, list(wholes.values()), *said)
    return ax


def _check(columns: list[str], of: str, kind: str | None, wholes: Mapping[str, Recording]) -> None:
    if of not in _SAYS:
        raise OptionError(f"There is no latency of {of!r}: it is of 'gap', 'duration' or 'total'.")
    if kind not in {None, "box", "ecdf"}:
        raise OptionError(f"There is no kind {kind!r}: kinds are 'box' and 'ecdf'.")
    known = ((*_OF_PACKETS, "netns", "flow") if of == "total" else (*_OF_HOPS, *_OF_PACKETS)) + ("capture",)
    for column in columns:
        if column not in known:
            raise OptionError(f"Latency of {of!r} cannot be grouped by {column!r}; it can by {', '.join(known)}.")
    if not wholes:
        raise OptionError("Name at least one recording.")


def _why_nothing(of: str, wholes: Mapping[str, Recording]) -> str:
    if not any(len(whole) for whole in wholes.values()):
        return "No packet was recorded: check that traffic that the filter matches was sent."
    if of == "duration":
        return "Times inside functions need a capture with returns=True; of='gap' shows the time to the next function."
    return "Every packet has one hop only: a capture with more functions shows what comes between."


def _groups(wholes: Mapping[str, Recording], columns: list[str], of: str) -> _Groups:
    parts: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.intp]]] = []
    labels: list[str] = []
    layers: list[str] = []
    for name, whole in wholes.items():
        value = (whole.packets["total"] if of == "total" else whole.df[of]).to_numpy().view(np.int64)
        rows = np.flatnonzero(value >= 0)
        code, names, layer = _keys(whole, columns, of, name)
        parts.append((value[rows], code[rows] + len(labels)))
        labels += names
        layers += layer
    value, code = (np.concatenate(column) for column in zip(*parts, strict=True))
    # One name is one group, in whichever of the recordings it is.
    to, distinct = pd.factorize(np.array(labels, dtype=object))
    if len(code):
        code = np.asarray(to, np.intp)[code]
    layer_of = dict(zip(labels, layers, strict=True))
    names = [str(name) for name in distinct]
    return _sorted(value, code, names, [layer_of[name] for name in names], by_count=of == "total")


def _sorted(
    value: npt.NDArray[np.int64], code: npt.NDArray[np.intp], names: list[str], layers: list[str], *, by_count: bool
) -> _Groups:
    count = np.bincount(code, minlength=len(names))
    total = np.bincount(code, value, len(names)).astype(np.float64)
    value = sort_within(code, len(names), value)
    first = np.cumsum(count) - count
    ranked = [at for at in np.argsort(-(count if by_count else total), kind="stable").tolist() if count[at]]
    colours = [
        style.LAYER_COLOURS.get(layers[at]) or style.GROUP_COLOURS[rank % len(style.GROUP_COLOURS)]
        for rank, at in enumerate(ranked)
    ]
    kept = [names[at] for at in ranked], [layers[at] for at in ranked]
    return _Groups(value, first[ranked], count[ranked], *kept, colours, total[ranked])


def _keys(
    whole: Recording, columns: list[str], of: str, capture: str
) -> tuple[npt.NDArray[np.intp], list[str], list[str]]:
    """Of each value its group, the groups' names and their layers, or "" where they have none."""
    length = len(whole.packets) if of == "total" else len(whole)
    code, names, layers = np.zeros(length, np.intp), [""], [""]
    for column in columns:
        own, texts = _column(whole, column, of, capture)
        joint, distinct = pd.factorize(code * (len(texts) + 1) + own + 1)
        before, now = np.divmod(np.asarray(distinct), len(texts) + 1)
        if column in {"func", "layer", "transition"}:
            layers = _layers_of(whole, column, texts, now - 1)
        else:
            layers = [layers[at] for at in before.tolist()]
        texts = [*texts, "none"]
        names = [f"{names[at]}  {texts[to - 1]}".strip() for at, to in zip(before.tolist(), now.tolist(), strict=True)]
        code = joint
    return code, names, layers


def _column(whole: Recording, column: str, of: str, capture: str) -> tuple[npt.NDArray[Any], list[str]]:
    if column == "capture":
        return np.zeros(len(whole.packets) if of == "total" else len(whole), np.intp), [capture or "this capture"]
    if column == "transition":
        return _transitions(whole)
    if column == "cpu":
        code, cpus = pd.factorize(whole.df["cpu"])
        return code, [f"CPU {cpu}" for cpu in cpus]
    of_packets = of == "total" or column in _OF_PACKETS
    values = (whole.packets if of_packets else whole.df)[column].cat
    code = values.codes.to_numpy().astype(np.intp)
    if of_packets and of != "total":
        code = code[whole.events.packet_of]
    texts = [str(name) for name in values.categories]
    if column == "path":
        first = whole.packets.drop_duplicates("path").set_index("path")["namespaces"]
        texts = [f"{path}  {first[path]}" for path in texts]
    return code, texts


def _transitions(whole: Recording) -> tuple[npt.NDArray[np.intp], list[str]]:
    func = whole.df["func"].cat
    code = func.codes.to_numpy().astype(np.int64)
    names = [str(name) for name in func.categories]
    which, distinct = pd.factorize(code[:-1] * len(names) + code[1:])
    pairs = [(names[pair // len(names)], names[pair % len(names)]) for pair in distinct.tolist()]
    queue = whole.transitions["queue"].dropna()
    texts = [f"{a} → {b}" + (f" (waits: {queue[a, b]})" if (a, b) in queue.index else "") for a, b in pairs]
    # The last hop leads nowhere; its gap is none, so whatever it is called does not count.
    return np.append(which, 0)[: len(code)], texts


def _layers_of(whole: Recording, column: str, texts: list[str], rows: npt.NDArray[Any]) -> list[str]:
    if column == "layer":
        return [LAYERS[row] for row in rows.tolist()]
    layer = {function.name.split(".", 1)[0]: function.layer for function in whole.start.functions}
    return [layer.get(texts[row].split(" → ", 1)[0], "") for row in rows.tolist()]


def _boxes(ax: Axes, theme: style.Theme, groups: _Groups, shown: int, of: Of) -> None:
    row = np.arange(shown)
    few = groups.count[:shown] <= FEW
    low, p25, p50, p75, high, most = (
        np.maximum(groups.quantile(q)[:shown], 1) for q in (0.01, 0.25, 0.5, 0.75, 0.99, 1.0)
    )
    colours = np.array(groups.colours[:shown], dtype=object)

    def lines(begin: npt.NDArray[np.int64], end: npt.NDArray[np.int64], width: float, gid: str) -> None:
        ends = np.stack([begin, row, end, row], axis=1)[~few].reshape(-1, 2, 2)
        ax.add_collection(
            LineCollection(list(ends), colors=list(colours[~few]), linewidths=width, capstyle="butt", gid=gid, zorder=3)
        )

    lines(low, high, 1.4, "line")
    lines(p25, p75, 8.0, "box")
    ax.vlines(p50, row - 0.38, row + 0.38, color=theme.ink, linewidth=1.6, zorder=4).set_gid("median")
    ax.scatter(most[~few], row[~few], s=16, facecolors="none", edgecolors=list(colours[~few]), linewidths=1.1, zorder=3)
    for at in np.flatnonzero(few).tolist():
        own = np.maximum(groups.values[groups.first[at] : groups.first[at] + groups.count[at]], 1)
        ax.scatter(
            own, np.full(len(own), at), s=18, color=colours[at], edgecolors=theme.paper, linewidths=0.5, zorder=3
        )
    ax.set_ylim(shown - 0.4, -0.6)
    ax.set_yticks(row, [style.label(ax, name) for name in groups.names[:shown]])
    ax.tick_params(axis="y", length=0, labelsize=style.TEXT if shown <= 30 else style.SMALL)
    style.log_time(ax, theme, _SAYS[of], float(low.min()), float(most.max()))
    share = groups.total / max(float(groups.total.sum()), 1.0) * 100
    aside: dict[str, Any] = {
        "textcoords": "offset points", "fontsize": style.SMALL, "color": theme.soft, "annotation_clip": False,
    }  # fmt: skip
    for at in range(shown):
        said = f"{groups.count[at]:,} of {style.duration(p50[at])}, {share[at]:.2g} %"
        ax.annotate(said, (1, at), xycoords=("axes fraction", "data"), xytext=(4, 0), va="center", **aside)


def _curves(ax: Axes, theme: style.Theme, groups: _Groups, shown: int, of: Of) -> None:
    for at in range(shown):
        own = np.maximum(groups.values[groups.first[at] : groups.first[at] + groups.count[at]], 1)
        share = np.arange(1, len(own) + 1) / len(own) * 100
        keep = np.unique(np.linspace(0, len(own) - 1, _CURVE_POINTS).astype(np.intp))
        median = style.duration(own[(len(own) - 1) // 2])
        label = f"{style.plain(groups.names[at], 56)}  ({len(own):,}, median {median})"
        ax.step(
            own[keep], share[keep], where="post", label=label, color=style.GROUP_COLOURS[at], linewidth=1.6,
            linestyle=("-", "--", "-.", ":")[at % 4], marker="o" if len(own) <= FEW else None, markersize=3.5,
        )  # fmt: skip
    end = groups.first + groups.count - 1
    low, high = groups.values[groups.first[:shown]].min(), groups.values[end[:shown]].max()
    style.log_time(ax, theme, _SAYS[of], float(low), float(high))
    ax.set_ylim(0, 102)
    ax.grid(True, axis="y", color=theme.grid, linewidth=0.8)
    style.axis_label(ax, theme, ax.get_xlabel(), f"at most so long [% of {'packets' if of == 'total' else 'hops'}]")
    ax.legend(loc="best", frameon=False, fontsize=style.SMALL, labelcolor=theme.ink)
