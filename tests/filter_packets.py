"""Packets that filters are asked about: any that are put together of what the filters know, and some witnesses.

Values come from small pools that the expressions know, so that both answers are frequent.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

MACS = st.sampled_from(
    [bytes.fromhex(mac) for mac in ("020000000001", "020000000002", "ffffffffffff", "01005e000001", "333300000001")]
)
IPV4 = st.sampled_from([socket.inet_aton(a) for a in ("10.0.0.1", "10.0.0.2", "10.3.0.9", "192.168.1.1", "224.0.0.5")])
IPV6 = st.sampled_from(
    [
        socket.inet_pton(socket.AF_INET6, a)
        for a in ("2001:db8::1", "2001:db8::2", "2001:db8:3::9", "fe80::1", "ff02::1")
    ]
)
PORTS = st.sampled_from([53, 80, 443, 54, 88, 1000, 40000]).map(lambda port: port.to_bytes(2, "big"))
TEXT = st.sampled_from([b"", b"GET / HTTP/1.1\r\n\r\na", b"\0" * 30, b"a" * 64, bytes(range(256)), b"\x01"])
BYTE = st.integers(0, 255).map(lambda n: bytes([n]))
HALF = st.sampled_from([0, 1, 5, 20, 28, 40, 64, 100, 600, 0x8000, 0xFFFF]).map(lambda n: n.to_bytes(2, "big"))


def joined(*parts: bytes | st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.tuples(*(st.just(part) if isinstance(part, bytes) else part for part in parts)).map(b"".join)


def udp(payload: st.SearchStrategy[bytes] = TEXT) -> st.SearchStrategy[bytes]:
    def build(source: bytes, target: bytes, payload: bytes) -> bytes:
        return source + target + (8 + len(payload)).to_bytes(2, "big") + b"\0\0" + payload

    return st.builds(build, PORTS, PORTS, payload)


@st.composite
def tcp(draw: st.DrawFn) -> bytes:
    options = draw(st.integers(0, 10)) * 4
    offset = draw(st.sampled_from([(20 + options) // 4, (20 + options) // 4, 5, 0, 15])) << 4
    flags = draw(st.sampled_from([2, 0x12, 0x10, 0x18, 0x11, 4, 0]))
    head = draw(PORTS) + draw(PORTS) + bytes(8) + bytes([offset, flags]) + bytes(6)
    return head + b"\1" * options + draw(TEXT)


ICMP = joined(st.sampled_from([b"\0", b"\x08", b"\x03", b"\x0b"]), st.sampled_from([b"\0", b"\1"]), bytes(6), TEXT)
ICMP6 = joined(st.sampled_from([b"\x87", b"\x88", b"\x80", b"\x01"]), bytes(7), IPV6)

GENEVE = joined(
    b"\xd4\x31\x17\xc1\0\x40\0\0",
    st.sampled_from([b"\0\0", b"\x01\0", b"\x3f\0"]),
    st.sampled_from([b"\x08\x00", b"\x65\x58", b"\x86\xdd"]),
    st.sampled_from([b"\0\0\x05\0", b"\0\0\x06\0"]),
    st.sampled_from([b"", bytes(4)]),
)

ABOVE_IP = st.one_of(
    st.tuples(st.just(17), udp()),
    st.tuples(st.just(6), tcp()),
    st.tuples(st.just(1), ICMP),
    st.tuples(st.just(58), ICMP6),
    st.tuples(st.just(132), joined(PORTS, PORTS, bytes(8))),
    st.tuples(st.sampled_from([2, 4, 41, 47, 50, 51, 89, 103, 112, 115, 255]), joined(HALF, HALF, TEXT)),
)


@st.composite
def ipv4(draw: st.DrawFn) -> bytes:
    protocol, payload = draw(ABOVE_IP)
    if draw(st.integers(0, 9)) == 0:
        protocol, payload = 17, draw(GENEVE) + draw(st.sampled_from([b"", b"\x45" + bytes(30)]))
    options = draw(st.sampled_from([0, 0, 0, 4, 40]))
    length = draw(st.sampled_from([20 + options + len(payload)] * 4 + [0, 20, 1500, 65535]))
    version = draw(st.sampled_from([0x45 + options // 4] * 6 + [0x40, 0x4F, 0x46, 0x65]))
    fragment = draw(st.sampled_from([0, 0, 0, 0x4000, 0x2000, 0x2001, 0x00B9, 0x1FFF]))
    service, life = (
        draw(st.sampled_from([0, 0, 1, 24, 33])),
        draw(st.sampled_from([64, 64, 1, 0, 31, 32, 33, 110, 255])),
    )
    head = struct.pack("!BBHHHBBH", version, service, length, 7, fragment, life, protocol, 0)
    return head + draw(IPV4) + draw(IPV4) + b"\1" * options + payload


@st.composite
def ipv6(draw: st.DrawFn) -> bytes:
    protocol, payload = draw(ABOVE_IP)
    if (extension := draw(st.sampled_from([None, None, None, 0, 43, 44, 60, 51]))) is not None:
        payload, protocol = (
            bytes([protocol, 0]) + draw(st.sampled_from([bytes(6), b"\0\x09" + bytes(4)])) + payload,
            extension,
        )
    length = draw(st.sampled_from([len(payload)] * 4 + [0, 65535]))
    return (
        struct.pack("!IHBB", 6 << 28, length, protocol, draw(st.sampled_from([64, 255, 0])))
        + draw(IPV6)
        + draw(IPV6)
        + payload
    )


@st.composite
def arp(draw: st.DrawFn) -> bytes:
    operation = draw(st.sampled_from([1, 2, 3, 4]))
    return struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + draw(MACS) + draw(IPV4) + draw(MACS) + draw(IPV4)


def typed(payload: st.SearchStrategy[bytes] | None = None) -> st.SearchStrategy[bytes]:
    """An ethertype and what follows it."""
    return st.one_of(
        joined(b"\x08\x00", ipv4()),
        joined(b"\x08\x00", ipv4()),
        joined(b"\x86\xdd", ipv6()),
        joined(b"\x08\x06", arp()),
        joined(b"\x80\x35", arp()),
        joined(st.sampled_from([b"\x80\x9b", b"\x80\xf3", b"\x81\x37", b"\x88\xcc", b"\x60\x03", b"\x88\x63"]), TEXT),
    )


LLC = st.sampled_from(
    [
        b"\x42\x42\x03",
        b"\xf0\xf0\x03",
        b"\xe0\xe0\x03",
        b"\xfe\xfe\x03\x83",
        b"\xfe\xfe\x03\x81",
        b"\xaa\xaa\x03\x08\x00\x07\x80\x9b",
        b"\xaa\xaa\x03\0\0\0\x80\xf3",
        b"\x42\x42\x01\x01",
        b"\xff\xff",
    ]
)

TAG = joined(
    st.sampled_from([b"\x81\0", b"\x81\0", b"\x88\xa8", b"\x91\0"]),
    st.sampled_from([b"\0\5", b"\0\7", b"\x20\5", b"\xff\xff"]),
)

# 100 and 1024 as labels, with and without the bottom-of-stack bit.
LABEL = st.sampled_from(
    [bytes.fromhex(label) for label in ("00064040", "00064140", "00400040", "00400140", "00fff1ff")]
)


def behind_addresses() -> st.SearchStrategy[bytes]:
    return st.one_of(
        typed(),
        typed(),
        joined(TAG, typed()),
        joined(TAG, TAG, typed()),
        joined(b"\x88\x47", LABEL, st.one_of(ipv4(), ipv6())),
        joined(b"\x88\x47", LABEL, LABEL, st.one_of(ipv4(), ipv6(), TEXT)),
        joined(b"\x88\x64\x11\0", st.sampled_from([b"\0\1", b"\0\2"]), HALF, b"\0\x21", ipv4()),
        joined(HALF, LLC, TEXT),
        joined(TAG, HALF, LLC, TEXT),
    )


FRAMES = joined(MACS, MACS, behind_addresses())


@st.composite
def packets(draw: st.DrawFn) -> bytes:
    """Frames: whole, truncated anywhere, with bytes changed, and nothing but noise."""
    kind = draw(st.sampled_from(["whole", "whole", "truncated", "changed", "noise"]))
    if kind == "noise":
        return draw(st.binary(min_size=14, max_size=120))
    frame = draw(FRAMES)
    if kind == "truncated":
        return frame[: draw(st.integers(14, max(14, len(frame))))]
    if kind == "changed":
        changed = bytearray(frame)
        for place, value in draw(st.lists(st.tuples(st.integers(0, 80), st.integers(0, 255)), min_size=1, max_size=4)):
            changed[place % len(changed)] = value
        frame = bytes(changed)
    return frame.ljust(60, b"\0") if draw(st.booleans()) else frame


def ethernet(ethertype: str, payload: bytes) -> bytes:
    return bytes.fromhex("020000000002020000000001" + ethertype) + payload


def ip(protocol: int, payload: bytes) -> bytes:
    addresses = bytes([10, 0, 0, 1, 10, 0, 0, 2])
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0) + addresses + payload


QUERY = bytes.fromhex("9c400035000d0000") + b"query"
SYN = bytes.fromhex("9c40005000000000000000005002000000000000")

# What the generator makes too seldom to rely on.
WITNESSES = [
    *(ethernet("0800", ip(protocol, bytes(8))) for protocol in (2, 47, 50, 51, 103, 112)),
    ethernet("0800", ip(1, b"\x08" + bytes(7))),
    ethernet("0800", ip(17, QUERY)),
    ethernet("0800", ip(132, QUERY)),
    ethernet("0800", ip(6, SYN[:13] + b"\x18" + SYN[14:] + b"GET / HTTP/1.1")),
    ethernet("86dd", bytes.fromhex("6000000000083afffe80" + 28 * "0" + "01ff02" + 28 * "0" + "01") + bytes(8)),
    ethernet("8847", bytes.fromhex("0006404000400140") + ip(17, QUERY)),
    ethernet("8863", bytes(20)),
    *(ethernet("0020", bytes.fromhex(llc) + bytes(30)) for llc in ("424203", "424201", "fefe0381", "fefe0383")),
    ethernet("0800", ip(6, SYN)),
    ethernet("0800", ip(17, bytes.fromhex("d43117c1000000000000080000000500") + ip(17, QUERY))),
    ethernet("0800", ip(17, bytes.fromhex("d43117c1000000000000655800000500") + ethernet("0800", ip(17, QUERY)))),
    ethernet("0800", ip(17, bytes.fromhex("d43117c100000000010008000000050000000000") + ip(17, QUERY))),
    ethernet("81000005", bytes.fromhex("0800") + ip(17, QUERY)),
    ethernet("81000005", bytes.fromhex("0800") + ip(6, SYN)),
    ethernet("81000000", bytes.fromhex("0000") + bytes(40)),
    ethernet("81000005", bytes.fromhex("86dd6000000000053a40") + bytes(37)),
    ethernet("88a80005", bytes.fromhex("810000070800") + ip(17, QUERY)),
    ethernet("86dd", bytes.fromhex("6000000000050640") + bytes(37)),
    ethernet("0026", bytes.fromhex("fefe0383") + bytes([20, 1, 0, 16]) + bytes(30)),
    ethernet("6003", bytes.fromhex("0a0002") + (1024 + 5).to_bytes(2, "little") + bytes(20)),
    ethernet("6003", bytes.fromhex("0a0006") + bytes(6) + bytes.fromhex("aa0004000514") + bytes(20)),
]


def prove(examples: int, strategy: st.SearchStrategy[bytes], check: Callable[[bytes], None]) -> None:
    """Run `check` on as many packets, the same ones each time."""

    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def each(packet: bytes) -> None:
        check(packet)

    each()
