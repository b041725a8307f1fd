"""Which loads a long filter repeats, to do each of them once, at its beginning.

A chain such as `net 2001:db8:1::/48 or net 2001:db8:2::/48 or ...` loads the same words of the packet again for every
term: libpcap's optimizer removes a repeated load only where the first one lies on every path. Each load becomes a
call with checks around it, some 30 instructions of BPF, and a BPF jump reaches 32,767 of them. So what is loaded in
many places is loaded up front, into a variable that also tells whether there was something to load, and each place
looks only at that variable. A load has no effect but its value, so doing it early, or in vain, changes no verdict.

A load relative to X (`[x + 2]`, a port behind IPv4 options) is as good as one at a fixed offset where X is always the
same: where nothing in the program sets X but `4*([k]&0xf)` with one k, and X has been set on every path to the load.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from bpfpath_nb.filter import cbpf
from bpfpath_nb.filter.cbpf import Instruction

MANY = 6
"""Places from which on a load is done up front. Fewer are left where they are, as most packets never get there."""

MOST = 8
"""Of these at most: each takes eight bytes of a small stack. The addresses of IPv6 are eight words.
Scratch memory, which only arithmetic uses, lives there too and comes first."""


class Load(NamedTuple):
    """What a load reads: `size` bytes at `offset`, counted from X where `header` is the byte that X was made of."""

    offset: int
    size: int
    header: int | None = None

    @property
    def name(self) -> str:
        """Of its variable in C."""
        return f"V{self.offset}_{self.size}" + ("" if self.header is None else f"_X{self.header}")


def successors(program: Sequence[Instruction], index: int) -> tuple[int, ...]:
    """Where the program may go on after an instruction."""
    code, jt, jf, k = program[index]
    if code & 0x07 == cbpf.RET:
        return ()
    if code & 0x07 != cbpf.JMP:
        return (index + 1,)
    return (index + 1 + k,) if code & 0xF0 == cbpf.JA else (index + 1 + jt, index + 1 + jf)


def loads(program: Sequence[Instruction]) -> dict[int, Load]:
    """The loads that mean the same wherever they stand, by index of the instruction."""
    header = _only_header(program)
    ready = _sets_x_before(program) if header is not None else set()
    found = {}
    for index, (code, _, _, k) in enumerate(program):
        mode = code & 0xE7
        if code == cbpf.LDX | cbpf.MSH | cbpf.B:
            found[index] = Load(k, 1)
        elif mode == cbpf.LD | cbpf.ABS and k not in cbpf.METADATA:
            found[index] = Load(k, cbpf.WIDTHS[code & 0x18])
        elif mode == cbpf.LD | cbpf.IND and index in ready:
            found[index] = Load(k, cbpf.WIDTHS[code & 0x18], header)
    return found


def common(program: Sequence[Instruction]) -> dict[int, Load]:
    """Of these, the ones to be done up front."""
    all_loads = loads(program)
    counts = Counter(all_loads.values())
    room = max(0, MOST - len(cbpf.scratch_used(program)))
    chosen = {load for load, count in counts.most_common(room) if count >= MANY}
    return {index: load for index, load in all_loads.items() if load in chosen}


def _only_header(program: Sequence[Instruction]) -> int | None:
    """The one byte that X is ever made of, or None."""
    sources = {
        instruction.k if instruction.code == cbpf.LDX | cbpf.MSH | cbpf.B else None
        for instruction in program
        if instruction.code & 0x07 == cbpf.LDX
        or (instruction.code & 0x07, instruction.code & 0xF8) == (cbpf.MISC, cbpf.TAX)
    }
    return sources.pop() if len(sources) == 1 else None


def _sets_x_before(program: Sequence[Instruction]) -> set[int]:
    """Instructions that are reached only after X was set. Jumps go forward, so one pass in order sees every way in."""
    without: set[int] = {0}
    for index, instruction in enumerate(program):
        if index in without and instruction.code & 0x07 != cbpf.LDX:
            without.update(successors(program, index))
    return set(range(len(program))) - without
