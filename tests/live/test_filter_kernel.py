"""The filter in the kernel gives libpcap's verdict, packet by packet.

Every expression runs in the kernel (`filter_programs`), and libpcap's `pcap_offline_filter` is asked the same of the
same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from filter_packets import WITNESSES, packets, prove
from filter_programs import ALL, ETHERNET_PROBE, PROBES, TAGS, compile_filters, program, renamed, run, verdict

from bpfpath_nb.filter import Filter
from bpfpath_nb.tracer.toolchain import SCHED_CLS, Program

BATCH = 54

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
