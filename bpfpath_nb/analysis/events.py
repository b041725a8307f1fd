"""What a capture brought, put in order once: the ground that every frame stands on.

The stream delivers events as the ring held them, CPU beside CPU. `Events` holds the same columns ordered by packet,
then time (ties by CPU and sequence), so that a packet's hops lie together and whatever is asked of packets becomes a
reduction over runs. All stays numeric; names are looked up when a frame is made. An `Events` is never changed.

Ordering ten million events must not cost more than analysing them. The ring's order is nearly that of time, which a
merge sort takes in almost one pass; packet numbers are then sorted as 16-bit digits, for which numpy has a radix
sort. Only runs of equal packet and time, a handful, go through the full comparison.

`Collector` is the growing side: batches come in from a thread, and `events()` is a picture of what there is.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from bpfpath_nb.analysis.copies import Copies, find_copies
from bpfpath_nb.analysis.jumps import Lost, jumps
from bpfpath_nb.analysis.out_of_order import Held, find_held
from bpfpath_nb.analysis.reassembly import reassemble
from bpfpath_nb.analysis.returns import depths, durations, no_returns, pair, split
from bpfpath_nb.printable import printable
from bpfpath_nb.schema import EVENT, EVENT_FLAGS, FACTS_DTYPE, STACKS_DTYPE, TIME_LIMIT
from bpfpath_nb.start import StartRecord
from bpfpath_nb.stream import Batch

Columns = dict[str, npt.NDArray[Any]]
Names = tuple[tuple[int, str], ...]
"""What one thing was called, in order: from when on (by the kernel's monotonic clock, in ns), and how."""


@dataclass(frozen=True)
class Events:
    """Everything that one capture delivered, in its final order.

    Attributes
    ----------
    start : StartRecord
    hops : dict of arrays
        The columns of schema.EVENT, ordered by packet, time, cpu, seq.
    facts : structured array of schema.FACTS_DTYPE
        One row per (packet, snapshot) that a hop refers to, in that order. `time` is 0, the hop has it.
    returns : dict of arrays
        The returns of functions, which are no hops; columns as `returns.RETURN_COLUMNS`, ordered as the hops are.
    stacks : structured array of schema.STACKS_DTYPE
        One row per drop whose stack is known, in the order of the hops that dropped (`stack_of`).
    processes, devices, locations : dict
        comm by pid; `Names` by (netns, ifindex); (symbol, offset) by address.
    reads : set
        Packets that are known to have been read, beside what the hops tell.
    counters : dict
        Last value of each counter of schema.COUNTERS that was told.
    end : dict or None
        Why and when the capture ended; None while it runs, or if the tracer died.
    lost : Lost or None
        When events were lost; None where the hops tell it, because they are all that the capture has.
    """

    start: StartRecord
    hops: Columns
    facts: npt.NDArray[np.void]
    returns: Columns = field(default_factory=no_returns)
    stacks: npt.NDArray[np.void] = field(default_factory=lambda: np.empty(0, STACKS_DTYPE))
    processes: Mapping[int, str] = field(default_factory=dict)
    devices: Mapping[tuple[int, int], Names] = field(default_factory=dict)
    locations: Mapping[int, tuple[str, int]] = field(default_factory=dict)
    reads: frozenset[int] = frozenset()
    counters: Mapping[str, int] = field(default_factory=dict)
    end: Mapping[str, Any] | None = None
    lost: Lost | None = None

    @classmethod
    def build(
        cls,
        start: StartRecord,
        columns: Columns,
        facts: npt.NDArray[np.void],
        *,
        stacks: npt.NDArray[np.void] | None = None,
        processes: Iterable[tuple[int, str]] = (),
        devices: Iterable[tuple[int, int, int, str]] = (),
        locations: Iterable[tuple[int, str, int]] = (),
        reads: Iterable[int] = (),
        counters: Mapping[str, int] | None = None,
        end: Mapping[str, Any] | None = None,
        lost: Lost | None = None,
    ) -> Events:
        """Put checked columns in order; of rows that say the same thing twice, the last counts.

        `devices` are rows of schema.DEVICES; the names that one number had over time are all kept.

        Raises
        ------
        ValueError
            A time in `devices` is none.
        """
        hops, returns = (ordered(part) for part in split(columns))
        return cls(
            start,
            hops,
            _facts_in_use(facts, hops),
            returns,
            np.empty(0, STACKS_DTYPE) if stacks is None else _stacks_in_use(stacks, hops),
            {int(pid): printable(comm) for pid, comm in processes},
            _names_over_time(devices),
            {int(address): (printable(symbol).split(".", 1)[0], int(offset)) for address, symbol, offset in locations},
            frozenset(int(packet) for packet in reads),
            dict(counters or {}),
            end,
            lost,
        )

    def select(self, packets: npt.NDArray[np.bool_]) -> Events:
        """The same with only some of the packets.

        Parameters
        ----------
        packets : array of bool
            Of each packet whether it stays.
        """
        rows = np.flatnonzero(packets[self.packet_of]) if len(self) else np.empty(0, np.intp)
        hops = {name: values[rows] for name, values in self.hops.items()}
        for values in hops.values():
            values.flags.writeable = False
        kept = self.packets[packets]
        facts = self.facts[np.isin(self.facts["packet"], kept)]
        facts.flags.writeable = False
        reads = self.reads & frozenset(kept.tolist())
        stacks = self.stacks[np.isin(self.stacks["packet"], kept)]
        stacks.flags.writeable = False
        of_kept = np.isin(self.returns["packet"], kept)
        returns = {name: values[of_kept] for name, values in self.returns.items()}
        return replace(self, hops=hops, facts=facts, returns=returns, stacks=stacks, reads=reads, lost=self.when_lost)

    def __len__(self) -> int:
        return len(self.hops["time"])

    @cached_property
    def first(self) -> npt.NDArray[np.intp]:
        """Row of each packet's first hop."""
        packet = self.hops["packet"]
        if not len(packet):
            return np.empty(0, np.intp)
        return np.concatenate(([0], np.flatnonzero(packet[1:] != packet[:-1]) + 1))

    @cached_property
    def counts(self) -> npt.NDArray[np.intp]:
        """How many hops each packet has."""
        return np.append(self.first[1:], len(self)) - self.first if len(self) else self.first

    @cached_property
    def last(self) -> npt.NDArray[np.intp]:
        """Row of each packet's last hop."""
        return self.first + self.counts - 1

    @cached_property
    def packets(self) -> npt.NDArray[np.uint32]:
        """The packets' numbers."""
        return self.hops["packet"][self.first]

    @cached_property
    def hop(self) -> npt.NDArray[np.uint32]:
        """Each row's number in its packet."""
        hop = np.arange(len(self), dtype=np.uint32)
        # Where there are more rows than 32 bits count, both wrap around, and their difference is right.
        hop -= np.repeat(self.first.astype(np.uint32), self.counts)
        return hop

    @cached_property
    def packet_of(self) -> npt.NDArray[np.int32]:
        """For each row the position of its packet in `packets`."""
        return np.repeat(np.arange(len(self.first), dtype=np.int32), self.counts)

    @cached_property
    def copies(self) -> Copies:
        """The packets' sk_buffs, and which of them still live."""
        flags = self.hops["flags"]
        is_tcp = [function.name.startswith(("tcp_", "__tcp_")) for function in self.start.functions]
        return find_copies(
            self.packet_of,
            self.hops["skb"],
            flags & EVENT_FLAGS["end"] != 0,
            flags & EVENT_FLAGS["last"] != 0,
            np.array(is_tcp, bool)[self.hops["func"]] if is_tcp else np.zeros(len(self), bool),
        )

    def freed_in(self, functions: Iterable[str], rows: slice = slice(None)) -> npt.NDArray[np.bool_]:
        """Of each hop, or of some, whether it freed the packet for one of these functions."""
        wanted = frozenset(functions)
        addresses = [at for at, (symbol, _) in self.locations.items() if symbol in wanted]
        ends = np.flatnonzero(self.hops["flags"][rows] & EVENT_FLAGS["end"])
        freed = np.zeros(len(self.hops["flags"][rows]), bool)
        freed[ends] = np.isin(self.hops["location"][rows][ends], np.array(addresses, np.uint64))
        return freed

    @cached_property
    def became_part_of(self) -> npt.NDArray[np.uint32]:
        """Of each packet the number of that in which it came together with others as a fragment; 0 where in none."""
        return reassemble(self)

    @cached_property
    def held(self) -> Held:
        """The TCP segments that waited out of order."""
        return find_held(self)

    @cached_property
    def utc(self) -> npt.NDArray[np.int64]:
        """Each hop's time in ns since 1970, UTC."""
        utc = self.hops["time"].astype(np.int64)
        utc += self.start.realtime - self.start.monotonic
        utc.flags.writeable = False  # the frame of hops shares it
        return utc

    @cached_property
    def fact_of(self) -> npt.NDArray[np.int32]:
        """For each row the row of `facts` that holds there, -1 where the snapshot was lost."""
        if not len(self.facts):
            return np.full(len(self), -1, np.int32)
        packet, snapshot = self.hops["packet"], self.hops["snapshot"]
        # Hops of one packet mostly share a snapshot, so that looking up the changes is enough.
        changes = np.append(True, (packet[1:] != packet[:-1]) | (snapshot[1:] != snapshot[:-1]))
        begin = np.flatnonzero(changes[: len(packet)])
        keys = _snapshot_key(self.facts)
        wanted = _snapshot_key({"packet": packet[begin], "snapshot": snapshot[begin]})
        found = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
        found[keys[found] != wanted] = -1
        return np.repeat(found.astype(np.int32), np.diff(begin, append=len(packet)))

    @cached_property
    def when_lost(self) -> Lost:
        """When events were lost."""
        return jumps(self.hops, self.returns) if self.lost is None else self.lost

    @cached_property
    def return_of(self) -> npt.NDArray[np.intp]:
        """For each row the row of `returns` where its function returned, -1 where that is not known."""
        if not len(self.returns["time"]):
            return np.broadcast_to(np.intp(-1), len(self))  # one number, however many hops
        return pair(self.hops, self.returns, self.when_lost)

    @cached_property
    def duration(self) -> npt.NDArray[np.int64]:
        """Of each hop the time from entry to return in ns, `returns.NAT` where that is not known."""
        return durations(self.hops, self.returns, self.return_of)

    @cached_property
    def depth(self) -> npt.NDArray[np.int16]:
        """Of each hop how many calls are open around it, by the returns that are known."""
        return depths(self.hops, self.returns, self.return_of)

    @cached_property
    def stack_of(self) -> npt.NDArray[np.intp]:
        """For each row the row of `stacks` that tells how it came to drop the packet, -1 where none does."""
        rows = np.full(len(self), -1, np.intp)
        rows[stack_rows(self.stacks, self.hops)] = np.arange(len(self.stacks))
        return rows


def _names_over_time(devices: Iterable[tuple[int, int, int, str]]) -> dict[tuple[int, int], Names]:
    """Names by (netns, ifindex), without the rows that say that a place went.

    The kernel gives a number that is free again to the next place that comes, and that one's first packets are seen a
    moment before it is noticed. So from when a place went, its number stands for the next one. Where none came, what
    was still seen is taken for the remains of the old one.
    """
    rows: dict[tuple[int, int], list[tuple[int, str]]] = {}
    for since, netns, ifindex, name in devices:
        if not 0 <= int(since) < TIME_LIMIT:
            raise ValueError("a name from a time on that no clock shows")
        rows.setdefault((int(netns), int(ifindex)), []).append((int(since), printable(name)))
    names: dict[tuple[int, int], Names] = {}
    for place, told in rows.items():
        steps: list[tuple[int, str]] = []
        gone: int | None = None
        for since, name in sorted(told, key=lambda row: row[0]):
            if not name:
                gone = since if gone is None else gone
            else:
                if not steps or steps[-1][1] != name:
                    steps.append((since if gone is None else gone, name))
                gone = None
        if steps:
            names[place] = tuple(steps)
    return names


def ordered(columns: Columns) -> Columns:
    """The same rows by packet, time, cpu and seq, not to be changed any more."""
    order = hop_order(columns)
    columns = columns if order is None else {name: values[order] for name, values in columns.items()}
    for values in columns.values():
        values.flags.writeable = False
    return columns


def hop_order(columns: Columns) -> npt.NDArray[np.intp] | None:
    """Order by packet, time, cpu, seq as row numbers; None where the rows have it already."""
    packet, time = columns["packet"], columns["time"]
    if not len(packet):
        return None
    ahead = (packet[1:] > packet[:-1]) | ((packet[1:] == packet[:-1]) & (time[1:] > time[:-1]))
    if ahead.all():
        return None
    order = np.argsort(time, kind="stable")
    number = packet - packet.min()
    order = order[np.argsort((number & 0xFFFF).astype(np.uint16)[order], kind="stable")]
    if int(number.max()) > 0xFFFF:
        order = order[np.argsort((number >> 16).astype(np.uint16)[order], kind="stable")]
    packet, time = packet[order], time[order]
    same = np.concatenate(([False], (packet[1:] == packet[:-1]) & (time[1:] == time[:-1])))
    if same.any():
        tied = np.flatnonzero(same | np.append(same[1:], False))
        rows = order[tied]
        order[tied] = rows[np.lexsort((columns["seq"][rows], columns["cpu"][rows], time[tied], packet[tied]))]
    return order


def _snapshot_key(table: Columns | npt.NDArray[np.void]) -> npt.NDArray[np.uint64]:
    return (table["packet"].astype(np.uint64) << np.uint64(16)) | table["snapshot"]


def _facts_in_use(facts: npt.NDArray[np.void], hops: Columns) -> npt.NDArray[np.void]:
    """The last snapshot told for each (packet, snapshot) that a hop refers to, in that order."""
    keys, wanted = _snapshot_key(facts), _snapshot_key(hops)
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    keep = np.append(keys[1:] != keys[:-1], True) if len(keys) else np.empty(0, bool)
    order, keys = order[keep], keys[keep]
    used = np.zeros(len(keys), bool)
    if len(keys) and len(wanted):
        wanted = wanted[np.concatenate(([True], wanted[1:] != wanted[:-1]))]
        found = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
        used[found[keys[found] == wanted]] = True
    facts = facts[order[used]]
    facts["time"] = 0
    facts.flags.writeable = False
    return facts


def stack_rows(stacks: npt.NDArray[np.void], hops: Columns) -> npt.NDArray[np.intp]:
    """Of each stack the row of the end that it belongs to, -1 where that was lost; the first of several."""
    ends = np.flatnonzero(hops["flags"] & EVENT_FLAGS["end"])
    if not len(stacks) or not len(ends):
        return np.full(len(stacks), -1, np.intp)
    packet, time = (np.concatenate((hops[name][ends], stacks[name])) for name in ("packet", "time"))
    order = np.lexsort((time, packet))  # stable, so that of one packet and time an end comes first
    packet, time = packet[order], time[order]
    begins = np.append(True, (packet[1:] != packet[:-1]) | (time[1:] != time[:-1]))
    first = order[begins][np.cumsum(begins) - 1]
    found = np.empty(len(order), np.intp)
    found[order] = np.where(first < len(ends), ends[first.clip(max=len(ends) - 1)], -1)
    return found[len(ends) :]


def _stacks_in_use(stacks: npt.NDArray[np.void], hops: Columns) -> npt.NDArray[np.void]:
    """The last stack told for each end, in the order of the ends."""
    row = stack_rows(stacks, hops)
    order = np.argsort(row, kind="stable")
    row = row[order]
    keep = np.append(row[1:] != row[:-1], True)[: len(row)] & (row >= 0)
    stacks = stacks[order[keep]]
    stacks.flags.writeable = False
    return stacks


class Collector:
    """Collects a stream's batches as they come; safe to add to in one thread and to read in another."""

    def __init__(self, start: StartRecord) -> None:
        self.start = start
        self.counters: dict[str, int] = {}
        self.end: dict[str, Any] | None = None
        self._lock = threading.Lock()
        self._batches: list[Batch] = []
        self._count = 0
        self._picture: Events | None = None

    def __len__(self) -> int:
        """How many events there are."""
        return self._count

    def add(self, batch: Batch) -> None:
        """Take one more batch of the stream."""
        with self._lock:
            self._batches.append(batch)
            self._count += len(batch)
            self.counters.update(batch.counters or {})
            self.end = batch.end or self.end
            self._picture = None

    def events(self) -> Events:
        """What there is by now, in order. The same object again until more has come."""
        with self._lock:
            if self._picture is None:
                self._picture = self._take_picture()
            return self._picture

    def _take_picture(self) -> Events:
        merged = _merge(self._batches)
        # Thousands of small batches are merged once, not with every picture.
        self._batches = [merged]
        return Events.build(
            self.start,
            dict(merged.events),
            merged.facts,
            stacks=merged.stacks,
            processes=merged.processes,
            devices=merged.devices,
            locations=merged.locations,
            reads=[packet for (packet,) in merged.reads],
            counters=self.counters,
            end=self.end,
        )


def _merge(batches: list[Batch]) -> Batch:
    if len(batches) == 1:
        return batches[0]
    events = {
        column.name: np.concatenate([np.empty(0, column.dtype), *(batch.events[column.name] for batch in batches)])
        for column in EVENT
    }
    return Batch(
        events,
        np.concatenate([np.empty(0, FACTS_DTYPE), *(batch.facts for batch in batches)]),
        np.concatenate([np.empty(0, STACKS_DTYPE), *(batch.stacks for batch in batches)]),
        [row for batch in batches for row in batch.processes],
        [row for batch in batches for row in batch.devices],
        [row for batch in batches for row in batch.locations],
        [row for batch in batches for row in batch.reads],
    )
