"""A picture as bytes, for pages and widgets, which hold images and no figures."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final

from matplotlib import pyplot as plt
from PIL import Image

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
        few.save(small, "PNG")
    return small.getvalue()
