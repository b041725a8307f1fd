"""What a capture costs on this machine: measured while it is armed, in some milliseconds.

Our TC program is run on a packet of our own, as often as gives a steady average (BPF_PROG_TEST_RUN, which times it):
once as a packet that the filter refuses, once as one that it takes. While `armed` says so, nothing else is looked at,
and what the runs have left in maps and rings is cleared away afterwards.

What the kernel does before it runs a program is not in it. That differs by the kind of probe, from some nanoseconds
for a tracepoint to a tenth of a microsecond and more for a kprobe that is a breakpoint.
"""

from __future__ import annotations

import ctypes
import struct
from contextlib import suppress

from bpfpath_nb.tracer.counters import CALIBRATING, DISARMED, Counters
from bpfpath_nb.tracer.followed import Followed
from bpfpath_nb.tracer.ring import Ring
from bpfpath_nb.tracer.syscall import PROG_TEST_RUN, bpf
from bpfpath_nb.tracer.toolchain import Program

RUNS, TRIES = 100, 8
"""Runs in a row, and how often; the fastest row counts, since others were interrupted."""

PACKET = bytes.fromhex("020000000002020000000001 0800") + struct.pack(
    "!BBHHHBBH4s4sHHHH18x", 69, 0, 46, 1, 0, 64, 17, 0, bytes(4), bytes(4), 0, 0, 26, 0
)
"""UDP from nobody to nobody."""

MARK = 0x5B1D74C6
"""Of test packets; one more says that the filter takes it (bpf/records.h)."""

SK_BUFF_CONTEXT = 192
"""More than struct __sk_buff has; the kernel takes what is beyond if it is zero."""


def measure(program: Program, counters: Counters, followed: Followed, tc: int, facts: Ring) -> dict[str, int]:
    """The start record's `cost`: ns of a hop of a packet that is followed, and of one that the filter refuses.

    Parameters
    ----------
    program, counters, followed
        The capture's, not armed yet.
    tc
        Descriptor of its TC program.
    facts
        Its facts, of which none are left.

    Raises
    ------
    OSError
        The kernel does not run it.
    """
    counters.arm(CALIBRATING)
    try:
        cost = {name: min(run(tc, mark) for _ in range(TRIES)) for name, mark in (("refused", MARK), ("hop", MARK + 1))}
    finally:
        counters.arm(DISARMED)
        followed.clear()
        for name in ("moved", "processes", "taken"):
            with suppress(KeyError):  # a map that kernels with more to offer do not need
                program.map(name).clear()
        while len(facts.take()):
            pass
        counters.reset()
    return cost


def run(tc: int, mark: int) -> int:
    """Run a TC program on the test packet; its average in ns."""
    data = ctypes.create_string_buffer(PACKET, len(PACKET))
    # struct __sk_buff: len, pkt_type, mark, ...
    context = ctypes.create_string_buffer(struct.pack("=III", 0, 0, mark), SK_BUFF_CONTEXT)
    attributes = struct.pack(
        "=IIIIQQIIIIQQ",
        *(tc, 0, len(PACKET), 0, ctypes.addressof(data), 0, RUNS, 0),
        *(SK_BUFF_CONTEXT, 0, ctypes.addressof(context), 0),
    )
    _, answer = bpf(PROG_TEST_RUN, attributes + bytes(16))
    return int(struct.unpack_from("=I", answer, 36)[0])
