"""What the kernel side has counted, read from its maps: every place that can lose something counts there."""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from bpfpath_nb.tracer.cpu_rings import CpuRings
from bpfpath_nb.tracer.ring import EventRing
from bpfpath_nb.tracer.syscall import recursion_misses
from bpfpath_nb.tracer.toolchain import Program

# bpf/records.h
DISARMED, ARMED, CLOSING, CALIBRATING = 0, 1, 2, 3
STATE = (
    "armed",
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
    "timed",
    "spent",
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
        self._memory = mmap.mmap(program.map("state_map").map_fd, mmap.PAGESIZE)
        self._state: npt.NDArray[np.uint64] = np.frombuffer(self._memory, "u8", len(STATE))

    def state(self) -> dict[str, int]:
        """The fields of `struct state`."""
        return dict(zip(STATE, self._state.tolist(), strict=True))

    def arm(self, armed: int) -> None:
        """Let the probes record (`ARMED`), only what is followed already (`CLOSING`), or nothing (`DISARMED`)."""
        self._state[STATE.index("armed")] = armed

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
            "hops_timed": state["timed"],
            "hops_time": state["spent"],
        }

    def reset(self) -> None:
        """Begin anew: disarmed, no packet, no event, no loss."""
        self._state[:] = 0
        self._events.reset()

    def close(self) -> None:
        """Unmap."""
        self._state = np.zeros(len(STATE), "u8")
        with suppress(BufferError):  # somebody holds a part of it; it goes with that
            self._memory.close()
