"""From classic BPF to C that the kernel's verifier accepts.

The translation is instruction by instruction: A, X and the scratch words in use become variables of 32 bits, a jump
becomes a `goto`, and a label stands only where one arrives. There are no loops, because classic jumps go forward, and
no packet pointers, because every load is a call into `packet.h` that says whether there was something to load. So the
verifier has nothing to be doubtful about, and clang is free to make search trees out of long chains of comparisons.

What an instruction means where the papers are silent is taken from libpcap's interpreter (bpf_filter.c), against
which the result is proved:

- a load past the end of the packet ends the filter without a match; offsets do not wrap around at 2**32;
- so does a division, or a remainder, by an X of zero;
- a shift by an X of 32 or more gives zero. The kernel's interpreter takes the low five bits of X instead. A live
  capture and a stored packet must agree, so libpcap's answer holds in both.

The text of the filter never comes near the C: all that is written here are numbers and names of our own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from bpfpath_nb.filter import cbpf, common_loads
from bpfpath_nb.filter.cbpf import Instruction
from bpfpath_nb.filter.common_loads import Load

_ARITHMETIC = {
    cbpf.ADD: "+",
    cbpf.SUB: "-",
    cbpf.MUL: "*",
    cbpf.DIV: "/",
    cbpf.OR: "|",
    cbpf.AND: "&",
    cbpf.MOD: "%",
    cbpf.XOR: "^",
    cbpf.LSH: "<<",
    cbpf.RSH: ">>",
}
_REGISTERS = ("A", "X", *(f"M{n}" for n in range(cbpf.SCRATCH_WORDS)))
_WORD = re.compile(r"\b(?:A|X|M\d+|v|w)\b")
_COMPARISONS = {cbpf.JEQ: "A == {}", cbpf.JGT: "A > {}", cbpf.JGE: "A >= {}", cbpf.JSET: "A & {}"}

# Instructions of BPF that clang makes of one classic instruction, seen with filters near the bound below.
_COST_LOAD = 34
_COST_LOAD_TAGGED = 2 * _COST_LOAD
_COST_LOAD_TAGGED_BY_X = 6 * _COST_LOAD
_COST_OTHER = 3


def cost(program: Sequence[Instruction], tagged: bool) -> int:
    """About how many instructions of BPF the C of a program becomes."""
    shared = common_loads.common(program)
    total = _COST_OTHER * len(program)
    for load in set(shared.values()):
        by_x = load.header is not None
        total += _COST_LOAD + (
            _COST_LOAD_TAGGED_BY_X if tagged and by_x else _COST_LOAD_TAGGED if tagged else _COST_LOAD
        )
    for index, instruction in enumerate(program):
        if index not in shared and instruction.code & 0x07 in (cbpf.LD, cbpf.LDX):
            mode = instruction.code & 0xE0
            if mode in (cbpf.ABS, cbpf.MSH):
                total += _COST_LOAD_TAGGED if tagged else _COST_LOAD
            elif mode == cbpf.IND:
                total += _COST_LOAD_TAGGED_BY_X if tagged else _COST_LOAD
    return total


def function(name: str, program: Sequence[Instruction], tagged: bool) -> str:
    """C of the function `name` that returns nonzero where `program` takes a packet.

    Parameters
    ----------
    name
        Name of the function.
    program
        Classic BPF that `cbpf.check` has passed.
    tagged
        Show the program the frame with its VLAN tag in place.
    """
    suffix = "_tagged" if tagged else ""
    shared = common_loads.common(program)
    body = [*_up_front(shared, suffix), *_body(program, suffix, shared)]
    used = set(_WORD.findall("\n".join(body)))
    variables = [f"\tu32 {name} = 0;" for name in _REGISTERS if name in used]
    if "w" in used:
        variables += ["\tunion packet_word w;"]
    variables += [f"\ts64 {name};" for name in sorted({load.name for load in shared.values()})]
    if "v" in used:
        variables += ["\ts64 v;"]
    if variables:
        variables.append("")
    return "\n".join([f"static __always_inline int {name}(const struct packet *p)", "{", *variables, *body, "}", ""])


def _up_front(shared: Mapping[int, Load], tagged: str) -> Iterator[str]:
    for load in sorted(set(shared.values()), key=lambda load: (load.header is not None, load.offset, load.size)):
        if load.header is None:
            yield f"\t{load.name} = packet_load{tagged}(p, {load.offset}u, {load.size}, &w);"
        else:
            yield f"\tv = packet_load{tagged}(p, {load.header}u, 1, &w);"
            yield "\tif (v >= 0)"
            yield f"\t\tv = packet_load{tagged}(p, ((v & 15) << 2) + (u64){load.offset}u, {load.size}, &w);"
            yield f"\t{load.name} = v;"


def _body(program: Sequence[Instruction], tagged: str, shared: Mapping[int, Load]) -> Iterator[str]:
    targets = set(_targets(program))
    for index, instruction in enumerate(program):
        if index in targets:
            yield f"L{index}:"
        for line in _statements(instruction, index, tagged, shared.get(index)):
            yield "\t" + line


def _targets(program: Sequence[Instruction]) -> Iterator[int]:
    for index in range(len(program)):
        yield from (target for target in common_loads.successors(program, index) if target > index + 1)


def _statements(instruction: Instruction, index: int, tagged: str, shared: Load | None) -> Iterator[str]:
    code, _, _, k = instruction
    kind = code & 0x07
    if kind in (cbpf.LD, cbpf.LDX):
        yield from _load("A" if kind == cbpf.LD else "X", code, k, tagged, shared)
    elif kind == cbpf.ST:
        yield f"M{k} = A;"
    elif kind == cbpf.STX:
        yield f"M{k} = X;"
    elif kind == cbpf.ALU:
        yield from _arithmetic(code, k)
    elif kind == cbpf.JMP:
        yield from _jump(instruction, index)
    elif kind == cbpf.RET:
        yield "return A != 0;" if code & 0x18 == cbpf.A else f"return {int(k != 0)};"
    else:
        yield "A = X;" if code & 0xF8 == cbpf.TXA else "X = A;"


def _load(register: str, code: int, k: int, tagged: str, shared: Load | None) -> Iterator[str]:
    mode, size = code & 0xE0, cbpf.WIDTHS[code & 0x18]
    if mode == cbpf.IMM:
        yield f"{register} = {k}u;"
    elif mode == cbpf.MEM:
        yield f"{register} = M{k};"
    elif mode == cbpf.LEN:
        yield f"{register} = packet_len{tagged}(p);"
    else:
        value = "v"
        if shared is not None:
            value = shared.name
        elif mode == cbpf.ABS and k in cbpf.METADATA:
            yield f"v = packet_{cbpf.METADATA[k]}(p);"
        else:
            at = f"(u64)X + {k}u" if mode == cbpf.IND else f"{k}u"
            yield f"v = packet_load{tagged}(p, {at}, {size}, &w);"
        yield f"if ({value} < 0)"
        yield "\treturn 0;"
        # MSH is made for one thing: the length of an IPv4 header, from its first byte.
        yield f"X = ({value} & 15) << 2;" if mode == cbpf.MSH else f"{register} = {value};"


def _arithmetic(code: int, k: int) -> Iterator[str]:
    operation, by_x = code & 0xF0, code & 0x08 == cbpf.X
    operand = "X" if by_x else f"{k}u"
    if operation == cbpf.NEG:
        yield "A = 0u - A;"
    elif by_x and operation in (cbpf.LSH, cbpf.RSH):
        yield f"A = X < 32 ? A {_ARITHMETIC[operation]} X : 0;"
    else:
        if by_x and operation in (cbpf.DIV, cbpf.MOD):
            yield "if (!X)"
            yield "\treturn 0;"
        yield f"A = A {_ARITHMETIC[operation]} {operand};"
    if by_x:
        yield "PACKET_NOW(A);"


def _jump(instruction: Instruction, index: int) -> Iterator[str]:
    code, jt, jf, k = instruction
    operation = code & 0xF0
    if operation == cbpf.JA:
        jt = jf = k
    if jt != jf:
        condition = _COMPARISONS[operation].format("X" if code & 0x08 == cbpf.X else f"{k}u")
        if not jt:
            yield f"if (!({condition}))"
            yield f"\tgoto L{index + 1 + jf};"
            return
        yield f"if ({condition})"
        yield f"\tgoto L{index + 1 + jt};"
    if jf:
        yield f"goto L{index + 1 + jf};"


def chooser(*, everything: bool) -> str:
    """C of `filter_match`, which asks the function for the packet's link type.

    A filter that takes everything also takes what `packet_from_skb` could not make anything of.
    """
    body = (
        ["\treturn 1;"]
        if everything
        else [
            "\tif (p->link == PACKET_ETHERNET)",
            "\t\treturn filter_ethernet(p);",
            "\tif (p->link == PACKET_RAW)",
            "\t\treturn filter_raw(p);",
            "\treturn 0;",
        ]
    )
    return "\n".join(["static __always_inline int filter_match(const struct packet *p)", "{", *body, "}", ""])
