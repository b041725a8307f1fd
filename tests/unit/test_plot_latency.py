"""Distributions of latency, as the picture tells them."""

from __future__ import annotations

import time

import numpy as np
import pytest
from pictures import assert_legible, named, untouched, words
from streams import Capture, capture

from bpfpath_nb.errors import OptionError
from bpfpath_nb.plot import latency, style
from bpfpath_nb.recording import Recording
from bpfpath_nb.schema import EVENT_DTYPE, FACTS_DTYPE

EMPTY = Capture(np.empty(0, EVENT_DTYPE), np.empty(0, FACTS_DTYPE), np.empty(0), {})


@pytest.fixture(autouse=True)
def _nothing_global():
    with untouched():
        yield


@pytest.fixture(scope="module")
def recording() -> Recording:
    return capture(300).recording()


def rows(ax) -> list[str]:
    return [label.get_text() for label in ax.get_yticklabels()]


def test_functions_stand_in_the_order_of_their_time(recording: Recording) -> None:
    total = recording.df.groupby("func", observed=True)["gap"].sum().sort_values(ascending=False)
    assert rows(recording.plot.latency()) == [func for func, gap in total.items() if gap.value]


def test_ticks_stand_at_the_medians(recording: Recording) -> None:
    ax = recording.plot.latency()
    (medians,) = named(ax, "median")
    gaps = recording.df["gap"].dropna().astype("int64").groupby(recording.df["func"], observed=True)
    # The lower one of two in the middle: a value that was measured.
    expected = gaps.quantile(0.5, interpolation="lower")
    assert [segment[0, 0] for segment in medians.get_segments()] == [expected[func] for func in rows(ax)]


def test_few_values_are_points(recording: Recording) -> None:
    few = capture(7, kinds=("left",)).recording()
    ax = few.plot.latency()
    assert len(named(ax, "box")[0].get_segments()) == 0
    assert sorted(len(points.get_offsets()) for points in ax.collections if hasattr(points, "get_sizes"))[-1] == 7


def test_groups_may_be_any_columns(recording: Recording) -> None:
    assert "client  tc_egress" in rows(recording.plot.latency(["netns", "func"]))
    assert "net_dev_start_xmit → net_dev_xmit" in rows(recording.plot.latency("transition", top=60))
    assert {"dropped", "delivered"} < set(rows(recording.plot.latency("verdict")))


def test_each_transition_has_the_gaps_of_its_hops(recording: Recording) -> None:
    ax = recording.plot.latency("transition", top=60)
    func = recording.df["func"].astype(str)
    pairs = (func + " → " + func.groupby(level="packet").shift(-1)).dropna().value_counts()
    assert {row.partition(" (waits")[0] for row in rows(ax)} == set(pairs.index)
    assert "net_dev_xmit → netif_receive_skb (waits: backlog)" in rows(ax)
    assert f"{pairs['tc_egress → net_dev_start_xmit']:,} of " in words(ax)


def test_packets_are_curves_that_end_at_all_of_them(recording: Recording) -> None:
    ax = recording.plot.latency("verdict", of="total")
    assert len(ax.lines) == recording.packets["verdict"].nunique()
    assert all(line.get_ydata()[-1] == 100 for line in ax.lines)
    assert "delivered  (" in words(ax)


def test_several_captures_are_compared() -> None:
    ax = latency({"before": capture(30).recording(), "after": capture(50, seed=1).recording()}, "capture", of="total")
    assert "before  (30" in words(ax)
    assert "after  (50" in words(ax)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("by", "of"), [("func", "gap"), (["netns", "dev", "func"], "gap"), ("path", "total")])
def test_all_of_it_can_be_read(recording: Recording, by, of, theme: style.ThemeName) -> None:
    assert_legible(recording.plot.latency(by, of=of, theme=theme))


def test_sixty_functions_can_be_read() -> None:
    made = capture(400)
    made.events["func"] = np.arange(len(made.events)) % 60
    functions = [
        {"name": f"some_function_of_the_kernel_{at}", "layer": "ip", "probe": "kprobe", "target": "", "role": ""}
        for at in range(60)
    ]
    ax = made.recording(functions=functions).plot.latency(top=60)
    assert len(rows(ax)) == 60
    assert_legible(ax)


def test_what_is_left_out_is_told(recording: Recording) -> None:
    assert "more groups" not in words(recording.plot.latency())
    assert f"{len(rows(recording.plot.latency())) - 3} smaller groups are not shown" in words(
        recording.plot.latency(top=3)
    )


def test_twenty_thousand_packets_take_a_moment() -> None:
    many = capture(20_000).recording()
    assert len(many.df)  # The frame is made once, whatever is drawn.
    begin = time.process_time()
    many.plot.latency(["netns", "func"])
    assert time.process_time() - begin < 2


@pytest.mark.parametrize("of", ["gap", "total", "duration"])
def test_nothing_captured_is_a_picture_that_says_so(of: str) -> None:
    by = "verdict" if of == "total" else "func"
    assert "No packet was recorded" in words(EMPTY.recording().plot.latency(by, of=of))


def test_one_packet(recording: Recording) -> None:
    ax = capture(1, kinds=("left",)).recording().plot.latency("path", of="total")
    assert "1 packets" in words(ax)
    assert_legible(ax)


def test_times_inside_functions_need_returns(recording: Recording) -> None:
    assert "returns=True" in words(recording.plot.latency(of="duration"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [({"by": "colour"}, "cannot be grouped by 'colour'"), ({"of": "age"}, "'gap', 'duration' or 'total'"),
     ({"kind": "pie"}, "'box' and 'ecdf'"), ({"by": "func", "of": "total"}, "it can by path"),
     ({"by": []}, "no column")],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(recording: Recording, arguments: dict, says: str) -> None:
    with pytest.raises(OptionError, match=says):
        recording.plot.latency(**arguments)
