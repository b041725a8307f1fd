"""What becomes of packets: the rules of the verdict, one by one."""

from __future__ import annotations

import struct

import numpy as np
import pandas as pd
import pytest
from streams import (
    CLONE,
    END,
    ENTRY,
    FUNCTIONS,
    HOOK,
    KILLED,
    KINDS,
    LAST,
    PARTS,
    RAW_READ,
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
    tcp_frame,
)

from bpfpath_nb import Recording
from bpfpath_nb.schema import EVENT_FLAGS

SYN, ACK, FIN_ACK = 2, 16, 17
ESTABLISHED, TIME_WAIT = 1, 6


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


def fragment(offset: int, size: int, *, more: bool, ident: int = 7) -> bytes:
    """One of the fragments of a UDP datagram between two hosts."""
    flags = offset // 8 | more << 13
    ends = bytes((10, 0, 0, 1, 10, 0, 0, 2))
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + size, ident, flags, 64, 17, 0) + ends + bytes(100)


def of_fragments(*packets: bytes, whole: list[int], last: int = 5) -> Recording:
    """Fragments as packets 1, 2, ... that were collected one after another, and hops of the first at these lengths."""
    collected = [hop("ip_rcv.isra.0", ENTRY, packet=n, skb=n) for n in range(1, len(packets) + 1)]
    on = [hop("ip_rcv.isra.0", packet=1, skb=last, len=length) for length in whole]
    facts = np.concatenate([facts_row(data, packet=n, link=101) for n, data in enumerate(packets, 1)])
    return of_hops(*collected, *on, facts=facts)


def test_fragments_end_in_the_first_of_them_where_they_came_together():
    """Where their data lie in pages, nobody tells what becomes of them."""
    parts = [fragment(0, 1480, more=True), fragment(1480, 1480, more=True), fragment(2960, 100, more=False)]
    together = of_fragments(*parts, whole=[1500, 3080]).packets
    apart = of_fragments(*parts, whole=[1500, 1500]).packets
    assert together["verdict"].tolist() == ["unfinished", "consumed", "consumed"]
    assert together["merged_into"].tolist() == [pd.NA, 1, 1]
    assert apart["verdict"].tolist() == ["unfinished"] * 3
    assert apart["merged_into"].isna().all()


def test_a_fragment_of_another_packet_or_that_came_too_late_is_part_of_none():
    parts = [fragment(0, 1480, more=True), fragment(1480, 8, more=False), fragment(1480, 8, more=False, ident=8)]
    packets = of_fragments(*parts, whole=[1508]).packets
    assert packets["merged_into"].tolist() == [pd.NA, 1, pd.NA]
    late = of_hops(
        hop("ip_rcv.isra.0", ENTRY), hop("ip_rcv.isra.0", len=1508),
        hop("ip_rcv.isra.0", ENTRY, packet=2, skb=2),
        facts=np.concatenate([facts_row(parts[0], link=101), facts_row(parts[1], packet=2, link=101)]),
    ).packets  # fmt: skip
    assert late["verdict"].tolist() == ["unfinished"] * 2
