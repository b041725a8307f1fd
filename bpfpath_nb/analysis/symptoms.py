"""Signs of trouble beyond drops, each found in all packets at once.

A symptom is shown by hops: rows of the recording where it is seen. What each function here finds is told by the rules
of its name (`kind`) in `advice.toml`, with the thresholds that stand there. None looks at a packet alone; all are
sorts, counts and comparisons of whole columns.

stall           a wait in a queue (`waits`) longer than the rule has it
unfinished      a packet whose last hop was long before the capture ended
loop            a packet that one function received on one interface several times, without being sent anew
duplicate       two packets with the same identification and the same bytes, close together
asymmetric      a flow whose packets pass other interfaces than those of the flow back
translated      a hop at which the flow is another one than at the packet's hop before
arp-unanswered  questions of ARP repeated without an answer
syn-unanswered  a connection asked for again, with the same number, without an answer
retransmission  TCP data sent again with the same number
reset           segments with the flag RST
zero-window     segments that announce a window of 0
icmp            ICMP messages of error, by type and code
losses          counters of the capture that say that something is missing (`losses`); the one that no hop shows
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfpath_nb.analysis.advice import Rule, rules
from bpfpath_nb.analysis.contents import contents
from bpfpath_nb.analysis.events import Events
from bpfpath_nb.analysis.flows import Flows
from bpfpath_nb.analysis.hops import gaps
from bpfpath_nb.analysis.losses import complete, losses
from bpfpath_nb.analysis.sequences import folded
from bpfpath_nb.analysis.waits import hop_waits
from bpfpath_nb.schema import QUEUES, VERDICTS

Rows = npt.NDArray[np.intp]
Bools = npt.NDArray[np.bool_]

_MS: Final = 1_000_000
_SYN, _RST, _ACK = 2, 4, 16


@dataclass(frozen=True)
class Ground:
    """What symptoms are looked for in; what several of them need is made once.

    Attributes
    ----------
    events : Events
    flows : Flows
    verdict : array of int8
        Of each packet, as a position in schema.VERDICTS.
    """

    events: Events
    flows: Flows
    verdict: npt.NDArray[np.int8]

    @cached_property
    def fact(self) -> npt.NDArray[np.int32]:
        """Of each packet the row of `facts` of its first hop, -1 for none."""
        return self.events.fact_of[self.events.first]

    @cached_property
    def flow(self) -> Rows:
        """Of each packet its flow at its first hop."""
        return self.flow_of(self.events.first)

    @cached_property
    def reverse(self) -> Rows:
        """Of each flow the one in the other direction, -1 for none."""
        flows = self.flows
        if not flows.flow:
            return np.empty(0, np.intp)
        ends = pd.factorize(np.array([*flows.src, *flows.dst], object))[0]
        proto = pd.factorize(np.array(flows.proto, object))[0]
        src, dst = np.split(ends, 2)
        there = _key(proto, src, flows.sport, dst, flows.dport)
        back = _key(proto, dst, flows.dport, src, flows.sport)
        order = np.argsort(there, kind="stable")
        at = np.searchsorted(there[order], back).clip(max=len(order) - 1)
        known = (there[order][at] == back) & (src >= 0) & (dst >= 0) & (src != dst)
        return np.where(known, order[at], -1)

    @cached_property
    def content(self) -> npt.NDArray[np.void]:
        """What the headers of each packet's first snapshot say (`contents`); zeros where there is none."""
        found = contents(self.events.facts[self.fact.clip(min=0)]) if len(self.events.facts) else None
        if found is None:
            return contents(np.zeros(len(self.fact), self.events.facts.dtype))
        found[self.fact < 0] = np.zeros(1, found.dtype)
        return found

    @cached_property
    def copied(self) -> Bools:
        """Of each packet whether the kernel made it of another one."""
        known = self.fact >= 0
        parent = np.zeros(len(self.fact), bool)
        parent[known] = self.events.facts["parent"][self.fact[known]] != 0
        return parent

    @cached_property
    def queue(self) -> npt.NDArray[np.int8]:
        """Of the gap after each hop the queue that was waited in."""
        return hop_waits(self.events)

    @cached_property
    def gap(self) -> npt.NDArray[np.int64]:
        """Of each hop the time until its packet's next one."""
        return gaps(self.events)

    def one_of(self, functions: frozenset[str]) -> Bools:
        """Of each hop whether its function is one of these."""
        has = np.array([function.name in functions for function in self.events.start.functions], bool)
        return has[self.events.hops["func"]] if len(has) else np.zeros(len(self.events), bool)

    def sent(self, functions: frozenset[str]) -> Rows:
        """Rows in which a packet sets out: in one of these functions, in the namespace where it was first seen.

        Of several functions of which a packet passes more than one, the first counts. What TCP sends again, it sends
        as a clone of what it keeps: that is the same packet, and it sets out twice. What a tunnel or IPsec sends once
        more is another flow by then, and does not.
        """
        hops, of = self.events.hops, self.events.packet_of
        rows = np.flatnonzero(self.one_of(functions))
        rows = rows[hops["netns"][rows] == hops["netns"][self.events.first[of[rows]]]]
        entry = np.full(len(self.fact), -1, np.int64)
        entry[of[rows][::-1]] = rows[::-1]  # of several values for one place numpy keeps the last
        first = entry[of[rows]]
        anew = (hops["func"][rows] == hops["func"][first]) & (self.flow_of(rows) == self.flow_of(first))
        return np.asarray(rows[anew])

    def flow_of(self, rows: Rows) -> Rows:
        """The flow at some hops, as a position in `flows.flow`; -1 where it is not known."""
        fact = self.events.fact_of[rows]
        if not len(self.flows.which):
            return np.full(len(rows), -1, np.intp)
        return np.where(fact >= 0, self.flows.which[fact], -1)

    def roles(self, *roles: str) -> Bools:
        """Of each hop whether its function has one of these roles."""
        has = np.array([function.role in roles for function in self.events.start.functions], bool)
        return has[self.events.hops["func"]] if len(has) else np.zeros(len(self.events), bool)


def _key(*columns: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """Numbers of several columns as one number for each row."""
    return folded(np.stack([column.astype(np.int64).view(np.uint64) for column in columns], axis=1))


def find(rule: Rule, ground: Ground) -> Rows:
    """Rows in which the symptom of a rule is seen, ascending."""
    if not len(ground.events):
        return np.empty(0, np.intp)
    return np.asarray(_FINDERS[rule.kind](rule, ground), np.intp)


def _stall(rule: Rule, ground: Ground) -> Any:
    long = np.flatnonzero(ground.gap >= rule.options["longer_ms"] * _MS)
    waited = ground.queue[long] == QUEUES.index(rule.options["queue"])
    # Where the same process sends and reads, no context tells the reading from the sending; the function does.
    waited |= ground.one_of(rule.functions)[long] & (ground.queue[long] < 0)
    return long[waited] + 1  # where it is taken out of the queue


def _unfinished(rule: Rule, ground: Ground) -> Any:
    events = ground.events
    last = events.last
    time = events.hops["time"].astype(np.int64)
    end = int((events.end or {}).get("time", 0)) or int(time.max())
    waits = (ground.verdict == VERDICTS.index("unfinished")) & complete(events)
    waits &= end - time[last] >= rule.options["longer_ms"] * _MS
    towards_socket = frozenset[str]().union(*(other.functions for other in rules() if other.kind == rule.kind))
    at_socket = ground.one_of(towards_socket)[last]
    # A fragment comes to no socket: what it became part of does, where that has another's number.
    at_socket &= (ground.content["proto"] == 0) | ground.content["first"]
    return last[waits & (at_socket == (rule.options["at"] == "socket"))]


def _loop(rule: Rule, ground: Ground) -> Any:
    hops = ground.events.hops
    rows = np.flatnonzero(ground.roles("receive"))
    # What TCP sends again goes the whole way again.
    journey = np.searchsorted(ground.sent(rule.functions), rows)
    key = _key(*(hops[name][rows] for name in ("packet", "netns", "ifindex", "func")), journey)
    which, count = _counted(key)
    many = rows[count[which] >= rule.options["times"]]
    return _first_of_each(hops["packet"][many], many)


def _duplicate(rule: Rule, ground: Ground) -> Any:
    events = ground.events
    twin = ground.content["twin"]
    packets = np.flatnonzero((twin != 0) & ~ground.copied)
    time = events.hops["time"][events.first].astype(np.int64)
    order = packets[np.lexsort((time[packets], twin[packets]))]
    again = (twin[order][1:] == twin[order][:-1]) & (np.diff(time[order]) <= rule.options["within_ms"] * _MS)
    # What was seen first in another place is the same packet, followed under two numbers.
    place = _key(*(events.hops[name][events.first] for name in ("netns", "ifindex")))
    again &= place[order][1:] == place[order][:-1]
    return np.sort(events.first[order[1:][again]])


def _asymmetric(rule: Rule, ground: Ground) -> Any:
    events, flow = ground.events, ground.flow
    whole = np.isin(ground.verdict, [VERDICTS.index("delivered"), VERDICTS.index("consumed")]) & (flow >= 0)
    rows = np.flatnonzero(ground.roles("receive", "transmit") & (events.hops["ifindex"] > 0) & whole[events.packet_of])
    if not len(rows):
        return rows
    place = _key(events.hops["netns"][rows], events.hops["ifindex"][rows])
    packet = events.packet_of[rows]
    once = np.unique(_key(packet, place.view(np.int64)), return_index=True)[1]
    pair_flow, pair_place = flow[packet[once]], place[once]
    _, example, count = np.unique(_key(pair_flow, pair_place.view(np.int64)), return_index=True, return_counts=True)
    packets = np.bincount(flow[whole], minlength=len(ground.flows.flow))
    # What a bridge floods now and then passes more interfaces; the way is what most packets take.
    usual = 2 * count > packets[pair_flow[example]]
    way = np.zeros(len(packets), np.uint64)
    np.add.at(way, pair_flow[example][usual], pair_place[example][usual])
    back = ground.reverse
    differs = (back >= 0) & (way != 0) & (way[back] != 0) & (way != way[back])
    seen = np.full(len(packets), len(flow), np.intp)
    np.minimum.at(seen, flow[whole], np.flatnonzero(whole))
    differs &= seen < seen[back]
    return events.first[np.flatnonzero(whole & differs[flow])]


def _translated(rule: Rule, ground: Ground) -> Any:
    events = ground.events
    fact = events.fact_of
    if not len(ground.flows.which):
        return np.empty(0, np.intp)
    flow = np.where(fact >= 0, ground.flows.which[fact.clip(min=0)], -1)
    changed = (flow[1:] != flow[:-1]) & (flow[1:] >= 0) & (flow[:-1] >= 0)
    changed &= events.packet_of[1:] == events.packet_of[:-1]
    return np.flatnonzero(changed) + 1


def _arp_unanswered(rule: Rule, ground: Ground) -> Any:
    asks = np.array([text.startswith("arp request") for text in ground.flows.flow] + [False], bool)
    answered = np.zeros(len(asks), bool)
    answered[:-1] = (ground.reverse >= 0) & ~asks[ground.reverse]
    question = asks[ground.flow] & ~answered[ground.flow]
    count = np.bincount(ground.flow[question], minlength=len(asks))
    return ground.events.first[question & (count[ground.flow] >= rule.options["times"])]


def _syn_unanswered(rule: Rule, ground: Ground) -> Any:
    events, flags, flow = ground.events, ground.content["flags"], ground.flow
    asks = (flags & (_SYN | _ACK) == _SYN) & (flow >= 0)
    answers = np.zeros(len(ground.flows.flow) + 1, bool)
    answers[flow[(flags & (_SYN | _ACK) == _SYN | _ACK) & (flow >= 0)]] = True
    asks &= ~answers[np.append(ground.reverse, -1)[flow]]
    which, _ = _counted(_key(flow, ground.content["seq"]))
    times = np.maximum(np.bincount(events.packet_of[ground.sent(rule.functions)], minlength=len(flow)), 1)
    repeated = np.bincount(which[asks], times[asks], minlength=len(flow)) >= rule.options["times"]
    # Dropped ones have their own explanation; one that was not makes it a matter of the listener.
    arrived = asks & (ground.verdict != VERDICTS.index("dropped"))
    somehow = np.bincount(which[arrived], minlength=len(flow)) > 0
    # Shown where it came to, which is the listener's place if it got there.
    received = np.flatnonzero(ground.roles("receive"))
    reached = events.first.copy()
    reached[events.packet_of[received]] = received  # of several values for one place numpy keeps the last
    return np.sort(reached[asks & repeated[which] & somehow[which]])


def _retransmission(rule: Rule, ground: Ground) -> Any:
    events, content = ground.events, ground.content
    data = (content["data"] > 0) & ~ground.copied & (ground.flow >= 0) & (content["flags"] & _RST == 0)
    packets = np.flatnonzero(data)
    which, count = _counted(_key(ground.flow[packets], content["seq"][packets], content["data"][packets]))
    again = packets[count[which] > 1]
    again = np.setdiff1d(again, _first_of_each(which[count[which] > 1], again))
    sent = ground.sent(rule.functions)
    sent = sent[data[events.packet_of[sent]]]
    twice = np.setdiff1d(sent, _first_of_each(events.packet_of[sent], sent))
    return np.union1d(events.first[again], twice)


def _reset(rule: Rule, ground: Ground) -> Any:
    return ground.events.first[ground.content["flags"] & _RST != 0]


def _zero_window(rule: Rule, ground: Ground) -> Any:
    content = ground.content
    return ground.events.first[(content["flags"] & (_ACK | _SYN | _RST) == _ACK) & (content["window"] == 0)]


def _icmp(rule: Rule, ground: Ground) -> Any:
    content = ground.content
    found = np.zeros(len(content), bool)
    for proto, kind, code in rule.options["types"]:
        found |= (content["proto"] == proto) & (content["type"] == kind) & (content["code"] == code)
    return ground.events.first[found & content["first"]]


def _losses(rule: Rule, ground: Ground) -> Any:
    events = ground.events
    if not losses(events):
        return np.empty(0, np.intp)
    lacking = events.first[~complete(events)]
    return lacking if len(lacking) else events.first[:1]


def _counted(key: npt.NDArray[np.uint64]) -> tuple[Rows, npt.NDArray[np.intp]]:
    """For each key which of the distinct ones it is, and how often each of those occurs."""
    _, which, count = np.unique(key, return_inverse=True, return_counts=True)
    return which.reshape(-1), count


def _first_of_each(key: npt.NDArray[Any], rows: Rows) -> Rows:
    """Of rows the first one of each key."""
    return np.sort(rows[np.unique(key, return_index=True)[1]])


_FINDERS: Final[dict[str, Callable[[Rule, Ground], Any]]] = {
    "stall": _stall,
    "unfinished": _unfinished,
    "loop": _loop,
    "duplicate": _duplicate,
    "asymmetric": _asymmetric,
    "translated": _translated,
    "arp-unanswered": _arp_unanswered,
    "syn-unanswered": _syn_unanswered,
    "retransmission": _retransmission,
    "reset": _reset,
    "zero-window": _zero_window,
    "icmp": _icmp,
    "losses": _losses,
}

KINDS: Final = ("drop", *_FINDERS)
"""What a rule may be about."""
