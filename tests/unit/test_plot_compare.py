"""Pictures of comparisons: what stands in them, and that it can be read."""

from __future__ import annotations

import numpy as np
import pytest
from pictures import assert_legible, named, untouched, words
from streams import capture

from bpfpath_nb import compare
from bpfpath_nb.comparison import Comparison
from bpfpath_nb.errors import OptionError
from bpfpath_nb.plot import style


@pytest.fixture(autouse=True)
def _nothing_global():
    with untouched():
        yield


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    before = capture(400, seed=1, kinds=("answered", "closed", "left")).recording()
    after = capture(300, seed=2, kinds=("answered", "filtered"), delay={"netif_rx": 200_000}).recording()
    return compare(before, after)


def rows(ax) -> list[str]:
    return [label.get_text() for label in ax.get_yticklabels()]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_each_shift_stands_at_its_place(comparison: Comparison, theme: str) -> None:
    ax = comparison.plot.shifts(theme=theme)

    functions = comparison.functions[comparison.functions["shift"].notna()]
    assert rows(ax) == list(functions.index)
    (lines,) = named(ax, "interval")
    ends = [(segment[0, 0], segment[1, 0]) for segment in lines.get_segments()]
    assert ends == [
        (low.value, high.value) for low, high in zip(functions["shift_low"], functions["shift_high"], strict=True)
    ]
    (claims,) = named(ax, "claim")
    assert claims.get_offsets().tolist() == [[functions["shift"]["netif_rx"].value, 0]]
    assert f"1 of {len(functions)} differ beyond chance" in words(ax)
    assert_legible(ax)


def test_transitions_and_verdicts_have_shifts_too(comparison: Comparison) -> None:
    assert rows(comparison.plot.shifts("transitions", top=3))[0] == "netif_rx → net_dev_xmit"
    assert rows(comparison.plot.shifts("verdicts")) == ["delivered"]
    with pytest.raises(OptionError, match="no shifts of 'paths'"):
        comparison.plot.shifts("paths")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_path_stands_beside_the_other(comparison: Comparison, theme: str) -> None:
    ax = comparison.plot.alignment(theme=theme)

    aligned = comparison.align()
    assert len(named(ax, "function")) == len(aligned)
    assert len(named(ax, "only a")) == (aligned.frame["side"] == "a").sum()
    assert len(named(ax, "only b")) == (aligned.frame["side"] == "b").sum()
    (line,) = named(ax, "divergence")
    assert line.get_ydata()[0] == aligned.divergence.hop - 0.5
    assert f"after: path {aligned.path_b}" in words(ax)
    assert_legible(ax)


def test_long_paths_are_folded_where_they_do_the_same() -> None:
    # Functions in turn, so that each is a hop of its own, 200 of them, and one that differs.
    from streams import CLIENT, KINDS

    way = [("tc_egress", CLIENT, 2), ("tc_ingress", CLIENT, 2)] * 100
    KINDS["long"], KINDS["other"] = way, [*way[:150], ("netif_rx", CLIENT, 2), *way[150:]]
    try:
        found = compare(capture(50, kinds=("long",)).recording(), capture(50, kinds=("other",)).recording())
    finally:
        del KINDS["long"], KINDS["other"]

    ax = found.plot.alignment()

    folds = [text.get_text() for text in named(ax, "fold")]
    assert len(folds) == 2
    assert sum(int(fold.split()[1]) for fold in folds) + len(named(ax, "function")) == 201
    assert "netif_rx ▶" in words(ax)
    assert_legible(ax)


def test_losses_are_told_below() -> None:
    found = compare(capture(100, seed=1, lost=0.01).recording(), capture(100, seed=2).recording())
    for ax in found.plot():
        assert "Not everything was recorded" in words(ax)


def test_a_comparison_without_likes_says_so() -> None:
    found = compare(capture(9, kinds=("left",)).recording(), capture(9, kinds=("filtered",)).recording())
    assert "There is no shift to show." in words(found.plot.shifts())


def test_axes_of_ones_own_are_used(comparison: Comparison) -> None:
    from matplotlib.figure import Figure

    first, second = Figure(figsize=(9, 12), layout="constrained").subplots(2)
    assert comparison.plot.alignment(ax=first) is first
    assert comparison.plot.shifts(ax=second) is second
    assert np.isfinite(first.get_position().bounds).all()
    assert style.luminance(first.get_facecolor()) == 1
