"""The frame of packets: one row per packet, and what became of it.

A packet has one or more sk_buffs (`copies`): a packet socket or a multicast gets clones of it, a bridge that floods
sends one through each port, and each of them ends somewhere. The verdict on the packet follows from all its hops, by
what the functions do (`role` of the start record), the first of these that is true:

delivered    a hop handed its data to the owner of a socket (role `deliver`), or it was freed where such an owner has
             read it (`readers` of the start record). Where another copy was dropped, the reading of a clone counts
             only if its end shows that it was no packet socket's: one that saw a packet does not hide that it got
             no further. A raw socket (ping) is meant by what it reads, a packet socket only looks on.
dropped      a copy was freed (flag `end`) by a function of the role `drop`, the reason does not say that it was used
             as meant, and no other copy lives. Kernels before 5.17 give no reason; there each such end is a drop,
             but those in the handler of ICMPv6, which freed so what it had used as well.
             A FIN that waits in a socket that is closed is purged with it; nothing is lost with an empty segment.
             Data that waits there was never read: it is lost, though TCP frees it as used, or (7.2) as readers do.
             A segment without data for a connection that ended has done its work, such as the last FIN. What came
             together from fragments frees them with itself, and they are dropped only where it was.
             Ends of bystanders do not count beside those of other copies: a copy that a bridge flooded to another
             host (OTHERHOST), or a packet socket's (PACKET_SOCK_ERROR, or freed in its receiving function).
delivered    the tracer found that it had been read (`reads`): not every kernel tells of the reading itself.
sent         a copy's end was seen, no other copy lives, and after the last hop that handed it to a driver
             (`transmit`) no driver handed it up again (`receive`) or merged it into another packet: it left this
             machine, or what we see of it. Across a veth pair it is received again, so it goes on. A capture of some
             namespaces only does not see the end of what left them; there handing it to a driver is enough.
consumed     all ends were seen, not all of them of bystanders: a protocol or a local process used it up, such as an
             ARP request. Where all were of bystanders, the packet is dropped if one of these was.
             A packet that GRO merged into another ends there (`merged_into`, flag `merged`): that one goes on with its
             data. What frees the merged sk_buff later, with the other's, does not count. So does a fragment that
             came together with others (`reassembly`): it is used up, unless it was dropped with the whole.
unfinished   a copy's end was not seen: it waits in a queue, the capture stopped before, or the event was lost (see
             `complete`). A copy that was dropped meanwhile shows in the frame of hops only. What TCP keeps to send
             again is no copy in this sense.

`where` is the function of the hop that decided; for an end that is the function which gave the packet up or was done
with it, which is known by its address, and not the freeing function itself.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfpath_nb.analysis import names
from bpfpath_nb.analysis.ends import drops_and_bystanders, ends, given_up_by, never_read
from bpfpath_nb.analysis.events import Events
from bpfpath_nb.analysis.flows import Flows
from bpfpath_nb.analysis.hops import hop_flows, nullable, timedeltas, timestamps
from bpfpath_nb.analysis.losses import complete, has_ended
from bpfpath_nb.analysis.paths import Paths
from bpfpath_nb.analysis.sequences import distinct
from bpfpath_nb.schema import EVENT_FLAGS, PACKETS, ROLES, VERDICTS

Verdicts = tuple[npt.NDArray[np.int8], npt.NDArray[np.intp]]

_ROLES: Final = tuple(ROLES)

_TAP_READERS: Final = frozenset({"packet_recvmsg", "skb_free_datagram", "__skb_free_datagram_locked"})
"""Functions that free what a packet socket's owner has read."""


def packets_frame(events: Events, flows: Flows, paths: Paths, verdicts: Verdicts) -> pd.DataFrame:
    """All packets, by number; `verdicts` as the function of this name tells them.

    Returns
    -------
    DataFrame
        Index packet; columns as schema.PACKETS.
    """
    first, last, utc = events.first, events.last, events.utc
    verdict, deciding = verdicts
    dropped = verdict == VERDICTS.index("dropped")
    fact = events.fact_of[first]
    parent, length = _parent_and_length(events, fact)
    ports = {end: _ports(getattr(flows, end), flows, fact) for end in ("sport", "dport")}
    merged_into = _merged_into(events, verdict == VERDICTS.index("consumed"))
    netns = names.netns(events)
    columns: dict[str, Any] = {
        "first": timestamps(utc[first]),
        "last": timestamps(utc[last]),
        "total": timedeltas(utc[last] - utc[first]),
        "hops": events.counts.astype(np.uint32),
        "path": paths.named().categorical(),
        "flow": hop_flows(events, flows, first).categorical(),
        "proto": _of_first(flows.proto, flows, fact),
        "src": _of_first(flows.src, flows, fact),
        "sport": ports["sport"],
        "dst": _of_first(flows.dst, flows, fact),
        "dport": ports["dport"],
        "length": nullable(length),
        "netns": netns.take(first).categorical(),
        "namespaces": itineraries(events.packet_of, len(first), netns).categorical(),
        "verdict": names.categorical(verdict, VERDICTS),
        "reason": names.reasons(events, deciding).take(np.where(dropped, np.arange(len(first)), -1)).categorical(),
        "where": given_up_by(events, deciding).categorical(),
        "parent": nullable(parent, parent == 0),
        "complete": complete(events),
        "merged_into": nullable(merged_into, merged_into == 0),
    }
    index = pd.Index(events.packets, name="packet")
    return pd.DataFrame({column.name: columns[column.name] for column in PACKETS}, index=index)


def verdicts(events: Events) -> Verdicts:
    """Of each packet the verdict, as a position in schema.VERDICTS, and the row of the hop that decided it."""
    start, hops = events.start, events.hops
    role_of = np.array([_ROLES.index(function.role) for function in start.functions] or [0], np.int8)
    role = role_of[hops["func"]]

    def last_with(rows: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
        # Of several values for one place numpy keeps the last, and the rows are in the packet's order.
        found, at = np.full(len(events.first), -1, np.intp), np.flatnonzero(rows)
        found[events.packet_of[at]] = at
        return found

    def is_role(name: str) -> npt.NDArray[np.bool_]:
        return np.asarray(role == _ROLES.index(name))

    copies = events.copies
    of_packet, several = events.packet_of, copies.several
    is_end = ends(events)
    is_drop, bystander = drops_and_bystanders(events, is_end)
    # Whether no copy lives but, perhaps, the row's own.
    alone = (copies.living[copies.packet] == copies.lives)[copies.of]

    real = is_drop & ~bystander
    reading = is_role("deliver") & ~never_read(events, is_end) | is_end & events.freed_in(start.readers)
    meant = np.zeros(len(copies.packet), bool)
    meant[copies.of[is_end & events.freed_in(start.readers - _TAP_READERS)]] = True
    aside = reading & several[of_packet] & (hops["flags"] & EVENT_FLAGS["clone"] != 0)
    aside = np.flatnonzero(aside & ~meant[copies.of])
    reading[aside[_dropped_elsewhere(events, np.flatnonzero(real), aside)]] = False

    ended = has_ended(events)
    delivered, dropped = last_with(reading), last_with(real & alone)
    read = np.isin(events.packets, np.array(sorted(events.reads), np.uint32))
    received = is_role("receive") | (hops["flags"] & EVENT_FLAGS["merged"] != 0)
    sent = _left(events, is_role("transmit"), received, everywhere=not start.options.get("namespaces"))
    used, passed_by, last_end = last_with(is_end & ~bystander), last_with(is_drop & bystander), last_with(is_end)
    part = events.became_part_of != 0
    cases = [delivered >= 0, dropped >= 0, read, sent >= 0, ended & (used < 0) & (passed_by >= 0), ended, part]
    verdict = np.select(cases, [0, 1, 0, 2, 1, 3, 3], 4).astype(np.int8)
    used = np.where(used < 0, last_end, used)
    deciding = np.select(cases, [delivered, dropped, events.last, sent, passed_by, used, events.last], events.last)
    # An end without the flag `end` before it cannot be, but the stream is not to be trusted.
    return verdict, np.where(deciding < 0, events.last, deciding)


def _dropped_elsewhere(
    events: Events, drops: npt.NDArray[np.intp], rows: npt.NDArray[np.intp]
) -> npt.NDArray[np.bool_]:
    """Of some rows whether a copy of the packet other than the row's own was dropped."""
    copies = events.copies
    dropped = np.zeros(len(copies.packet), bool)
    dropped[copies.of[drops]] = True
    count = np.bincount(copies.packet[dropped], minlength=len(copies.several))
    return np.asarray(count[events.packet_of[rows]] > dropped[copies.of[rows]])


def _left(
    events: Events, transmits: npt.NDArray[np.bool_], receives: npt.NDArray[np.bool_], *, everywhere: bool
) -> npt.NDArray[np.intp]:
    """Of each packet the row in which a copy was handed to a driver that did not hand it up again; -1 for none.

    No other copy may live. The copy's own end must have been seen, unless not `everywhere` is captured.
    """
    copies = events.copies
    transmitted, received = np.full((2, len(copies.packet)), -1, np.intp)
    for found, rows in ((transmitted, np.flatnonzero(transmits)), (received, np.flatnonzero(receives))):
        found[copies.of[rows]] = rows
    out = transmitted > received
    lives = copies.lives if everywhere else copies.lives & ~out
    waiting = np.bincount(copies.packet[lives], minlength=len(copies.several))
    left = np.flatnonzero(out & (waiting[copies.packet] == 0))
    row = np.full(len(copies.several), -1, np.intp)
    np.maximum.at(row, copies.packet[left], transmitted[left])
    return row


def itineraries(packet_of: npt.NDArray[np.int32], count: int, netns: names.Named) -> names.Named:
    """Of each of `count` packets the namespaces it visited, in order of its first visit, as `client > router`.

    `packet_of` and `netns` are of the hops, which lie packet by packet and in order.
    """
    if not count:
        return names.Named(np.empty(0, np.int8), [])
    packet, code = packet_of, netns.codes
    moved = np.concatenate(([True], (packet[1:] != packet[:-1]) | (code[1:] != code[:-1]))) & (code >= 0)
    at = np.flatnonzero(moved)
    visit = packet[at].astype(np.int64) * (len(netns.names) + 1) + code[at]
    at = at[np.sort(np.unique(visit, return_index=True)[1])]
    if not len(at):
        return names.Named(np.full(count, -1, np.int8), [])
    packet, code = packet[at], code[at]
    begins = np.concatenate(([0], np.flatnonzero(packet[1:] != packet[:-1]) + 1))
    visits = np.diff(np.append(begins, len(at)))
    examples, which = distinct(code, np.arange(len(at)) - np.repeat(begins, visits), begins)
    texts = [
        " > ".join(netns.names[visited] for visited in code[begins[list_] : begins[list_] + visits[list_]].tolist())
        for list_ in examples.tolist()
    ]
    where = np.full(count, -1, np.intp)
    where[packet[begins]] = which
    return names.distinct_names(where, texts)


def _of_first(texts: list[str] | list[str | None], flows: Flows, fact: npt.NDArray[np.int32]) -> Any:
    return names.distinct_names(flows.which, texts).take(fact).categorical()


def _ports(ports: npt.NDArray[np.int32], flows: Flows, fact: npt.NDArray[np.int32]) -> Any:
    of_packet = np.full(len(fact), -1, np.int32)
    known = fact >= 0
    of_packet[known] = ports[flows.which[fact[known]]]
    return nullable(of_packet.clip(min=0).astype(np.uint16), of_packet < 0)


def _merged_into(events: Events, consumed: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint32]:
    into, hops = np.where(consumed, events.became_part_of, 0).astype(np.uint32), events.hops
    at = np.flatnonzero(hops["flags"] & EVENT_FLAGS["merged"])
    number = hops["location"][at]
    into[events.packet_of[at]] = np.where(number <= np.iinfo(np.uint32).max, number, 0)
    return into


def _parent_and_length(
    events: Events, fact: npt.NDArray[np.int32]
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    parent = np.zeros(len(fact), np.uint32)
    length = events.hops["len"][events.first]
    known = fact >= 0
    parent[known] = events.facts["parent"][fact[known]]
    length[known] = events.facts["len"][fact[known]]
    return parent, length
