"""When events were lost, and how many: the jumps in the counts of the CPUs.

The kernel side counts events on each CPU from 0, whether they could be written or not. A jump in a CPU's count is
therefore a loss, and it happened between the times of the two events around it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Lost:
    """When events were lost: spans by the kernel's monotonic clock, in ns, and how many events in each."""

    begin: Int64s
    end: Int64s
    count: Int64s

    @property
    def events(self) -> int:
        """How many events in all."""
        return int(self.count.sum())

    def between(self, begin: npt.NDArray[Any], end: npt.NDArray[Any]) -> Int64s:
        """How many events may have been lost from each `begin` to the `end` beside it."""
        # Spans that began by the end, less those that were over before the beginning.
        begun = _counted(self.begin, self.count, end.astype(np.int64), "right")
        return np.asarray(begun - _counted(self.end, self.count, begin.astype(np.int64), "left"))


def _counted(times: Int64s, count: Int64s, moments: Int64s, side: Any) -> Int64s:
    """The sum of `count` over the times up to each moment."""
    order = np.argsort(times, kind="stable")
    total = np.concatenate(([0], np.cumsum(count[order])))
    return np.asarray(total[np.searchsorted(times[order], moments, side)])


def jumps(*tables: Mapping[str, npt.NDArray[Any]]) -> Lost:
    """When events were lost, by all events that there are: tables with the columns seq, cpu and time."""
    seq, cpu, time = (np.concatenate([table[name] for table in tables]) for name in ("seq", "cpu", "time"))
    if not len(seq) or _is_gapless(seq, cpu):
        return Lost(*np.empty((3, 0), np.int64))
    order = np.argsort((cpu.astype(np.uint64) << np.uint64(32)) | seq)
    cpu, seq, time = cpu[order], seq[order].astype(np.int64), time[order].astype(np.int64)
    # Before a CPU's first event there may be a jump as well, from nothing.
    starts_cpu = np.concatenate(([True], cpu[1:] != cpu[:-1]))
    before = np.where(starts_cpu, -1, np.concatenate(([-1], seq[:-1])))
    at = np.flatnonzero(seq > before + 1)
    begin = np.where(starts_cpu[at], 0, time[at - 1])
    # A stream that is not to be trusted may have a time that runs backwards.
    return Lost(begin, np.maximum(begin, time[at]), (seq - before - 1)[at])


def _is_gapless(seq: npt.NDArray[Any], cpu: npt.NDArray[Any]) -> bool:
    """Whether each CPU's numbers reach exactly as far as it has events; saves the sort in the usual case."""
    counts = np.bincount(cpu)
    most = np.zeros(len(counts), np.int64)
    np.maximum.at(most, cpu, seq.astype(np.int64) + 1)
    return bool((most == counts).all())
