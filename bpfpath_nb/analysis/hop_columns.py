"""The columns of hops that paths, functions and transitions are computed from.

They come from a recording's events, or from a frame that a user has filtered or put together out of several. The
computations are the same; only how the columns are found differs, and that is here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from bpfpath_nb.analysis import names
from bpfpath_nb.analysis.events import Events
from bpfpath_nb.analysis.hops import NAT, gaps
from bpfpath_nb.analysis.waits import Takings, waits


@dataclass(frozen=True)
class HopColumns:
    """Hops, packet by packet and each packet's in order.

    Attributes
    ----------
    first : array
        Row of each packet's first hop.
    func, layer : Named
        Of each hop its function and layer.
    time, gap, duration : arrays of int64
        In ns; a missing gap or duration is `hops.NAT`.
    takings : Takings
        Where each hop ran, to tell work from waiting.
    """

    first: npt.NDArray[np.intp]
    func: names.Named
    layer: names.Named
    time: npt.NDArray[np.int64]
    gap: npt.NDArray[np.int64]
    duration: npt.NDArray[np.int64]
    takings: Takings

    @classmethod
    def of_events(cls, events: Events) -> HopColumns:
        """The columns of a whole recording."""
        return cls(
            events.first,
            names.functions(events),
            names.functions(events, "layer"),
            events.utc,
            gaps(events),
            np.full(len(events), NAT),
            Takings.of_events(events),
        )

    def __len__(self) -> int:
        return len(self.time)

    @cached_property
    def counts(self) -> npt.NDArray[np.intp]:
        """How many hops each packet has."""
        return np.diff(np.append(self.first, len(self)))

    @cached_property
    def last(self) -> npt.NDArray[np.intp]:
        """Row of each packet's last hop."""
        return self.first + self.counts - 1

    @cached_property
    def packet_of(self) -> npt.NDArray[np.int32]:
        """For each row the position of its packet."""
        return np.repeat(np.arange(len(self.first), dtype=np.int32), self.counts)

    @cached_property
    def position(self) -> npt.NDArray[np.intp]:
        """Each row's number in its packet."""
        return np.arange(len(self)) - np.repeat(self.first, self.counts)

    @cached_property
    def queue(self) -> npt.NDArray[np.int8]:
        """Of the gap after each hop the queue that the packet waited in (`schema.QUEUES`), -1 for work."""
        return waits(self.takings)

    def packets_with(self, codes: npt.NDArray[Any], count: int) -> npt.NDArray[np.int64]:
        """How many packets have each code in some row; -1 counts for none."""
        found = np.zeros(count, np.int64)
        if not count:
            return found
        # A table of packets by codes, of so many packets at a time that it stays small.
        step = max(1, (1 << 24) // count)
        for begin in range(0, len(self.first), step):
            end = min(begin + step, len(self.first))
            rows = slice(int(self.first[begin]), int(self.last[end - 1]) + 1)
            has = np.zeros((end - begin, count + 1), bool)
            has[self.packet_of[rows] - begin, codes[rows]] = True
            found += has[:, :count].sum(axis=0)
        return found
