"""What a filter asks of the kernel beside the bytes: the tag that it took out of a frame, the interface, the mark."""

from __future__ import annotations

import ctypes
import os

import pytest
from filter_packets import QUERY, WITNESSES, ethernet, ip, packets, prove
from filter_programs import (
    ETHERNET_PROBE,
    ETHERNET_TC,
    TAGS,
    compile_filters,
    program,
    renamed,
    run,
    unit_of,
    verdict,
)

from bpfpath_nb.filter import Filter, cbpf, libpcap
from bpfpath_nb.filter.cbpf import Instruction
from bpfpath_nb.tracer.toolchain import SCHED_CLS


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


@pytest.mark.parametrize("cast", [True, False])
def test_what_has_no_device_has_no_number_of_one(cast: bool) -> None:
    unit = compile_filters(
        """
        int run(struct __sk_buff *context)
        {
            struct sk_buff_view view = {.skb = (u64)0 - sk_buff__dev}; /* whose device is read at 0 */
            struct packet packet = {.skb = &view};

            return (packet_ifindex(&packet) == PACKET_NO_VALUE) << 1 | (packet_hatype(&packet) == PACKET_NO_VALUE);
        }
        """,
        cast=cast,
    )
    try:
        assert run(unit.load("run", SCHED_CLS), bytes(60)) == 3
    finally:
        unit.close()
