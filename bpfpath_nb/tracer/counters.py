"""What the kernel side has counted, read from its maps: every place that can lose something counts there."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from contextlib import suppress

from bpfpath_nb.tracer.cpu_rings import CpuRings
from bpfpath_nb.tracer.ring import EventRing
from bpfpath_nb.tracer.syscall import recursion_misses
from bpfpath_nb.tracer.toolchain import Program

# bpf/records.h
DISARMED, ARMED, CLOSING, CALIBRATING = 0, 1, 2, 3
STATE = (
    "tagged",
    "moved",
    "crowded",
    "packets",
    "matched",
    "sampled_out",
    "opened",
    "closed",
    "forgotten",
    "untracked",
    "unseen",
    "events_lost",
    "facts_lost",
)


class Counters:
    """The maps that count, of one capture.

    Parameters
    ----------
    program
        The capture's.
    events
        Its events, which are counted where they are written.
    """

    def __init__(self, program: Program, events: CpuRings | EventRing) -> None:
        self._events = events
        self._program = program
        self._state = program.map("state_map")
        self._armed = program.map("armed_map")

    def state(self) -> dict[str, int]:
        """The fields of `struct state`."""
        value = bytes(self._state[0])
        return dict(zip(STATE, struct.unpack(f"={len(STATE)}Q", value), strict=True))

    def arm(self, armed: int) -> None:
        """Let the probes record (`ARMED`), only what is followed already (`CLOSING`), or nothing (`DISARMED`)."""
        self._armed[0] = self._armed.Leaf(armed)

    def read(self, descriptors: Iterable[int], *, final: bool = False) -> dict[str, int]:
        """The counters of `schema.COUNTERS`; calls whose return may still come are lost at the end only."""
        state = self.state()
        lost = state["events_lost"] + self._events.lost
        misses = 0
        for descriptor in descriptors:
            with suppress(OSError):
                misses += recursion_misses(descriptor)
        return {
            "packets": state["packets"],
            "events": self._events.begun - lost,
            "events_lost": lost,
            "facts_lost": state["facts_lost"],
            "packets_untracked": state["untracked"],
            "probe_misses": misses,
            "returns_lost": state["opened"] - state["closed"] if final else state["forgotten"],
            "packets_sampled_out": state["sampled_out"],
            "ends_unseen": state["unseen"],
        }

    def reset(self) -> None:
        """Begin anew: no packet, no event, no loss."""
        self._state.clear()
        self._events.reset()
