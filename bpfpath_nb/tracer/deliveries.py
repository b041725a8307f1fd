"""Which packets were read, where the kernel does not tell.

A datagram that a program has read is freed, and that end is seen (identity.h). But kernels since 5.18 may leave
the freeing to the CPU that allocated the buffer, which gets to it with its next packet: on a quiet machine
seconds later, or not before the capture ends. So from time to time the packets that were last seen on their way
to a socket are looked at: a buffer that is in no list any more has left the socket's queue. The look tells that
it was read, not when, and so it makes no hop; the number of the packet goes into the side table `reads`.

The same table tells of packets whose end nobody saw (identity.h): on the way to a socket, a packet that is not dropped,
and of which no drop was reported, is read before its buffer is used again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bpfpath_nb.schema import FACTS_KINDS
from bpfpath_nb.tracer.followed import Followed
from bpfpath_nb.tracer.syscall import run_raw_tracepoint
from bpfpath_nb.tracer.toolchain import RAW_TRACEPOINT, Program

SETTLED_AFTER = 50_000_000
"""A packet that was seen less than so many ns ago may be between two lists."""

UDP = 17


class Deliveries:
    """Looks at the packets that are followed.

    Parameters
    ----------
    program
        The capture's.
    followed
        The packets that it follows.
    towards_sockets
        Functions (as `func`) behind which a packet goes to a socket.
    """

    def __init__(self, program: Program, followed: Followed, towards_sockets: Sequence[int]) -> None:
        self._is_read = program.load("is_read", RAW_TRACEPOINT)
        self._followed = followed
        self._functions = np.array(sorted(towards_sockets), np.uint16)
        self._known: set[int] = set()

    def look(self) -> list[tuple[int]]:
        """Rows of `schema.READS`: packets that are known to be read since this look."""
        heads, paths = self._followed.rows()
        candidates = (
            np.isin(paths["func"], self._functions)
            & (paths["protocol"] == UDP)
            & (paths["seen"].astype(np.int64) < time.monotonic_ns() - SETTLED_AFTER)
        )
        packets = paths["packet"][candidates].tolist()
        waiting = dict(zip(packets, heads[candidates].tolist(), strict=True))
        # What was told is followed until it is freed; that is where it may be forgotten.
        self._known &= set(paths["packet"].tolist())
        found = [
            packet for packet in waiting.keys() - self._known if run_raw_tracepoint(self._is_read, waiting[packet])
        ]
        self._known.update(found)
        return [(packet,) for packet in sorted(found)]

    def unseen(self, facts: npt.NDArray[np.void]) -> list[tuple[int]]:
        """Rows of `schema.READS` for those of the facts that tell of an end that nobody saw."""
        chosen = facts[facts["kind"] == FACTS_KINDS["unseen"]]
        read = np.isin(chosen["link"], self._functions) & (chosen["snapshot"] == UDP)
        fresh = set(chosen["packet"][read].tolist()) - self._known
        return [(packet,) for packet in sorted(fresh)]
