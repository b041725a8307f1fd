"""Drain the rings of events, one for each CPU, in runs and without a call per event.

bpf/cpu_rings.h tells how they work. Both of its arrays are mapped here: a run is one view of the records from what was
read last up to the first that is not written yet, and is given back by moving the tail.
"""

from __future__ import annotations

import ctypes
import mmap
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bpfpath_nb.schema import EVENT_DTYPE
from bpfpath_nb.tracer.ring import LONGEST_RUN
from bpfpath_nb.tracer.toolchain import Program

PRESENT = Path("/sys/devices/system/cpu/present")
ENOUGH, TIMES = 1 << 21, 4
"""On a machine with many CPUs an equal share would be short for the few that receive. So each has so many bytes, as
long as all together have no more than so many times what was asked for."""
RING = np.dtype([("head", "u8"), ("lost", "u8"), ("_0", "u8", 6), ("tail", "u8"), ("_1", "u8", 7)])
RECORD = np.dtype([("stamp", "u8"), ("event", EVENT_DTYPE)])
LONGEST_TAKE = 8 * LONGEST_RUN
NOTHING = np.empty(0, EVENT_DTYPE)


def cpus() -> int:
    """Numbers of CPUs, up to the last that the machine has; from the kernel's list of ranges (``0-3,8-11``).

    A virtual machine may have room for a hundred more, and memory for them is not to be spent.
    """
    return 1 + int(PRESENT.read_text().strip().split(",")[-1].split("-")[-1])


def records_bits(size: int, cpus: int) -> int:
    """How many records each CPU's ring has, as a power of two, where all together shall have so many bytes at least."""
    each = max(size // cpus, min(ENOUGH, TIMES * size // cpus), RECORD.itemsize)
    return (each // RECORD.itemsize - 1).bit_length()


def macros(size: int) -> dict[str, int]:
    """For the C: how many rings, and how large, where all together shall have so many bytes."""
    count = cpus()
    return {"CPUS": count, "RECORDS_BITS": records_bits(size, count)}


class CpuRings:
    """The rings of one capture.

    Parameters
    ----------
    program
        The compiled unit, which has them.

    Raises
    ------
    KeyError
        It has none: the kernel is one before 5.12.
    """

    def __init__(self, program: Program) -> None:
        rings, records = program.map("cpu_rings"), program.map("records")
        count = ctypes.sizeof(rings.Leaf) // RING.itemsize
        self._size = records.max_entries // count
        self._rings_map = mmap.mmap(rings.map_fd, count * RING.itemsize)
        self._records_map = mmap.mmap(records.map_fd, records.max_entries * RECORD.itemsize)
        self._rings = np.frombuffer(self._rings_map, RING)
        self._heads, self._tails = self._rings["head"], self._rings["tail"]
        self._records = np.frombuffer(self._records_map, RECORD).reshape(count, self._size)

    def take(self) -> npt.NDArray[np.void]:
        """The events that are ready, copied out; their room is the kernel's again.

        Those of each CPU are in its order, those of several in the order of time. What one CPU has more of than others
        may be left for the next time: a message to the notebook has room for so many.
        """
        busy = (self._heads != self._tails).nonzero()[0].tolist()
        longest = min(LONGEST_RUN, LONGEST_TAKE // max(1, len(busy)))
        runs = [self._take(cpu, longest) for cpu in busy]
        if len(runs) < 2:
            return runs[0] if runs else NOTHING
        events = np.concatenate(runs)
        return events[np.argsort(events["time"], kind="stable")]

    def _take(self, cpu: int, longest: int) -> npt.NDArray[np.void]:
        head, tail = int(self._heads[cpu]), int(self._tails[cpu])
        positions = np.arange(tail, min(head, tail + longest), dtype=np.uint64)
        at = tail % self._size
        first = self._records[cpu, at : at + len(positions)]
        run = [first, self._records[cpu, : len(positions) - len(first)]]
        stamps = np.concatenate([part["stamp"] for part in run])
        missing = stamps != positions + np.uint64(1)
        ready = int(missing.argmax()) if missing.any() else len(positions)
        events: npt.NDArray[np.void] = np.concatenate([part["event"] for part in run])[:ready]
        self._tails[cpu] = tail + ready
        return events

    @property
    def begun(self) -> int:
        """How many events there were, with those that were lost."""
        return int(self._heads.sum()) + self.lost

    @property
    def lost(self) -> int:
        """How many found no room."""
        return int(self._rings["lost"].sum())

    def reset(self) -> None:
        """Begin anew: no event, no loss. Nothing may be recording."""
        for cpu in self._heads.nonzero()[0].tolist():
            self._records["stamp"][cpu, : int(self._heads[cpu])] = 0
        for name in ("head", "tail", "lost"):
            self._rings[name] = 0

    def close(self) -> None:
        """Unmap."""
        del self._rings, self._heads, self._tails, self._records
        for memory in (self._rings_map, self._records_map):
            with suppress(BufferError):  # somebody holds a part of it; it goes with that
                memory.close()
