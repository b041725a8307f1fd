"""Paths, functions, transitions, drops, namespaces and latency, held against the plain pandas way of saying it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
import traffic
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import CLIENT, EMPTY, END, ENTRY, HOOK, LAST, ROUTER, capture, facts_row, hop, of_hops

from bpfpath_nb import schema
from bpfpath_nb.analysis.hop_columns import EventColumns
from bpfpath_nb.analysis.quantiles import PART, quantiles
from bpfpath_nb.analysis.returns import NAT
from bpfpath_nb.analysis.waits import hop_waits
from bpfpath_nb.errors import OptionError
from bpfpath_nb.recording import Recording
from bpfpath_nb.schema import EVENT_FLAGS, QUEUES

FRAMES = {
    "paths": (schema.PATHS_INDEX, schema.PATHS),
    "functions": (schema.FUNCTIONS_INDEX, schema.FUNCTIONS),
    "transitions": (schema.TRANSITIONS_INDEX, schema.TRANSITIONS),
    "drops": ((), schema.DROPS),
    "namespaces": (schema.NAMESPACES_INDEX, schema.NAMESPACES),
}


@pytest.fixture(scope="module")
def recording() -> Recording:
    return capture(400, seed=11).recording()


def ns(column: pd.Series) -> pd.Series:
    """Durations as whole ns; missing ones stay out."""
    return column.dropna().astype("int64")


def quantile(values: pd.Series, percent: int) -> int:
    """By the definition: on the line between the two nearest of the sorted values."""
    ordered, place = sorted(values.tolist()), (len(values) - 1) * percent
    low = ordered[place // 100]
    return low + (ordered[min(place // 100 + 1, len(ordered) - 1)] - low) * (place % 100) // 100


def expected(values: pd.Series) -> dict[str, int]:
    found = {name: quantile(values, percent) for name, percent in (("p50", 50), ("p90", 90), ("p99", 99))}
    return found | {"max": int(values.max()), "total": int(values.sum())}


@pytest.mark.parametrize("made", [EMPTY, capture(40)], ids=["empty", "full"])
@pytest.mark.parametrize("name", FRAMES)
def test_columns_and_dtypes_are_those_of_the_schema(made, name):
    index, columns = FRAMES[name]
    frame = getattr(made.recording(), name)
    assert {column: str(dtype) for column, dtype in frame.dtypes.items()} == {c.name: c.dtype for c in columns}
    assert {str(frame[c.name].cat.categories.dtype) for c in columns if c.dtype == "category"} <= {"str"}
    if index:
        levels = [frame.index.get_level_values(at) for at in range(frame.index.nlevels)]
        assert [(level.name, str(level.dtype)) for level in levels] == [(c.name, c.dtype) for c in index]
    else:
        assert frame.index.equals(pd.RangeIndex(len(frame)))


def test_paths_count_their_packets(recording):
    packets, paths = recording.packets, recording.paths
    assert paths["packets"].is_monotonic_decreasing
    assert paths["packets"].to_dict() == packets["path"].astype(str).value_counts().to_dict()
    assert paths["share"].sum() == pytest.approx(1)
    functions = recording.df.groupby(level="packet", observed=True)["func"].apply(" > ".join)
    for path, row in paths.iterrows():
        its = packets[packets["path"] == path]
        assert set(functions[its.index]) == {row["functions"]}
        assert set(its["hops"]) == {row["hops"]} == {row["functions"].count(">") + 1}
        assert row["verdict"] == its["verdict"].mode()[0]
        assert row["median"].value == quantile(ns(its["total"]), 50)
        assert row["p99"].value == quantile(ns(its["total"]), 99)


@pytest.fixture(scope="module")
def long_recording() -> Recording:
    """More hops than are looked at together; every tenth packet has its end ten seconds late."""
    events = traffic.recording(3000).events
    assert len(events) > 2 * PART
    time = events.hops["time"].copy()
    time[events.last[::10]] += np.uint64(10**10)
    return Recording(dataclasses.replace(events, hops=events.hops | {"time": time}))


@pytest.mark.parametrize("which", ["recording", "long_recording"])
def test_functions_say_how_long_they_took(which, request):
    recording = request.getfixturevalue(which)
    df, functions = recording.df, recording.functions
    assert set(functions.index) == set(df["func"])
    assert functions["gap_total"].dropna().is_monotonic_decreasing
    for func, of_func in df.groupby("func", observed=True):
        row = functions.loc[func]
        assert (row["hits"], row["packets"]) == (len(of_func), of_func.index.get_level_values("packet").nunique())
        assert row["layer"] == of_func["layer"].iloc[0]
        gaps = ns(of_func["gap"])
        assert {name: row[f"gap_{name}"].value for name in ("p50", "p90", "p99", "max", "total")} == (
            expected(gaps) if len(gaps) else dict.fromkeys(("p50", "p90", "p99", "max", "total"), NAT)
        )
        assert pd.isna(row["duration_p50"])


def test_a_frame_has_the_functions_of_its_recording(long_recording):
    pd.testing.assert_frame_equal(long_recording.df.bpfpath.functions, long_recording.functions)


@pytest.mark.parametrize("count", [3, 64, 65, 1000])
def test_packets_are_counted_by_what_they_have(long_recording, count):
    hops = EventColumns(long_recording.events)
    codes = np.random.default_rng(0).integers(-1, count, len(hops)).astype(np.int16)
    packets = pd.Series(hops.packet_of).groupby(codes).nunique().drop(-1)
    np.testing.assert_array_equal(hops.packets_with(codes, count), packets)


def test_transitions_say_how_long_they_took(recording):
    df, transitions = recording.df, recording.transitions
    steps = pd.DataFrame({"from": df["func"].astype(str), "gap": df["gap"]})
    steps["to"] = steps.groupby(level="packet")["from"].shift(-1)
    grouped = steps.dropna(subset="to").groupby(["from", "to"])["gap"]
    assert set(transitions.index) == set(grouped.groups)
    assert transitions["total"].is_monotonic_decreasing
    for step, gaps in grouped:
        row = transitions.loc[step]
        assert row["count"] == len(gaps)
        assert {name: row[name].value for name in ("p50", "p90", "p99", "max", "total")} == expected(ns(gaps))


def test_a_transition_through_a_queue_is_a_wait(recording):
    waits = recording.transitions[recording.transitions["kind"] == "wait"]
    # While the packet lies in the backlog its sender still has a hop.
    assert waits["queue"].to_dict() == {
        ("netif_rx", "net_dev_xmit"): "backlog",
        ("net_dev_xmit", "netif_receive_skb"): "backlog",
        ("ip_rcv", "skb_copy_datagram_iovec"): "socket",
    }
    assert recording.transitions.drop(waits.index)["queue"].isna().all()


def test_drops_are_told_one_by_one():
    made = capture(60, seed=13)
    drops, packets = made.recording().drops, made.recording().packets
    dropped = packets[packets["verdict"] == "dropped"]
    of_dropped = drops[drops["packet"].isin(dropped.index)].set_index("packet").sort_index()
    for ours, theirs in (("reason", "reason"), ("func", "where"), ("flow", "flow"), ("time", "last")):
        assert of_dropped[ours].tolist() == dropped[theirs].tolist()
    assert drops["time"].is_monotonic_increasing
    filtered = drops[drops["reason"] == "NETFILTER_DROP"].iloc[0]
    assert filtered[["func", "offset", "netns", "dev"]].tolist() == ["nf_hook_slow", 0x23, "router", "left"]
    assert filtered["stack"] == "nf_hook_slow < ip_rcv"
    numbers = {1: "ESTABLISHED", 2: "SYN_SENT", 6: "TIME_WAIT", 7: "CLOSE", 10: "LISTEN"}
    for number, state in numbers.items():
        assert set(drops.loc[1 + drops["packet"] % 11 == number, "tcp_state"]) <= {state}
    assert drops["tcp_flags"].isna().all()
    # A tapped packet was read, and then a copy of it found no socket: that is a drop of a delivered packet.
    assert set(packets.loc[drops["packet"], "verdict"]) == {"dropped", "delivered"}


def test_a_drop_tells_the_flags_of_tcp():
    frame = bytes.fromhex("020000000002020000000001") + b"\x08\x00\x45\0\0\x28" + bytes([0, 1, 0, 0, 64, 6, 0, 0])
    frame += bytes([10, 0, 0, 1, 10, 0, 0, 2, 0, 80, 31, 144]) + bytes(8) + b"\x50\x12" + bytes(6)
    facts = np.concatenate([facts_row(frame), facts_row(frame[:46], packet=2)])
    ends = [hop("kfree_skb", ENTRY | END | LAST, reason=8, location=HOOK, packet=packet) for packet in (1, 2, 3)]
    assert of_hops(*ends, facts=facts).drops["tcp_flags"].astype("str").fillna("").tolist() == ["SYN ACK", "", ""]


def test_namespaces_sum_up_what_happened_there(recording):
    df, namespaces, drops = recording.df, recording.namespaces, recording.drops
    assert namespaces["packets"].is_monotonic_decreasing
    assert set(namespaces.index) == {"client", "router", "server"}
    for name, row in namespaces.iterrows():
        there = df[df["netns"] == name]
        assert (row["hops"], row["packets"]) == (len(there), there.index.get_level_values("packet").nunique())
        assert row["time"] == there["gap"].sum()
        assert row["drops"] == (drops["netns"] == name).sum()
        assert row["interfaces"].split(", ") == sorted(set(there["dev"]))
    assert namespaces.loc["server", "delivered"] == (recording.packets["verdict"] == "delivered").sum()
    assert timedelta(0) < namespaces.loc["router", "waiting"] < namespaces.loc["router", "time"]


def timedelta(ns: int) -> pd.Timedelta:
    return pd.Timedelta(ns, "ns")


def test_a_hop_of_no_namespace_is_in_none():
    namespaces = of_hops(
        hop("netif_rx", netns=CLIENT, ifindex=2), hop("netif_rx", netns=0), hop("netif_rx", netns=ROUTER)
    ).namespaces
    assert namespaces["hops"].to_dict() == {"client": 1, "router": 1}
    assert namespaces["interfaces"].astype("str").fillna("").to_dict() == {"client": "eth0", "router": ""}


@pytest.mark.parametrize(
    "by", ["func", ["netns", "func"], ["packet"], ["verdict", "layer"], ["cpu", "proto", "dev"], ["path"]]
)
def test_latency_is_by_any_columns(recording, by):
    latency = recording.latency(by=by)
    columns = [by] if isinstance(by, str) else by
    df = recording.df.join(recording.packets[["verdict", "proto", "path"]], on="packet").reset_index()
    grouped = df.groupby(columns[0] if len(columns) == 1 else columns, observed=True)
    assert latency.index.names == columns
    assert {name: str(dtype) for name, dtype in latency.dtypes.items()} == {c.name: c.dtype for c in schema.LATENCY}
    assert latency["hits"].to_dict() == grouped.size().to_dict()
    assert ns(latency["gap_total"]).to_dict() == ns(grouped["gap"].sum(min_count=1)).to_dict()
    assert ns(latency["gap_max"]).to_dict() == ns(grouped["gap"].max()).to_dict()


def test_latency_names_the_columns_that_there_are(recording):
    with pytest.raises(OptionError, match=r"no column 'fnuc'.*func.*verdict"):
        recording.latency(by=["fnuc"])
    with pytest.raises(OptionError, match="by"):
        recording.latency(by=[])
    with pytest.raises(OptionError, match="3 does not"):
        recording.latency(by=3)  # type: ignore[arg-type]


times = st.one_of(
    st.just(NAT), st.integers(0, 1000), st.integers(2**29 - 3, 2**29 + 1), st.integers(0, 2**62)
)  # fmt: skip


@pytest.mark.parametrize("count", [4, 5000], ids=["few groups", "many groups"])
@settings(derandomize=True, max_examples=200, deadline=None)
@given(rows=st.lists(st.tuples(st.integers(-1, 3), times), max_size=40))
def test_quantiles_are_exact(count, rows):
    group, values = (np.array([row[at] for row in rows], np.int64) for at in (0, 1))
    found = quantiles(group, count, values)
    for number in range(5 if count > 4 else 4):
        of_group = pd.Series([value for of, value in rows if of == number and value != NAT], dtype=object)
        told = {name: int(column[number]) for name, column in found.items()}
        if len(of_group) == 0:
            assert set(told.values()) == {NAT}
        else:
            told["total"] += 2**64 * round((int(of_group.sum()) - told["total"]) / 2**64)  # it may not fit
            assert told == expected(of_group)


def queues(*hops: tuple[str, int, int], reader: str = "udp_recvmsg") -> list[str]:
    """What each gap is, of hops given as (function, process, sk_buff); `reader` frees the packet where it ends."""
    known = list(dict.fromkeys(name for name, _, _ in hops))
    functions = [{"name": name, "layer": "ip", "probe": "kprobe"} for name in known]
    freed = {"location": READER, "flags": EVENT_FLAGS["end"]}
    rows = [
        {"func": known.index(name), "pid": pid, "skb": skb, **(freed if name == "skb_free_head" else {})}
        for name, pid, skb in hops
    ]
    events = of_hops(*rows, functions=functions, readers=[reader]).events
    events = dataclasses.replace(events, locations={READER: (reader, 5)})
    return [QUEUES[code] if code >= 0 else "work" for code in hop_waits(events)[:-1].tolist()]


READER = 0xFFFFFFFF81000000


@pytest.mark.parametrize(
    ("hops", "expected"),
    [
        ("enqueue_to_backlog:1 __netif_receive_skb:1 ip_rcv:1", "backlog work"),
        ("netif_rx:1 enqueue_to_backlog:1 tcp_rate_skb_sent:1:2 netif_receive_skb:1", "work backlog backlog"),
        ("__dev_queue_xmit:1 dev_hard_start_xmit:1", "work"),
        ("__dev_queue_xmit:1 validate_xmit_skb:2 dev_hard_start_xmit:2", "qdisc work"),
        ("net_dev_queue:1 qdisc_enqueue:1 qdisc_dequeue:1 net_dev_start_xmit:1", "work qdisc work"),
        ("__neigh_event_send:1 __dev_queue_xmit:1", "work"),
        ("__neigh_event_send:1 consume_skb:1:2 neigh_resolve_output:1", "neighbour neighbour"),
        ("neigh_event_send_done:1 consume_skb:2:2 consume_skb:2:3 tc_egress:2", "neighbour neighbour neighbour"),
        ("neigh_event_send_done:1 consume_skb:2:2 consume_skb:2:2 tc_egress:2", "neighbour neighbour neighbour"),
        ("__udp_enqueue_schedule_skb:1 skb_consume_udp:2 skb_release_data:2", "socket work"),
        ("__udp_enqueue_schedule_skb:1 kfree_skb:1", "work"),
        ("nf_input:1 skb_copy_datagram_iovec:2 consume_skb:2", "socket work"),
        ("nf_input:1 skb_free_head:1", "socket"),
        ("ip_rcv:1 skb_copy_datagram_iter:2 skb_copy_datagram_iovec:2 skb_copy_datagram_iter:2", "socket work socket"),
        ("tcp_queue_rcv:1 tcp_event_data_recv:1 skb_copy_datagram_iter:2", "work socket"),
        ("tcp_data_queue:1 tcp_data_queue_ofo:1 skb_copy_datagram_iter:2", "work out-of-order"),
        ("tcp_v4_rcv:1 tcp_add_backlog:1 tcp_v4_do_rcv:2", "work socket"),
    ],
)  # fmt: skip
def test_waiting_is_told_from_work(hops, expected):
    parts = [(*hop.split(":"), "1")[:3] for hop in hops.split()]
    assert queues(*[(name, int(pid), int(skb)) for name, pid, skb in parts]) == expected.split()
