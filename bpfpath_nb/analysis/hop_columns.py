"""The columns of hops that paths, functions and transitions are computed from.

They come from a recording's events (`EventColumns`), or from a frame that a user has filtered or put together out of
several (`FrameColumns`). The computations are the same; only how the columns are found differs, and that is here.
Each is made when it is first asked for, since no computation needs all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfpath_nb.analysis import names
from bpfpath_nb.analysis.events import Events
from bpfpath_nb.analysis.hops import gaps
from bpfpath_nb.analysis.quantiles import PART
from bpfpath_nb.analysis.waits import Takings, hop_waits, waits
from bpfpath_nb.errors import OptionError
from bpfpath_nb.schema import LAYERS

Int64s = npt.NDArray[np.int64]

_BITS: Final = 64
"""So many codes make a set that is one number."""

_TABLE: Final = 1 << 17
"""Bytes of a table of packets by codes, where there are more."""


class HopColumns:
    """Hops, packet by packet and each packet's in order.

    Attributes
    ----------
    first : array
        Row of each packet's first hop.
    func : Named
        Of each hop its function.
    time, gap, duration : arrays of int64
        In ns; a missing gap or duration is `hops.NAT`.
    queue : array of int8
        Of the gap after each hop the queue that the packet waited in (`schema.QUEUES`), -1 for work.
    """

    first: npt.NDArray[np.intp]
    func: names.Named
    time: Int64s
    gap: Int64s
    duration: Int64s
    queue: npt.NDArray[np.int8]

    def __len__(self) -> int:
        raise NotImplementedError

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
    def position(self) -> npt.NDArray[np.integer[Any]]:
        """Each row's number in its packet."""
        return np.arange(len(self)) - np.repeat(self.first, self.counts)

    @property
    def layer_of_function(self) -> npt.NDArray[np.int8]:
        """Of each of `func.names` the position of its layer in schema.LAYERS."""
        raise NotImplementedError

    def parts(self, packets: int = PART) -> Iterator[tuple[slice, slice]]:
        """At most so many packets at a time, few enough for the processor's cache, as slices of packets and of rows."""
        edges = np.append(self.first, len(self))
        full = np.searchsorted(self.first, np.arange(0, len(self), PART))
        ends = np.unique(np.concatenate((full, np.arange(0, len(self.first), packets), [len(self.first)])))
        for begin, end in pairwise(ends.tolist()):
            yield slice(begin, end), slice(int(edges[begin]), int(edges[end]))

    def gap_in(self, packets: slice, rows: slice) -> Int64s:
        """The gaps of one of the `parts`."""
        raise NotImplementedError

    def packets_with(self, codes: npt.NDArray[Any], count: int) -> Int64s:
        """How many packets have each code in some row; -1 counts for none."""
        found = np.zeros(count, np.int64)
        if count <= _BITS:
            # Of each packet a set of codes as the bits of a number; few sets are different ones. Without a sign -1 is
            # larger than any shift, and so no bit.
            has = np.empty(len(self.first), np.uint64)
            for packets, rows in self.parts():
                bits = np.uint64(1) << codes[rows].astype(np.uint64)
                np.bitwise_or.reduceat(bits, self.first[packets] - rows.start, out=has[packets])
            sets, times = np.unique(has, return_counts=True)
            found += times @ (sets[:, np.newaxis] >> np.arange(count, dtype=np.uint64) & np.uint64(1)).astype(np.int64)
            return found
        # A table of packets by codes; one place more in front, for -1.
        width = count + 1
        for packets, rows in self.parts(max(1, _TABLE // width)):
            here = packets.stop - packets.start
            place = np.repeat(np.arange(1, here * width, width), self.counts[packets])
            place += codes[rows]
            table = np.zeros(here * width, bool)
            table[place] = True
            found += table.view(np.uint8).reshape(here, width)[:, 1:].sum(axis=0, dtype=np.int64)
        return found


class EventColumns(HopColumns):
    """The columns of a whole recording."""

    def __init__(self, events: Events) -> None:
        self.events = events
        self.first = events.first

    def __len__(self) -> int:
        return len(self.events)

    @cached_property
    def func(self) -> names.Named:  # type: ignore[override]
        return names.functions(self.events)

    @property
    def layer_of_function(self) -> npt.NDArray[np.int8]:
        layer = {function.name: function.layer for function in self.events.start.functions}
        return np.array([LAYERS.index(layer[name]) for name in self.func.names], np.int8)

    @property
    def time(self) -> Int64s:  # type: ignore[override]
        return self.events.utc

    @property
    def gap(self) -> Int64s:  # type: ignore[override]
        return gaps(self.events)

    def gap_in(self, packets: slice, rows: slice) -> Int64s:
        """As `HopColumns.gap_in`."""
        return gaps(self.events, packets, rows)

    @property
    def duration(self) -> Int64s:  # type: ignore[override]
        return self.events.duration

    @property
    def packet_of(self) -> npt.NDArray[np.int32]:
        return self.events.packet_of

    @property
    def position(self) -> npt.NDArray[np.integer[Any]]:
        return self.events.hop

    @cached_property
    def queue(self) -> npt.NDArray[np.int8]:  # type: ignore[override]
        return hop_waits(self.events)


class FrameColumns(HopColumns):
    """The columns of a frame of hops.

    A packet is what has one number in the index level `packet`, and in every other level but `hop`; so the frames of
    several recordings can be put together by `pandas.concat` with `keys`.

    Raises
    ------
    OptionError
        The frame has no levels (or columns) `packet` and `hop`, lacks one of `needs`, or two of its rows are the same
        hop.
    """

    def __init__(self, df: pd.DataFrame, needs: Iterable[str]) -> None:
        if set(df.columns) >= {"packet", "hop"} and "packet" not in df.index.names:
            df = df.set_index(["packet", "hop"])
        missing = [name for name in ("packet", "hop") if name not in df.index.names]
        missing += [name for name in needs if name not in df.columns]
        if missing:
            raise OptionError(
                f"This frame lacks {', '.join(repr(name) for name in missing)}, which this needs. Take the rows of "
                "`Recording.df` with these columns and with its index."
            )
        packet, hop = _packet_and_hop(df.index)
        if not ((packet[1:] > packet[:-1]) | ((packet[1:] == packet[:-1]) & (hop[1:] > hop[:-1]))).all():
            order = np.lexsort((hop, packet))
            df, packet, hop = df.iloc[order], packet[order], hop[order]
            if ((packet[1:] == packet[:-1]) & (hop[1:] == hop[:-1])).any():
                raise OptionError(
                    "Two rows of this frame are the same hop of the same packet. Frames of several recordings are told "
                    "apart by `pandas.concat({'before': a.df, 'after': b.df})`."
                )
        self.df = df
        self.first = np.flatnonzero(np.append(True, packet[1:] != packet[:-1])) if len(df) else np.empty(0, np.intp)

    def __len__(self) -> int:
        return len(self.df)

    @property
    def packets_index(self) -> pd.Index[Any]:
        """The frame's index without `hop`, one entry per packet."""
        of_hops: Any = self.df.index
        index: pd.Index[Any] = of_hops.droplevel("hop")[self.first]
        return index

    @cached_property
    def func(self) -> names.Named:  # type: ignore[override]
        return self.named("func")

    @property
    def layer_of_function(self) -> npt.NDArray[np.int8]:
        layer = self.named("layer")
        found = np.full(len(self.func.names) + 1, -1, np.int8)
        found[self.func.codes] = np.array([LAYERS.index(name) for name in layer.names], np.int8)[layer.codes]
        return found[:-1]

    @property
    def time(self) -> Int64s:  # type: ignore[override]
        return self._ns("time")

    @cached_property
    def gap(self) -> Int64s:  # type: ignore[override]
        return self._ns("gap")

    def gap_in(self, packets: slice, rows: slice) -> Int64s:
        """As `HopColumns.gap_in`."""
        return self.gap[rows]

    @property
    def duration(self) -> Int64s:  # type: ignore[override]
        return self._ns("duration")

    @cached_property
    def queue(self) -> npt.NDArray[np.int8]:  # type: ignore[override]
        skb, pid, cpu = (self.df[name] for name in ("skb", "pid", "cpu"))
        takings = Takings(
            self.packet_of,
            skb.to_numpy(np.uint64),
            self.func,
            pid.to_numpy(np.int64, na_value=-1),
            cpu.to_numpy(),
            np.zeros(len(self), bool),  # a frame does not tell who freed a packet
        )
        return waits(takings)

    def named(self, column: str) -> names.Named:
        """A column of names; concatenated frames whose categories differ have it as plain text."""
        values = self.df[column]
        if not isinstance(values.dtype, pd.CategoricalDtype):
            values = values.astype("category")
        return names.Named(values.cat.codes.to_numpy(), [str(name) for name in values.cat.categories])

    def _ns(self, column: str) -> Int64s:
        values = self.df[column]
        if values.dtype.kind == "M":
            values = values.dt.tz_localize(None)
        return np.asarray(values.to_numpy().astype(f"{values.dtype.kind}8[ns]").view(np.int64))


def _packet_and_hop(index: pd.Index[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Of each row a number for its packet and its hop, both in the order of their values."""
    packet = np.zeros(len(index), np.int64)
    for at, name in enumerate(index.names):  # by position: `pandas.concat` names the level of its keys only if asked to
        if name != "hop":
            codes, level = pd.factorize(index.get_level_values(at), sort=True)
            packet = packet * max(len(level), 1) + codes
            if len(level) > 1:
                packet = pd.factorize(packet, sort=True)[0]
    return packet, np.asarray(index.get_level_values("hop"))
