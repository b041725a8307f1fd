"""Fragments that came together again: which packet each of them became part of.

The kernel collects the fragments of an IP packet (net/ipv4/inet_fragment.c), and where the last of them has come, the
first goes on with the data of all. What becomes of the others depends on their buffers. Where the data lie in pages, as
with most drivers, they are taken over and the sk_buffs freed, and nobody tells of either; else they stay whole behind
the first, and are freed with it.

So it is told from what was seen. Fragments of one packet have the same addresses, protocol and identification (RFC 791,
RFC 8200). The first was longer, in the network layer and above, than it came, in the namespace where the others were
seen last, and after that: then these are part of it. An identification is used again after a while, so the next whole
counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from bpfpath_nb.analysis.headers import EXTENSIONS, KINDS, extension_headers, located, unread
from bpfpath_nb.schema import EVENT_FLAGS

if TYPE_CHECKING:
    from bpfpath_nb.analysis.events import Events

_LAYERS: Final = frozenset({"ip", "netfilter", "transport", "socket"})
"""Layers in which an sk_buff begins with its network header, or behind it."""

_MORE: Final = 0x2000
_IP6_HEADER: Final = 40  # its length does not count itself
_LEAST_IN_FRAME: Final = 46  # to which Ethernet fills up what is shorter; the kernel cuts that off in ip_rcv
_IDENTITY: Final = np.dtype(
    [("netns", "u4"), ("ident", "u4"), ("kind", "u1"), ("proto", "u1"), ("src", "u1", (16,)), ("dst", "u1", (16,))]
)


def reassemble(events: Events) -> npt.NDArray[np.uint32]:
    """Of each packet the number of that in which it came together with others; 0 where it did not."""
    into = np.zeros(len(events.first), np.uint32)
    facts = events.facts
    shown = np.flatnonzero(_may_be_fragments(facts))
    if not len(shown):
        return into
    identity, is_first, is_later, length = _fragments(facts[shown])
    # The snapshot that shows a fragment need not be the first, for a sender may cut what has a number already, nor the
    # last, for with other addresses a whole is shown once more.
    shows = np.flatnonzero(is_first | is_later)
    numbers, earliest = np.unique(facts["packet"][shown[shows]], return_index=True)
    shows = shows[earliest]
    packets, snapshot = np.searchsorted(events.packets, numbers), facts["snapshot"][shown[shows]]
    identity, first, later, length = identity[shows], is_first[shows], is_later[shows], length[shows]
    if not first.any() or not later.any():
        return into
    hops = events.hops
    layers = [function.layer for function in events.start.functions] or [""]
    # Where it was collected: the last hop before what frees it.
    at = np.zeros(len(events.first), np.intp)
    freeing = np.array([layer == "skb" for layer in layers], bool)[hops["func"]]
    passed = np.flatnonzero(~freeing & (hops["flags"] & EVENT_FLAGS["end"] == 0))
    at[events.packet_of[passed]] = passed

    # Hops of first fragments at which they are longer than they came.
    above = np.array([layer in _LAYERS for layer in layers], bool)
    came = np.zeros(len(events.first), np.int64)
    came[packets[first]] = np.maximum(length[first], _LEAST_IN_FRAME)
    which = np.full(len(events.first), -1, np.intp)
    which[packets] = np.arange(len(packets))
    rows = np.flatnonzero(came[events.packet_of] > 0)
    rows = rows[above[hops["func"][rows]] & (hops["len"][rows] > came[events.packet_of[rows]])]
    # A sender's was longer before it was cut, too.
    rows = rows[hops["snapshot"][rows] >= snapshot[which[events.packet_of[rows]]]]
    if not len(rows):
        return into
    whole = identity[which[events.packet_of[rows]]].copy()
    whole["netns"] = hops["netns"][rows]
    part = identity[later].copy()
    seen_last = at[packets[later]]
    part["netns"] = hops["netns"][seen_last]

    both = np.concatenate([whole, part]).view(np.dtype((np.void, _IDENTITY.itemsize)))
    group = np.unique(both, return_inverse=True)[1].reshape(-1)
    time = np.unique(np.concatenate([hops["time"][rows], hops["time"][seen_last]]), return_inverse=True)[1].reshape(-1)
    key = group * (int(time.max()) + 1) + time
    order = np.argsort(key[: len(rows)], kind="stable")
    place = np.searchsorted(key[: len(rows)][order], key[len(rows) :])
    found = place < len(rows)
    found[found] = group[: len(rows)][order[place[found]]] == group[len(rows) :][found]
    into[packets[later][found]] = hops["packet"][rows[order[place[found]]]]
    return into


def _may_be_fragments(facts: npt.NDArray[np.void]) -> npt.NDArray[np.bool_]:
    """Before all headers of a few are read: who says nothing of fragments at the usual place is none."""
    plain = unread(facts)
    four = plain.four & ((plain.at(6) & 0x3F | plain.at(7)) != 0)
    six = plain.six & np.isin(plain.at(6), EXTENSIONS)
    return np.asarray(plain.tagged | four | six)


def _fragments(
    facts: npt.NDArray[np.void],
) -> tuple[npt.NDArray[np.void], npt.NDArray[np.bool_], npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Of some of the facts what fragments are known by, which of them are first ones, which later ones, how long.

    The namespace in the identity is left open.
    """
    headers = located(facts)
    parsed, matrix, network = headers.parsed, headers.matrix, headers.network
    four, six = parsed["kind"] == KINDS["ip"], parsed["kind"] == KINDS["ip6"]
    identity = np.zeros(len(facts), _IDENTITY)
    for name in ("kind", "proto", "src", "dst"):
        identity[name] = parsed[name]
    later = (parsed["fragment"] == 1) & (four | six)
    first = four & ~later & (matrix.u16(network + 6) & _MORE != 0)
    identity["ident"] = np.where(four, matrix.u16(network + 4), 0)
    length = np.where(four, matrix.u16(network + 2), matrix.u16(network + 4) + _IP6_HEADER).astype(np.int64)
    for header in extension_headers(matrix, six, matrix.u8(network + 6), network + _IP6_HEADER):
        of = header.fragment
        first |= of & ~header.later & (matrix.u16(header.offset + 2) & 1 != 0)
        ident = matrix.u16(header.offset + 4).astype(np.int64) << 16 | matrix.u16(header.offset + 6)
        identity["ident"] = np.where(of, ident, identity["ident"])
        # The protocol of a later one stands there, and is not looked for behind it.
        identity["proto"] = np.where(of, header.following, identity["proto"])
    return identity, first, later, length
