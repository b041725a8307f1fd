"""Packets byte by byte, for what no ordinary socket would send: a wrong checksum, a foreign source, a stray segment.

Layouts are of RFC 791 (IPv4), RFC 768 (UDP), RFC 9293 (TCP), RFC 792 (ICMP); the checksum is RFC 1071's.
"""

from __future__ import annotations

import socket
import struct

IP, IP6, ARP = 0x0800, 0x86DD, 0x0806
"""Ethertypes."""

FIN, SYN, RST, PSH, ACK, URG = 1, 2, 4, 8, 16, 32
"""Flags of a TCP segment."""

DONT_FRAGMENT, MORE_FRAGMENTS = 0x4000, 0x2000
"""Flags of an IPv4 header, in the same 16 bits as the fragment's offset in units of 8 bytes."""


def checksum(data: bytes) -> int:
    """The ones' complement of the ones' complement sum of 16-bit words.

    >>> hex(checksum(bytes.fromhex("45000073000040004011 0000 c0a80001c0a800c7".replace(" ", ""))))
    '0xb861'
    """
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4(
    src: str,
    dst: str,
    protocol: int,
    payload: bytes,
    *,
    ttl: int = 64,
    ident: int = 1,
    fragment: int = 0,
    version: int = 4,
    bad_checksum: bool = False,
) -> bytes:
    """An IPv4 packet without options; `fragment` holds the flags and the offset."""
    head = struct.pack(
        "!BBHHHBBH4s4s",
        version << 4 | 5,
        0,
        20 + len(payload),
        ident,
        fragment,
        ttl,
        protocol,
        0,
        socket.inet_aton(src),
        socket.inet_aton(dst),
    )
    value = checksum(head) ^ (0x5555 if bad_checksum else 0)
    return head[:10] + struct.pack("!H", value) + head[12:] + payload


def udp(src: str, dst: str, sport: int, dport: int, payload: bytes = b"", *, bad_checksum: bool = False) -> bytes:
    """A UDP datagram, to be carried by IPv4."""
    length = 8 + len(payload)
    head = struct.pack("!HHHH", sport, dport, length, 0)
    value = _with_pseudo_header(src, dst, socket.IPPROTO_UDP, head + payload) or 0xFFFF
    return head[:6] + struct.pack("!H", value ^ (0x5555 if bad_checksum else 0)) + payload


def tcp(
    src: str,
    dst: str,
    sport: int,
    dport: int,
    *,
    seq: int = 0,
    ack: int = 0,
    flags: int = SYN,
    window: int = 65535,
    options: bytes = b"",
    payload: bytes = b"",
    bad_checksum: bool = False,
) -> bytes:
    """A TCP segment, to be carried by IPv4; the options are a multiple of four bytes."""
    words = 5 + len(options) // 4
    numbers = seq & 0xFFFFFFFF, ack & 0xFFFFFFFF
    head = struct.pack("!HHIIBBHHH", sport, dport, *numbers, words << 4, flags, window, 0, 0) + options
    value = _with_pseudo_header(src, dst, socket.IPPROTO_TCP, head + payload)
    return head[:16] + struct.pack("!H", value ^ (0x5555 if bad_checksum else 0)) + head[18:] + payload


def icmp(kind: int, code: int, rest: bytes) -> bytes:
    """An ICMP message; `rest` is what follows the checksum."""
    head = struct.pack("!BBH", kind, code, 0)
    return head[:2] + struct.pack("!H", checksum(head + rest)) + rest


def _with_pseudo_header(src: str, dst: str, protocol: int, segment: bytes) -> int:
    pseudo = socket.inet_aton(src) + socket.inet_aton(dst) + struct.pack("!BBH", 0, protocol, len(segment))
    return checksum(pseudo + segment)
