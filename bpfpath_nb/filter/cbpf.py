"""Classic BPF: its instructions, and what of it can run in the kernel by way of our C.

Classic BPF is a machine with an accumulator A, an index register X, sixteen words of scratch memory M[] and jumps
that only go forward (McCanne and Jacobson, USENIX 1993; numbers from linux/bpf_common.h and linux/filter.h). An
instruction is a code, two jump distances and a 32-bit operand k.

Linux gives loads at absolute offsets near 2**32 a second meaning: facts about the packet that are not among its bytes
(SKF_AD_OFF + n). libpcap uses those for `inbound`, `outbound`, `ifindex`, and on a live handle for `vlan`.

`check` looks at a program once, before anything is generated from it, and refuses by name what the translator can't
do. libpcap's own output is trusted to be sane no further than this: the interpreter in the kernel (bpf_check_classic)
makes the same checks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from bpfpath_nb.errors import FilterError


class Instruction(NamedTuple):
    """One instruction of classic BPF."""

    code: int
    jt: int
    jf: int
    k: int


# The three low bits say what kind of instruction it is.
LD: Final = 0x00
LDX: Final = 0x01
ST: Final = 0x02
STX: Final = 0x03
ALU: Final = 0x04
JMP: Final = 0x05
RET: Final = 0x06
MISC: Final = 0x07

# Of loads: the width, then where from.
W: Final = 0x00
H: Final = 0x08
B: Final = 0x10
IMM: Final = 0x00
ABS: Final = 0x20
IND: Final = 0x40
MEM: Final = 0x60
LEN: Final = 0x80
MSH: Final = 0xA0

WIDTHS: Final = {W: 4, H: 2, B: 1}

# Of arithmetic, and of jumps; then whether the operand is k or X.
ADD: Final = 0x00
SUB: Final = 0x10
MUL: Final = 0x20
DIV: Final = 0x30
OR: Final = 0x40
AND: Final = 0x50
LSH: Final = 0x60
RSH: Final = 0x70
NEG: Final = 0x80
MOD: Final = 0x90
XOR: Final = 0xA0

JA: Final = 0x00
JEQ: Final = 0x10
JGT: Final = 0x20
JGE: Final = 0x30
JSET: Final = 0x40

K: Final = 0x00
X: Final = 0x08
A: Final = 0x10

TAX: Final = 0x00
TXA: Final = 0x80

SCRATCH_WORDS: Final = 16

# What the kernel knows of a packet besides its bytes (linux/filter.h), under the names that `packet.h` gives them.
AD_OFF: Final = 0xFFFFF000
METADATA: Final = {
    AD_OFF + 0: "protocol",
    AD_OFF + 4: "pkttype",
    AD_OFF + 8: "ifindex",
    AD_OFF + 20: "mark",
    AD_OFF + 24: "queue",
    AD_OFF + 28: "hatype",
    AD_OFF + 32: "rxhash",
    AD_OFF + 36: "cpu",
    AD_OFF + 44: "vlan_tag",
    AD_OFF + 48: "vlan_tag_present",
    AD_OFF + 60: "vlan_tpid",
}
_REFUSED_METADATA: Final = {
    AD_OFF + 12: "SKF_AD_NLATTR (attributes of netlink messages)",
    AD_OFF + 16: "SKF_AD_NLATTR_NEST (attributes of netlink messages)",
    AD_OFF + 40: "SKF_AD_ALU_XOR_X (an instruction of the kernel's own, which no load can mean)",
    AD_OFF + 52: "SKF_AD_PAY_OFFSET (the kernel's flow dissector)",
    AD_OFF + 56: "SKF_AD_RANDOM (a filter that gives a packet another answer each time)",
}
_NET_OFF: Final = 0xFFF00000
_LL_OFF: Final = 0xFFE00000

# The kernel's own bound for a classic program (BPF_MAXINSNS). It also keeps the jumps of what clang makes of it well
# within the 16 bits that BPF has for them.
MAX_INSTRUCTIONS: Final = 4096

SHORTEN: Final = "Join hosts into networks (`net 10.0.0.0/24`) and ports into ranges (`portrange 8000-8100`)."


def _refuse(why: str) -> FilterError:
    return FilterError(f"This filter cannot run in the kernel: {why}. Use a filter without it.")


def _check_offset(offset: int) -> None:
    if offset in _REFUSED_METADATA:
        raise _refuse(f"it loads {_REFUSED_METADATA[offset]}")
    if offset in METADATA or offset < _LL_OFF:
        return
    if offset >= AD_OFF:
        raise _refuse(
            f"it loads at offset {offset:#x}, an extension (SKF_AD_OFF + {offset - AD_OFF}) that has no meaning"
        )
    if offset >= _NET_OFF:
        raise _refuse(f"it loads at offset {offset:#x}, relative to the network header (SKF_NET_OFF)")
    raise _refuse(f"it loads at offset {offset:#x}, relative to the link header (SKF_LL_OFF)")


# Every instruction there is. libpcap's interpreter aborts the process at any other.
_KNOWN: Final = frozenset(
    [
        *(LD | mode | size for mode in (ABS, IND) for size in WIDTHS),
        *(kind | mode for kind in (LD, LDX) for mode in (IMM, LEN, MEM)),
        LDX | MSH | B,
        ST,
        STX,
        *(ALU | operation | operand for operation in (*range(ADD, NEG, 0x10), MOD, XOR) for operand in (K, X)),
        ALU | NEG,
        JMP | JA,
        *(JMP | operation | operand for operation in (JEQ, JGT, JGE, JSET) for operand in (K, X)),
        RET | K,
        RET | A,
        MISC | TAX,
        MISC | TXA,
    ]
)


def check(program: Sequence[Instruction]) -> None:
    """Raise a `FilterError` that names what in `program` cannot be translated.

    After this, every jump goes forward and lands inside, every path ends in a return, constant divisors are not zero,
    constant shifts are below 32, scratch words are below 16, and every load is one that `packet.h` has.
    """
    if not program:
        raise _refuse("libpcap made an empty program of it")
    if len(program) > MAX_INSTRUCTIONS:
        raise FilterError(
            f"This filter is too long for the kernel: {len(program):,} instructions, and {MAX_INSTRUCTIONS:,} are the "
            f"most. {SHORTEN}"
        )
    for index, (code, jt, jf, k) in enumerate(program):
        if code not in _KNOWN:
            raise _refuse(f"its instruction {code:#04x} is not known")
        kind, mode, operation = code & 0x07, code & 0xE0, code & 0xF0
        if kind == LD and mode == ABS:
            _check_offset(k)
        elif kind == LD and mode == IND and k >= _LL_OFF:
            raise _refuse(
                f"it loads what the kernel knows besides the packet's bytes (offset {k:#x}) relative to a header of "
                "variable length; ask for `inbound`, `outbound` or `ifindex` before `geneve` or `mpls`"
            )
        elif (kind in (ST, STX) or (kind in (LD, LDX) and mode == MEM)) and k >= SCRATCH_WORDS:
            raise _refuse(f"it uses word {k} of a scratch memory that has {SCRATCH_WORDS}")
        elif kind == ALU and code & 0x08 == K:
            if operation in (DIV, MOD) and k == 0:
                raise _refuse("it divides by the constant zero")
            if operation in (LSH, RSH) and k > 31:
                raise _refuse(f"it shifts by {k} bits, and a word has 32")
        elif kind == JMP:
            if operation == JA and k >= 1 << 31:
                raise _refuse(
                    "it jumps backwards. `protochain` does that, to follow a chain of headers of any length, and the "
                    "kernel runs no program whose end it can't see; `proto` looks at the first header of the chain"
                )
            if (k if operation == JA else max(jt, jf)) >= len(program) - index - 1:
                raise _refuse("it jumps out of the program")
    if program[-1].code & 0x07 != RET:
        raise _refuse("it runs past its own end")


def scratch_used(program: Sequence[Instruction]) -> frozenset[int]:
    """The words of scratch memory that `program` writes."""
    return frozenset(instruction.k for instruction in program if instruction.code in (ST, STX))


def metadata_used(program: Sequence[Instruction]) -> tuple[str, ...]:
    """Names of the facts besides the packet's bytes that `program` asks for, in the order of first use."""
    return tuple(
        dict.fromkeys(
            METADATA[instruction.k]
            for instruction in program
            if instruction.code & 0xE7 == LD | ABS and instruction.k in METADATA
        )
    )
