"""Headers and flows: packets of every kind, cut at every length, and a second parser to agree with."""

from __future__ import annotations

import ipaddress
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import facts_row, udp_frame

from bpfpath_nb.analysis.flows import flows
from bpfpath_nb.schema import FACTS_DTYPE

MACS = bytes.fromhex("020000000002") + bytes.fromhex("020000000001")


def ethernet(ethertype: int, payload: bytes, *tags: tuple[int, int]) -> bytes:
    head = MACS + b"".join(struct.pack("!HH", tpid, tci) for tpid, tci in tags)
    return head + struct.pack("!H", ethertype) + payload


def ip4(proto: int, payload: bytes, fragment: int = 0, options: bytes = b"") -> bytes:
    words = 5 + len(options) // 4
    head = struct.pack("!BBHHHBBH", 0x40 | words, 0, words * 4 + len(payload), 1, fragment, 64, proto, 0)
    return head + bytes([10, 0, 0, 1, 10, 0, 0, 2]) + options + payload


def ip6(following: int, payload: bytes) -> bytes:
    ends = ipaddress.ip_address("fd00::1").packed + ipaddress.ip_address("fd00::2").packed
    return struct.pack("!IHBB", 6 << 28, len(payload), following, 64) + ends + payload


def option6(following: int, units: int = 0) -> bytes:
    return bytes([following, units]) + bytes(6 + 8 * units)


def fragment6(following: int, offset: int) -> bytes:
    return struct.pack("!BBHI", following, 0, offset << 3, 7)


PORTS = struct.pack("!HHHH", 5000, 53, 8, 0)
ARP = struct.pack("!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 1, MACS[6:], bytes([10, 0, 0, 1]), bytes(6), bytes([10, 0, 0, 2]))

CASES = {
    "udp 10.0.0.1:5000 > 10.0.0.2:53": ethernet(0x0800, ip4(17, PORTS)),
    "tcp 10.0.0.1:5000 > 10.0.0.2:53": ethernet(0x0800, ip4(6, PORTS, options=bytes(40))),
    "sctp 10.0.0.1:5000 > 10.0.0.2:53": ethernet(0x0800, ip4(132, PORTS, fragment=0x2000)),
    "udp fragment 10.0.0.1 > 10.0.0.2": ethernet(0x0800, ip4(17, PORTS, fragment=0x0001)),
    "icmp echo request 10.0.0.1 > 10.0.0.2": ethernet(0x0800, ip4(1, bytes([8, 0]))),
    "icmp type 13 code 2 10.0.0.1 > 10.0.0.2": ethernet(0x0800, ip4(1, bytes([13, 2]))),
    "esp 10.0.0.1 > 10.0.0.2": ethernet(0x0800, ip4(50, PORTS)),
    "ip proto 200 10.0.0.1 > 10.0.0.2": ethernet(0x0800, ip4(200, PORTS)),
    "tcp [fd00::1]:5000 > [fd00::2]:53": ethernet(0x86DD, ip6(6, PORTS)),
    "dccp [fd00::1]:5000 > [fd00::2]:53": ethernet(
        0x86DD, ip6(0, option6(60) + option6(51, 1) + bytes([33, 2]) + bytes(14) + PORTS)
    ),
    "udp [fd00::1]:5000 > [fd00::2]:53": ethernet(0x86DD, ip6(44, fragment6(17, 0) + PORTS)),
    "udp fragment fd00::1 > fd00::2": ethernet(0x86DD, ip6(0, option6(44) + fragment6(17, 5) + PORTS)),
    "icmp6 neighbour solicitation fd00::1 > fd00::2": ethernet(0x86DD, ip6(58, bytes([135, 0]))),
    "ip6 none fd00::1 > fd00::2": ethernet(0x86DD, ip6(59, b"")),
    "arp request 10.0.0.1 > 10.0.0.2": ethernet(0x0806, ARP),
    "arp": ethernet(0x0806, ARP[:27]),
    "lldp 02:00:00:00:00:01 > 02:00:00:00:00:02": ethernet(0x88CC, b""),
    "0x1234 02:00:00:00:00:01 > 02:00:00:00:00:02": ethernet(0x1234, b""),
    "llc 02:00:00:00:00:01 > 02:00:00:00:00:02": ethernet(0x0026, b""),
    "udp 10.0.0.1:5000 > 10.0.0.2:53 vlan 5": ethernet(0x0800, ip4(17, PORTS), (0x8100, 0xE005)),
    "udp 10.0.0.1:5000 > 10.0.0.2:53 vlan 6.7": ethernet(0x0800, ip4(17, PORTS), (0x88A8, 6), (0x8100, 7)),
    "udp 10.0.0.1 > 10.0.0.2": ethernet(0x0800, ip4(17, PORTS[:3])),
    "ip": ethernet(0x0800, ip4(17, PORTS)[:19]),
    "ip6": ethernet(0x86DD, ip6(17, b"")[:39]),
    "unknown": MACS,
}


def name(*rows: np.ndarray) -> list[str]:
    named = flows(np.concatenate([np.empty(0, FACTS_DTYPE), *rows]))
    return [named.flow[at] for at in named.which]


def test_every_kind_of_packet_is_named():
    assert name(*map(facts_row, CASES.values())) == list(CASES)


def test_a_tag_beside_the_data_is_the_outer_one():
    frame = ethernet(0x0800, ip4(17, PORTS), (0x8100, 7))
    assert name(facts_row(frame, vlan_tpid=0x8100, vlan_tci=0x2006)) == ["udp 10.0.0.1:5000 > 10.0.0.2:53 vlan 6.7"]


@pytest.mark.parametrize(
    ("packet", "flow"),
    [
        (ip4(17, PORTS), "udp 10.0.0.1:5000 > 10.0.0.2:53"),
        (ip6(17, PORTS), "udp [fd00::1]:5000 > [fd00::2]:53"),
        (b"\x40" + ip4(17, PORTS)[1:], "ip"),  # a header length of nothing
        (b"\x75" + ip4(17, PORTS)[1:], "unknown"),
    ],
)
def test_a_packet_may_begin_with_its_ip_header(packet, flow):
    assert name(facts_row(packet, link=101)) == [flow]


def test_other_links_are_not_guessed_at():
    assert name(facts_row(ip4(17, PORTS), link=113)) == ["unknown"]


def test_the_ends_of_a_flow_are_columns_of_their_own():
    named = flows(np.concatenate([facts_row(CASES[flow]) for flow in list(CASES)[:5]] + [facts_row(MACS)]))
    assert named.proto[:3] == ["udp", "tcp", "sctp"]
    assert named.sport.tolist() == [5000, 5000, 5000, -1, -1, -1]
    assert named.dport.tolist() == [53, 53, 53, -1, -1, -1]
    assert named.src == ["10.0.0.1"] * 5 + [None]
    assert named.dst == ["10.0.0.2"] * 5 + [None]


def test_equal_flows_are_one():
    named = flows(np.concatenate([facts_row(udp_frame(1, 2, payload=size)) for size in range(20)]))
    assert named.flow == ["udp 10.0.1.2:1 > 10.0.2.2:2"]


def test_no_packets_have_no_flows():
    named = flows(np.empty(0, FACTS_DTYPE))
    assert (len(named.which), named.flow, len(named.sport)) == (0, [], 0)


def plainly(data: bytes) -> str | None:
    """The flow of an untagged IP packet, parsed alone in the most obvious way; None for what that leaves out."""
    if len(data) < 14 or data[12:14] not in (b"\x08\x00", b"\x86\xdd"):
        return None
    packet = data[14:]
    if data[12:14] == b"\x08\x00":
        if len(packet) < 20 or packet[0] >> 4 != 4 or packet[0] & 15 < 5:
            return "ip"
        proto, src, dst = packet[9], packet[12:16], packet[16:20]
        later = (packet[6] << 8 | packet[7]) & 0x1FFF
        rest = packet[(packet[0] & 15) * 4 :]
    else:
        if len(packet) < 40 or packet[0] >> 4 != 6:
            return "ip6"
        proto, src, dst, later, rest = packet[6], packet[8:24], packet[24:40], 0, packet[40:]
        for _ in range(8):
            if proto not in (0, 43, 44, 51, 60, 135, 139, 140) or len(rest) < 8:
                break
            later = (rest[2] << 8 | rest[3]) >> 3 if proto == 44 else 0
            size = 8 if proto == 44 else (rest[1] + 2) * 4 if proto == 51 else (rest[1] + 1) * 8
            proto, rest = rest[0], rest[size:]
            if later:
                break
    src, dst = (str(ipaddress.ip_address(bytes(end))) for end in (src, dst))
    protocol = {6: "tcp", 17: "udp", 33: "dccp", 132: "sctp"}.get(proto)
    if protocol is None:
        return None
    if later:
        return f"{protocol} fragment {src} > {dst}"
    if len(rest) < 4:
        return f"{protocol} {src} > {dst}"
    sport, dport = struct.unpack("!HH", rest[:4])
    return (
        f"{protocol} [{src}]:{sport} > [{dst}]:{dport}" if ":" in src else f"{protocol} {src}:{sport} > {dst}:{dport}"
    )


@settings(derandomize=True, max_examples=600, deadline=None)
@given(
    st.sampled_from([frame for flow, frame in CASES.items() if "vlan" not in flow]),
    st.lists(st.tuples(st.integers(14, 127), st.integers(0, 255)), max_size=6),
    st.integers(0, 128),
)
def test_both_parsers_agree_on_packets_that_were_cut_and_changed(frame, changes, size):
    data = bytearray(frame.ljust(128, b"\x01")[:size])
    for at, value in changes:
        if at < len(data):
            data[at] = value
    expected = plainly(bytes(data))
    (flow,) = name(facts_row(bytes(data)))
    assert expected is None or flow == expected
    assert len(flow) < 200


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=128), max_size=8), st.sampled_from([0, 1, 101]), st.integers(0, 0xFFFF))
def test_any_bytes_have_a_name_that_does_not_depend_on_their_neighbours(packets, link, tpid):
    rows = [facts_row(data, link=link, vlan_tpid=tpid, vlan_tci=tpid) for data in packets]
    assert name(*rows) == [name(row)[0] for row in rows]
