"""Which ends of sk_buffs are drops, and who gave them up.

The kernel has a function that frees what is dropped, and it is told why. Not all that passes there was dropped: some
reasons say that a packet was used, or that it was not for this host; kernels before 5.17 give none, and some callers
free in this way what they have used. And some losses pass elsewhere: what a program never read from a socket that was
closed, and what TCP drops on kernels without reasons. The latter is counted at the socket, as are segments that ended
or opened a connection and were used all the same; the tracer calls such an end `tcp_drop`.

An end is named after the function that gave the packet up, by the address that the kernel or its stack tells.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from bpfpath_nb.analysis import names
from bpfpath_nb.analysis.advice import NOT_SAID
from bpfpath_nb.analysis.contents import contents
from bpfpath_nb.schema import EVENT_FLAGS

if TYPE_CHECKING:
    from bpfpath_nb.analysis.events import Events

_BYSTANDERS: Final = frozenset({"OTHERHOST", "PACKET_SOCK_ERROR"})
"""Drop reasons that say of one copy that it was not for this host or socket, and nothing of the packet."""

_TAPS: Final = frozenset({"packet_rcv", "packet_rcv_spkt", "tpacket_rcv", "packet_rcv_fanout"})
"""Functions that take a clone for a packet socket (net/packet/af_packet.c)."""

_USERS: Final = frozenset({"icmpv6_rcv"})
"""Functions that, before Linux 6.3, freed as dropped and without a reason also what they had used (net/ipv6/icmp.c)."""

_LISTS: Final = frozenset(
    {"kfree_skb_list", "kfree_skb_list_reason", "__tcf_kfree_skb_list", "skb_queue_purge", "skb_rbtree_purge"}
)
"""Functions that free several packets for their caller.

Kernels before 6.3 tell their address and not its; that of `__tcf_kfree_skb_list` is told by 7.2, which frees in it what
queues refused (net/sched/sch_generic.c).
"""

_CLOSERS: Final = frozenset({"sk_stream_kill_queues"})
"""Functions that purge the queues of a stream socket that was closed (net/core/stream.c)."""

_UNREAD: Final = frozenset({"__tcp_close", "inet_csk_destroy_sock"})
"""Functions that free what a TCP socket holds when it is closed, and not as dropped (net/ipv4/tcp.c)."""

CLOSING: Final = _CLOSERS | _UNREAD
"""Both: what is freed there had come to its socket, and nobody had read it."""

_DEFERS: Final = "skb_attempt_defer_free"
"""Function that frees what a reader is done with, and on 7.2 also what a TCP socket holds when it is closed."""

_TCP_RECEIVERS: Final = frozenset({"tcp_v4_rcv", "tcp_v6_rcv"})
"""Functions that free without a reason also what they had used for a connection that ended (net/ipv4/tcp_ipv4.c)."""

_TCP_DROP: Final = "tcp_drop"
"""What the tracer calls an end at which TCP of a kernel without reasons counted a drop (`note_tcp_drop`, bpf/hop.h)."""

_TCP_DROPPERS: Final = frozenset(
    {
        "tcp_v4_do_rcv", "tcp_v6_do_rcv", "tcp_child_process", "tcp_rcv_established", "tcp_rcv_state_process",
        "tcp_validate_incoming", "tcp_data_queue", "tcp_v4_rcv", "tcp_v6_rcv", "tcp_drop",
    }
)  # fmt: skip
"""Functions that do drop then (net/ipv4/tcp_input.c), or whose last call is to one. Others only free, later.

All go by way of `tcp_drop`, which some compilers leave a function.
"""

_MERGES: Final = "kfree_skb_partial"
"""Function that frees what was appended to an earlier segment's data."""

_ESTABLISHED, _TIME_WAIT, _CLOSE = 1, 6, 7  # include/net/tcp_states.h
_SYN, _ACK = 2, 16

_PARTS: Final = "skb_release_data"
"""Function that frees with a packet the fragments that it came together from (`frag_list`; net/core/skbuff.c)."""


def ends(events: Events) -> npt.NDArray[np.bool_]:
    """Of each hop whether a copy came to its end there; one that was merged did so before it was freed."""
    flags, of = events.hops["flags"], events.copies.of
    is_end = flags & EVENT_FLAGS["end"] != 0
    at = np.flatnonzero(flags & EVENT_FLAGS["merged"])
    if len(at):
        # Of several values for one place numpy keeps the last.
        merged, passed = np.full((2, len(events.copies.packet)), -1, np.intp)
        merged[of[at]] = at
        goes_on = np.flatnonzero(~is_end)
        passed[of[goes_on]] = goes_on
        is_end &= (np.arange(len(is_end)) <= merged[of]) | (merged < 0)[of] | (passed > merged)[of]
    return np.asarray(is_end)


def drops_and_bystanders(
    events: Events, is_end: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Of each hop whether a copy was dropped there, and whether it is the end of a bystander."""
    start, reason = events.start, events.hops["reason"]

    def not_said(number: int) -> bool:
        return not number or start.reason(number) in NOT_SAID

    drops = np.array([function.role == "drop" for function in start.functions] or [False], bool)
    is_drop = is_end & drops[events.hops["func"]]
    is_drop &= _by_number(reason, is_drop, start.is_drop_reason)
    is_drop &= (events.hops["len"] > 0) | ~events.freed_in(_CLOSERS)
    silent = np.flatnonzero(_by_number(reason, is_drop, not_said))
    is_drop[_used(events, silent)] = False
    unread = np.flatnonzero(is_end & events.freed_in(_UNREAD))
    is_drop[unread[_content(events, unread)["data"] > 0]] = True
    bystander = is_end & events.freed_in(_TAPS)
    bystander |= _by_number(reason, is_drop, lambda number: start.reason(number) in _BYSTANDERS)
    bystander &= events.copies.several[events.packet_of]
    parts = _parts(events, silent)
    if len(parts):
        whole = _wholes(events, parts)
        is_drop[parts] = (whole >= 0) & (is_drop & ~bystander)[whole]
    return is_drop, bystander


def real_drops(events: Events) -> npt.NDArray[np.bool_]:
    """Of each hop whether a copy was dropped there that was no bystander."""
    is_drop, bystander = drops_and_bystanders(events, ends(events))
    return is_drop & ~bystander


def never_read(events: Events, is_end: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Of each hop whether a copy was given away there as readers do, while its socket was closed with it."""
    closed = np.zeros(len(events.copies.packet), bool)
    closed[events.copies.of[is_end & events.freed_in(_UNREAD)]] = True
    defers = np.array([function.name == _DEFERS for function in events.start.functions] or [False], bool)
    return np.asarray(defers[events.hops["func"]] & closed[events.copies.of])


def given_up_by(events: Events, rows: npt.NDArray[np.intp]) -> names.Named:
    """The functions of some hops: of an end the one that holds the address of who freed, where that is known."""
    function = names.functions(events, rows=rows)
    location = given_up_at(events, rows)
    known = names.look_up(location, lambda address: events.locations.get(address, (None, 0))[0])
    code = np.where(known.codes >= 0, known.codes, function.codes + np.int32(len(known.names)))
    return names.distinct_names(code, [*known.names, *function.names])


def given_up_at(events: Events, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.uint64]:
    """The addresses that freed at some hops; of what freed a list for its caller that one's, where a stack tells it."""
    location = events.hops["location"][rows].copy()
    lists = np.array([at for at, (symbol, _) in events.locations.items() if symbol in _LISTS], np.uint64)
    of = np.flatnonzero(np.isin(location, lists))
    of = of[events.stack_of[rows[of]] >= 0] if len(of) else of
    if len(of):
        frames = events.stacks["frames"][events.stack_of[rows[of]]]
        at = (frames[:, :-1] == location[of, None]).argmax(axis=1)
        each = np.arange(len(of))
        caller = frames[each, at + 1]
        told = (frames[each, at] == location[of]) & (caller != 0)
        location[of[told]] = caller[told]
    return location


def _used(events: Events, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Of ends that the kernel calls drops without a reason those that are none: of what had been used."""
    if not len(rows):
        return rows
    of = events.stack_of[rows]
    state = np.where(of >= 0, events.stacks["tcp_state"][of], 0) if len(events.stacks) else np.zeros(len(rows), int)
    ended = events.freed_in(_TCP_RECEIVERS)[rows] & (state == _TIME_WAIT)
    # Kernels without reasons count as dropped also what ended a connection, and the answer that opened one.
    counted = np.array([function.name == _TCP_DROP for function in events.start.functions], bool)
    counted = counted[events.hops["func"][rows]]
    ended |= counted & (state == _CLOSE)
    opened = counted & (state == _ESTABLISHED) & ~events.freed_in(frozenset({"tcp_validate_incoming"}))[rows]
    asked = np.flatnonzero(ended | opened)
    content = _content(events, rows[asked])
    empty, syn = content["first"] & (content["data"] == 0), content["flags"] & (_SYN | _ACK)
    ended[asked] &= empty & (syn & _SYN == 0)
    opened[asked] &= empty & (syn == _SYN | _ACK)
    merged = np.array([function.name == _MERGES for function in events.start.functions], bool)
    before = np.maximum(rows - 1, events.first[events.packet_of[rows]])
    later = counted & (~events.freed_in(_TCP_DROPPERS)[rows] | merged[events.hops["func"][before]])
    used: npt.NDArray[np.intp] = rows[events.freed_in(_USERS)[rows] | ended | opened | later]
    return used


def _parts(events: Events, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Of some ends those of fragments that a whole freed with itself."""
    freeing = np.array([at for at, (symbol, _) in events.locations.items() if symbol == _PARTS], np.uint64)
    return rows[np.isin(given_up_at(events, rows), freeing)] if len(freeing) else rows[:0]


def _wholes(events: Events, parts: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Of each of these ends of fragments that of their whole, -1 where it was not seen.

    The kernel tells of the whole first and then of each fragment, on one CPU.
    """
    hops = events.hops
    ends = np.flatnonzero(hops["flags"] & EVENT_FLAGS["end"])
    ends = ends[np.lexsort((hops["seq"][ends], hops["time"][ends], hops["cpu"][ends]))]
    is_part = np.isin(ends, parts)
    before = np.maximum.accumulate(np.where(is_part, -1, np.arange(len(ends))))
    whole = np.full(len(hops["flags"]), -1, np.intp)
    whole[ends] = np.where(before >= 0, ends[before], -1)
    of = whole[parts]
    return np.where(hops["cpu"][of] == hops["cpu"][parts], of, -1)


def _content(events: Events, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.void]:
    """What the headers at some hops say (`contents`); zeros where they are not known."""
    fact = events.fact_of[rows]
    found = contents(events.facts[fact[fact >= 0]])
    content = np.zeros(len(rows), found.dtype)
    content[fact >= 0] = found
    return content


def _by_number(
    numbers: npt.NDArray[Any], rows: npt.NDArray[np.bool_], holds: Callable[[int], bool]
) -> npt.NDArray[np.bool_]:
    """Of the marked rows those of whose number something holds, asked once for each number."""
    found = np.zeros(len(rows), bool)
    number, which = np.unique(numbers[rows], return_inverse=True)
    found[rows] = np.array([holds(int(value)) for value in number], bool)[which.reshape(-1)]
    return found
