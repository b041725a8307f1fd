"""A packet's flow, in words.

From the parsed headers of every snapshot to the text that `flow` shows. The same few flows come again and again, so
text is made once for each that differs, and an address is written once.

=======================================  ==================================================================
`udp 10.0.0.1:5000 > 10.0.0.2:53`        protocols with ports; IPv6 as `tcp [fd00::1]:443 > [fd00::2]:1234`
`icmp echo request 10.0.0.1 > 10.0.0.2`  ICMP types that have a name, else `icmp type 13 code 0 ...`
`esp fd00::1 > fd00::2`                  other IP protocols, `ip proto 200 ...` where without a name
`udp fragment 10.0.0.1 > 10.0.0.2`       a fragment after the first, which has no ports
`arp request 10.0.0.1 > 10.0.0.2`        who asks for whom
`lldp 02:..:01 > 01:..:0e`               anything else in an Ethernet frame, `0x1234 ...` without a name
`... vlan 5`, `... vlan 5.7`             tags, from the outside in
=======================================  ==================================================================

What was too short, or contradicts itself, shows what could be told: `udp 10.0.0.1 > 10.0.0.2` without ports, `ip`
without addresses.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bpfpath_nb.analysis.headers import KINDS, PARSED_DTYPE, parse

_PROTOCOLS: Final = {
    0: "hopopt", 1: "icmp", 2: "igmp", 4: "ipip", 6: "tcp", 17: "udp", 33: "dccp", 41: "ip6ip", 43: "ip6 route",
    44: "ip6 frag", 46: "rsvp", 47: "gre", 50: "esp", 51: "ah", 58: "icmp6", 59: "ip6 none", 60: "ip6 opts",
    88: "eigrp", 89: "ospf", 103: "pim", 108: "ipcomp", 112: "vrrp", 115: "l2tp", 132: "sctp", 136: "udplite",
    137: "mpls", 143: "ethernet",
}  # fmt: skip
_ETHERTYPES: Final = {
    0x0800: "ip", 0x0806: "arp", 0x8035: "rarp", 0x86DD: "ip6", 0x8809: "lacp", 0x8847: "mpls", 0x8848: "mpls",
    0x8863: "pppoe", 0x8864: "pppoe", 0x888E: "eapol", 0x88CC: "lldp", 0x88F7: "ptp", 0x8100: "vlan", 0x88A8: "vlan",
}  # fmt: skip
_ICMP: Final = {
    0: "echo reply", 3: "unreachable", 4: "source quench", 5: "redirect", 8: "echo request",
    9: "router advertisement", 10: "router solicitation", 11: "time exceeded", 12: "parameter problem",
}  # fmt: skip
_ICMP6: Final = {
    1: "unreachable", 2: "packet too big", 3: "time exceeded", 4: "parameter problem", 128: "echo request",
    129: "echo reply", 130: "multicast query", 131: "multicast report", 132: "multicast done",
    133: "router solicitation", 134: "router advertisement", 135: "neighbour solicitation",
    136: "neighbour advertisement", 137: "redirect", 143: "multicast report",
}  # fmt: skip
_PORT: Final = "\0"
"""Where a port comes into a text; nothing else in it is this character."""

_ARP: Final = {1: "request", 2: "reply"}


@dataclass(frozen=True)
class Flows:
    """The flow of each snapshot.

    Attributes
    ----------
    which : array
        For each row of the facts the position of its flow in what follows.
    flow, proto, src, dst : lists of str
        For each distinct flow; `src` and `dst` are None where there is no address.
    sport, dport : arrays
        Ports of each distinct flow, -1 where there are none.
    """

    which: npt.NDArray[np.intp]
    flow: list[str]
    proto: list[str]
    src: list[str | None]
    dst: list[str | None]
    sport: npt.NDArray[np.int32]
    dport: npt.NDArray[np.int32]


def flows(facts: npt.NDArray[np.void]) -> Flows:
    """Name the flow of each row of `facts` (schema.FACTS_DTYPE)."""
    which, distinct = _distinct(parse(facts))
    has_ports = (distinct["ends"] == 1) & ~np.isin(distinct["proto"], (1, 58))
    sport, dport = (np.where(has_ports, distinct[name].astype(np.int32), -1) for name in ("sport", "dport"))
    # Most flows differ in their ports only, which are put into a text that is made once for all of them.
    portless = distinct.copy()
    for name in ("sport", "dport"):
        portless[name][has_ports] = 0
    alike, kinds = _distinct(portless)
    named = [_name(row) for row in kinds]
    parts = [(*flow.split(_PORT), "", "")[:3] for flow, _, _, _ in named]
    flow = [
        f"{parts[at][0]}{source}{parts[at][1]}{target}{parts[at][2]}" if source >= 0 else parts[at][0]
        for at, source, target in zip(alike.tolist(), sport.tolist(), dport.tolist(), strict=True)
    ]
    proto, src, dst = ([named[at][place] for at in alike.tolist()] for place in (1, 2, 3))
    return Flows(which, flow, proto, src, dst, sport, dport)


def _distinct(parsed: npt.NDArray[np.void]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.void]]:
    """For each row the position of its like in what follows, and the rows that differ."""
    # Arrow tells equal rows apart by hashing their bytes, which is exact and several times faster than sorting them.
    width = PARSED_DTYPE.itemsize
    rows = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(parsed), [None, pa.py_buffer(parsed)])
    encoded = rows.dictionary_encode()
    which = encoded.indices.to_numpy().astype(np.intp)
    return which, np.frombuffer(b"".join(encoded.dictionary.to_pylist()), PARSED_DTYPE)


def _name(row: Any) -> tuple[str, str, str | None, str | None]:
    kind, proto_number = int(row["kind"]), int(row["proto"])
    if kind == KINDS["unknown"] or (kind == KINDS["ethernet"] and int(row["ethertype"]) in (0x0800, 0x86DD, 0x0806)):
        proto = _ETHERTYPES.get(int(row["ethertype"]), "unknown")
        return proto + _vlan(row), proto, None, None
    if kind == KINDS["ethernet"]:
        number = int(row["ethertype"])
        # Below 1536 it is no protocol but the frame's length (IEEE 802.3), and an LLC header follows.
        proto = "llc" if number < 0x600 else _ETHERTYPES.get(number, f"{number:#06x}")
        src, dst = (bytes(row[end][:6]).hex(":") for end in ("src", "dst"))
        return f"{proto} {src} > {dst}{_vlan(row)}", proto, src, dst
    if kind == KINDS["arp"]:
        src, dst = _address(bytes(row["src"][:4])), _address(bytes(row["dst"][:4]))
        what = _ARP.get(proto_number, f"operation {proto_number}")
        return f"arp {what} {src} > {dst}{_vlan(row)}", "arp", src, dst
    size = 16 if kind == KINDS["ip6"] else 4
    src, dst = _address(bytes(row["src"][:size])), _address(bytes(row["dst"][:size]))
    proto = _PROTOCOLS.get(proto_number, f"ip proto {proto_number}")
    what, ends = proto, f"{src} > {dst}"
    if row["fragment"]:
        what = f"{proto} fragment"
    elif row["ends"] and proto_number in (1, 58):
        what = f"{proto} {_icmp(proto_number, int(row['sport']), int(row['dport']))}"
    elif row["ends"]:
        ends = f"[{src}]:{_PORT} > [{dst}]:{_PORT}" if size == 16 else f"{src}:{_PORT} > {dst}:{_PORT}"
    return f"{what} {ends}{_vlan(row)}", proto, src, dst


def _icmp(proto: int, kind: int, code: int) -> str:
    return (_ICMP if proto == 1 else _ICMP6).get(kind, f"type {kind} code {code}")


def _vlan(row: Any) -> str:
    if row["outer"] < 0:
        return ""
    return f" vlan {row['outer']}" + (f".{row['inner']}" if row["inner"] >= 0 else "")


@lru_cache(maxsize=1 << 16)
def _address(packed: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET6 if len(packed) == 16 else socket.AF_INET, packed)
