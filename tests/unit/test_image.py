"""Pictures as bytes: small, and in the colours that were drawn."""

from __future__ import annotations

import io

import numpy as np
from matplotlib import colors
from matplotlib import pyplot as plt
from PIL import Image

from bpfpath_nb import sample
from bpfpath_nb.plot.image import png
from bpfpath_nb.plot.style import LIGHT


def test_it_is_small_and_keeps_every_colour_that_was_drawn() -> None:
    ax = sample("dns").plot.timeline(1, theme="light")
    drawn = {colors.to_hex(entry.get_facecolor()) for entry in ax.get_legend().legend_handles} | {LIGHT.paper}
    made = png(ax)
    assert len(made) < 60_000
    assert not plt.fignum_exists(ax.figure.number)
    shown = np.unique(np.asarray(Image.open(io.BytesIO(made)).convert("RGB")).reshape(-1, 3), axis=0).astype(int)
    assert len(drawn) > 5
    for colour in drawn:
        assert np.abs(shown - np.array(colors.to_rgb(colour)) * 255).max(axis=1).min() <= 6, colour
