"""The palette holds for every eye, the themes read, and nothing global is touched."""

from __future__ import annotations

from itertools import combinations
from threading import Thread

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from pictures import untouched, words
from streams import DEVICES, capture

import bpfpath_nb.plot
from bpfpath_nb.analysis.events import Events
from bpfpath_nb.errors import OptionError
from bpfpath_nb.plot import style
from bpfpath_nb.recording import Recording
from bpfpath_nb.schema import LAYERS

# Machado, Oliveira and Fernandes (2009), severity 1.0, on linear RGB.
VISION = {
    "full": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]])


@pytest.fixture(autouse=True)
def _nothing_global():
    with untouched():
        yield


def lab(colour: str, vision: str) -> np.ndarray:
    """CIELAB of a colour as an eye sees it."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    t = XYZ @ np.clip(np.array(VISION[vision]) @ linear, 0, 1) / XYZ.sum(axis=1)
    f = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """CIEDE2000 (Sharma, Wu and Dalal 2005)."""
    (l1, a1, b1), (l2, a2, b2) = one, other
    mean = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    g = 0.5 * (1 - np.sqrt(mean**7 / (mean**7 + 25**7)))
    a1, a2 = a1 * (1 + g), a2 * (1 + g)
    c1, c2 = np.hypot(a1, b1), np.hypot(a2, b2)
    h1, h2 = np.degrees(np.arctan2(b1, a1)) % 360, np.degrees(np.arctan2(b2, a2)) % 360
    turn = (h2 - h1 + 180) % 360 - 180
    hue = (h1 + turn / 2) % 360
    light, chroma = (l1 + l2) / 2, (c1 + c2) / 2
    t = (1 - 0.17 * np.cos(np.radians(hue - 30)) + 0.24 * np.cos(np.radians(2 * hue))
         + 0.32 * np.cos(np.radians(3 * hue + 6)) - 0.2 * np.cos(np.radians(4 * hue - 63)))  # fmt: skip
    dl = (l2 - l1) / (1 + 0.015 * (light - 50) ** 2 / np.sqrt(20 + (light - 50) ** 2))
    dc = (c2 - c1) / (1 + 0.045 * chroma)
    dh = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2)) / (1 + 0.015 * chroma * t)
    turned = np.sin(np.radians(60 * np.exp(-(((hue - 275) / 25) ** 2))))
    rotation = -2 * np.sqrt(chroma**7 / (chroma**7 + 25**7)) * turned
    return float(np.sqrt(dl**2 + dc**2 + dh**2 + rotation * dc * dh))


def test_the_distance_is_that_of_the_published_pairs() -> None:
    assert distance(np.array([50, 2.6772, -79.7751]), np.array([50, 0, -82.7485])) == pytest.approx(2.0425, abs=1e-4)
    assert distance(np.array([50, 2.5, 0]), np.array([73, 25, -18])) == pytest.approx(27.1492, abs=1e-4)


def test_every_layer_has_its_colour() -> None:
    assert set(style.LAYER_COLOURS) == set(LAYERS)


@pytest.mark.parametrize("vision", VISION)
def test_no_two_layers_look_alike(vision: str) -> None:
    seen = {layer: lab(colour, vision) for layer, colour in style.LAYER_COLOURS.items()}
    assert min(distance(seen[a], seen[b]) for a, b in combinations(seen, 2)) >= 16


@pytest.mark.parametrize("vision", VISION)
def test_no_two_groups_look_alike(vision: str) -> None:
    seen = [lab(colour, vision) for colour in style.GROUP_COLOURS]
    assert min(distance(a, b) for a, b in combinations(seen, 2)) >= 15


@pytest.mark.parametrize("theme", [style.LIGHT, style.DARK])
def test_texts_stand_out(theme: style.Theme) -> None:
    def contrast(one: str, other: str) -> float:
        light, dark = sorted((style.luminance(one), style.luminance(other)), reverse=True)
        return (light + 0.05) / (dark + 0.05)

    for ink in (theme.ink, theme.soft, theme.alarm):
        assert min(contrast(ink, theme.paper), contrast(ink, theme.band)) >= 4.5
    assert all(contrast(colour, theme.paper) > 1.5 for colour in style.LAYER_COLOURS.values())


def test_a_theme_suits_the_background_that_is_there() -> None:
    on_dark = Figure(facecolor="#202020").add_subplot(facecolor="none")
    assert style.begin(on_dark, None, 3)[1] is style.DARK
    assert style.begin(Figure().add_subplot(), None, 3)[1] is style.LIGHT
    assert style.begin(Figure().add_subplot(), "dark", 3)[1] is style.DARK


def test_an_unknown_theme_is_refused() -> None:
    with pytest.raises(OptionError, match="'light' and 'dark'"):
        style.begin(None, "blue", 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ns", "text"), [(0, "0 ns"), (999, "999 ns"), (1500, "1.5 µs"), (123_456, "123 µs"), (2e6, "2 ms"), (61e9, "61 s")]
)
def test_spans_have_a_unit(ns: float, text: str) -> None:
    assert style.duration(ns) == text


def test_what_others_wrote_is_no_formula() -> None:
    ax = Figure().add_subplot()
    ax.set_title(style.plain("net$ns_{$\x1b[2J"))
    assert words(ax) == r"net$ns_{$\x1b[2J"


@pytest.mark.parametrize("name", bpfpath_nb.plot.__all__)
def test_pyplot_is_left_alone_where_axes_are_given(name: str) -> None:
    ax = Figure().add_subplot()
    draw = getattr(capture(20).recording().plot, name)
    assert draw(*[1] * (name == "timeline"), ax=ax) is ax
    assert plt.get_fignums() == []


@pytest.mark.parametrize("name", bpfpath_nb.plot.__all__)
def test_a_notebook_is_given_a_figure_to_show(name: str) -> None:
    ax = getattr(capture(20).recording().plot, name)(*[1] * (name == "timeline"))
    assert [plt.figure(number) for number in plt.get_fignums()] == [ax.get_figure()]


@pytest.mark.parametrize("name", bpfpath_nb.plot.__all__)
def test_losses_stand_under_every_picture(name: str) -> None:
    lossy = capture(200, lost=0.05).recording()
    ax = getattr(lossy.plot, name)(*[int(lossy.packets.index[0])] * (name == "timeline"), ax=Figure().add_subplot())
    assert f"{lossy.quality['events_lost']} events were lost" in " ".join(words(ax).split())


def test_a_sample_says_so_under_its_picture() -> None:
    sampled = capture(20).recording(options={"sample": 10})
    assert "of each 10 packets" in words(sampled.plot.latency(ax=Figure().add_subplot()))


def test_pictures_can_be_drawn_in_several_threads() -> None:
    recording = capture(50).recording()
    axes = [Figure().add_subplot() for _ in range(4)]
    threads = [Thread(target=recording.plot.latency, kwargs={"ax": ax}) for ax in axes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({words(ax) for ax in axes}) == 1


def test_methods_carry_the_functions_documentation() -> None:
    for name in bpfpath_nb.plot.__all__:
        assert getattr(capture(1).recording().plot, name).__doc__ == getattr(bpfpath_nb.plot, name).__doc__


def test_what_the_font_has_no_glyph_for_is_drawn_as_an_escape(recwarn):
    assert style.plain("名前 → é") == r"\u540d\u524d → é"
    events = capture(20).recording().events
    devices = [(*row[:3], "名前" if row[3] == "client" else row[3]) for row in DEVICES]
    named = Recording(Events.build(events.start, dict(events.hops), events.facts, devices=devices))
    for picture in (named.plot.namespaces(), named.plot.timeline(1), named.plot.latency(by="netns")):
        picture.figure.canvas.draw()
    assert [str(warning.message) for warning in recwarn if "Glyph" in str(warning.message)] == []
