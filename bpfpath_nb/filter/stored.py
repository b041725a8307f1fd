"""A filter on many stored packets at once.

`Filter.matches` asks libpcap about one packet, which is exact and, for some hundred thousand packets, slow: a call of
Python for each. The same program of classic BPF is run here over all of them side by side. Its jumps only go forward,
so one pass over the instructions is enough: each takes the rows that have arrived at it, does its work on them as a
column, and sends them on. What ends the program early, such as a load beyond the stored bytes, ends it for those rows.

What an instruction does is what libpcap's own interpreter does (bpf_filter.c); a test holds this one against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bpfpath_nb.filter import cbpf
from bpfpath_nb.filter.cbpf import Instruction
from bpfpath_nb.filter.expression import Filter
from bpfpath_nb.schema import HEADERS_BYTES, LINKS

Bools = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.intp]
Words = npt.NDArray[np.uint32]

_TAG = 4
_BEFORE_TAG = 12


def matches(packet_filter: Filter, facts: npt.NDArray[np.void]) -> Bools:
    """Of each row of `facts` (schema.FACTS_DTYPE) whether the filter takes it, as `Filter.matches` would say.

    Raises
    ------
    FilterError
        The filter asks for what the bytes of a packet do not tell.
    """
    packet_filter.check_stored()
    found = np.zeros(len(facts), bool)
    for link, number in (("ethernet", LINKS["ethernet"]), ("raw", LINKS["ip"])):
        program, puts_tag_back = packet_filter.program(link)  # type: ignore[arg-type]
        rows = np.flatnonzero(facts["link"] == number)
        data = facts["headers"][rows]
        caplen = facts["caplen"][rows].astype(np.int64)
        length = np.maximum(facts["len"][rows].astype(np.int64), caplen)
        if puts_tag_back:
            data, added = _with_tag(data, caplen, facts["vlan_tpid"][rows], facts["vlan_tci"][rows])
            caplen, length = caplen + added, length + added
        found[rows] = run(program, data, caplen, length)
    return found


def _with_tag(
    data: npt.NDArray[np.uint8], caplen: npt.NDArray[np.int64], tpid: npt.NDArray[Any], tci: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The frames with the tag that was kept beside them put back, and by how many bytes each grew."""
    tagged = (tpid != 0) & (caplen >= _BEFORE_TAG + 2)
    wide = np.zeros((len(data), HEADERS_BYTES + _TAG), np.uint8)
    wide[:, :HEADERS_BYTES] = data
    wide[tagged, _BEFORE_TAG + _TAG :] = data[tagged, _BEFORE_TAG:]
    for at, value in ((0, tpid), (2, tci)):
        wide[tagged, _BEFORE_TAG + at] = (value[tagged] >> 8).astype(np.uint8)
        wide[tagged, _BEFORE_TAG + at + 1] = (value[tagged] & 0xFF).astype(np.uint8)
    return wide, np.where(tagged, _TAG, 0)


def run(
    program: Sequence[Instruction],
    data: npt.NDArray[np.uint8],
    caplen: npt.NDArray[np.int64],
    length: npt.NDArray[np.int64],
) -> Bools:
    """Run a checked program on each row of `data`, of whose bytes the first `caplen` count."""
    machine = _Machine(data, caplen, length)
    arrived: list[list[Rows]] = [[] for _ in program]
    arrived[0].append(np.arange(len(data)))
    for at, instruction in enumerate(program):
        rows = np.concatenate(arrived[at]) if len(arrived[at]) > 1 else (arrived[at] or [np.empty(0, np.intp)])[0]
        arrived[at] = []
        if not len(rows):
            continue
        kind = instruction.code & 0x07
        if kind == cbpf.RET:
            machine.end(instruction, rows)
        elif kind == cbpf.JMP:
            if instruction.code & 0xF0 == cbpf.JA:
                arrived[at + 1 + instruction.k].append(rows)
                continue
            taken = machine.compare(instruction, rows)
            arrived[at + 1 + instruction.jt].append(rows[taken])
            arrived[at + 1 + instruction.jf].append(rows[~taken])
        else:
            arrived[at + 1].append(machine.step(instruction, rows))
    return machine.matched


class _Machine:
    """The registers of all rows."""

    def __init__(
        self, data: npt.NDArray[np.uint8], caplen: npt.NDArray[np.int64], length: npt.NDArray[np.int64]
    ) -> None:
        self.data, self.caplen, self.length = data, caplen, length
        self.a, self.x = np.zeros(len(data), np.uint32), np.zeros(len(data), np.uint32)
        self.memory: dict[int, Words] = {}
        self.matched = np.zeros(len(data), bool)

    def end(self, instruction: Instruction, rows: Rows) -> None:
        is_a = instruction.code & 0x18 == cbpf.A
        self.matched[rows] = self.a[rows] != 0 if is_a else instruction.k != 0

    def compare(self, instruction: Instruction, rows: Rows) -> Bools:
        left, right = self.a[rows], self._operand(instruction, rows)
        operation = instruction.code & 0xF0
        if operation == cbpf.JEQ:
            return np.asarray(left == right)
        if operation == cbpf.JGT:
            return np.asarray(left > right)
        if operation == cbpf.JGE:
            return np.asarray(left >= right)
        return np.asarray(left & right != 0)

    def step(self, instruction: Instruction, rows: Rows) -> Rows:
        """Do what is no jump; returns the rows that go on."""
        kind = instruction.code & 0x07
        if kind in (cbpf.LD, cbpf.LDX):
            return self._load(instruction, rows, self.a if kind == cbpf.LD else self.x)
        if kind in (cbpf.ST, cbpf.STX):
            word = self.memory.setdefault(instruction.k, np.zeros(len(self.a), np.uint32))
            word[rows] = (self.a if kind == cbpf.ST else self.x)[rows]
        elif kind == cbpf.ALU:
            return self._compute(instruction, rows)
        elif instruction.code & 0xF8 == cbpf.TXA:
            self.a[rows] = self.x[rows]
        else:
            self.x[rows] = self.a[rows]
        return rows

    def _operand(self, instruction: Instruction, rows: Rows) -> Any:
        return self.x[rows] if instruction.code & 0x08 == cbpf.X else np.uint32(instruction.k)

    def _load(self, instruction: Instruction, rows: Rows, register: Words) -> Rows:
        mode, k = instruction.code & 0xE0, instruction.k
        if mode == cbpf.IMM:
            register[rows] = k
        elif mode == cbpf.LEN:
            register[rows] = self.length[rows].astype(np.uint32)
        elif mode == cbpf.MEM:
            register[rows] = self.memory[k][rows] if k in self.memory else 0
        else:
            offset = np.full(len(rows), k, np.int64)
            if mode == cbpf.IND:
                offset += self.x[rows]
            width = 1 if mode == cbpf.MSH else cbpf.WIDTHS[instruction.code & 0x18]
            inside = offset + width <= self.caplen[rows]
            rows, offset = rows[inside], offset[inside]
            value = np.zeros(len(rows), np.uint32)
            for byte in range(width):
                value = (value << np.uint32(8)) | self.data[rows, offset + byte]
            register[rows] = (value & np.uint32(15)) << np.uint32(2) if mode == cbpf.MSH else value
        return rows

    def _compute(self, instruction: Instruction, rows: Rows) -> Rows:
        operation = instruction.code & 0xF0
        if operation == cbpf.NEG:
            self.a[rows] = np.uint32(0) - self.a[rows]
            return rows
        right = np.broadcast_to(self._operand(instruction, rows), rows.shape)
        if operation in (cbpf.DIV, cbpf.MOD):
            # A division by zero ends the program without a match.
            rows, right = rows[right != 0], right[right != 0]
        left = self.a[rows]
        self.a[rows] = _ARITHMETIC[operation](left, right)
        return rows


def _shift(left: Words, right: Words, *, up: bool) -> Words:
    by = np.minimum(right, np.uint32(31))
    shifted = left << by if up else left >> by
    return np.where(right < 32, shifted, np.uint32(0))


_ARITHMETIC: dict[int, Any] = {
    cbpf.ADD: np.add, cbpf.SUB: np.subtract, cbpf.MUL: np.multiply, cbpf.DIV: np.floor_divide, cbpf.MOD: np.remainder,
    cbpf.OR: np.bitwise_or, cbpf.AND: np.bitwise_and, cbpf.XOR: np.bitwise_xor,
    cbpf.LSH: lambda left, right: _shift(left, right, up=True),
    cbpf.RSH: lambda left, right: _shift(left, right, up=False),
}  # fmt: skip
