"""`recording.plot`: the plotting functions with the recording already given.

Nothing is drawn here. Each method is one of `bpfpath_nb.plot`'s functions, with its documentation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec

from bpfpath_nb import plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from bpfpath_nb.recording import RecordingViews

P = ParamSpec("P")


def _of(draw: Callable[Concatenate[RecordingViews, P], Axes]) -> Callable[Concatenate[Plots, P], Axes]:
    @wraps(draw)
    def method(self: Plots, /, *args: P.args, **kwargs: P.kwargs) -> Axes:
        return draw(self._recording, *args, **kwargs)

    return method


class Plots:
    """Every picture of one recording. A running capture is drawn as it is at the time of the call."""

    def __init__(self, recording: RecordingViews) -> None:
        self._recording = recording

    timeline = _of(plot.timeline)
    latency = _of(plot.latency)
    paths = _of(plot.paths)
    drops = _of(plot.drops)
    namespaces = _of(plot.namespaces)
    heatmap = _of(plot.heatmap)

    def __repr__(self) -> str:
        names = ", ".join(f"{name}()" for name in plot.__all__)
        return f"<plots: {names}; each takes ax= and theme='light' or 'dark'>"
