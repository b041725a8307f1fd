"""Work or wait: whether a packet was being handled in a gap between two hops, or lay in a queue.

A packet waits where one context puts it down and another, later, takes it up: the backlog of a CPU, a qdisc, the
queue for an unresolved neighbour, a socket's receive queue, TCP's out-of-order queue. No event tells of waiting, but
the functions around it do, and which ones is data: the rules of `catalogue.toml` (`queues`). A rule names functions
that put a packet into a queue and functions that are met when it is taken out.

in        functions that put it in; without, the packet must have been in that queue wherever it was before
out       functions met once it is out. The first after it was put in counts, on the same sk_buff
reads     so does an end for a function that frees what the owner of a socket has read (`readers`)
unless    the hop before is one of these: it is the same taking out, seen twice
moved     only if the packet was taken out in another context (process or CPU) than it was put in: the functions are
          met as well where the packet goes straight through

The waiting is the gap that ends with the taking out. What whoever put the packet in still does with it before that
(waking the reader) is work; but a gap in between that ends in another context, or at another copy, is waiting too: so
it is while a neighbour is asked for again and again with copies of the packet. What comes behind the end of a copy of
which the kernel tells is another one, also where it got the sk_buff of the former. The first rule that fits decides.

That TCP kept a segment out of order is told by its function only where that can be probed. Of a whole recording the
sequence numbers tell it (`out_of_order`). Such a segment waits twice, first for what is missing and then for its
reader, and mostly no event lies between; the gap in which the missing data came counts as what it waited longer for,
and what follows it as the latter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bpfpath_nb.analysis import names
from bpfpath_nb.analysis.events import Events
from bpfpath_nb.kernel.catalogue import Queue, load
from bpfpath_nb.schema import QUEUES

Bools = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.intp]

_ALL: Final = slice(None)


@dataclass(frozen=True)
class Takings:
    """What tells that a packet was put down and taken up.

    Of each hop its packet, sk_buff, function and context, and whether it freed the packet for its reader.
    """

    packet_of: npt.NDArray[np.integer[Any]]
    skb: npt.NDArray[np.uint64]
    func: names.Named
    pid: npt.NDArray[np.integer[Any]]
    cpu: npt.NDArray[np.integer[Any]]
    read: Bools

    @classmethod
    def of_events(cls, events: Events, rows: slice = _ALL) -> Takings:
        """The hops of a recording, or those of some packets."""
        hops = {name: events.hops[name][rows] for name in ("skb", "func", "pid", "cpu")}
        read = events.freed_in(load().readers | events.start.readers, rows)
        func = names.distinct_names(hops["func"], [function.name for function in events.start.functions])
        return cls(events.packet_of[rows], hops["skb"], func, hops["pid"], hops["cpu"], read)


def hop_waits(events: Events, rows: slice = _ALL) -> npt.NDArray[np.int8]:
    """Of the gap after each hop of a recording the queue that the packet waited in.

    Parameters
    ----------
    events : Events
    rows : slice
        Only these hops, which are all of their packets.

    Returns
    -------
    array of int8
        Position in `schema.QUEUES`; -1 where the gap is work.
    """
    hops = Takings.of_events(events, rows)
    queue = waits(hops)
    gaps = _held(events, hops, rows)
    queue[gaps[np.isin(queue[gaps], (-1, QUEUES.index("socket")))]] = QUEUES.index("out-of-order")
    return queue


def _held(events: Events, hops: Takings, rows: slice) -> Rows:
    """Rows whose gap is waiting out of order, by the sequence numbers."""
    held = events.held
    begin, end, _ = rows.indices(len(events))
    here = slice(*np.searchsorted(held.put, (begin, end)))
    put, gap = held.put[here] - begin, held.gap[here] - begin
    return np.concatenate((gap[held.most[here]], _between(hops, put, gap + 1)))


def waits(hops: Takings) -> npt.NDArray[np.int8]:
    """As `hop_waits`, of hops in the order of their packets, by the functions alone."""
    queue = np.full(len(hops.skb), -1, np.int8)
    if not len(queue):
        return queue
    rules = load().queues
    named = frozenset().union(*(rule.in_ | rule.out for rule in rules))
    # Most hops are of functions that no rule names.
    rows = np.flatnonzero(_are(hops.func, named)[hops.func.codes] | hops.read)
    codes = hops.func.codes[rows]
    for rule in rules:
        is_out = _are(hops.func, rule.out)[codes]
        if rule.reads:
            is_out |= hops.read[rows]
        gaps = _gaps(rule, hops, rows, _are(hops.func, rule.in_)[codes], is_out)
        queue[gaps[queue[gaps] < 0]] = QUEUES.index(rule.queue)
    return queue


def _gaps(rule: Queue, hops: Takings, rows: Rows, is_put: Bools, is_out: Bools) -> Rows:
    """Rows whose gap is waiting by this rule; of `rows` is told which put a packet in, and which take it out."""
    out = rows[is_out]
    between = np.empty(0, np.intp)
    if rule.in_:
        put, out = _pairs(hops, rows, is_put, is_out)
        if rule.moved:
            moved = _moved(hops, put, out)
            put, out = put[moved], out[moved]
        between = _between(hops, put, out)
    out = out[out > 0]
    if rule.unless:
        out = out[~_are(hops.func, rule.unless)[hops.func.codes[out - 1]]]
    last = out[hops.packet_of[out - 1] == hops.packet_of[out]] - 1
    return np.concatenate((last, between))


def _pairs(hops: Takings, rows: Rows, is_put: Bools, is_out: Bools) -> tuple[Rows, Rows]:
    """Each row that puts a packet in with the row that takes it out: the next of the same sk_buff."""
    either = is_put | is_out
    rows, is_put, is_out = rows[either], is_put[either], is_out[either]
    packet, skb = hops.packet_of[rows], hops.skb[rows]
    if ((packet[1:] == packet[:-1]) & (skb[1:] != skb[:-1])).any():
        order = np.lexsort((skb, packet))
        rows, is_put, is_out, packet, skb = rows[order], is_put[order], is_out[order], packet[order], skb[order]
    at = np.flatnonzero(is_put[:-1] & is_out[1:] & (packet[1:] == packet[:-1]) & (skb[1:] == skb[:-1]))
    return rows[at], rows[at + 1]


def _moved(hops: Takings, one: Rows, other: Rows) -> Bools:
    return np.asarray((hops.pid[one] != hops.pid[other]) | (hops.cpu[one] != hops.cpu[other]))


def _between(hops: Takings, put: Rows, out: Rows) -> Rows:
    """Rows from each `put` to its `out` after which the packet was seen in another context, or another copy was."""
    count = out - 1 - put
    rows = np.repeat(put - (np.cumsum(count) - count), count) + np.arange(count.sum())
    ends = [name for name, tracepoint in load().tracepoints.items() if tracepoint.final]
    another = (hops.skb[rows] != hops.skb[rows + 1]) | _are(hops.func, ends)[hops.func.codes[rows]]
    found: Rows = rows[_moved(hops, rows, rows + 1) | another]
    return found


def _are(func: names.Named, wanted: Iterable[str]) -> Bools:
    """Of each function whether it is one of these; at the end, of none."""
    return np.array([name in wanted for name in func.names] + [False], bool)
