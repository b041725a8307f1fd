"""Drops, namespaces, latency over time and many packets' timelines, as the pictures tell them."""

from __future__ import annotations

import time

import numpy as np
import pytest
from matplotlib.colors import to_hex
from pictures import assert_legible, named, untouched, words
from streams import CLIENT, DEVICES, MONOTONIC, Capture, capture

from bpfpath_nb import sample
from bpfpath_nb.analysis.events import Events
from bpfpath_nb.analysis.waits import hop_waits
from bpfpath_nb.errors import FunctionError, OptionError
from bpfpath_nb.plot import style
from bpfpath_nb.recording import Recording
from bpfpath_nb.schema import EVENT_DTYPE, FACTS_DTYPE

EMPTY = Capture(np.empty(0, EVENT_DTYPE), np.empty(0, FACTS_DTYPE), np.empty(0), {})
PICTURES = {
    "drops": lambda plot, **how: plot.drops(**how),
    "drops over time": lambda plot, **how: plot.drops(over="time", **how),
    "namespaces": lambda plot, **how: plot.namespaces(**how),
    "heatmap": lambda plot, **how: plot.heatmap(**how),
    "heatmap of a function": lambda plot, **how: plot.heatmap("tc_ingress", **how),
    "packets": lambda plot, **how: plot.timeline(**how),
    "few packets": lambda plot, **how: plot.timeline(range(1, 8), **how),
}


@pytest.fixture(autouse=True)
def _nothing_global():
    with untouched():
        yield


@pytest.fixture(scope="module")
def few() -> Recording:
    return sample("dns")


@pytest.fixture(scope="module")
def many() -> Recording:
    recording = capture(20_000, lost=0.001).recording()
    assert len(recording.df)  # The frame is made once, whatever is drawn.
    return recording


def rows(ax) -> list[str]:
    return [label.get_text() for label in ax.get_yticklabels()]


@pytest.mark.parametrize("name", PICTURES)
def test_all_of_it_can_be_read(few: Recording, name: str) -> None:
    assert_legible(PICTURES[name](few.plot, theme="dark"))


@pytest.mark.parametrize("name", PICTURES)
def test_twenty_thousand_packets_can_be_read_and_take_a_moment(many: Recording, name: str) -> None:
    begin = time.process_time()
    ax = PICTURES[name](many.plot)
    assert time.process_time() - begin < 2
    assert_legible(ax)


@pytest.mark.parametrize("name", [name for name in PICTURES if name not in {"few packets", "heatmap of a function"}])
def test_nothing_captured_is_a_picture_that_says_so(name: str) -> None:
    assert "No packet was" in words(PICTURES[name](EMPTY.recording().plot)) or "no packets" in words(
        PICTURES[name](EMPTY.recording().plot)
    )


@pytest.mark.parametrize("name", ["drops", "namespaces", "heatmap", "packets"])
def test_one_packet(name: str) -> None:
    assert_legible(PICTURES[name](capture(1, kinds=("filtered",)).recording().plot))


def test_drops_are_counted_by_reason_and_function(few: Recording) -> None:
    ax = few.plot.drops()
    counted = few.drops.groupby(["reason", "func"], observed=True).size()
    assert sorted(rows(ax)) == sorted(f"{reason} in {func}" for reason, func in counted.index)
    widths = {
        rows(ax)[round(bar.get_y() + bar.get_height() / 2)]: bar.get_width() for bar in ax.patches if bar.get_width()
    }
    assert widths == {f"{reason} in {func}": count for (reason, func), count in counted.items()}


def test_drops_of_two_namespaces_are_told_apart() -> None:
    made = capture(40, kinds=("filtered", "closed")).recording()
    ax = made.plot.drops()
    assert {"in router", "in server"} == {text.get_text() for text in ax.get_legend().get_texts()}


def test_each_drop_is_a_mark_at_its_time(few: Recording) -> None:
    marks = np.concatenate([points.get_offsets()[:, 0] for points in few.plot.drops(over="time").collections])
    since = few.drops["time"] - few.df["time"].min()
    assert sorted(marks) == sorted(since.to_numpy().view(np.int64))


def test_many_drops_are_counted_in_slices(many: Recording) -> None:
    ax = many.plot.drops(over="time")
    highest = max(bar.get_height() for bar in ax.patches)
    assert "Counted in slices" in words(ax)
    assert abs(highest) <= 0.8


def test_no_drops_is_said() -> None:
    assert "No packet was dropped." in words(capture(5, kinds=("answered",)).recording().plot.drops())


def test_a_namespaces_bar_is_its_mean_time_per_packet(few: Recording) -> None:
    ax = few.plot.namespaces()
    ends = np.zeros(len(rows(ax)))
    for bar in ax.patches:
        row = round(bar.get_y() + bar.get_height() / 2)
        ends[row] = max(ends[row], bar.get_x() + bar.get_width())
    frame = few.namespaces.loc[rows(ax)]
    assert ends == pytest.approx(frame["time"].to_numpy().view(np.int64) / frame["packets"].to_numpy())


def test_a_name_that_no_packet_met_is_no_namespace() -> None:
    made = capture(5).recording().events
    devices = [(MONOTONIC - 10, CLIENT, 0, "another's"), *DEVICES]
    recording = Recording(Events.build(made.start, dict(made.hops), made.facts, devices=devices))
    assert sorted(recording.namespaces.index) == ["client", "router", "server"]
    assert sorted(rows(recording.plot.namespaces())) == ["client", "router", "server"]


def test_waiting_is_hatched_in_namespaces(few: Recording) -> None:
    hatched = sum(bar.get_width() for bar in few.plot.namespaces().patches if bar.get_hatch())
    gap = few.df["gap"].to_numpy().view(np.int64)[hop_waits(few.events) >= 0]
    place = few.df["netns"][hop_waits(few.events) >= 0].map(few.namespaces["packets"]).to_numpy(float)
    assert hatched == pytest.approx((gap / place).sum())


def test_each_layer_has_its_colour_in_namespaces(few: Recording) -> None:
    ax = few.plot.namespaces()
    told = {text.get_text() for text in ax.get_legend().get_texts()}
    assert told - {"waits"} == set(few.df["layer"].dropna())
    assert {to_hex(bar.get_facecolor()) for bar in ax.patches} == {
        style.LAYER_COLOURS[name] for name in told - {"waits"}
    }


def test_few_packets_are_points_in_time(few: Recording) -> None:
    points = np.concatenate([marks.get_offsets() for marks in named(few.plot.heatmap(), "point")])
    assert len(points) == len(few.packets)
    assert sorted(points[:, 1]) == sorted(few.packets["total"].to_numpy().view(np.int64))
    assert "dropped" in words(few.plot.heatmap())


def test_every_packet_is_counted_in_a_cell(many: Recording) -> None:
    (cells,) = named(many.plot.heatmap(), "cells")
    assert cells.get_array().sum() == (many.packets["hops"] > 1).sum()


def test_the_median_line_lies_at_the_median(many: Recording) -> None:
    (line,) = named(many.plot.heatmap(), "p50")
    median = np.median(many.packets["total"].to_numpy().view(np.int64))
    assert np.nanmedian(line.get_ydata()) == pytest.approx(median, rel=0.1)


def test_a_function_that_was_not_seen_is_refused_with_what_is_near(few: Recording) -> None:
    with pytest.raises(FunctionError, match="ip_rcv_core"):
        few.plot.heatmap("ip_rcv_cor")
    with pytest.raises(OptionError, match="'gap' or 'duration'"):
        few.plot.heatmap("ip_rcv", of="age")
    with pytest.raises(OptionError, match="over='time'"):
        few.plot.drops(over="space")


def test_some_packets_have_a_row_each(few: Recording) -> None:
    ax = few.plot.timeline([25, 3])
    assert rows(ax) == ["25  client > router", "3  client > router > server"]
    assert "NETFILTER_DROP" in words(ax)
    assert len(named(ax, "end")) == 2


def test_many_packets_are_one_row_a_path_and_it_says_so(few: Recording) -> None:
    ax = few.plot.timeline()
    ways = few.packets.groupby(["path", "namespaces"], observed=True).size().sort_values(ascending=False)
    assert [row.split(" x ")[0] for row in rows(ax)] == [f"{count}" for count in ways]
    assert "each step as long as its median" in " ".join(words(ax).split())


def test_a_row_ends_with_the_sum_of_its_steps_medians(few: Recording) -> None:
    ax = few.plot.timeline()
    (path, netns), _ = max(
        few.packets.groupby(["path", "namespaces"], observed=True).size().items(), key=lambda x: x[1]
    )
    own = few.packets.index[(few.packets["path"] == path) & (few.packets["namespaces"] == netns)]
    gaps = few.df.loc[own, "gap"].astype("int64").groupby(level="hop").median()
    ends = [float(mark.get_xdata()[0]) for mark in named(ax, "end")]
    assert gaps.iloc[:-1].sum() == pytest.approx(ends[0], abs=len(gaps))


def test_a_packet_that_is_not_there_is_refused(few: Recording) -> None:
    with pytest.raises(OptionError, match="no packet 99"):
        few.plot.timeline([1, 99])
