"""The filter in the kernel gives libpcap's verdict, packet by packet.

Every expression is translated, compiled and loaded as it is for a capture, inside a small TC program that
BPF_PROG_TEST_RUN runs on any bytes. One run answers for both loaders and both link types, as bits of the return value:

    ETHERNET_PROBE, ETHERNET_TC   the frame, read as a probe does (its linear part) and as a TC program does
    RAW_PROBE, RAW_TC             what follows the Ethernet header, taken for a bare IP packet

and libpcap's `pcap_offline_filter` is asked the same of the same bytes. The mark of the packet carries two orders to
the program: how long the packet shall be (the kernel takes no IP header that is cut off, so such a packet is sent with
padding that the program takes away again), and where its linear part shall end for the probe. The priority carries a
VLAN tag that the program has the kernel keep beside the frame.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from bpfpath_nb.errors import RequirementError
from bpfpath_nb.filter import Filter, cbpf, libpcap, translate
from bpfpath_nb.filter.cbpf import Instruction
from bpfpath_nb.kernel import layout
from bpfpath_nb.kernel.btf import Btf
from bpfpath_nb.tracer import source, syscall
from bpfpath_nb.tracer.find_bcc import import_bcc
from bpfpath_nb.tracer.toolchain import SCHED_CLS, Program

ETHERNET_PROBE, ETHERNET_TC, RAW_PROBE, RAW_TC, NOT_ETHERNET = (1 << n for n in range(5))
PROBES = ETHERNET_PROBE | RAW_PROBE
ALL = PROBES | ETHERNET_TC | RAW_TC
TAGS: list[tuple[int, int]] = [(0x8100, 5), (0x88A8, 5), (0x8100, 0x2007)]
BATCH = 54
SHORTEST = 54  # of what the kernel takes for a test run: Ethernet and IPv6

EXPRESSIONS = [
    "",
    # addresses
    "host 10.0.0.1",
    "src host 10.0.0.1",
    "dst host 10.0.0.2",
    "src or dst host 10.0.0.2",
    "src and dst host 10.0.0.1",
    "not host 10.0.0.1",
    "net 10.0.0.0/24",
    "src net 192.168.0.0/16",
    "dst net 10.0.0.0 mask 255.255.255.0",
    "net 10",
    "ip host 10.0.0.1",
    "arp host 10.0.0.1",
    "rarp host 10.0.0.1",
    "host 2001:db8::1",
    "src host 2001:db8::1 or dst host 2001:db8::2",
    "net 2001:db8::/32",
    "dst net 2001:db8::/126",
    "ip6 and not net fe80::/10",
    "ether host 02:00:00:00:00:01",
    "ether src 02:00:00:00:00:01",
    "ether dst ff:ff:ff:ff:ff:ff",
    "ether broadcast",
    "ether multicast",
    "ip multicast",
    "ip6 multicast",
    # ports
    "port 53",
    "src port 53",
    "dst port 80",
    "udp port 53",
    "tcp port 80 or tcp port 443",
    "tcp port (80 or 443)",
    "udp dst port 53",
    "sctp port 53",
    "portrange 50-60",
    "udp portrange 1024-65535",
    "tcp src portrange 80-90",
    "not port 53",
    "host 10.0.0.1 and port 53",
    "host 10.0.0.1 and not (port 53 or port 80)",
    "ip6 and udp port 53",
    "ip and tcp dst port 80",
    # protocols
    "ip",
    "ip6",
    "arp",
    "rarp",
    "tcp",
    "udp",
    "icmp",
    "icmp6",
    "igmp",
    "pim",
    "ah",
    "esp",
    "vrrp",
    "sctp",
    "ip proto 47",
    "ip6 proto 58",
    "proto \\tcp",
    "ether proto 0x88cc",
    "ether proto \\arp",
    "atalk",
    "aarp",
    "ipx",
    "stp",
    "netbeui",
    "llc",
    "llc s",
    "llc u",
    "iso",
    "isis",
    "clnp",
    "decnet host 1.5",
    # tunnels and tags
    "vlan",
    "vlan 5",
    "vlan 5 and udp port 53",
    "vlan and vlan 7",
    "vlan and ip6",
    "not vlan",
    "vlan 5 or vlan 7 or udp",
    "vlan and host 10.0.0.1",
    "vlan and tcp[tcpflags] & tcp-syn != 0",
    "vlan and greater 70",
    "vlan and ether[14:2] & 0xfff = 5",
    "vlan and ether[13:4] = 0",
    "vlan and (ether[11:4] & 0xff0000 = 0x810000 or ether[10:4] & 0xffff = 0x8100 or ether[9:4] & 0xff = 0x81)",
    "vlan and (ether[15:4] & 0xffff00 = 0x080000 or ether[13:2] = 5 or ether[15:2] = 0x0508)",
    "vlan and ether[ether[21] & 15 : 4] > 0x02000000",
    "mpls",
    "mpls 100",
    "mpls 100 and mpls 1024",
    "mpls and host 10.0.0.1",
    "mpls 100 and ip6",
    "pppoed",
    "pppoes",
    "pppoes 1 and ip",
    "geneve",
    "geneve 5 and ip",
    "geneve and udp port 53",
    # bytes
    "ip[8] = 64",
    "ip[8] < 5",
    "ip[0] & 0xf != 5",
    "ip[6:2] & 0x1fff != 0",
    "ip[6:2] & 0x3fff != 0",
    "ip[2:2] > 100",
    "ip[0:4] >> 16 = 0x4500",
    "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0",
    "tcp[tcpflags] == tcp-syn",
    "tcp[13] & 2 != 0 and tcp[13] & 16 = 0",
    "tcp[((tcp[12] & 0xf0) >> 2):4] = 0x47455420",
    "udp[4:2] >= 20",
    "udp[8:2] & 1 = 0",
    "icmp[icmptype] = icmp-echo",
    "icmp[icmptype] != icmp-echo and icmp[icmptype] != icmp-echoreply",
    "icmp[icmpcode] = 0",
    "icmp6[icmp6type] = icmp6-neighborsolicit",
    "icmp6[0] = 135 or icmp6[0] = 136",
    "ip6[6] = 17",
    "ip6[40] = 0",
    "ip6[4:2] + 54 = len",
    "ether[0] & 1 != 0",
    "ether[12:2] > 1500",
    "ether[len - 1] = 0",
    "ether[0:4] ^ ether[6:4] = 0",
    "arp[6:2] = 1",
    "arp[7] = 2 or rarp[7] = 3",
    # arithmetic
    "ip[2:2] / ip[8] > 5",
    "ip[2:2] % ip[8] = 0",
    "1000 / ip[1] > 3",
    "ip[2:2] - ((ip[0] & 0xf) << 2) - ((tcp[12] & 0xf0) >> 2) != 0",
    "ip[8] * ip[9] = 1088",
    "1 << ip[8] = 0",
    "ip[12:4] >> ip[1] = 10",
    "ip[8] | ip[9] = 81",
    "-ip[8] = -64",
    "ip[12:4] + 0xf5ffffff = 0",
    "ip[ip[0] & 0xf] = 0",
    "ip[ip[8] - 100] = 0",
    "ip[0] / (ip[1] / ip[8]) = 1 or udp",
    "ip[ip[2:2] - 1] = 0x61 or ip6[ip6[4:2] + 39] = 0x61",
    "ether[ether[ether[14] & 7] & 15 : 2] & ether[ether[20] & 7 : 2] != 0",
    # lengths and logic
    "greater 100",
    "less 60",
    "len = 42",
    "len > 60 and len <= 100",
    "len & 1 = 1",
    "len - 14 = ip[2:2]",
    "not ip and not ip6 and not arp",
    "not (tcp or udp or icmp)",
    "((((tcp) and (port 80))) or (udp and ((port 53) or (not (src port 1000)))))",
    "!(!(!(tcp)))",
    "tcp and (not port 80 or not host 10.0.0.1) and not (net 192.168.0.0/16 and less 100)",
    "ip[9] != 17 && (ip[8] > 32 || !(ip[1] == 0))",
    "(ip and udp) or (ip6 and tcp) or arp",
    # long
    " or ".join(f"host 10.0.0.{n}" for n in range(1, 60)),
    " or ".join(f"port {n}" for n in (*range(3, 50), 53, 80)),
    "tcp port " + " or ".join(str(7 * n + 3) for n in range(60)),
    " or ".join(f"net 2001:db8:{n:x}::/48" for n in range(0, 120, 3)),
    "not (" + " or ".join(f"src net 10.{n}.0.0/16 and udp port {n + 50}" for n in range(20)) + ")",
    " and ".join(f"ip[{n}] != {n + 60}" for n in range(20)),
    "+".join(f"ip[{n}]" for n in range(20)) + " & 3 = 1",
    "(" * 200 + "udp" + ")" * 200,
]

# These have the same answer for every packet of the generator, for the reason given.
CONSTANT = {
    "",  # everything
}


Tag = tuple[int, int]


def verdict(wanted: Filter, packet: bytes, cut: int | None = None, tag: Tag | None = None) -> int:
    """What libpcap says, in the bits that the program returns."""
    frame = wanted.matches(packet[:cut], length=len(packet), vlan=tag)
    bare = wanted.matches(packet[14:cut], length=len(packet) - 14, link="raw")
    return frame * (ETHERNET_PROBE | ETHERNET_TC) | bare * (RAW_PROBE | RAW_TC)


def macros() -> str:
    return "".join(f"#define {name} {value}\n" for name, value in layout.macros(Btf.load()).items())


def compile_filters(*parts: str) -> Program:
    """One unit of the packet's C and `parts`; skips where there is no bcc."""
    try:
        import_bcc()
    except RequirementError as error:
        pytest.skip(f"this machine lacks: bcc ({error})")
    return Program(macros() + (source.folder() / "packet.h").read_text() + "\n".join(parts))


def renamed(text: str, prefix: str) -> str:
    """A filter's C under names of its own, so that one unit can hold many."""
    names = ("filter_ethernet", "filter_raw", "filter_match")
    return "".join(
        [*(f"#define {name} {prefix}{name}\n" for name in names), text, *(f"#undef {name}\n" for name in names)]
    )


def program(name: str, prefix: str) -> str:
    return f"""
    int {name}(struct __sk_buff *context)
    {{
        struct sk_buff_copy copy;
        struct packet packet;
        int bits = 0;
        u32 cut;

        if (context->mark >> 16)
            bpf_skb_change_tail(context, context->mark >> 16, 0);
        if (context->priority)
            bpf_skb_vlan_push(context, bpf_htons(context->priority >> 16), context->priority & 0xffff);
        cut = context->mark & 0xffff;
        sk_buff_read(&copy, (u64)context);
        if (packet_from_skb(&packet, &copy, 0) || packet.link != PACKET_ETHERNET)
            return {NOT_ETHERNET};
        if (cut)
            packet.caplen = cut;
        bits |= {prefix}filter_ethernet(&packet) ? {ETHERNET_PROBE} : 0;
        packet_from_skb(&packet, &copy, context);
        bits |= {prefix}filter_ethernet(&packet) ? {ETHERNET_TC} : 0;
        packet_from_skb(&packet, &copy, 0);
        if (cut)
            packet.caplen = cut;
        packet.start += 14;
        packet.len -= 14;
        packet.caplen -= 14;
        bits |= {prefix}filter_raw(&packet) ? {RAW_PROBE} : 0;
        packet_from_skb(&packet, &copy, context);
        packet.start += 14;
        packet.len -= 14;
        packet.caplen -= 14;
        packet.ahead += 14;
        bits |= {prefix}filter_raw(&packet) ? {RAW_TC} : 0;
        return bits;
    }}
    """


def run(descriptor: int, packet: bytes, cut: int = 0, tag: Tag | None = None) -> int:
    """The return value of a program for a packet: BPF_PROG_TEST_RUN."""
    mark = cut | (len(packet) << 16 if len(packet) < SHORTEST else 0)
    packet = packet.ljust(SHORTEST, b"\0")
    data = ctypes.create_string_buffer(packet, len(packet))
    context = ctypes.create_string_buffer(struct.pack("=8xI20xI", mark, tag[0] << 16 | tag[1] if tag else 0), 36)
    inputs = (ctypes.addressof(data), 0, 1, 0, len(context), 0, ctypes.addressof(context), 0)
    _, answer = syscall.bpf(syscall.PROG_TEST_RUN, struct.pack("=IIIIQQIIIIQQ", descriptor, 0, len(packet), 0, *inputs))
    return int(struct.unpack_from("=I", answer, 4)[0])


@pytest.fixture(scope="module")
def loaded() -> Iterator[list[tuple[Filter, int]]]:
    """Every expression with the descriptor of its program."""
    units: list[Program] = []
    pairs = []
    try:
        for start in range(0, len(EXPRESSIONS), BATCH):
            batch = [Filter(text) for text in EXPRESSIONS[start : start + BATCH]]
            parts = []
            for number, each in enumerate(batch):
                parts += [renamed(each.c_source(), f"f{number}_"), program(f"run_{number}", f"f{number}_")]
            unit = compile_filters(*parts)
            units.append(unit)
            pairs += [(each, unit.load(f"run_{n}", SCHED_CLS)) for n, each in enumerate(batch)]
        yield pairs
    finally:
        for unit in units:
            unit.close()


# Packets. Values come from small pools that the expressions know, so that both answers are frequent.

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


def test_the_kernel_agrees_with_libpcap(loaded: list[tuple[Filter, int]]) -> None:
    seen: list[set[int]] = [set() for _ in loaded]
    packets_run = 0

    def check(packet: bytes) -> None:
        nonlocal packets_run
        packets_run += 1
        cut = 14 + sum(packet) % max(1, len(packet) - 14)
        tag = TAGS[len(packet) % len(TAGS)]
        for (wanted, descriptor), answers in zip(loaded, seen, strict=True):
            for where, beside in ((None, None), (cut, None), (None, tag), (cut, tag)):
                # A TC program sees the whole packet, whatever is linear.
                bits = PROBES if where else ALL
                expected = verdict(wanted, packet, where, beside) & bits
                got = run(descriptor, packet, where or 0, beside) & bits
                assert got == expected, f"{wanted.expression!r} {where} {beside} {packet.hex()}: {got:#b} {expected:#b}"
                answers.add(got & ETHERNET_PROBE)

    start = time.monotonic()
    for packet in WITNESSES:
        check(packet)
    prove(1000, packets(), check)
    print(f"{len(loaded)} expressions x {packets_run} packets in {time.monotonic() - start:.1f} s")
    # A proof in which a filter always says the same would prove little.
    one_sided = {wanted.expression for (wanted, _), answers in zip(loaded, seen, strict=True) if len(answers) == 1}
    assert one_sided == CONSTANT
    assert packets_run >= 1000


def test_the_code_that_libpcap_makes_for_a_live_interface() -> None:
    """There `vlan` asks the kernel for the tag beside the frame. It gives what `Filter` gives with the tag put back."""
    expressions = [
        "vlan",
        "vlan 5",
        "not vlan",
        "vlan 5 and udp port 53",
        "vlan and vlan 7",
        "vlan 5 or arp",
        "vlan and ip6",
    ]
    programs = [live_program(text) for text in expressions]
    assert any("vlan_tag_present" in cbpf.metadata_used(each) for each in programs)
    parts = []
    for number, each in enumerate(programs):
        cbpf.check(each)
        parts += [renamed(unit_of(each), f"f{number}_"), program(f"run_{number}", f"f{number}_")]
    unit = compile_filters(*parts)
    both: set[int] = set()

    def check(packet: bytes) -> None:
        for number, text in enumerate(expressions):
            descriptor = unit.load(f"run_{number}", SCHED_CLS) if number not in descriptors else descriptors[number]
            descriptors[number] = descriptor
            for tag in (None, *TAGS):
                expected = verdict(Filter(text), packet, None, tag) & (ETHERNET_PROBE | ETHERNET_TC)
                got = run(descriptor, packet, 0, tag) & (ETHERNET_PROBE | ETHERNET_TC)
                assert got == expected, f"{text!r} {tag} {packet.hex()}"
                both.add(got)

    descriptors: dict[int, int] = {}
    try:
        for packet in WITNESSES:
            check(packet)
        prove(150, packets(), check)
    finally:
        unit.close()
    assert both == {0, ETHERNET_PROBE | ETHERNET_TC}


def live_program(expression: str) -> tuple[Instruction, ...]:
    """What libpcap makes of an expression for the loopback interface."""
    library = libpcap._library()
    library.pcap_open_live.restype = ctypes.c_void_p
    library.pcap_open_live.argtypes = (ctypes.c_char_p, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_char_p)
    message = ctypes.create_string_buffer(256)
    handle = library.pcap_open_live(b"lo", 262144, 0, 100, message)
    assert handle, message.value
    compiled = libpcap._Program()
    try:
        assert library.pcap_compile(handle, ctypes.byref(compiled), expression.encode(), 1, 0) == 0
        return libpcap.PcapProgram(library, compiled).instructions
    finally:
        library.pcap_close(handle)


def unit_of(each: tuple[Instruction, ...]) -> str:
    """A classic program in the place of both functions of a filter."""
    functions = [translate.function(f"filter_{link}", each, False) for link in ("ethernet", "raw")]
    return "\n".join([*functions, translate.chooser(everything=False)])


METADATA = {
    "protocol": 0x0800,
    "pkttype": 3,  # PACKET_OTHERHOST: loopback has another address
    "ifindex": 1,
    "mark": 3 << 14,
    "queue": 0,
    "hatype": 772,  # ARPHRD_LOOPBACK
    "rxhash": 0,
    "cpu": min(os.sched_getaffinity(0)),
    "vlan_tag": 0x2007,
    "vlan_tag_present": 1,
    "vlan_tpid": 0x8100,
}


def test_what_the_kernel_knows_besides_the_bytes() -> None:
    parts = []
    for name, expected in METADATA.items():
        offset = next(offset for offset, known in cbpf.METADATA.items() if known == name)
        each = (
            Instruction(cbpf.LD | cbpf.ABS | cbpf.W, 0, 0, offset),
            Instruction(cbpf.JMP | cbpf.JEQ, 0, 1, expected),
            Instruction(cbpf.RET, 0, 0, 1),
            Instruction(cbpf.RET, 0, 0, 0),
        )
        wrong = (each[0], each[1]._replace(k=expected + 1), *each[2:])
        for prefix, made in ((name, each), (f"not_{name}", wrong)):
            parts += [renamed(unit_of(made), f"{prefix}_"), program(f"run_{prefix}", f"{prefix}_")]
    assert set(METADATA) == set(cbpf.METADATA.values())
    unit = compile_filters(*parts)
    cpus = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {METADATA["cpu"]})
        for name in METADATA:
            for prefix, expected in ((name, ETHERNET_PROBE | ETHERNET_TC), (f"not_{name}", 0)):
                descriptor = unit.load(f"run_{prefix}", SCHED_CLS)
                got = run(descriptor, ethernet("0800", ip(17, QUERY)) + bytes(60), METADATA["mark"], (0x8100, 0x2007))
                assert got & (ETHERNET_PROBE | ETHERNET_TC) == expected, name
    finally:
        os.sched_setaffinity(0, cpus)
        unit.close()


@st.composite
def classic(draw: st.DrawFn) -> tuple[Instruction, ...]:
    """Any classic program: every instruction there is, with operands that matter."""
    size = draw(st.integers(3, 14))
    # Neither libpcap nor the kernel gives scratch memory a value before it is written.
    made = [Instruction(cbpf.LD | cbpf.IMM, 0, 0, 3), *(Instruction(cbpf.ST, 0, 0, word) for word in range(4))]
    for index in range(size):
        rest = size - index  # how far it is to the last instruction
        k = draw(st.sampled_from([0, 1, 2, 3, 7, 14, 31, 32, 33, 255, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE]))
        kind = draw(st.sampled_from(["load", "load", "store", "alu", "alu", "alu", "jump", "misc", "index"]))
        jt = jf = 0
        if kind == "load":
            mode = draw(st.sampled_from([cbpf.IMM, cbpf.MEM, cbpf.LEN, cbpf.ABS, cbpf.ABS, cbpf.IND, cbpf.IND]))
            width = draw(st.sampled_from([cbpf.W, cbpf.H, cbpf.B])) if mode in (cbpf.ABS, cbpf.IND) else cbpf.W
            code = cbpf.LD | mode | width
            k = k % 4 if mode == cbpf.MEM else min(k, 0x80000000)
        elif kind == "index":
            code = draw(
                st.sampled_from(
                    [cbpf.LDX | cbpf.MSH | cbpf.B, cbpf.LDX | cbpf.IMM, cbpf.LDX | cbpf.MEM, cbpf.LDX | cbpf.LEN]
                )
            )
            k = k % 4 if code == cbpf.LDX | cbpf.MEM else k
        elif kind == "store":
            code, k = draw(st.sampled_from([cbpf.ST, cbpf.STX])), k % 4
        elif kind == "alu":
            operation = draw(st.integers(0, 10)) << 4
            code = (
                cbpf.ALU | operation | (draw(st.sampled_from([cbpf.K, cbpf.X, cbpf.X])) if operation != cbpf.NEG else 0)
            )
            if operation in (cbpf.LSH, cbpf.RSH) and not code & cbpf.X:
                k %= 32
            k = max(k, 1) if operation in (cbpf.DIV, cbpf.MOD) else k
        elif kind == "jump":
            operation = draw(st.sampled_from([cbpf.JA, cbpf.JEQ, cbpf.JGT, cbpf.JGE, cbpf.JSET]))
            code = cbpf.JMP | operation | (draw(st.sampled_from([cbpf.K, cbpf.X])) if operation else 0)
            jt, jf = draw(st.integers(0, rest - 1)), draw(st.integers(0, rest - 1))
            k = jt if operation == cbpf.JA else k
            if operation == cbpf.JA:
                jt = jf = 0
        else:
            code, k = cbpf.MISC | draw(st.sampled_from([cbpf.TAX, cbpf.TXA])), 0
        made.append(Instruction(code, jt, jf, k))
    return (*made, Instruction(cbpf.RET | draw(st.sampled_from([cbpf.A, cbpf.A, cbpf.K])), 0, 0, 1))


def arithmetic() -> list[tuple[Instruction, ...]]:
    """A program for every operation on two bytes or words of the packet; some bits of the result decide."""
    operations = [operation << 4 | operand for operation in range(11) for operand in (cbpf.K, cbpf.X)]
    return [
        (
            Instruction(cbpf.LD | cbpf.ABS | cbpf.B, 0, 0, 9),
            Instruction(cbpf.MISC | cbpf.TAX, 0, 0, 0),
            Instruction(cbpf.LD | cbpf.ABS | cbpf.W, 0, 0, 12),
            Instruction(cbpf.ALU | operation, 0, 0, 7),
            Instruction(cbpf.JMP | cbpf.JSET, 0, 1, 0x00110101),
            Instruction(cbpf.RET, 0, 0, 1),
            Instruction(cbpf.RET, 0, 0, 0),
        )
        for operation in operations
        if operation != cbpf.NEG | cbpf.X
    ]


def interpret(each: tuple[Instruction, ...], packet: bytes) -> bool:
    """libpcap's interpreter on a program that libpcap did not make."""
    library = libpcap._library()
    array = (libpcap._Instruction * len(each))(*each)
    compiled = libpcap._Program(len(each), array)
    header = libpcap._PacketHeader(captured=len(packet), length=len(packet))
    return bool(library.pcap_offline_filter(ctypes.byref(compiled), ctypes.byref(header), packet))


def test_every_instruction() -> None:
    """Programs made at random, against libpcap's interpreter."""
    programs: list[tuple[Instruction, ...]] = []

    @settings(max_examples=40, derandomize=True, deadline=None, database=None, phases=[Phase.generate])
    @given(classic())
    def collect(each: tuple[Instruction, ...]) -> None:
        cbpf.check(each)
        programs.append(each)

    collect()
    programs += arithmetic()
    used = {instruction.code for each in programs for instruction in each}
    assert {code & 0xF0 for code in used if code & 7 == cbpf.ALU} == {operation << 4 for operation in range(11)}
    parts = []
    for number, each in enumerate(programs):
        parts += [renamed(unit_of(each), f"f{number}_"), program(f"run_{number}", f"f{number}_")]
    unit = compile_filters(*parts)
    answers: set[int] = set()
    try:
        descriptors = [unit.load(f"run_{number}", SCHED_CLS) for number in range(len(programs))]

        def check(packet: bytes) -> None:
            for each, descriptor in zip(programs, descriptors, strict=True):
                expected = interpret(each, packet) * (ETHERNET_PROBE | ETHERNET_TC)
                expected |= interpret(each, packet[14:]) * (RAW_PROBE | RAW_TC)
                assert run(descriptor, packet) == expected, f"{each} {packet.hex()}"
                answers.add(expected)

        prove(100, packets(), check)
    finally:
        unit.close()
    assert {0, ALL} <= answers


LONGEST = {
    "hosts": " or ".join(f"host 10.{n * 7919 % 251}.{n % 256}.{n * 31 % 256}" for n in range(250)),
    "ports": " or ".join(f"port {n * 7919 % 65536}" for n in range(120)),
    "TCP ports": "tcp port " + " or ".join(str(n * 7919 % 65536) for n in range(300)),
    "IPv6 networks": " or ".join(f"net 2001:db8:{n * 7919 % 65536:x}::/48" for n in range(250)),
    "IPv6 hosts": " or ".join(f"host 2001:db8:{n * 7919 % 65536:x}::{n:x}" for n in range(70)),
    "loads": " or ".join(f"ip6[{n}:4] = ip6[ip6[{n}]:2]" for n in range(90)),
    "tagged loads": "vlan and (" + " or ".join(f"udp[{n}:4] = 7" for n in range(105)) + ")",
    "nested arithmetic": "+(".join(f"ip[{n}:4]" for n in range(9)) + ")" * 8 + " = 1",
    "arithmetic": "+".join(f"ip[{n}:4]" for n in range(240)) + " = 1",
}


@pytest.mark.parametrize("name", LONGEST)
def test_the_longest_filters_load(name: str) -> None:
    wanted = Filter(LONGEST[name])
    size = sum(translate.cost(*wanted.program(link)) for link in ("ethernet", "raw"))
    parts = [wanted.c_source()]
    for kind, context in (("tc", "context"), ("probe", "0")):
        parts.append(f"""
        int run_{kind}(struct __sk_buff *context)
        {{
            struct sk_buff_copy copy;
            struct packet packet;

            sk_buff_read(&copy, (u64)context);
            return packet_from_skb(&packet, &copy, {context}) ? 2 : !!filter_match(&packet);
        }}
        """)
    unit = compile_filters(*parts)
    try:
        for kind in ("tc", "probe"):
            descriptor = unit.load(f"run_{kind}", SCHED_CLS)
            for packet in WITNESSES:
                padded = packet.ljust(SHORTEST, b"\0")
                assert run(descriptor, padded) == wanted.matches(padded)
    finally:
        unit.close()
    print(f"{name}: {size:,} instructions reckoned")


# Where packet_from_skb() begins, for sk_buffs as they are at different places: each forges the copy of an IPv4 packet.
PLACES = {
    "as it comes": ("", "PACKET_ETHERNET", 0),
    "in ip_rcv": ("data += 14; len -= 14;", "PACKET_ETHERNET", 0),
    "in udp_rcv": ("data += 34; len -= 34;", "PACKET_ETHERNET", 0),
    "from a driver, no network header yet": ("network = 0; data += 14; len -= 14;", "PACKET_ETHERNET", 0),
    "to a driver, stale network header": ("network = 2;", "PACKET_ETHERNET", 0),
    "in ip_output, no link header yet": ("mac = 0xffff; data += 14; len -= 14;", "PACKET_RAW", 14),
    "setting out, no protocol yet": ("mac = 0xffff; protocol = 0; data += 14; len -= 14;", "PACKET_RAW", 14),
    "forwarded, protocol changed since": ("protocol = bpf_htons(0x86dd);", "PACKET_NONE", 0),
    "decapsulated, stale link header": ("mac -= 8; data += 14; len -= 14;", "PACKET_RAW", 14),
    "on a tunnel without link header": ("mac = network; data += 14; len -= 14;", "PACKET_RAW", 14),
    "link header past the network header": ("mac = network + 20; data += 14; len -= 14;", "PACKET_RAW", 14),
    "nothing set": ("mac = 0xffff; network = 0;", "PACKET_NONE", 0),
    "all of it paged": ("data_len = len;", "PACKET_NONE", 0),
    "no IP version": ("mac = 0xffff; network += 1;", "PACKET_NONE", 0),
    "nonsense lengths": ("data_len = len + 1;", "PACKET_NONE", 0),
    "nonsense data": ("data = 0;", "PACKET_NONE", 0),
}


def test_where_a_packet_begins() -> None:
    parts = []
    for number, (forge, _, _) in enumerate(PLACES.values()):
        parts.append(f"""
        int run_{number}(struct __sk_buff *context)
        {{
            struct sk_buff_copy copy;
            struct packet packet;
            u64 head, data;
            u32 len, data_len, whole;
            u16 mac, network, protocol;
            int result;

            sk_buff_read(&copy, (u64)context);
            head = MEMBER(&copy, u64, sk_buff__head);
            data = MEMBER(&copy, u64, sk_buff__data);
            len = whole = MEMBER(&copy, u32, sk_buff__len);
            data_len = MEMBER(&copy, u32, sk_buff__data_len);
            mac = MEMBER(&copy, u16, sk_buff__mac_header);
            network = MEMBER(&copy, u16, sk_buff__network_header);
            protocol = MEMBER(&copy, u16, sk_buff__protocol);
            {forge}
            MEMBER(&copy, u16, sk_buff__protocol) = protocol;
            MEMBER(&copy, u16, sk_buff__network_header) = network;
            MEMBER(&copy, u16, sk_buff__mac_header) = mac;
            MEMBER(&copy, u32, sk_buff__data_len) = data_len;
            MEMBER(&copy, u32, sk_buff__len) = len;
            MEMBER(&copy, u64, sk_buff__data) = data;
            result = packet_from_skb(&packet, &copy, 0);
            if (result)
                return packet.link == PACKET_NONE ? 0xffff : 0xfffe;
            if (packet.len != packet.caplen)
                return 0xfffd;
            if (packet.ahead != (u32)(packet.start - data))
                return 0xfffc;
            return packet.link << 8 | (whole - packet.len);
        }}
        """)
    unit = compile_filters(*parts)
    links = {"PACKET_ETHERNET": 1, "PACKET_RAW": 101}
    try:
        for number, (name, (_, link, start)) in enumerate(PLACES.items()):
            got = run(unit.load(f"run_{number}", SCHED_CLS), ethernet("0800", ip(17, QUERY)) + bytes(20))
            assert got == (links[link] << 8 | start if link in links else 0xFFFF), name
    finally:
        unit.close()


def test_a_payload_outside_of_the_linear_part() -> None:
    """TCP's payload lies in pages: a TC program sees it, a probe does not, and neither misses the headers."""
    request = Filter("tcp[((tcp[12] & 0xf0) >> 2):4] = 0x47455420")
    headers = Filter("tcp dst port 8080 and greater 3000")
    parts = ["BPF_ARRAY(seen, u64, 4);"]
    parts += [renamed(each.c_source(), prefix) for each, prefix in ((request, "a_"), (headers, "b_"))]
    asks = [(prefix, context) for prefix in ("a_", "b_") for context in ("context", "0")]
    body = "".join(
        f"""
        if (!packet_from_skb(&packet, &copy, {context}) && {prefix}filter_match(&packet)) {{
            key = {number};
            count = seen.lookup(&key);
            if (count)
                __sync_fetch_and_add(count, 1);
        }}
        """
        for number, (prefix, context) in enumerate(asks)
    )
    parts.append(f"""
    int egress(struct __sk_buff *context)
    {{
        struct sk_buff_copy copy;
        struct packet packet;
        u64 *count;
        int key;

        sk_buff_read(&copy, (u64)context);
        {body}
        return -1;
    }}
    """)
    unit = compile_filters(*parts)
    try:
        descriptor = unit.load("egress", SCHED_CLS)
        with ThreadPoolExecutor(1) as thread:
            thread.submit(one_request, descriptor).result()
        counts = [int(count.value) for count in unit.map("seen").values()]
    finally:
        unit.close()
    request_tc, request_probe, headers_tc, headers_probe = counts
    assert (request_tc, request_probe) == (1, 0)
    assert headers_tc == headers_probe == 1


def one_request(descriptor: int) -> None:
    """Send one request past the program, over loopback in a namespace that this thread makes and that goes with it."""
    assert syscall.libc.unshare(syscall.CLONE_NEWNET) == 0
    with socket.socket() as control:
        fcntl.ioctl(control, 0x8914, struct.pack("16sH14x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
    with (
        socket.create_server(("127.0.0.1", 8080)) as server,
        socket.create_connection(("127.0.0.1", 8080)) as client,
        server.accept()[0] as peer,
    ):
        link = syscall.link_create_tcx(descriptor, 1, syscall.TCX_EGRESS)
        try:
            client.sendall(b"GET / HTTP/1.1\r\n".ljust(4000, b"a"))
            assert peer.recv(4000, socket.MSG_WAITALL)
        finally:
            os.close(link)
