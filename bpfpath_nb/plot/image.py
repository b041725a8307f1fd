"""Pictures as bytes, for pages and widgets, which hold images and no figures.

Nothing in them tells when or by what they were made: the same recording gives the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from matplotlib import pyplot as plt
from PIL import Image

from bpfpath_nb.plot import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS: Final = 64
"""Our pictures have flat areas of few colours: with a palette they take a third of the space."""


def png(ax: Axes, dpi: int = 90) -> bytes:
    """The whole figure that Axes belong to, as a PNG. The figure is closed: a notebook will not show it again."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi)
    plt.close(figure)
    with Image.open(drawn) as image:
        # Maximum coverage: a layer whose bars have few pixels keeps its colour; the median cut would merge it away.
        few = image.convert("RGB").quantize(_COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        few.save(small, "PNG", optimize=True)
    return small.getvalue()


def draw_png(draw: Callable[..., Axes], *arguments: Any, dpi: int = 100, **options: Any) -> bytes:
    """What a plotting function draws, as a PNG. pyplot is not asked for a figure, so any thread may do it.

    Parameters
    ----------
    draw : callable
        One of `bpfpath_nb.plot`, or a method of `recording.plot`.
    *arguments, **options
        Its arguments, but `ax`.
    dpi : int
        Dots per inch; pictures are 9 inches wide.

    Returns
    -------
    bytes
    """
    with style.unseen():
        return png(draw(*arguments, **options), dpi)
