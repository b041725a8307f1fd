"""One packet's way, as the picture tells it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from pictures import assert_legible, named, texts, untouched, words
from streams import KINDS, Capture, capture

from bpfpath_nb import sample
from bpfpath_nb.analysis.waits import hop_waits
from bpfpath_nb.errors import OptionError
from bpfpath_nb.plot import style
from bpfpath_nb.recording import Recording
from bpfpath_nb.schema import EVENT_DTYPE, EVENT_FLAGS, FACTS_DTYPE


@pytest.fixture(autouse=True)
def _nothing_global():
    with untouched():
        yield


@pytest.fixture(scope="module")
def recording() -> Recording:
    return capture(len(KINDS)).recording()


def number(kind: str) -> int:
    return list(KINDS).index(kind) + 1


def test_each_function_is_named_in_order_with_its_time(recording: Recording) -> None:
    ax = recording.plot.timeline(number("filtered"))
    hops = recording.df.loc[number("filtered")]
    said = [text.get_text() for text in named(ax, "function")]
    assert [line.split()[0] for line in said] == list(hops["func"])
    assert said[0].endswith(style.duration(hops["gap"].iloc[0].value))


def test_a_span_reaches_from_a_function_to_the_next_in_its_layers_colour(recording: Recording) -> None:
    ax = recording.plot.timeline(1)
    hops = recording.df.loc[1]
    spans = [(path.vertices[:, 0].min(), to_hex(colour)) for colour, path in drawn(ax)]
    colours = [style.LAYER_COLOURS[layer] for layer in hops["layer"]]
    assert sorted(spans) == sorted(zip(hops["since"].to_numpy().view(np.int64), colours, strict=True))


def drawn(ax):
    """Colour and shape of each span, of work and of waiting."""
    return [
        pair
        for gid in ("spans", "waits")
        for bars in named(ax, gid)
        for pair in zip(bars.get_facecolor(), bars.get_paths(), strict=True)
    ]


def test_waiting_is_hatched_and_named() -> None:
    real = sample("dns")
    ax = real.plot.timeline(1)
    (waits,) = named(ax, "waits")
    assert waits.get_hatch() == style.WAIT_HATCH
    assert len(waits.get_paths()) == (hop_waits(real.events)[real.events.packet_of == 0] >= 0).sum() > 0
    assert "__udp_enqueue_schedule_skb  waits: socket  " in words(ax)
    assert_legible(ax)


def with_returns(took: dict[int, int]) -> Recording:
    """One packet whose hops, by number, returned after so many ns."""
    made = capture(1, kinds=("answered",))
    events = made.events.copy()
    events["location"] = np.where(events["flags"] & EVENT_FLAGS["end"] == 0, 1 + np.arange(len(events)), 0)
    returns = events[list(took)]
    returns["time"] += np.array(list(took.values()), np.uint64)
    returns["flags"] = EVENT_FLAGS["return"]
    events = np.concatenate([events, returns])
    events = events[np.argsort(events["time"], kind="stable")]
    for cpu in np.unique(events["cpu"]):
        own = events["cpu"] == cpu
        events["seq"][own] = np.arange(own.sum())
    return Capture(events, made.facts, made.kinds, {}).recording(options={"returns": True})


def test_where_returns_are_known_a_span_is_as_wide_as_its_function_took() -> None:
    real = with_returns({0: 1_000, 1: 30_000, 2: 90_000})
    hops = real.df.loc[1]
    assert hops["duration"].notna().tolist()[:4] == [True, True, True, False]
    ax = real.plot.timeline(1)
    widths = {round(path.vertices[:, 0].min()): round(np.ptp(path.vertices[:, 0])) for _, path in drawn(ax)}
    since = hops["since"].astype("int64")
    assert widths[since[1]] == 30_000
    assert widths[since[2]] == 90_000
    unknown = hops["gap"].astype("int64")[hops["duration"].isna()].idxmax()
    assert widths[since[unknown]] == hops["gap"].astype("int64")[unknown]
    assert ax.get_xlim()[1] > since[2] + 90_000
    assert f"{hops['func'][2]}  90 µs" in words(ax)
    assert "Functions last until they returned" in words(ax)
    assert_legible(ax)


def test_a_real_packets_functions_lie_within_those_that_called_them() -> None:
    real = Recording.load(Path(__file__).parents[1] / "recordings" / "returns-6.12.parquet")
    ax = real.plot.timeline(1)
    hops = real.df.loc[1].dropna(subset="duration")
    ends = {(path.vertices[:, 0].min(), path.vertices[:, 0].max()) for _, path in drawn(ax)}
    since, took = (hops[name].astype("int64").to_numpy() for name in ("since", "duration"))
    wide = took > ax.get_xlim()[1] / 300
    assert wide.sum() > 20
    assert {(float(a), float(a + b)) for a, b in zip(since[wide], took[wide], strict=True)} <= ends
    assert_legible(ax)


def test_in_one_row_a_lane_functions_do_not_lie_over_each_other() -> None:
    ax = with_returns({1: 70_000, 2: 5_000_000}).plot.timeline(1, detail=False)
    assert ax.get_xlim()[1] < 5_000_000
    assert "Functions last until they returned" not in words(ax)


def test_lanes_are_the_interfaces_in_the_order_of_the_way(recording: Recording) -> None:
    ax = recording.plot.timeline(number("answered"))
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "client\neth0", "router\nleft", "router\nright", "server\neth0",
    ]  # fmt: skip


def test_lanes_can_be_namespaces_or_cpus(recording: Recording) -> None:
    by_netns = recording.plot.timeline(1, lanes="netns")
    assert [label.get_text() for label in by_netns.get_yticklabels()] == ["client", "router", "server"]
    cpus = dict.fromkeys(recording.df.loc[1, "cpu"])
    assert [x.get_text() for x in recording.plot.timeline(1, lanes="cpu").get_yticklabels()] == [
        f"CPU {x}" for x in cpus
    ]


def test_each_crossing_is_an_arrow(recording: Recording) -> None:
    ax = recording.plot.timeline(number("left"))
    assert named(ax, "crossing") == []
    # There and back again: the sender's driver reports after the receiver's has begun.
    netns = recording.df.loc[1, "netns"].astype(str).to_numpy()
    assert len(named(recording.plot.timeline(1), "crossing")) == (netns[1:] != netns[:-1]).sum()


def test_a_drop_is_marked_with_its_reason(recording: Recording) -> None:
    ax = recording.plot.timeline(number("filtered"))
    (end,) = named(ax, "end")
    assert (end.get_marker(), end.get_color()) == ("X", style.LIGHT.alarm)
    assert named(ax, "function")[-1].get_text() == "kfree_skb  dropped: NETFILTER_DROP in nf_hook_slow"
    assert named(recording.plot.timeline(number("answered")), "end")[0].get_marker() == "o"


def test_a_packet_without_end_is_drawn_as_far_as_it_was_seen(recording: Recording) -> None:
    assert "unfinished" in words(recording.plot.timeline(number("waiting")))


def test_a_clone_is_told_from_the_packet(recording: Recording) -> None:
    said = [text.get_text() for text in named(recording.plot.timeline(number("tapped")), "function")]
    assert [line for line in said if "(clone" in line] == [said[8]]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("kind", KINDS)
def test_all_of_it_can_be_read(recording: Recording, kind: str, theme: style.ThemeName) -> None:
    assert_legible(recording.plot.timeline(number(kind), theme=theme))


def test_a_long_way_has_a_row_a_lane_and_says_so(recording: Recording) -> None:
    ax = recording.plot.timeline(1, detail=False)
    assert ax.get_ylim()[0] == 4
    assert "`detail=True`" in words(ax)
    assert_legible(ax)


def test_a_packet_of_one_hop(recording: Recording) -> None:
    made = capture(1, kinds=("left",))
    ax = Capture(made.events[:1], made.facts, made.kinds, {}).recording().plot.timeline(1)
    assert "1 hops in 0 ns" in words(ax)
    assert_legible(ax)


def test_names_that_others_chose_stay_text() -> None:
    record = capture(3).recording(
        functions=[f | {"name": "$\\frac"} for f in capture(1).recording().start.raw["functions"]]
    )
    assert r"$\frac" in words(record.plot.timeline(1)).replace("\\\\", "\\")


def test_a_packet_that_is_not_there_is_an_error_with_the_numbers_that_are(recording: Recording) -> None:
    with pytest.raises(OptionError, match="numbered 1 to 7"):
        recording.plot.timeline(99)
    with pytest.raises(OptionError, match="nothing was captured"):
        Capture(np.empty(0, EVENT_DTYPE), np.empty(0, FACTS_DTYPE), np.empty(0), {}).recording().plot.timeline(1)
    with pytest.raises(OptionError, match="'dev', a 'netns' or a 'cpu'"):
        recording.plot.timeline(1, lanes="queue")  # type: ignore[arg-type]


def test_it_draws_on_axes_of_ones_own(recording: Recording) -> None:
    ax = Figure(figsize=(9, 6)).add_subplot()
    assert recording.plot.timeline(1, ax=ax) is ax
    assert texts(ax)
