"""The frames: columns and order; also against the plain pandas way of saying it."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import (
    EMPTY,
    END,
    INDEX,
    MONOTONIC,
    REALTIME,
    ROUTER,
    capture,
    facts_row,
    hop,
    of_hops,
    start_record,
    udp_frame,
)

from bpfpath_nb import schema
from bpfpath_nb.analysis.events import Collector, Events, hop_order
from bpfpath_nb.analysis.sequences import distinct
from bpfpath_nb.recording import Recording, RecordingViews
from bpfpath_nb.schema import EVENT_DTYPE
from bpfpath_nb.stream import Reader


@pytest.mark.parametrize("made", [EMPTY, capture(40)], ids=["empty", "full"])
def test_columns_and_dtypes_are_those_of_the_schema(made):
    recording = made.recording()
    for frame, columns in ((recording.df, schema.HOPS), (recording.packets, schema.PACKETS)):
        assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == {c.name: c.dtype for c in columns}
        names = {str(frame[c.name].cat.categories.dtype) for c in columns if c.dtype == "category"}
        assert len(names) == 1, "categories of one kind, empty or not"
    assert [(level.name, str(level.dtype)) for level in recording.df.index.levels] == [
        (c.name, c.dtype) for c in schema.HOPS_INDEX
    ]
    assert [(recording.packets.index.name, str(recording.packets.index.dtype))] == [
        (c.name, c.dtype) for c in schema.PACKETS_INDEX
    ]
    assert list(recording.quality.index) == [c.name for c in schema.QUALITY]
    assert [type(value).__name__ for value in recording.quality] == [column.dtype for column in schema.QUALITY]


@pytest.mark.parametrize(
    ("view", "columns"),
    [
        ("df", schema.HOPS),
        ("packets", schema.PACKETS),
        ("paths", schema.PATHS),
        ("functions", schema.FUNCTIONS),
        ("transitions", schema.TRANSITIONS),
        ("drops", schema.DROPS),
        ("namespaces", schema.NAMESPACES),
        ("latency", schema.LATENCY),
        ("quality", schema.QUALITY),
    ],
)
def test_docstrings_list_the_columns_of_the_schema(view, columns):
    text = getattr(RecordingViews, view).__doc__
    for column in columns:
        assert any(line.split()[:1] == [column.name] and column.meaning in line for line in text.splitlines())
    assert "{" not in text


def test_every_column_of_the_design_is_there():
    # The contract of design.md; notebooks in the wild depend on these names.
    hops = """
        time since gap duration depth func layer probe netns dev netns_inum ifindex cpu pid comm len mark flow reason
        skb
    """
    packets = """
        first last total hops path flow proto src sport dst dport length netns namespaces verdict reason where parent
        complete
    """
    assert [c.name for c in schema.HOPS] == hops.split()
    assert [c.name for c in schema.PACKETS] == [*packets.split(), "merged_into"]


def test_hops_say_what_the_events_said():
    made = capture(60, seed=3)
    df = made.recording().df
    events = pd.DataFrame({name: made.events[name] for name in EVENT_DTYPE.names})
    events = events.sort_values(["packet", "time", "cpu", "seq"], kind="stable").reset_index(drop=True)
    assert df.index.get_level_values("packet").tolist() == events["packet"].tolist()
    assert df.index.get_level_values("hop").tolist() == events.groupby("packet").cumcount().tolist()
    times = pd.to_datetime(events["time"].astype("int64") - MONOTONIC + REALTIME, unit="ns", utc=True)
    assert df["time"].tolist() == times.tolist()
    by_packet = events["time"].astype("int64").groupby(events["packet"])
    np.testing.assert_array_equal(df["since"].to_numpy().astype("int64"), events["time"] - by_packet.transform("first"))
    gap = by_packet.shift(-1) - events["time"].astype("int64")
    assert df["gap"].isna().tolist() == gap.isna().tolist()
    assert df["gap"].dropna().astype("int64").tolist() == gap.dropna().astype("int64").tolist()
    for name in ("cpu", "pid", "len", "mark", "skb", "ifindex"):
        assert df[name].tolist() == events[name].tolist()
    assert df["func"].tolist() == [list(INDEX)[at].split(".")[0] for at in events["func"]]
    assert df["duration"].isna().all()
    assert df["depth"].isna().all()
    assert df["comm"].dropna().unique().tolist() == ["dig"]
    assert (df["comm"].isna() == (df["pid"] == 0)).all()


def test_packets_say_what_their_hops_say():
    recording = capture(200, seed=5).recording()
    df, packets = recording.df, recording.packets
    grouped = df.groupby(level="packet", observed=True)
    assert packets.index.tolist() == sorted(set(df.index.get_level_values("packet")))
    assert packets["first"].tolist() == grouped["time"].min().tolist()
    assert packets["last"].tolist() == grouped["time"].max().tolist()
    assert (packets["total"] == packets["last"] - packets["first"]).all()
    assert packets["hops"].tolist() == grouped.size().tolist()
    functions = grouped["func"].apply(lambda column: "\n".join(column.astype(str)))
    ids = [hashlib.blake2b(path.encode(), digest_size=6).hexdigest() for path in functions]
    assert packets["path"].tolist() == ids
    visited = grouped["netns"].apply(lambda column: " > ".join(dict.fromkeys(column.astype(str))))
    assert packets["namespaces"].tolist() == visited.tolist()
    assert packets["netns"].tolist() == [path.split(" > ")[0] for path in visited]
    assert packets["flow"].tolist() == [f"udp 10.0.1.2:{40000 + at} > 10.0.2.2:53" for at in range(200)]
    assert packets["sport"].tolist() == list(range(40000, 40200))
    assert set(packets["dport"]) == {53}
    assert set(packets["length"]) == {70}
    assert packets["parent"].isna().all()
    assert packets["complete"].all()


def test_a_reason_that_the_kernel_did_not_name_shows_its_number():
    assert of_hops(hop("kfree_skb", END, reason=65536)).packets.loc[1, "reason"] == "reason 65536"


def test_names_fall_back_to_numbers_and_to_nothing():
    df = of_hops(
        hop("netif_rx", netns=99, ifindex=4),
        hop("netif_rx", netns=0, ifindex=0),
        hop("netif_rx", netns=ROUTER, ifindex=2),
    ).df
    assert df["netns"].tolist()[::2] == ["net:[99]", "router"]
    assert df["dev"].tolist()[::2] == ["if4", "left"]
    assert df[["netns", "dev", "netns_inum", "ifindex"]].iloc[1].isna().all()


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        ([(0, "a")], "aaaaaa"),
        ([(2, "a"), (4, "b")], "aaaabb"),
        ([(4, "b"), (2, "a")], "aaaabb"),
        ([(0, "a"), (2, ""), (4, "b")], "aabbbb"),
        ([(0, "a"), (2, ""), (3, ""), (4, "b"), (5, "a")], "aabbba"),
        ([(0, "a"), (2, "")], "aaaaaa"),
        ([(0, "a"), (2, ""), (4, "a")], "aaaaaa"),
        ([(9, "a"), (9, "b")], "aaaaaa"),
        ([(3, "")], None),
    ],
)
def test_a_place_is_called_as_it_was_then(rows, names, tmp_path):
    # Namespace numbers are used again at once, and interfaces are renamed.
    made = of_hops(*[hop("netif_rx", netns=netns, ifindex=2) for _ in range(6) for netns in (7, 8, 9)])
    said = [(MONOTONIC + since * 3000, 8, ifindex, name) for since, name in rows for ifindex in (0, 2)]
    others = [(MONOTONIC, netns, ifindex, "other") for netns in (7, 9) for ifindex in (0, 2)]
    events = made.events
    recording = Recording(Events.build(events.start, dict(events.hops), events.facts, devices=[*others, *said]))
    for seen in (recording, Recording.load(recording.save(tmp_path / "x"))):
        for column, number in (("netns", "net:[8]"), ("dev", "if2")):
            assert seen.df[column].iloc[1::3].tolist() == list(names or [number] * 6)
            assert set(seen.df[column].drop(seen.df.index[1::3])) == {"other"}


def test_a_flow_is_as_it_is_at_its_hop():
    facts = np.concatenate([
        facts_row(udp_frame(1, 53)), facts_row(udp_frame(1, 53, src="192.0.2.1"), snapshot=2, parent=7),
        facts_row(udp_frame(9, 9), packet=55),
    ])  # fmt: skip
    recording = of_hops(
        hop("netif_rx"), hop("netif_rx", snapshot=1), hop("netif_rx", snapshot=2), hop("netif_rx"), facts=facts
    )
    assert [None if pd.isna(flow) else flow.split()[1] for flow in recording.df["flow"]] == [
        "10.0.1.2:1", None, "192.0.2.1:1", "10.0.1.2:1",
    ]  # fmt: skip
    assert recording.df["flow"].cat.categories.size == 2
    assert len(recording.events.facts) == 2, "a snapshot that no hop refers to is not kept"


def test_a_packet_without_headers_has_no_flow_but_a_length():
    packet = of_hops(hop("netif_rx", len=99)).packets.loc[1]
    assert packet["length"] == 99
    assert packet[["flow", "proto", "src", "sport", "dst", "dport"]].isna().all()


def test_a_copy_knows_its_parent():
    assert of_hops(hop("netif_rx"), facts=facts_row(udp_frame(1, 2), parent=3)).packets.loc[1, "parent"] == 3


def test_paths_are_the_same_whatever_the_compiler_appended():
    functions = [{"name": name, "layer": "ip", "probe": "kprobe"} for name in ("ip_rcv", "ip_rcv.cold", "ip_forward")]
    paths = [of_hops({"func": first}, {"func": 2}, functions=functions).packets.loc[1, "path"] for first in (0, 1)]
    assert paths[0] == paths[1]
    swapped = of_hops({"func": 2}, {"func": 0}, functions=functions).packets.loc[1, "path"]
    assert swapped != paths[0]


def test_hostile_names_are_harmless_text():
    record = start_record(filter="udp\x1b[2J", host="a\nb")
    recording = of_hops(hop("netif_rx"), **record)
    assert recording.start.filter == "udp\\x1b[2J"
    assert recording.start.host == "a\\nb"


def test_a_growing_capture_shows_what_there_is():
    made = capture(50, seed=1)
    reader = Reader(io.BytesIO(made.write(batches=7)))
    collector, seen = Collector(reader.start), 0
    for batch in reader:
        collector.add(batch)
        seen += len(batch)
        recording = Recording(collector.events())
        assert len(recording) == len(collector) == len(recording.df) == seen
        assert collector.events() is recording.events, "no new picture without news"
    whole = made.recording()
    pd.testing.assert_frame_equal(recording.df, whole.df)
    pd.testing.assert_frame_equal(recording.packets, whole.packets)
    assert recording.quality["end"] == "stopped"


def test_a_picture_does_not_change_when_more_comes():
    reader = Reader(io.BytesIO(capture(50, seed=1).write(batches=2)))
    first, second, _ = reader
    collector = Collector(reader.start)
    collector.add(first)
    picture = Recording(collector.events())
    count = len(picture)
    collector.add(second)
    assert len(Recording(collector.events())) > count == len(picture.df)
    with pytest.raises(ValueError, match="read-only"):
        picture.events.hops["time"][0] = 0


rows = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 2, 65535, 65536, 70000, 2**32 - 1]),
        st.integers(0, 4),
        st.integers(0, 2),
        st.integers(0, 3),
    ),
    max_size=40,
)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(rows)
def test_the_order_is_by_packet_time_cpu_and_sequence(rows):
    columns = {
        name: np.array([row[at] for row in rows], EVENT_DTYPE[name])
        for at, name in enumerate(("packet", "time", "cpu", "seq"))
    }
    order = hop_order(columns)
    order = np.arange(len(rows)) if order is None else order
    assert sorted(order.tolist()) == list(range(len(rows)))
    assert [rows[at] for at in order] == sorted(rows)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), max_size=30))
def test_lists_are_told_apart_exactly(lists):
    counts = np.array([len(items) for items in lists], int)
    first = np.cumsum(counts) - counts
    items = np.array([item for items in lists for item in items], int)
    position = np.arange(counts.sum()) - np.repeat(first, counts)
    examples, which = distinct(items, position, first)
    kinds = list(dict.fromkeys(map(tuple, lists)))
    assert [tuple(lists[at]) for at in examples] == kinds
    assert [kinds[at] for at in which] == [tuple(items) for items in lists]
