"""The graph of paths, as the picture tells it."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.transforms import Affine2D, Bbox
from pictures import assert_legible, named, untouched, words
from streams import Capture, capture

from bpfpath_nb import sample
from bpfpath_nb.plot import style
from bpfpath_nb.recording import Recording
from bpfpath_nb.schema import EVENT_DTYPE, FACTS_DTYPE


@pytest.fixture(autouse=True)
def _nothing_global():
    with untouched():
        yield


@pytest.fixture(scope="module")
def dns() -> Recording:
    return sample("dns")


def lines(ax) -> list[str]:
    return [label.get_text() for label in ax.get_yticklabels()]


def test_a_way_and_the_way_back_are_lines_of_their_own(dns: Recording) -> None:
    ax = dns.plot.paths()
    assert lines(ax) == ["client", "↳ router", "↳ server", "server", "↳ router", "↳ client"]


def test_each_line_says_how_many_packets_came(dns: Recording) -> None:
    ways = dns.packets["namespaces"].astype(str)
    came = [int(ways.str.startswith(way).sum()) for way in (
        "client > router", "client > router > server", "server > router", "server > router > client",
    )]  # fmt: skip
    assert [text.get_text() for text in named(dns.plot.paths(), "entered")] == [f"{count}" for count in came]


def test_an_edge_is_as_wide_as_packets_took_it() -> None:
    ax = capture(300, kinds=("answered", "left")).recording().plot.paths(fold=False)
    (crossing, *_) = named(ax, "crossing")
    widths = sorted({round(edge.get_linewidth(), 3) for edge in named(ax, "edge")})
    # All edges of a kind are taken by all packets of that kind.
    assert len(widths) == 2
    assert round(crossing.get_linewidth(), 3) in widths


def test_drops_are_ends_with_their_reason_and_number(dns: Recording) -> None:
    ax = dns.plot.paths()
    assert len(named(ax, "drop")) == 2
    assert {mark.get_color() for mark in named(ax, "drop")} == {style.LIGHT.alarm}
    assert "2 NETFILTER_DROP" in words(ax)
    assert "1 NO_SOCKET" in words(ax)


def test_functions_stand_in_the_order_in_which_they_are_met(dns: Recording) -> None:
    ax = dns.where("udp src port 53").plot.paths(fold=False)
    names = [text for text in ax.texts if text.get_rotation() == 50]
    first_line = [text for text in names if text.xy[1] == min(name.xy[1] for name in names)]
    shown = [text.get_text() for text in sorted(first_line, key=lambda text: text.xy[0])]
    hops = dns.df.loc[2]
    met = list(dict.fromkeys(hops.loc[hops["netns"] == hops["netns"].iloc[0], "func"]))
    assert shown == met


def test_many_functions_fold_into_layers_and_unfold_on_request(dns: Recording) -> None:
    folded = dns.plot.paths()
    assert "`fold=False`" in words(folded)
    assert "nft_do_chain_inet" not in words(folded)
    assert "nft_do_chain_inet" in words(dns.plot.paths(fold=False))
    assert {node.get_text() for node in named(folded, "node")} == set(dns.df["layer"].dropna().unique())


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("fold", [True, False])
def test_names_and_numbers_can_be_read(dns: Recording, fold: bool, theme: style.ThemeName) -> None:
    ax = dns.plot.paths(fold=fold, theme=theme)
    # Slanted names' boxes overlap though the names do not: the next test.
    for text in [text for text in ax.texts if text.get_rotation()]:
        text.remove()
    assert_legible(ax)


@pytest.mark.parametrize("which", ["dns", "queries", "cases"])
def test_slanted_names_run_neither_into_each_other_nor_off_the_paper(dns: Recording, which: str) -> None:
    cases = Recording.load(Path(__file__).parents[1] / "recordings" / "cases-6.18.parquet")
    recording = {"dns": dns, "queries": dns.where("dst port 53"), "cases": cases}[which]
    ax = recording.plot.paths(fold=False)
    figure = ax.get_figure(root=True)
    figure.canvas.draw()
    names = [text for text in ax.texts if text.get_rotation()]
    assert len(names) > 30
    assert [n.get_text() for n in names if not figure.bbox.contains(*n.get_window_extent().min)] == []
    assert [n.get_text() for n in names if not figure.bbox.contains(*n.get_window_extent().max)] == []
    # Turned until they lie flat, they begin at their anchors.
    boxes = []
    for name in names:
        x, y = (
            Affine2D().rotate_deg(-name.get_rotation()).transform(name.get_transform().transform(name.get_position()))
        )
        name.set_rotation(0)
        flat = name.get_window_extent()
        boxes.append((name.get_text(), Bbox.from_bounds(x, y - flat.height / 2, flat.width, flat.height).padded(-1)))
    assert [(a, b) for (a, one), (b, other) in combinations(boxes, 2) if one.overlaps(other)] == []


def test_twenty_thousand_packets() -> None:
    ax = capture(20_000, lost=0.001).recording().plot.paths()
    assert "20,000 packets" in words(ax)


def test_no_packet_is_a_picture_that_says_so() -> None:
    empty = Capture(np.empty(0, EVENT_DTYPE), np.empty(0, FACTS_DTYPE), np.empty(0), {}).recording()
    assert "No packet was recorded" in words(empty.plot.paths())


def test_one_packet_of_one_hop() -> None:
    made = capture(1, kinds=("left",))
    ax = Capture(made.events[:1], made.facts, made.kinds, {}).recording().plot.paths()
    assert lines(ax) == ["server"]
    assert "1 unfinished" in words(ax)
