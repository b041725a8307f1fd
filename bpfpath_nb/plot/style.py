"""What all pictures share: the layers' colours, a light and a dark theme, units of time, and the small print.

A layer has one colour in every picture and in both themes. Twelve colours cannot all be far apart for every eye; these
were searched for the largest smallest distance (CIEDE2000) between any two of them as seen with full colour vision and
as Machado, Oliveira and Fernandes (2009, "A Physiologically-based Model for Simulation of Color Vision Deficiency")
compute it for protanopia, deuteranopia and tritanopia: none falls below 16. They differ in lightness as well, so that
a grey print still tells most of them. No picture tells anything by colour alone.

Nothing global is touched: themes are set on the artists of one Axes, never in `rcParams`, and pyplot is asked for a
figure only where the caller brought no Axes, because that is how a notebook comes to show it. With Axes of one's own,
from a bare `matplotlib.figure.Figure`, every plot may be made in any thread.

Texts come from packets and from kernels of other hosts. matplotlib would set what stands between two dollar signs as a
formula, and fail where it is none, so every such text passes `plain`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt
from matplotlib import colors, rcParams
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bpfpath_nb.errors import OptionError
from bpfpath_nb.io.text import loss_lines
from bpfpath_nb.printable import printable

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

    from bpfpath_nb.recording import Recording

LAYER_COLOURS: Final = {
    "driver": "#357079",
    "tc": "#f5bb13",
    "bridge": "#9c7e6b",
    "ip": "#8763f2",
    "netfilter": "#da6506",
    "route": "#11eadd",
    "neigh": "#c8d5a4",
    "qdisc": "#20a4a2",
    "xfrm": "#593cae",
    "transport": "#a6a6ff",
    "socket": "#a92500",
    "skb": "#714844",
}

GROUP_COLOURS: Final = ("#0064c8", "#d96002", "#0fa76e", "#ac9ba8", "#4cd8ff", "#933402", "#ffbb1a", "#786b73")
"""For what is no layer (namespaces, paths, captures), in the order of their size; searched in the same way."""

WAIT_HATCH: Final = "/////"
"""Over the layer's colour: the packet lay in a queue. Without: it was worked on."""

WIDTH: Final = 9.0
"""Inches. What a notebook's output area shows without scrolling at 100 dots an inch."""

SMALL, TEXT, HEAD = 7.5, 8.5, 10.0
"""Points."""


@dataclass(frozen=True)
class Theme:
    """Colours of everything that carries no value."""

    paper: str
    ink: str
    soft: str
    band: str
    grid: str
    alarm: str


LIGHT: Final = Theme("#ffffff", "#1a1a1a", "#595959", "#f2f2f5", "#d9d9de", "#c8102e")
DARK: Final = Theme("#111418", "#ececec", "#a6abb3", "#1b2027", "#363c46", "#ff5c72")

ThemeName = Literal["light", "dark"]


def begin(ax: Axes | None, theme: ThemeName | None, height: float, width: float = WIDTH) -> tuple[Axes, Theme]:
    """The Axes to draw on, dressed in a theme.

    Parameters
    ----------
    ax : Axes or None
        None makes a figure of the given size in inches, known to pyplot, so that a notebook shows it.
    theme : "light", "dark" or None
        None takes what suits the background that is there: that of `ax`, else that of matplotlib's settings.

    Raises
    ------
    OptionError
        There is no such theme.
    """
    if theme not in {None, "light", "dark"}:
        raise OptionError(f"There is no theme {theme!r}. Themes are 'light' and 'dark'; None takes what suits.")
    if ax is not None:
        chosen = _theme(theme, _background(ax))
        if theme is not None:
            ax.set_facecolor(chosen.paper)
    else:
        chosen = _theme(theme, rcParams["figure.facecolor"])
        ax = _new_figure(width, height, chosen).add_subplot(facecolor=chosen.paper)
    for side, spine in ax.spines.items():
        spine.set_color(chosen.soft)
        spine.set_linewidth(0.8)
        spine.set_visible(side in {"left", "bottom"})
    ax.tick_params(colors=chosen.ink, labelsize=TEXT, which="both", width=0.8)
    ax.set_axisbelow(True)
    return ax, chosen


_unseen: ContextVar[bool] = ContextVar("unseen", default=False)


@contextmanager
def unseen() -> Iterator[None]:
    """Figures made in here are not pyplot's: no notebook shows them, and any thread may make them."""
    token = _unseen.set(True)
    try:
        yield
    finally:
        _unseen.reset(token)


def _new_figure(width: float, height: float, theme: Theme) -> Figure:
    options: dict[str, Any] = {"figsize": (width, height), "layout": "constrained", "facecolor": theme.paper}
    if _unseen.get():
        return Figure(**options)
    from matplotlib import pyplot as plt

    return plt.figure(**options)


def _theme(name: ThemeName | None, background: Any) -> Theme:
    if name is None:
        name = "dark" if luminance(background) < 0.18 else "light"
    return DARK if name == "dark" else LIGHT


def _background(ax: Axes) -> Any:
    own = colors.to_rgba(ax.get_facecolor())
    return own if own[3] > 0.5 else ax.get_figure(root=True).get_facecolor()  # type: ignore[union-attr]


def luminance(colour: Any) -> float:
    """Relative luminance as WCAG 2 defines it, 0 black to 1 white."""
    rgb = np.asarray(colors.to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def text_on(colour: Any) -> str:
    """Black or white, whichever reads better on a colour."""
    return "#000000" if luminance(colour) > 0.179 else "#ffffff"


def plain(value: object, limit: int = 80) -> str:
    """Any value as a text in which matplotlib finds no formula, and none that moves anything or has no glyph."""
    text = printable(str(value), limit)
    if not text.isascii():
        fonts = [get_font(findfont(FontProperties(family=[family]))) for family in rcParams["font.family"]]
        text = "".join(
            char if any(font.get_char_index(ord(char)) for font in fonts) else char.encode("unicode_escape").decode()
            for char in text
        )
    return text.replace("$", r"\$")


def text_width(ax: Axes, text: str, size: float = SMALL) -> float:
    """About how much of the axes' width a text takes; the layout, and with it the true width, comes only later."""
    width = ax.get_figure(root=True).get_figwidth() * ax.get_position().width  # type: ignore[union-attr]
    return (len(text) * size * 0.58 / 72 + 0.1) / width


def label(ax: Axes, value: object, most: int = 64) -> str:
    """A text beside the axes: cut in its middle where it would take more than half of the picture's width."""
    width = ax.get_figure(root=True).get_figwidth()  # type: ignore[union-attr]
    most = min(most, int(width * 0.5 / (TEXT * 0.58 / 72)))
    shown = printable(str(value), 400)
    if len(shown) > most:
        shown = f"{shown[: most // 2]}…{shown[-((most - 1) // 2) :]}"
    return plain(shown)


def title(ax: Axes, theme: Theme, first: str, second: str = "", rows: int = 0) -> None:
    """A bold line, a plain one under it, both left, above a legend of so many rows."""
    base = 4.0 + (rows * (TEXT * 1.5) + 4.0 if rows else 0.0)
    if second:
        ax.annotate(second, (0, 1), xycoords="axes fraction", xytext=(0, base), textcoords="offset points",
                    fontsize=TEXT, color=theme.soft, va="bottom", annotation_clip=False)  # fmt: skip
        base += TEXT * 1.5 * (1 + second.count("\n"))
    ax.set_title(first, loc="left", fontsize=HEAD, color=theme.ink, weight="bold", pad=base)


def axis_label(ax: Axes, theme: Theme, x: str = "", y: str = "") -> None:
    """What the axes measure, with units."""
    ax.set_xlabel(x, fontsize=TEXT, color=theme.ink)
    ax.set_ylabel(y, fontsize=TEXT, color=theme.ink)


def legend(ax: Axes, theme: Theme, entries: Sequence[tuple[Artist, str]], columns: int = 10) -> int:
    """A legend between title and picture; returns how many rows it has."""
    if not entries:
        return 0
    rows = -(-len(entries) // columns)
    columns = -(-len(entries) // rows)
    # matplotlib fills columns first; people read along rows.
    order = [at for column in range(columns) for at in range(column, len(entries), columns)]
    box = ax.legend(
        [entries[at][0] for at in order], [entries[at][1] for at in order], loc="lower left", bbox_to_anchor=(0, 1),
        ncols=columns, frameon=False, fontsize=TEXT, labelcolor=theme.ink, borderaxespad=0.2,
        borderpad=0.1, handlelength=1.0, handleheight=0.9, columnspacing=1.0, handletextpad=0.4,
    )  # fmt: skip
    box.set_zorder(5)
    return rows


def layer_entries(layers: Iterable[str], waits: bool = False) -> list[tuple[Artist, str]]:
    """Entries of a legend for the layers that occur, in the order of the stack, and for waiting."""
    there = set(layers)
    entries: list[tuple[Artist, str]] = [
        (Patch(facecolor=colour), name) for name, colour in LAYER_COLOURS.items() if name in there
    ]
    if waits:
        entries.append((Patch(facecolor="#8c8c8c", edgecolor="#ffffff", linewidth=0, hatch=WAIT_HATCH), "waits"))
    return entries


def line_entry(colour: str, name: str, **options: Any) -> tuple[Artist, str]:
    """Entry of a legend for a line or a marker."""
    return Line2D([], [], color=colour, **options), name


_UNITS: Final = ((1e9, "s"), (1e6, "ms"), (1e3, "µs"), (1.0, "ns"))
_LONG: Final = ((10_800e9, 3600e9, "h"), (300e9, 60e9, "min"))


def unit_of(ns: float) -> tuple[float, str]:
    """The unit that suits a span: its length in ns, and its name."""
    for least, size, name in _LONG:
        if ns >= least:
            return size, name
    return next(((size, name) for size, name in _UNITS if ns >= size), _UNITS[-1])


def duration(ns: float) -> str:
    """A span with its unit, to three digits: `12.4 µs`."""
    size, name = unit_of(abs(ns))
    value = ns / size
    return f"{value:.0f} {name}" if abs(value) >= 100 or size == 1 else f"{value:.3g} {name}"


def log_time(ax: Axes, theme: Theme, what: str, low: float, high: float) -> None:
    """Make x a logarithmic time in ns, with a unit at each tick."""
    ax.set_xscale("log")
    low, high = max(low, 1.0), max(high, 1.0)
    # A single value still gets a decade around it.
    ax.set_xlim(low / 1.6, max(high * 1.6, low * 10))
    axis = ax.xaxis
    # Over a few decades the powers of ten alone would be two or three ticks.
    axis.set_major_locator(LogLocator(10, (1.0,) if high / low > 300 else (1.0, 2.0, 5.0), numticks=20))
    axis.set_major_formatter(FuncFormatter(lambda ns, _: duration(ns)))
    axis.set_minor_formatter(NullFormatter())
    ax.grid(True, axis="x", which="major", color=theme.grid, linewidth=0.8)
    axis_label(ax, theme, f"{what} (logarithmic)")


def seconds_axis(ax: Axes, theme: Theme, what: str, span: float) -> None:
    """Make x, whose data are ns, read in the unit that suits the span."""
    size, name = unit_of(span)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda ns, _: f"{ns / size:g}"))
    ax.grid(True, axis="x", color=theme.grid, linewidth=0.8)
    axis_label(ax, theme, f"{what} [{name}]")


def note(ax: Axes, theme: Theme, recording: Recording | Sequence[Recording], *said: str) -> None:
    """The small print under a picture: what was left out or put together here, and what the capture lost.

    Losses come from the recording itself, so that no picture can leave them out.
    """
    lines = [line for line in said if line]
    for one in [recording] if not isinstance(recording, Sequence) else recording:
        lines += [f"⚠ Not everything was recorded: {plain(line, 200)}." for line in loss_lines(one)]
        lines += _sampled(one)
    if not lines:
        return
    # What stands left of the axes takes from the width; a note wider than the rest would push the axes together.
    beside = max((len(part) for text in ax.get_yticklabels() for part in text.get_text().split("\n")), default=0)
    width = ax.get_figure(root=True).get_figwidth() - beside * TEXT * 0.58 / 72  # type: ignore[union-attr]
    wrapped = (part for line in dict.fromkeys(lines) for part in textwrap.wrap(line, max(int(width * 15), 40)))
    shown = "\n".join(wrapped)
    ax.annotate(shown, (0, 0), xycoords=("axes fraction", ax.xaxis.label), xytext=(0, -5), textcoords="offset points",
                fontsize=SMALL, color=theme.soft, va="top", annotation_clip=False, gid="note")  # fmt: skip


def _sampled(recording: Recording) -> list[str]:
    sample = recording.start.options.get("sample", 1)
    if not isinstance(sample, int) or sample <= 1:
        return []
    return [f"Sampled: of each {sample} packets that matched, one was followed."]


def nothing(ax: Axes, theme: Theme, first: str, then: str) -> Axes:
    """A picture of nothing: what is missing, and what to do about it."""
    ax.set_axis_off()
    ax.text(0.5, 0.5, f"{first}\n{then}", transform=ax.transAxes, ha="center", va="center", fontsize=HEAD,
            color=theme.soft, wrap=True)  # fmt: skip
    return ax


def in_ns(times: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Spans of time as ns; NaN where there is none."""
    return np.where(np.isnat(times), np.nan, times.view(np.int64).astype(np.float64))
