"""Packets that the lab writes byte by byte are as their standards have them."""

from __future__ import annotations

import struct

import pytest

from bpfpath_nb.filter import Filter
from bpfpath_nb.lab import wire

SRC, DST = "192.0.2.1", "198.51.100.7"


def test_checksum_of_a_known_header() -> None:
    assert wire.checksum(bytes.fromhex("450000730000400040110000c0a80001c0a800c7")) == 0xB861


@pytest.mark.parametrize("payload", [b"", b"odd", b"even"])
@pytest.mark.parametrize(("protocol", "build"), [(17, wire.udp), (6, wire.tcp)])
def test_checksums_add_up_with_the_header_that_they_cover(protocol: int, build, payload: bytes) -> None:
    segment = build(SRC, DST, 4000, 53, payload=payload)
    packet = wire.ipv4(SRC, DST, protocol, segment)

    assert wire.checksum(packet[:20]) == 0
    assert wire.checksum(packet[12:20] + struct.pack("!HH", protocol, len(segment)) + segment) == 0


def test_a_bad_checksum_is_bad() -> None:
    packet = wire.ipv4(SRC, DST, 17, wire.udp(SRC, DST, 4000, 53, bad_checksum=True), bad_checksum=True)

    assert wire.checksum(packet[:20]) != 0
    assert packet[26:28] != wire.udp(SRC, DST, 4000, 53)[6:8]


def test_a_filter_reads_what_was_written() -> None:
    frame = bytes(12) + b"\x08\x00" + wire.ipv4(SRC, DST, 6, wire.tcp(SRC, DST, 4000, 80, flags=wire.SYN), ttl=3)

    assert Filter("src host 192.0.2.1 and dst port 80 and tcp[tcpflags] == tcp-syn and ip[8] == 3").matches(frame)
