"""Pictures as bytes, for pages and widgets, which hold images and no figures.

Nothing in them tells when or by what they were made: the same recording gives the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from bpfpath_nb.plot import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS: Final = 112
"""Our pictures have flat areas of few colours: with a palette they take a third of the space."""

_MEANT: Final = [
    int(colour.removeprefix("#"), 16)
    for colour in (*style.LAYER_COLOURS.values(), *style.GROUP_COLOURS, style.LIGHT.alarm, style.DARK.alarm)
]


def png(ax: Axes, dpi: int = 90) -> bytes:
    """The whole figure that Axes belong to, as a PNG. The figure is closed: a notebook will not show it again."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    # `savefig` would draw everything twice, the first time for nothing but a renderer.
    figure.set_dpi(dpi)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3].astype(np.uint32)
    plt.close(figure)
    colours, where, count = np.unique(
        (pixels << np.array([16, 8, 0], np.uint32)).sum(axis=2), return_inverse=True, return_counts=True
    )
    # Colours with a meaning, and those with most pixels, stay exactly what they are; only shades at the rims of
    # letters move to the nearest.
    # (Pillow's own mapping to a given palette is coarser: it would turn white into nearly white.)
    rgb = np.stack([colours >> 16, colours >> 8 & 255, colours & 255], axis=1).astype(np.int32)
    count[np.isin(colours, _MEANT)] += pixels.size
    kept = rgb[np.argsort(-count, kind="stable")[:_COLOURS]]
    nearest = ((rgb[:, None] - kept[None]) ** 2).sum(axis=2).argmin(axis=1).astype(np.uint8)
    few = Image.fromarray(nearest[where.reshape(pixels.shape[:2])], "P")
    few.putpalette(kept.astype(np.uint8).tobytes())
    small = io.BytesIO()
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
