"""Which function a kprobe hit: cookies, kept by the address of the function.

Since 5.15 the kernel carries a cookie with each kprobe. For kprobe.multi it finds the cookie by a binary search at each
hit, which costs more than most of what the program does; so there is a table beside it in which each function has one
place, at a hash of its address. A function that finds its place taken is left to the kernel's search. So is one that
does not begin at a multiple of 16, and one that such a function could be taken for: at an entry the program knows only
that it was called from within 16 bytes of the start.

Kernels before 5.15 carry none; there a hash table has them by the address that the program sees. That is the address of
the breakpoint, one byte past the function's start, or five where the function begins with ENDBR.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Mapping

import numpy as np

from bpfpath_nb.tracer.toolchain import Program

MACRO = "bpf_trace_run_ctx__bpf_cookie"
"""Which a kernel has whose kprobes carry a cookie."""
HASH = 0x9E3779B97F4A7C15
PLACES_EACH = 16
"""Places in the table for each function: of so many, few find theirs taken."""
KNOWN = np.dtype([("address", "u8"), ("cookie", "u8")])
ALIGNMENT = 16  # FUNCTION_ALIGNMENT of bpf/probes.h
BREAKPOINT, ENDBR = 1, 4


def bits(functions: int) -> int:
    """How large the table is for so many functions, as a power of two."""
    return max(8, (PLACES_EACH * functions - 1).bit_length())


class Cookies:
    """The cookies of one capture's kprobes.

    Parameters
    ----------
    program
        The compiled unit, which has the tables.
    carried
        Whether the kernel carries cookies.
    """

    def __init__(self, program: Program, *, carried: bool) -> None:
        self._program = program
        self.carried = carried
        self._memory: mmap.mmap | None = None
        self._known = np.zeros(0, KNOWN)
        if carried:
            table = program.map("known_cookies")
            self._memory = mmap.mmap(table.map_fd, ctypes.sizeof(table.Leaf))
            self._known = np.frombuffer(self._memory, KNOWN)

    def of_multi(self, cookies: Mapping[int, int]) -> None:
        """Before kprobe.multi attaches: cookies by address."""
        addresses = np.fromiter(cookies, np.uint64, len(cookies))
        crooked = addresses[addresses % ALIGNMENT != 0]
        begun = crooked - crooked % ALIGNMENT
        addresses = np.setdiff1d(addresses, np.concatenate([crooked, begun, begun + ALIGNMENT]))
        places = (addresses * np.uint64(HASH)) >> np.uint64(65 - len(self._known).bit_length())
        for place, address in zip(places.tolist(), addresses.tolist(), strict=True):
            if self._known["address"][place] in (0, address):
                self._known[place] = (address, cookies[address])

    def forget(self) -> None:
        """Where kprobe.multi could not be had: single kprobes are also on functions that could be taken for these."""
        self._known[:] = 0

    def of_single(self, cookies: Mapping[int, int]) -> None:
        """Before single kprobes are attached by a kernel that carries none: cookies by address."""
        table = self._program.map("kprobe_cookies")
        for address, cookie in cookies.items():
            for beyond in (BREAKPOINT, ENDBR + BREAKPOINT):
                table[table.Key(address + beyond)] = table.Leaf(cookie)

    def close(self) -> None:
        """Unmap."""
        self._known = np.zeros(0, KNOWN)
        if self._memory is not None:
            self._memory.close()
