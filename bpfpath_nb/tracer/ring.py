"""Drain a BPF ring buffer in runs, without a call per record.

The kernel lets user space map a ring buffer: one page with the consumer's position that we may write, one with the
producer's, and behind it the data twice over, so that a run that wraps around is contiguous all the same:

    | consumer | producer | data ............ | data again ....... |

Each record has a header of 8 bytes (length with two flag bits, page offset) and is padded to 8. Ours are all of
one size, so a run is one numpy view with a fixed stride. A record whose BUSY bit is set is still being written;
the run ends before it. Layout and order of accesses: Documentation/bpf/ringbuf.rst and kernel/bpf/ringbuf.c.
"""

from __future__ import annotations

import mmap

import numpy as np
import numpy.typing as npt

from bpfpath_nb.schema import EVENT_DTYPE
from bpfpath_nb.tracer.toolchain import Program

BUSY = 1 << 31
HEADER = np.dtype([("length", "<u4"), ("page", "<u4")])
LONGEST_RUN = 1 << 16


class Ring:
    """One ring buffer of fixed-size records.

    Parameters
    ----------
    descriptor
        Of the map.
    size
        Of its data in bytes.
    dtype
        Of a record; its size is a multiple of 8.
    """

    def __init__(self, descriptor: int, size: int, dtype: np.dtype[np.void]) -> None:
        page = mmap.PAGESIZE
        self._size = size
        self._record = np.dtype([("header", HEADER), ("record", dtype)])
        self._consumer_map = mmap.mmap(descriptor, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._producer_map = mmap.mmap(descriptor, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._consumer = np.frombuffer(self._consumer_map, np.uint64, 1)
        self._producer = np.frombuffer(self._producer_map, np.uint64, 1)
        self._data = np.frombuffer(self._producer_map, np.uint8, 2 * size, page)

    def take(self) -> npt.NDArray[np.void]:
        """The records that are ready, at most `LONGEST_RUN`, copied out; their room is the kernel's again."""
        stride = self._record.itemsize
        consumed = int(self._consumer[0])
        count = min((int(self._producer[0]) - consumed) // stride, LONGEST_RUN)
        if count <= 0:
            return np.empty(0, self._record["record"])
        at = consumed % self._size
        run = self._data[at : at + count * stride].view(self._record)
        busy = run["header"]["length"] >= BUSY
        if busy.any():
            run = run[: int(busy.argmax())]
        records: npt.NDArray[np.void] = run["record"].copy()
        self._consumer[0] = consumed + len(records) * stride
        return records

    def close(self) -> None:
        """Unmap."""
        del self._consumer, self._producer, self._data
        self._consumer_map.close()
        self._producer_map.close()


class EventRing(Ring):
    """The ring of events, of kernels where there is one for all CPUs (before 5.12); else it is `CpuRings`.

    Parameters
    ----------
    program
        The compiled unit, which has it.
    size
        Of its data in bytes.
    """

    lost = 0
    """What found no room is counted with the rest (`Counters`)."""

    def __init__(self, program: Program, size: int) -> None:
        super().__init__(program.map("events").map_fd, size, EVENT_DTYPE)
        self._sequence = program.map("sequence")

    @property
    def begun(self) -> int:
        """How many events there were, with those that were lost."""
        return sum(int(value) for value in self._sequence[0])

    def reset(self) -> None:
        """Begin anew: no event. Nothing may be recording."""
        while len(self.take()):
            pass
        self._sequence.clear()
