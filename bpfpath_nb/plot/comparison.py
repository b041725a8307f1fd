"""`comparison.plot`: the pictures of a comparison, with the comparison already given. Nothing is drawn here."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec

from bpfpath_nb.plot.alignment import alignment
from bpfpath_nb.plot.shifts import shifts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from bpfpath_nb.comparison import Comparison
    from bpfpath_nb.plot.style import ThemeName


P = ParamSpec("P")


def _of(draw: Callable[Concatenate[Comparison, P], Axes]) -> Callable[Concatenate[ComparisonPlots, P], Axes]:
    @wraps(draw)
    def method(self: ComparisonPlots, /, *args: P.args, **kwargs: P.kwargs) -> Axes:
        return draw(self._comparison, *args, **kwargs)

    return method


class ComparisonPlots:
    """Every picture of one comparison."""

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison

    alignment = _of(alignment)
    shifts = _of(shifts)

    def __call__(self, *, theme: ThemeName | None = None) -> tuple[Axes, Axes]:
        """Draw both, each as a figure of its own."""
        return self.alignment(theme=theme), self.shifts(theme=theme)

    def __repr__(self) -> str:
        return "<plots: alignment(), shifts(); each takes ax= and theme='light' or 'dark'; plot() draws both>"
