"""Packets whose new buffer never came.

A packet that is about to get another buffer waits in the map `moved` until it is seen with it (identity.h), which is a
matter of microseconds. But the copying may fail for want of memory, and then the packet goes on, or ends, with the
buffer that it had. So what was there at two looks one after the other is let go of: it would keep its place in the map,
and every probe from knowing that nothing is followed any more.
"""

from __future__ import annotations

from bpfpath_nb.tracer.counters import Counters
from bpfpath_nb.tracer.syscall import run_raw_tracepoint
from bpfpath_nb.tracer.toolchain import RAW_TRACEPOINT, Program


class Moves:
    """Looks at the packets that wait for a buffer.

    Parameters
    ----------
    program
        The capture's.
    counters
        Its counters, which tell whether there are any.
    """

    def __init__(self, program: Program, counters: Counters) -> None:
        self._forget = program.load("forget_move", RAW_TRACEPOINT)
        self._map = program.map("moved")
        self._counters = counters
        self._waiting: set[int] = set()

    def look(self) -> int:
        """Forget the packets that were there at the last look too; how many there were of these."""
        if not self._counters.state()["moved"]:
            self._waiting = set()
            return 0
        waiting = {key.value for key in self._map}
        forgotten = sum(run_raw_tracepoint(self._forget, skb) for skb in waiting & self._waiting)
        self._waiting = waiting
        return forgotten
