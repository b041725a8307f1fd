"""What a picture shows, as data: its texts, which of them run into each other, and whether all are on the paper."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.text import Text


@contextmanager
def untouched() -> Iterator[None]:
    """Nothing global may change, but for the figures that pyplot is to show; those are closed."""
    before = dict(mpl.rcParams)
    try:
        yield
        assert dict(mpl.rcParams) == before
    finally:
        plt.close("all")


def texts(ax: Axes) -> list[Text]:
    """All texts that can be seen, after drawing."""
    figure = ax.get_figure(root=True)
    figure.canvas.draw()
    # Ticks beyond the axes' limits keep their labels.
    beyond = {
        label
        for one in figure.axes
        for axis in (one.xaxis, one.yaxis)
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
        for label in (tick.label1, tick.label2)
    }
    return [
        text for text in figure.findobj(Text)
        if text.get_text().strip() and text.get_visible() and text not in beyond
        and all(axes.axison for axes in [text.axes] if axes and text in _labels(axes))
    ]  # fmt: skip


def _labels(ax: Axes) -> list[Text]:
    return [*ax.get_xticklabels(which="both"), *ax.get_yticklabels(which="both"), ax.xaxis.label, ax.yaxis.label]


def words(ax: Axes) -> str:
    """Everything that there is to read."""
    return "\n".join(text.get_text().replace(r"\$", "$") for text in texts(ax))


def named(ax: Axes, gid: str) -> list[Artist]:
    """The artists of one kind."""
    return ax.findobj(lambda artist: artist.get_gid() == gid)


def assert_legible(ax: Axes) -> None:
    """No text runs into another or off the paper."""
    boxes = [(text.get_text(), text.get_window_extent().padded(-1)) for text in texts(ax)]
    assert boxes
    collisions = [(a, b) for (a, one), (b, other) in combinations(boxes, 2) if one.overlaps(other)]
    paper = ax.get_figure(root=True).bbox
    cut = [said for said, box in boxes if not (paper.contains(*box.min) and paper.contains(*box.max))]
    assert (collisions, cut) == ([], []), f"collisions {collisions}, cut {cut}"
