"""The frames: columns, order, and what becomes of packets; also against the plain pandas way of saying it."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import (
    CLONE,
    EMPTY,
    END,
    ENTRY,
    FUNCTIONS,
    HOOK,
    INDEX,
    KILLED,
    KINDS,
    LAST,
    MONOTONIC,
    PARTS,
    RAW_READ,
    REALTIME,
    ROUTER,
    TAP,
    TAP_READ,
    TCP_CLOSE,
    TCP_RCV,
    UDP_RCV,
    VERDICT,
    capture,
    facts_row,
    hop,
    of_hops,
    start_record,
    tcp_frame,
    udp_frame,
)

from bpfpath_nb import schema
from bpfpath_nb.analysis.events import Collector, Events, hop_order
from bpfpath_nb.analysis.sequences import distinct
from bpfpath_nb.recording import Recording, RecordingViews
from bpfpath_nb.schema import EVENT_DTYPE, EVENT_FLAGS
from bpfpath_nb.stream import Reader

SYN, ACK, FIN_ACK = 2, 16, 17
ESTABLISHED, TIME_WAIT = 1, 6


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


def test_each_kind_of_packet_gets_its_verdict():
    made = capture(300, seed=7)
    packets = made.recording().packets
    assert packets["verdict"].tolist() == [VERDICT[kind] for kind in made.kinds]
    reasons = {"filtered": ("NETFILTER_DROP", "nf_hook_slow"), "closed": ("NO_SOCKET", "__udp4_lib_rcv")}
    for kind in KINDS:
        of_kind = packets[made.kinds == kind]
        reason, where = reasons.get(kind, (None, None))
        if reason:
            assert set(of_kind["reason"]) == {reason}
            assert set(of_kind["where"]) == {where}
        else:
            assert of_kind["reason"].isna().all()


@pytest.mark.parametrize(
    ("hops", "verdict", "where"),
    [
        ([hop("kfree_skb", ENTRY | END | LAST, reason=2)], "dropped", "kfree_skb"),
        ([hop("kfree_skb", ENTRY | END, reason=2), hop("ip_rcv.isra.0")], "dropped", "kfree_skb"),
        ([hop("kfree_skb", ENTRY | END | LAST, reason=1)], "consumed", "kfree_skb"),
        ([hop("kfree_skb", ENTRY, reason=3)], "unfinished", "kfree_skb"),
        ([hop("consume_skb", ENTRY | END), hop("ip_rcv.isra.0")], "unfinished", "ip_rcv"),
        ([hop("consume_skb", ENTRY | END | LAST), hop("ip_rcv.isra.0")], "consumed", "consume_skb"),
        ([hop("net_dev_start_xmit", ENTRY), hop("consume_skb", END)], "sent", "net_dev_start_xmit"),
        ([hop("net_dev_start_xmit", ENTRY)], "unfinished", "net_dev_start_xmit"),
        ([hop("net_dev_start_xmit"), hop("netif_rx"), hop("consume_skb", END)], "consumed", "consume_skb"),
        ([hop("skb_copy_datagram_iovec"), hop("kfree_skb", END, reason=3)], "delivered", "skb_copy_datagram_iovec"),
        ([hop("consume_skb", END | LAST, location=UDP_RCV)], "delivered", "__udp4_lib_rcv"),
    ],
)  # fmt: skip
def test_the_rules_of_the_verdict(hops, verdict, where):
    packet = of_hops(*hops, readers=["__udp4_lib_rcv"]).packets.loc[1]
    assert (packet["verdict"], packet["where"]) == (verdict, where)


B = 0xFFFF888000000100
TCP_FUNCTIONS = [*FUNCTIONS, {"name": "tcp_retransmit_skb", "layer": "transport", "probe": "kprobe"}]


def of_b(name: str, flags: int = 0, **fields: int) -> dict[str, int]:
    return hop(name, flags | CLONE, skb=B, **fields)


SEEN = [hop("netif_receive_skb", ENTRY), of_b("netif_receive_skb")]
OTHERHOST = of_b("kfree_skb", END, reason=9)
READ_B = of_b("skb_copy_datagram_iovec")
TAPPED = of_b("consume_skb", END, location=TAP)
FILTERED = hop("kfree_skb", END | LAST, reason=8, location=HOOK)


@pytest.mark.parametrize(
    ("hops", "verdict", "where"),
    [
        pytest.param([*SEEN, OTHERHOST], "unfinished", "kfree_skb", id="flooded, the target's waits"),
        pytest.param([OTHERHOST, *SEEN[:1], hop("consume_skb", END)], "consumed", "consume_skb", id="target used it"),
        pytest.param([*SEEN, hop("consume_skb", END), OTHERHOST], "consumed", "consume_skb", id="bystander's end last"),
        pytest.param(
            [*SEEN, hop("skb_copy_datagram_iovec", CLONE), OTHERHOST], "delivered", "skb_copy_datagram_iovec", id="read"
        ),
        pytest.param(
            [*SEEN, hop("net_dev_start_xmit"), hop("consume_skb", END), OTHERHOST], "sent", "net_dev_start_xmit",
            id="sent on by the target",
        ),
        pytest.param(
            [hop("net_dev_start_xmit"), of_b("net_dev_start_xmit"), of_b("netif_rx"), hop("consume_skb", END)],
            "unfinished", "consume_skb", id="sent through one port, waits at the other",
        ),
        pytest.param([hop("kfree_skb", END | LAST, reason=9)], "dropped", "kfree_skb", id="alone, for another host"),
        pytest.param([*SEEN, hop("kfree_skb", END, reason=9), OTHERHOST], "dropped", "kfree_skb", id="for nobody here"),
        pytest.param([*SEEN, TAPPED, hop("kfree_skb", END, reason=9)], "dropped", "kfree_skb", id="tap saw another's"),
        pytest.param([*SEEN, TAPPED, FILTERED], "dropped", "nf_hook_slow", id="a tap saw what was filtered"),
        pytest.param([*SEEN, FILTERED, TAPPED], "dropped", "nf_hook_slow", id="the tap's end comes later"),
        pytest.param([*SEEN, TAPPED], "unfinished", "packet_rcv", id="tapped, and waits"),
        pytest.param(
            [*SEEN, hop("skb_copy_datagram_iovec", CLONE), of_b("kfree_skb", END, location=TAP)],
            "delivered", "skb_copy_datagram_iovec", id="the tap is full, and the kernel gives no reason",
        ),
        pytest.param(
            [*SEEN, hop("kfree_skb", END, reason=8), READ_B, of_b("consume_skb", END)],
            "dropped", "kfree_skb", id="a packet socket read what was dropped",
        ),
        pytest.param(
            [*SEEN, hop("kfree_skb", END, reason=8), READ_B, of_b("consume_skb", END, location=TAP_READ)],
            "dropped", "kfree_skb", id="the same, and its end tells",
        ),
        pytest.param(
            [*SEEN, hop("kfree_skb", END, reason=3), READ_B, of_b("consume_skb", END, location=RAW_READ)],
            "delivered", "raw_recvmsg", id="ping reads a clone, the rest finds no socket",
        ),
        pytest.param([*SEEN, of_b("kfree_skb", END, reason=8)], "unfinished", "kfree_skb", id="one of two is dropped"),
        pytest.param(
            [*SEEN, of_b("kfree_skb", END, reason=8), hop("consume_skb", END)], "dropped", "kfree_skb", id="both ended"
        ),
        pytest.param(
            [{"func": len(FUNCTIONS)}, of_b("net_dev_start_xmit"), of_b("consume_skb", END)], "sent",
            "net_dev_start_xmit", id="TCP keeps it until it is acknowledged",
        ),
        pytest.param([{"func": len(FUNCTIONS)}], "unfinished", "tcp_retransmit_skb", id="only what TCP keeps was seen"),
        pytest.param(
            [*SEEN, TAPPED, of_b("netif_rx"), hop("consume_skb", END)], "unfinished", "consume_skb",
            id="the address of the tap's copy is used again",
        ),
    ],
)  # fmt: skip
def test_the_copies_of_a_packet_have_one_verdict(hops, verdict, where):
    made = of_hops(*hops, functions=TCP_FUNCTIONS, readers=["packet_recvmsg", "raw_recvmsg"])
    packet = made.packets.loc[1]
    assert (packet["verdict"], packet["where"]) == (verdict, where)
    assert pd.isna(packet["reason"]) == (verdict != "dropped")


def test_of_some_namespaces_a_copy_that_left_them_is_sent():
    hops = [*SEEN, hop("net_dev_start_xmit"), TAPPED]
    for namespaces, verdict in ((None, "unfinished"), (["client"], "sent")):
        assert of_hops(*hops, options={"namespaces": namespaces}).packets.loc[1, "verdict"] == verdict


def test_a_packet_of_which_only_the_reading_was_told_is_delivered():
    made = capture(70, seed=9)
    waiting = (np.flatnonzero(made.kinds == "waiting") + 1).tolist()
    filtered = (np.flatnonzero(made.kinds == "filtered") + 1).tolist()
    made.reads = (*waiting[:3], *filtered[:1])
    verdict = made.recording().packets["verdict"]
    assert set(verdict[waiting[:3]]) == {"delivered"}
    assert set(verdict[waiting[3:]]) == {"unfinished"}
    assert set(verdict[filtered]) == {"dropped"}


@pytest.mark.parametrize(("length", "verdict"), [(0, "consumed"), (20, "dropped")])
def test_what_a_closed_stream_socket_purges_is_lost_only_if_it_has_data(length, verdict):
    end = hop("kfree_skb", ENTRY | END | LAST, reason=2, location=KILLED, len=length)
    assert of_hops(end).packets.loc[1, "verdict"] == verdict


@pytest.mark.parametrize(
    ("flags", "payload", "state", "verdict"),
    [
        (FIN_ACK, 0, TIME_WAIT, "consumed"), (FIN_ACK, 0, ESTABLISHED, "dropped"), (FIN_ACK, 9, TIME_WAIT, "dropped"),
        (SYN, 0, TIME_WAIT, "dropped"), (ACK, 0, TIME_WAIT, "consumed"),
    ],
)  # fmt: skip
def test_a_segment_without_data_for_a_connection_that_ended_was_used(flags, payload, state, verdict):
    end = hop("kfree_skb", ENTRY | END | LAST, reason=2, location=TCP_RCV)
    recording = of_hops(end, facts=facts_row(tcp_frame(flags, payload)), tcp_state=state)
    assert recording.packets.loc[1, "verdict"] == verdict


def test_a_segment_that_is_dropped_for_a_reason_was_not_used():
    end = hop("kfree_skb", ENTRY | END | LAST, reason=8, location=TCP_RCV)
    recording = of_hops(end, facts=facts_row(tcp_frame(FIN_ACK)), tcp_state=TIME_WAIT)
    assert recording.packets.loc[1, ["verdict", "reason"]].tolist() == ["dropped", "NETFILTER_DROP"]


@pytest.mark.parametrize(("payload", "verdict"), [(0, "consumed"), (9, "dropped")])
def test_data_that_nobody_read_is_lost_with_its_socket(payload, verdict):
    end = hop("consume_skb", ENTRY | END | LAST, location=TCP_CLOSE, len=20 + payload)
    recording = of_hops(end, facts=facts_row(tcp_frame(FIN_ACK, payload)))
    assert recording.packets.loc[1, ["verdict", "where"]].tolist() == [verdict, "__tcp_close"]
    assert recording.drops["advice"].str.contains("closed its socket").tolist() == [True] * len(recording.drops)
    assert len(recording.drops) == (verdict == "dropped")


@pytest.mark.parametrize(
    ("whole", "verdict"),
    [(hop("consume_skb", END), "consumed"), (hop("kfree_skb", END, reason=8, location=HOOK), "dropped")],
)
def test_fragments_share_the_fate_of_their_whole(whole, verdict):
    part = hop("kfree_skb", END | LAST, reason=2, location=PARTS)
    arrived = [hop("netif_rx", ENTRY, packet=packet, skb=packet) for packet in (1, 2, 3)]
    other = hop("kfree_skb", ENTRY | END | LAST, reason=8, packet=4, skb=4, cpu=1)
    ends = [whole | {"packet": 2, "skb": 2}, other, *(part | {"packet": packet, "skb": packet} for packet in (1, 3))]
    packets = of_hops(*arrived, *ends).packets
    assert packets["verdict"].tolist() == [verdict, verdict, verdict, "dropped"]


def test_fragments_whose_whole_was_not_seen_are_not_called_dropped():
    end = hop("kfree_skb", ENTRY | END | LAST, reason=2, location=PARTS)
    assert of_hops(end).packets.loc[1, "verdict"] == "consumed"


def test_what_was_merged_ends_there_unless_it_goes_on():
    merged = hop("consume_skb", END | EVENT_FLAGS["merged"], location=7)
    freed = hop("kfree_skb", END | LAST, reason=8, location=HOOK)
    ended = of_hops(hop("netif_rx", ENTRY), merged, freed)
    went_on = of_hops(hop("netif_rx", ENTRY), merged, hop("netif_receive_skb"), freed)
    assert ended.packets.loc[1, ["verdict", "where", "merged_into"]].tolist() == ["consumed", "consume_skb", 7]
    assert went_on.packets.loc[1, ["verdict", "where", "merged_into"]].tolist() == ["dropped", "nf_hook_slow", 7]
    assert (len(ended.drops), len(went_on.drops)) == (0, 1)
    over = of_hops(hop("net_dev_start_xmit", ENTRY), merged)
    assert over.packets.loc[1, "verdict"] == "consumed", "a driver received it, even where that is not seen"
    assert "merged into packet 7" in ended.text()
    assert ended.redact().packets.loc[1, "merged_into"] == 7


@pytest.mark.parametrize("number", [0, 1 << 40])
def test_what_it_was_merged_into_may_not_be_known(number):
    merged = hop("consume_skb", END | EVENT_FLAGS["merged"], location=number)
    packet = of_hops(hop("netif_rx", ENTRY), merged).packets.loc[1]
    assert pd.isna(packet["merged_into"])
    assert packet["verdict"] == "consumed"


def test_kernels_without_reasons_drop_all_the_same():
    packet = of_hops(hop("kfree_skb", ENTRY | END | LAST, reason=0), reasons={}).packets.loc[1]
    assert packet["verdict"] == "dropped"
    assert pd.isna(packet["reason"])


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
