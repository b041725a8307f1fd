"""Filters in the kernel, run on any bytes.

A filter is translated, compiled and loaded as it is for a capture, inside a small TC program that BPF_PROG_TEST_RUN
runs on any bytes. One run answers for both loaders and both link types, as bits of the return value:

    ETHERNET_PROBE, ETHERNET_TC   the frame, read as a probe does (its linear part) and as a TC program does
    RAW_PROBE, RAW_TC             what follows the Ethernet header, taken for a bare IP packet

The mark of the packet carries two orders to the program: how long the packet shall be (the kernel takes no IP header
that is cut off, so such a packet is sent with padding that the program takes away again), and where its linear part
shall end for the probe. The priority carries a VLAN tag that the program has the kernel keep beside the frame.
"""

from __future__ import annotations

import ctypes
import struct

import pytest

from bpfpath_nb.errors import RequirementError
from bpfpath_nb.filter import Filter, translate
from bpfpath_nb.filter.cbpf import Instruction
from bpfpath_nb.kernel import layout
from bpfpath_nb.kernel.btf import Btf
from bpfpath_nb.tracer import casts, source, syscall
from bpfpath_nb.tracer.find_bcc import import_bcc
from bpfpath_nb.tracer.toolchain import Program

ETHERNET_PROBE, ETHERNET_TC, RAW_PROBE, RAW_TC, NOT_ETHERNET = (1 << n for n in range(5))
PROBES = ETHERNET_PROBE | RAW_PROBE
ALL = PROBES | ETHERNET_TC | RAW_TC
TAGS: list[tuple[int, int]] = [(0x8100, 5), (0x88A8, 5), (0x8100, 0x2007)]
SHORTEST = 54  # of what the kernel takes for a test run: Ethernet and IPv6
Tag = tuple[int, int]


def verdict(wanted: Filter, packet: bytes, cut: int | None = None, tag: Tag | None = None) -> int:
    """What libpcap says, in the bits that the program returns."""
    frame = wanted.matches(packet[:cut], length=len(packet), vlan=tag)
    bare = wanted.matches(packet[14:cut], length=len(packet) - 14, link="raw")
    return frame * (ETHERNET_PROBE | ETHERNET_TC) | bare * (RAW_PROBE | RAW_TC)


def macros(types: Btf, *, cast: bool) -> str:
    found = layout.macros(types) | (casts.macros(types) if cast else {})
    return "".join(f"#define {name} {value}\n" for name, value in found.items())


def compile_filters(*parts: str, cast: bool = True) -> Program:
    """One unit of the packet's C and `parts`; skips where there is no bcc.

    Probes read by casts where the kernel has them, or as on kernels before 6.2.
    """
    try:
        import_bcc()
    except RequirementError as error:
        pytest.skip(f"this machine lacks: bcc ({error})")
    texts = [(source.folder() / name).read_text() for name in ("memory.h", "packet.h")]
    types = Btf.load()
    return Program("\n".join([macros(types, cast=cast), *texts, *parts]), cast=types.type_id(layout.CAST))


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
        struct sk_buff_view view;
        struct packet packet;
        int bits = 0;
        u32 cut;

        if (context->mark >> 16)
            bpf_skb_change_tail(context, context->mark >> 16, 0);
        if (context->priority)
            bpf_skb_vlan_push(context, bpf_htons(context->priority >> 16), context->priority & 0xffff);
        cut = context->mark & 0xffff;
        sk_buff_open(&view, (u64)context);
        sk_buff_read(&view);
        if (packet_from_skb(&packet, &view, 0) || packet.link != PACKET_ETHERNET)
            return {NOT_ETHERNET};
        if (cut)
            packet.caplen = cut;
        bits |= {prefix}filter_ethernet(&packet) ? {ETHERNET_PROBE} : 0;
        packet_from_skb(&packet, &view, context);
        bits |= {prefix}filter_ethernet(&packet) ? {ETHERNET_TC} : 0;
        packet_from_skb(&packet, &view, 0);
        if (cut)
            packet.caplen = cut;
        packet_show_from(&packet, packet.start + 14);
        packet.len -= 14;
        packet.caplen -= 14;
        bits |= {prefix}filter_raw(&packet) ? {RAW_PROBE} : 0;
        packet_from_skb(&packet, &view, context);
        packet_show_from(&packet, packet.start + 14);
        packet.len -= 14;
        packet.caplen -= 14;
        packet.ahead += 14;
        bits |= {prefix}filter_raw(&packet) ? {RAW_TC} : 0;
        return bits;
    }}
    """


def unit_of(each: tuple[Instruction, ...]) -> str:
    """A classic program in the place of both functions of a filter."""
    functions = [translate.function(f"filter_{link}", each, False) for link in ("ethernet", "raw")]
    return "\n".join([*functions, translate.chooser(everything=False)])


def run(descriptor: int, packet: bytes, cut: int = 0, tag: Tag | None = None) -> int:
    """The return value of a program for a packet: BPF_PROG_TEST_RUN."""
    mark = cut | (len(packet) << 16 if len(packet) < SHORTEST else 0)
    packet = packet.ljust(SHORTEST, b"\0")
    data = ctypes.create_string_buffer(packet, len(packet))
    context = ctypes.create_string_buffer(struct.pack("=8xI20xI", mark, tag[0] << 16 | tag[1] if tag else 0), 36)
    inputs = (ctypes.addressof(data), 0, 1, 0, len(context), 0, ctypes.addressof(context), 0)
    _, answer = syscall.bpf(syscall.PROG_TEST_RUN, struct.pack("=IIIIQQIIIIQQ", descriptor, 0, len(packet), 0, *inputs))
    return int(struct.unpack_from("=I", answer, 4)[0])
