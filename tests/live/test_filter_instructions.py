"""Every instruction of classic BPF, and as many of them as a filter may have, through translation and verifier."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
from filter_packets import WITNESSES, packets, prove
from filter_programs import (
    ALL,
    ETHERNET_PROBE,
    ETHERNET_TC,
    RAW_PROBE,
    RAW_TC,
    SHORTEST,
    compile_filters,
    program,
    renamed,
    run,
    unit_of,
)
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from bpfpath_nb.filter import Filter, cbpf, libpcap, translate
from bpfpath_nb.filter.cbpf import Instruction
from bpfpath_nb.kernel import Kernel
from bpfpath_nb.tracer import casts, unit
from bpfpath_nb.tracer.request import Request
from bpfpath_nb.tracer.toolchain import SCHED_CLS, Program


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


@pytest.mark.parametrize("cast", [True, False])
def test_every_instruction(cast: bool) -> None:
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
    unit = compile_filters(*parts, cast=cast)
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
            struct sk_buff_view view;
            struct packet packet;

            sk_buff_open(&view, (u64)context);
            sk_buff_read(&view);
            return packet_from_skb(&packet, &view, {context}) ? 2 : !!filter_match(&packet);
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


HEAVY = (
    "vlan and geneve and (udp port 53 or tcp port 80)",
    "geneve and (udp port 53 or tcp port 80 or net 10.1.0.0/16 or udp port 4000)",
    "ip[9] != 17 and (geneve or port 4789)",
)


@pytest.mark.parametrize("expression", HEAVY)
def test_filters_with_many_ways_leave_the_verifier_room(expression: str) -> None:
    """It looks at a million instructions at most; older ones look at more of the same program."""
    kernel = Kernel.running()
    text, plan = unit.unit(Request(filter=expression), kernel)
    loaded = Program(text, cast=casts.macros(kernel.btf).get("bpf_rdonly_cast__TYPE_ID", 0))
    try:
        descriptor = loaded.load("tc", SCHED_CLS, cookie=plan.of_kind("tc_egress")[0].cookie)
        told = Path(f"/proc/self/fdinfo/{descriptor}").read_text().split()
        assert 1000 < int(told[told.index("verified_insns:") + 1]) < 400_000
    finally:
        loaded.close()
