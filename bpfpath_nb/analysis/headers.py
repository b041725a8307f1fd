"""Headers of many packets at once.

Every packet has up to 128 stored bytes, so all packets together are a matrix, and a header field is a column of it:
where all packets keep a field at the same place it is a slice, where they do not (after VLAN tags, IP options,
extension headers) it is one gather with an offset per row. Depth is bounded, so a fixed number of such steps parses
any number of packets; no packet is looked at alone.

Nothing here can fail. A field that lies beyond the stored bytes reads as absent, and a header that contradicts itself
(wrong version, a header length of nothing) ends the parse of that packet at the layer before.

Layouts: Ethernet and VLAN tags IEEE 802.3/802.1Q, IPv4 RFC 791, IPv6 and its extension headers RFC 8200 and 4302, ARP
RFC 826, ports of UDP RFC 768, TCP RFC 9293, SCTP RFC 9260, DCCP RFC 4340, UDP-Lite RFC 3828.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bpfpath_nb.analysis import names
from bpfpath_nb.schema import LINKS

Bools = npt.NDArray[np.bool_]
Offsets = npt.NDArray[np.intp]

KINDS: Final = {"unknown": 0, "ethernet": 1, "arp": 2, "ip": 3, "ip6": 4}
"""How far a packet's parse came. `ethernet` is any other protocol directly in an Ethernet frame."""

PARSED_DTYPE: Final = np.dtype(
    [
        ("src", "u1", (16,)),  # IPv6 16 bytes; IPv4 and ARP the first 4; other Ethernet frames the first 6
        ("dst", "u1", (16,)),
        ("ethertype", "u2"),
        ("sport", "u2"),  # of ICMP the type and code
        ("dport", "u2"),
        ("outer", "i2"),  # VLAN ids from the outside in, -1 where there is no tag
        ("inner", "i2"),
        ("kind", "u1"),  # a value of KINDS
        ("proto", "u1"),  # IP protocol number; of ARP the operation
        ("ends", "u1"),  # whether sport and dport were there
        ("fragment", "u1"),  # whether this is a fragment after the first
    ]
)

_TAGS = (0x8100, 0x88A8, 0x9100)
_WITH_PORTS = (6, 17, 33, 132, 136)
_ICMP = (1, 58)
_TCP = 6
_TCP_FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR")
# Hop-by-hop, routing, destination options, mobility, HIP, shim6: all have their length in 8-byte units at byte 1.
_OPTIONS = (0, 43, 60, 135, 139, 140)
_FRAGMENT, _AUTHENTICATION = 44, 51
EXTENSIONS: Final = (*_OPTIONS, _FRAGMENT, _AUTHENTICATION)
"""Headers that may stand between that of IPv6 and its payload."""
_ETHERNET = 14
_MOST_EXTENSIONS = 8


class Matrix:
    """The packets' bytes, with reads that know where the stored bytes end."""

    def __init__(self, data: npt.NDArray[np.uint8], caplen: npt.NDArray[Any]) -> None:
        self.data = data
        self.caplen = caplen.astype(np.intp)
        self.rows = np.arange(len(data))

    def has(self, offset: Offsets, size: int) -> Bools:
        return offset + size <= self.caplen

    def u8(self, offset: Offsets) -> npt.NDArray[np.int32]:
        value = self.data[self.rows, offset.clip(max=self.data.shape[1] - 1)].astype(np.int32)
        return np.where(self.has(offset, 1), value, 0)

    def u16(self, offset: Offsets) -> npt.NDArray[np.int32]:
        return (self.u8(offset) << 8) | self.u8(offset + 1)

    def copy(self, rows: Bools, offset: Offsets, size: int, to: npt.NDArray[np.uint8]) -> None:
        """Copy `size` bytes of the chosen rows; all of them must have them."""
        chosen = np.flatnonzero(rows)
        to[chosen, :size] = self.data[chosen[:, None], offset[chosen][:, None] + np.arange(size)]


def parse(facts: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """Parse the headers of all rows of `facts` (schema.FACTS_DTYPE) into rows of PARSED_DTYPE.

    Fields that a packet does not have are zero (VLAN ids -1), so that equal flows are equal bytes.
    """
    return located(facts).parsed


def tcp_flags(facts: npt.NDArray[np.void], rows: npt.NDArray[np.int32]) -> names.Named:
    """The flags in the TCP headers of some rows of `facts`, as `SYN ACK`; none where there is no such header or row."""
    known = np.flatnonzero(rows >= 0)
    found = located(facts[rows[known]])
    parsed, matrix, transport = found.parsed, found.matrix, found.transport
    has = (parsed["proto"] == _TCP) & (parsed["fragment"] == 0) & matrix.has(transport, 14)
    has &= (parsed["kind"] == KINDS["ip"]) | (parsed["kind"] == KINDS["ip6"])
    flags = np.full(len(rows), -1, np.int32)
    flags[known] = np.where(has, matrix.u8(transport + 13), -1)

    def name(bits: int) -> str | None:
        return " ".join(flag for at, flag in enumerate(_TCP_FLAGS) if bits >> at & 1) if bits >= 0 else None

    return names.look_up(flags, name)


@dataclass(frozen=True)
class Unread:
    """Headers that are not parsed, where their few need not be: what stands where an IP header mostly begins.

    Attributes
    ----------
    four, six : arrays of bool
        Whether that may be a header of IPv4, or of IPv6.
    tagged : array of bool
        Whether it may be elsewhere.
    """

    four: Bools
    six: Bools
    tagged: Bools
    _headers: npt.NDArray[np.uint8]
    _network: Offsets

    def at(self, offset: int) -> npt.NDArray[np.uint8]:
        """A byte of the IP header."""
        return np.asarray(self._headers[np.arange(len(self._headers)), self._network + offset])


def unread(facts: npt.NDArray[np.void]) -> Unread:
    """Look at all rows of `facts` without parsing them."""
    headers, frame = facts["headers"], facts["link"] == LINKS["ethernet"]
    network = np.where(frame, _ETHERNET, 0)
    version = headers[np.arange(len(facts)), network] >> 4
    ethertype = headers[:, 12].astype(np.uint16) << 8 | headers[:, 13]
    tagged = frame & ~np.isin(ethertype, (0x0800, 0x86DD, 0x0806))
    return Unread(version == 4, version == 6, tagged, headers, network)


@dataclass(frozen=True)
class Located:
    """Parsed headers, and where they stand.

    Attributes
    ----------
    parsed : structured array of PARSED_DTYPE
    matrix : Matrix
        The bytes.
    network, transport : arrays
        Where these headers begin; `transport` means something for IP packets only.
    """

    parsed: npt.NDArray[np.void]
    matrix: Matrix
    network: Offsets
    transport: Offsets


def located(facts: npt.NDArray[np.void]) -> Located:
    """Parse as `parse` does, and keep where the headers stand."""
    parsed = np.zeros(len(facts), PARSED_DTYPE)
    parsed["outer"] = parsed["inner"] = -1
    matrix = Matrix(np.ascontiguousarray(facts["headers"]), facts["caplen"])
    ethertype, offset = _link(matrix, facts, parsed)
    parsed["ethertype"] = ethertype

    four = (ethertype == 0x0800) & matrix.has(offset, 20) & (matrix.u8(offset) >> 4 == 4)
    four &= (matrix.u8(offset) & 15) >= 5
    six = (ethertype == 0x86DD) & matrix.has(offset, 40) & (matrix.u8(offset) >> 4 == 6)
    _arp(matrix, offset, ethertype == 0x0806, parsed)

    parsed["kind"][four], parsed["kind"][six] = KINDS["ip"], KINDS["ip6"]
    for rows, size, src, dst in ((four, 4, 12, 16), (six, 16, 8, 24)):
        matrix.copy(rows, offset + src, size, parsed["src"])
        matrix.copy(rows, offset + dst, size, parsed["dst"])
    parsed["fragment"][four] = ((matrix.u16(offset + 6) & 0x1FFF) != 0)[four]
    parsed["proto"][four] = matrix.u8(offset + 9)[four]
    transport = offset + np.where(four, (matrix.u8(offset) & 15) * 4, 40)
    _extensions(matrix, six, matrix.u8(offset + 6), transport, parsed)
    _ends(matrix, (four | six) & (parsed["fragment"] == 0), transport, parsed)
    return Located(parsed, matrix, offset, transport)


def _link(
    matrix: Matrix, facts: npt.NDArray[np.void], parsed: npt.NDArray[np.void]
) -> tuple[npt.NDArray[np.int32], Offsets]:
    """Ethertype of each packet and where its network header begins, past the VLAN tags."""
    zero = np.zeros(len(facts), np.intp)
    is_frame = (facts["link"] == LINKS["ethernet"]) & matrix.has(zero, _ETHERNET)
    ethertype = np.where(is_frame, matrix.u16(zero + 12), 0)
    offset = np.where(is_frame, _ETHERNET, 0)
    # The kernel takes the outermost tag off the data and keeps it beside (skb->vlan_tci), so it comes first.
    beside = facts["vlan_tpid"] != 0
    parsed["outer"][beside] = facts["vlan_tci"][beside] & 0xFFF
    for _ in range(3):
        tagged = np.isin(ethertype, _TAGS) & matrix.has(offset, 4)
        if not tagged.any():
            break
        vlan = (matrix.u16(offset) & 0xFFF).astype(np.int16)
        is_outer = tagged & (parsed["outer"] < 0)
        is_inner = tagged & ~is_outer & (parsed["inner"] < 0)
        parsed["outer"][is_outer], parsed["inner"][is_inner] = vlan[is_outer], vlan[is_inner]
        ethertype = np.where(tagged, matrix.u16(offset + 2), ethertype)
        offset = offset + 4 * tagged
    parsed["kind"][is_frame] = KINDS["ethernet"]
    # Addresses of a frame tell something only where no network header does; `parse` and `_arp` write over them.
    plain = is_frame & ~np.isin(ethertype, (0x0800, 0x86DD, 0x0806))
    matrix.copy(plain, zero, 6, parsed["dst"])
    matrix.copy(plain, zero + 6, 6, parsed["src"])
    version = matrix.u8(zero) >> 4
    is_packet = facts["link"] == LINKS["ip"]
    ethertype = np.where(is_packet & (version == 4), 0x0800, np.where(is_packet & (version == 6), 0x86DD, ethertype))
    return ethertype, offset


def _arp(matrix: Matrix, offset: Offsets, rows: Bools, parsed: npt.NDArray[np.void]) -> None:
    # Of Ethernet and IPv4 only: protocol 0x0800, address sizes 6 and 4.
    rows = rows & matrix.has(offset, 28) & (matrix.u16(offset + 2) == 0x0800) & (matrix.u16(offset + 4) == 0x0604)
    parsed["kind"][rows] = KINDS["arp"]
    parsed["proto"][rows] = matrix.u16(offset + 6)[rows].clip(max=255)
    matrix.copy(rows, offset + 14, 4, parsed["src"])
    matrix.copy(rows, offset + 24, 4, parsed["dst"])


def _extensions(
    matrix: Matrix, rows: Bools, following: npt.NDArray[np.int32], offset: Offsets, parsed: npt.NDArray[np.void]
) -> None:
    """Walk over IPv6 extension headers; `offset` is moved, in place, to what comes after them."""
    following = following.copy()
    for header in extension_headers(matrix, rows, following, offset):
        parsed["fragment"][header.later] = 1
        following[header.rows] = header.following[header.rows]
        offset += header.size
    parsed["proto"][rows] = following[rows]


@dataclass(frozen=True)
class ExtensionHeader:
    """The next IPv6 extension header of those packets that have one.

    Attributes
    ----------
    rows, options, fragment, later : arrays of bool
        Which packets have it; of which it is options or routing; of which it is a fragment's; of which it says that
        what follows is no header but the middle of a packet.
    offset, size, following : arrays
        Where it begins, how long it is (0 for the others), and which header follows.
    """

    rows: Bools
    options: Bools
    fragment: Bools
    later: Bools
    offset: Offsets
    size: npt.NDArray[np.int32]
    following: npt.NDArray[np.int32]


def extension_headers(
    matrix: Matrix, rows: Bools, following: npt.NDArray[np.int32], offset: Offsets
) -> Iterator[ExtensionHeader]:
    """Walk over IPv6 extension headers from `offset` on, where the header `following` begins."""
    walking, following, offset = rows.copy(), following.copy(), offset.copy()
    for _ in range(_MOST_EXTENSIONS):
        walking &= matrix.has(offset, 8)
        is_options = walking & np.isin(following, _OPTIONS)
        is_fragment = walking & (following == _FRAGMENT)
        is_authentication = walking & (following == _AUTHENTICATION)
        walking = is_options | is_fragment | is_authentication
        if not walking.any():
            break
        later = is_fragment & (matrix.u16(offset + 2) >> 3 != 0)
        units = matrix.u8(offset + 1)
        size = np.select([is_options, is_fragment, is_authentication], [(units + 1) * 8, 8, (units + 2) * 4], 0)
        following = np.where(walking, matrix.u8(offset), following)
        yield ExtensionHeader(walking.copy(), is_options, is_fragment, later, offset.copy(), size, following)
        offset += size
        walking &= ~later


def _ends(matrix: Matrix, rows: Bools, offset: Offsets, parsed: npt.NDArray[np.void]) -> None:
    has_ports = rows & np.isin(parsed["proto"], _WITH_PORTS) & matrix.has(offset, 4)
    parsed["sport"][has_ports] = matrix.u16(offset)[has_ports]
    parsed["dport"][has_ports] = matrix.u16(offset + 2)[has_ports]
    has_type = rows & np.isin(parsed["proto"], _ICMP) & matrix.has(offset, 2)
    parsed["sport"][has_type] = matrix.u8(offset)[has_type]
    parsed["dport"][has_type] = matrix.u8(offset + 1)[has_type]
    parsed["ends"] = has_ports | has_type
