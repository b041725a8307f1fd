"""TCP segments that waited out of order: behind data of their connection that had not come yet.

Such a segment lies in its socket's out-of-order queue until what is missing is there (`tcp_data_queue_ofo` and
`tcp_ofo_queue`, net/ipv4/tcp_input.c). Mostly these are no functions that can be probed, and no event tells of them; so
it is told from the sequence numbers, which every recording has. A segment waited out of order if data in front of it
came to its socket later than it did, and before it was taken up: read, merged with what had come then, or dropped since
that held its data too.

The first arrival of a byte counts: what is sent again though it had come fills nothing. Nor does what TCP or a filter
dropped. Data that arrives after something behind it has been read must have come before, unseen. Where the missing data
are not in the recording nothing tells of the queue, so a selection of packets knows less.

How long a segment is, the packet's first bytes tell. Where TCP sent again less of it than it had, the rest seems to
have come as well, and what waited for it does not show.

Connections are told apart by namespace and ends, and where they have the same ones after another, by a SYN with another
number. Numbers are followed across their wrap at 2^32 from one arrival to the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfpath_nb.analysis.contents import segments
from bpfpath_nb.analysis.ends import CLOSING, drops_and_bystanders, ends
from bpfpath_nb.analysis.headers import EXTENSIONS, located, unread
from bpfpath_nb.analysis.sequences import folded, stable_order
from bpfpath_nb.kernel.catalogue import load
from bpfpath_nb.schema import EVENT_FLAGS

if TYPE_CHECKING:
    from bpfpath_nb.analysis.events import Events

Rows = npt.NDArray[np.intp]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_RECEIVERS: Final = frozenset(
    {"tcp_v4_rcv", "tcp_v6_rcv", "tcp_v4_do_rcv", "tcp_v6_do_rcv", "tcp_rcv_established", "tcp_data_queue"}
)
"""Functions that a segment passes on the way to its socket's queues, behind those of `catalogue.toml`."""

_INWARD, _OUTWARD, _TAKEN = 1, 2, 3
_SYN: Final = 2
_TCP: Final = 6


@dataclass(frozen=True)
class Held:
    """Segments that waited out of order, in the order of their packets.

    Attributes
    ----------
    put, gap : arrays
        Of each the last hop before its socket's queues, and the hop of its packet after which what was missing came.
    most : array of bool
        Whether that was so late that it waited longer for it than for what followed.
    """

    put: Rows
    gap: Rows
    most: Bools


@dataclass(frozen=True)
class _Arrivals:
    """Segments that came to a socket: the last hop on the way.

    `out` is the hop with which each was taken up, -1 where that was not seen; `read` whether a program read it there.
    """

    row: Rows
    out: Rows
    read: Bools

    def take(self, which: npt.NDArray[Any]) -> _Arrivals:
        return _Arrivals(self.row[which], self.out[which], self.read[which])


def find_held(events: Events) -> Held:
    """The segments of a recording that waited out of order."""
    nothing = Held(np.empty(0, np.intp), np.empty(0, np.intp), np.empty(0, bool))
    may_be = _may_be_tcp(events.facts)
    if not may_be.any():
        return nothing
    came = _arrivals(events, may_be)
    fact = events.fact_of[came.row]
    headers = located(events.facts[fact])
    content = segments(headers, events.facts["len"][fact])
    syn = content["flags"] & _SYN != 0
    some = np.flatnonzero((content["data"] > 0) | syn)
    if not len(some):
        return nothing
    connection = _connections(headers.parsed[some], events.hops["netns"][came.row[some]])
    order = np.lexsort((events.hops["time"][came.row[some]], connection))
    some, connection = some[order], connection[order]
    # Most connections get everything in order, and are done with here.
    disorder = np.bincount(connection, _steps(connection, content["seq"][some]) < 0) > 0
    some, connection = some[disorder[connection]], connection[disorder[connection]]
    if not len(some):
        return nothing
    came, content, syn = came.take(some), content[some], syn[some]

    is_drop, _ = drops_and_bystanders(events, ends(events))
    # What is dropped when the socket is closed had come.
    dropped = is_drop[came.out] & ~events.freed_in(CLOSING)[came.out] & (came.out >= 0)
    connection = _one_after_another(connection, syn & ~dropped, content["seq"])
    # A SYN has a number of its own, before its data.
    place = np.cumsum(_steps(connection, content["seq"])) + syn
    size, time = content["data"].astype(np.int64), events.hops["time"].astype(np.int64)
    some = np.flatnonzero(size)
    came, dropped = came.take(some), dropped[some]
    arrival, read = np.where(dropped, -1, time[came.row]), np.where(came.read, time[came.out], -1)
    filled = _filled(connection[some], place[some], size[some], arrival, read)
    held = np.flatnonzero((came.out >= 0) & (filled > time[came.row]) & (filled < time[came.out]))
    held = held[np.argsort(came.row[held])]
    put, until = came.row[held], filled[held]
    gap = _last_before(time, put, came.out[held], until)
    return Held(put, gap, 2 * (until - time[gap]) > time[gap + 1] - time[gap])


def _last_before(time: Ints, begin: Rows, end: Rows, until: Ints) -> Rows:
    """The last row of each range [begin, end] of one packet's whose time is before `until`: its first one's is."""
    while (wide := end - begin > 1).any():
        middle = (begin + end) // 2
        early = time[middle] < until
        begin, end = np.where(wide & early, middle, begin), np.where(wide & ~early, middle, end)
    return begin


def _may_be_tcp(facts: npt.NDArray[np.void]) -> Bools:
    """Before the headers of those few are read: who names another protocol at the usual place is none."""
    plain = unread(facts)
    four = plain.four & (plain.at(9) == _TCP)
    six = plain.six & np.isin(plain.at(6), (_TCP, *EXTENSIONS))
    return np.asarray(plain.tagged | four | six)


def _arrivals(events: Events, may_be: Bools) -> _Arrivals:
    """Packets of some facts that came to a socket, copy by copy: the last hop on the way, and what follows it."""
    hops = events.hops
    mark = _marks(events)
    is_end = hops["flags"] & EVENT_FLAGS["end"] != 0
    # A fact that was lost is the last place.
    rows = np.flatnonzero(((mark[hops["func"]] > 0) | is_end) & np.append(may_be, False)[events.fact_of])
    rows = rows[stable_order(events.copies.of[rows].astype(np.int64))]
    copy = events.copies.of[rows]
    does = np.where(is_end[rows], _TAKEN, mark[hops["func"][rows]])
    follows = np.zeros(len(rows), np.int8)
    follows[:-1] = np.where(copy[1:] == copy[:-1], does[1:], 0)
    came = np.flatnonzero((does == _INWARD) & np.isin(follows, (0, _TAKEN)) & (hops["netns"][rows] != 0))
    out = np.where(follows[came] == _TAKEN, rows[np.minimum(came + 1, len(rows) - 1)], -1)
    readers = np.array([function.role == "deliver" for function in events.start.functions], bool)
    read = readers[hops["func"][out]] | events.freed_in(load().readers | events.start.readers)[out]
    return _Arrivals(rows[came], out, read & (out >= 0))


def _marks(events: Events) -> npt.NDArray[np.int8]:
    """Of each function whether it is on the way to a socket, on the way out, or where a segment is taken up."""
    inward, outward, taken = set(_RECEIVERS), set[str](), set[str]()
    for rule in load().queues:
        if rule.queue == "socket":
            inward |= rule.in_
        elif rule.queue == "out-of-order":
            taken |= rule.out
        elif rule.queue != "backlog":
            outward |= rule.in_ | rule.out
    mark = np.zeros(len(events.start.functions), np.int8)
    for at, function in enumerate(events.start.functions):
        if function.name in taken or function.role == "deliver":
            mark[at] = _TAKEN
        elif function.name in outward or function.role in ("transmit", "send"):
            mark[at] = _OUTWARD
        # In the layer `socket` they are packet sockets' and datagrams'.
        elif function.role == "receive" or (function.name in inward and function.layer != "socket"):
            mark[at] = _INWARD
    return mark


def _connections(parsed: npt.NDArray[np.void], netns: npt.NDArray[np.uint32]) -> npt.NDArray[np.intp]:
    """Of each segment a number for its namespace and ends, in this direction."""
    key = np.zeros((len(parsed), 5), np.uint64)
    for at, end in ((0, "src"), (2, "dst")):
        key[:, at : at + 2] = np.ascontiguousarray(parsed[end]).view(np.uint64)
    ports = parsed["sport"].astype(np.uint64) << np.uint64(16) | parsed["dport"]
    key[:, 4] = netns.astype(np.uint64) << np.uint64(32) | ports
    return np.asarray(pd.factorize(folded(key))[0], np.intp)


def _steps(connection: npt.NDArray[np.intp], seq: npt.NDArray[np.uint32]) -> Ints:
    """How far each segment begins from the one before it, across a wrap of the numbers; 0 for a connection's first."""
    step = np.diff(seq.astype(np.uint32), prepend=np.uint32(0)).view(np.int32).astype(np.int64)
    step[np.append(True, connection[1:] != connection[:-1])] = 0
    return step


def _one_after_another(ends_of: npt.NDArray[np.intp], syn: Bools, seq: npt.NDArray[np.uint32]) -> npt.NDArray[np.intp]:
    """Number connections, of segments in the order of their ends and time. A SYN that comes again begins none."""
    begins = np.append(True, ends_of[1:] != ends_of[:-1])
    opening = np.flatnonzero(syn)
    again = (ends_of[opening[1:]] == ends_of[opening[:-1]]) & (seq[opening[1:]] == seq[opening[:-1]])
    begins[opening[:1]] = True
    begins[opening[1:][~again]] = True
    return np.cumsum(begins) - 1


def _filled(connection: npt.NDArray[np.intp], place: Ints, size: Ints, arrival: Ints, read: Ints) -> Ints:
    """Of each segment when the last of the data in front of it came, -1 where none is known to have come later.

    Parameters
    ----------
    connection, place, size : arrays
        Of each segment its connection, ascending, and where in it its data begin and how long they are.
    arrival, read : arrays of int64
        When it came, -1 where it was dropped then or later; and when it was read, -1 where it was not.
    """
    count = len(place)
    edge, of_edge, connection_of = _edges(connection, place, size)
    begin, end = of_edge[:count], of_edge[count:]
    # Times as ranks, from 1, so that those of one connection can be lifted above those of the ones before.
    came = arrival >= 0
    times = np.unique(arrival[came])
    if not len(times):
        return np.full(count, -1, np.int64)
    never = len(times) + 1
    first = _least_between(begin[came], end[came], np.searchsorted(times, arrival[came]) + 1, edge, never)
    # What comes once something behind it has been read had come before.
    past = np.full(edge, never)
    was_read = np.flatnonzero(read >= 0)
    np.minimum.at(past, begin[was_read], np.searchsorted(times, read[was_read], "right"))
    lift = connection_of * (never + 1)
    past = np.minimum.accumulate((past + lift)[::-1])[::-1] - lift
    first[first > past] = 0
    first[first == never] = 0
    latest = np.maximum.accumulate(first + lift) - lift
    # Up to the edge before the segment's own; that of another connection is none.
    before = np.maximum(begin - 1, 0)
    found = np.where((begin > 0) & (connection_of[before] == connection), latest[before], 0)
    return np.where(found > 0, times[found - 1], -1)


def _edges(connection: npt.NDArray[np.intp], place: Ints, size: Ints) -> tuple[int, Rows, npt.NDArray[np.intp]]:
    """How many different places there are at which data begin or end, which of them each begin and end is; of whom."""
    at, of = np.concatenate((place, place + size)), np.concatenate((connection, connection))
    order = np.lexsort((at, of))
    new = np.append(True, (at[order][1:] != at[order][:-1]) | (of[order][1:] != of[order][:-1]))
    which = np.empty(len(at), np.intp)
    which[order] = np.cumsum(new) - 1
    return int(new.sum()), which, of[order][new]


def _least_between(begin: Rows, end: Rows, value: Ints, count: int, none: int) -> Ints:
    """Of each of `count` places the least value of the ranges [begin, end) that hold it, `none` where none does.

    A range is two of a power of two's length, which overlap. Two of half the length have the value of one, so from the
    longest down to single places each length is looked at once.
    """
    least = np.full(count, none, np.int64)
    if not len(begin):
        return least
    level = np.frexp((end - begin).astype(np.float64))[1] - 1
    for power in range(int(level.max()), -1, -1):
        size = 1 << power
        if power < level.max():
            # So far for twice the length.
            half = least.copy()
            np.minimum(half[size:], least[:-size], out=half[size:])
            least = half
        here = level == power
        np.minimum.at(least, begin[here], value[here])
        np.minimum.at(least, end[here] - size, value[here])
    return least
