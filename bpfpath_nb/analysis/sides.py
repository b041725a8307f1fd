"""Two sides of a comparison in the same numbers.

Two recordings number their functions and namespaces each in its own way, and one may have traced functions that the
other could not. A comparison needs the same number for the same thing, and only what both could have seen: hops in a
function that was traced on one side only are left out, and the gaps are measured between what remains. A packet that
may lack hops is left out where paths and latencies are compared, for a lost hop makes a path that no packet took.

*Where* a hop ran is its namespace and interface, as far as both recordings have them: a name that one alone has (a
container's, made anew) says nothing about the other, so it falls back to the namespace, and then to anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfpath_nb.analysis import names
from bpfpath_nb.analysis.events import Events
from bpfpath_nb.analysis.returns import NAT
from bpfpath_nb.analysis.sequences import mix, stable_order
from bpfpath_nb.analysis.whole import one_name, whole

Ints = npt.NDArray[np.integer[Any]]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Side:
    """One side's hops, packet by packet and each packet's in order, without what cannot be compared.

    Attributes
    ----------
    row : array
        Each hop's row in the recording's events.
    packet : array
        Position of each hop's packet among those of `Selection.packets`.
    first : array
        For each packet that has a hop here the first one's position; ascending.
    func, following, netns, dev : arrays
        Codes into the names that both sides share (`Sides`), of the hop's function, of the function of the packet's
        next hop, of the hop's namespace and interface; -1 where there is none.
    spot : array
        Where it ran, the same number for the same place on both sides.
    gap : array of int64
        Until the packet's next hop here, `hops.NAT` on its last. Where only one namespace is compared, until it left.
    """

    row: Ints
    packet: Ints
    first: Ints
    func: Ints
    following: Ints
    netns: Ints
    dev: Ints
    spot: Ints
    gap: npt.NDArray[np.int64]

    @property
    def counts(self) -> Ints:
        """How many hops each packet of `first` has."""
        return np.diff(np.append(self.first, len(self.row)))


@dataclass(frozen=True)
class Sides:
    """Both sides, and the names behind their numbers.

    Attributes
    ----------
    a, b : Side
    functions, namespaces, devices : lists of str
    only_a, only_b : lists of str
        Functions that were traced on that side alone, and left out.
    """

    a: Side
    b: Side
    functions: list[str]
    namespaces: list[str]
    devices: list[str]
    only_a: list[str]
    only_b: list[str]


@dataclass(frozen=True)
class Selection:
    """What of a recording is compared.

    Attributes
    ----------
    events : Events
    packets : array of bool
        Of each packet whether it is.
    netns : str, optional
        Only hops in this namespace.
    """

    events: Events
    packets: Bools
    netns: str | None = None


def sides(a: Selection, b: Selection) -> Sides:
    """Bring two selections into the same numbers."""
    traced = [{one_name(function.name): function.name for function in side.events.start.functions} for side in (a, b)]
    shared = {*traced[0]} & {*traced[1]}
    functions, namespaces, devices = _Names(), _Names(), _Names()
    drafts = [_draft(side, shared, functions, namespaces, devices) for side in (a, b)]
    known = _known_places(a.events) & _known_places(b.events)
    visited = [{*np.unique(draft["netns"]).tolist()} for draft in drafts]
    by_name = a.netns is None and b.netns is None

    def shared_places(netns: int, dev: int) -> tuple[bool, bool]:
        # Namespaces that are compared with each other differ in name on purpose.
        if netns < 0 or not by_name:
            return False, False
        name = namespaces.all[netns]
        both = (name, "") in known or (netns in visited[0] and netns in visited[1])
        return both, both and (dev < 0 or (name, devices.all[dev]) in known)

    spots = _spots(drafts, shared_places)
    made = [Side(**draft, spot=spot) for draft, spot in zip(drafts, spots, strict=True)]
    return Sides(
        made[0],
        made[1],
        functions.all,
        namespaces.all,
        devices.all,
        sorted(called for one, called in traced[0].items() if one not in shared),
        sorted(called for one, called in traced[1].items() if one not in shared),
    )


class _Names:
    """Numbers names in the order of their coming."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._code: dict[str, int] = {}

    def codes(self, named: names.Named) -> Ints:
        for name in named.names:
            if name not in self._code:
                self._code[name] = len(self.all)
                self.all.append(name)
        to = np.array([self._code[name] for name in named.names] + [-1], np.int32)
        return np.asarray(to[named.codes])


def _draft(side: Selection, shared: set[str], functions: _Names, namespaces: _Names, devices: _Names) -> dict[str, Any]:
    """A `Side` without its `spot`."""
    events = side.events
    func, netns = whole(events).functions, whole(events).netns
    known = np.array([name in shared for name in func.names] + [False], bool)
    row = np.flatnonzero(known[func.codes] & side.packets[events.packet_of])
    packet, utc, code = events.packet_of[row], events.utc[row], functions.codes(func.take(row))
    gap, following = np.full(len(row), NAT), np.full(len(row), -1, np.int32)
    if len(row) > 1:
        same = packet[1:] == packet[:-1]
        gap[:-1], following[:-1] = np.where(same, np.diff(utc), NAT), np.where(same, code[1:], -1)
    if side.netns is not None:
        inside = np.array([name == side.netns for name in netns.names] + [False], bool)[netns.codes[row]]
        row, packet, code, gap, following = (values[inside] for values in (row, packet, code, gap, following))
    begins = np.concatenate(([True], packet[1:] != packet[:-1])) if len(packet) else np.empty(0, bool)
    return {
        "row": row,
        "packet": packet,
        "first": np.flatnonzero(begins),
        "func": code,
        "following": following,
        "netns": namespaces.codes(netns.take(row)),
        "dev": devices.codes(whole(events).devices.take(row)),
        "gap": gap,
    }


def _spots(drafts: Sequence[dict[str, Any]], shared: Callable[[int, int], tuple[bool, bool]]) -> list[Ints]:
    """Where each hop ran, as finely as both sides can tell it; `shared` says it of a namespace and an interface."""
    width = 1 + max(int(draft["dev"].max(initial=-1)) + 1 for draft in drafts)
    found: list[Ints] = []
    for draft in drafts:
        spot, places = pd.factorize((draft["netns"].astype(np.int64) + 1) * width + draft["dev"] + 1)
        numbers = []
        for place in places.tolist():
            netns, dev = place // width - 1, place % width - 1
            both_netns, both_dev = shared(netns, dev)
            # Numbers below `width` are not in use otherwise: a namespace has at least 1.
            numbers.append(place if both_dev else -(netns + 2) if both_netns else 0)
        found.append(np.array(numbers, np.int64)[spot])
    return found


def _known_places(events: Events) -> set[tuple[str, str]]:
    """Namespaces and interfaces that a recording has names for; a namespace itself has the interface ""."""
    called: dict[int, list[str]] = {}
    for (inum, ifindex), steps in events.devices.items():
        if not ifindex:
            called[inum] = [name for _, name in steps]
    known = {(netns, "") for names_ in called.values() for netns in names_}
    for (inum, ifindex), steps in events.devices.items():
        if ifindex:
            known |= {(netns, dev) for netns in called.get(inum, ()) for _, dev in steps}
    return known


@dataclass(frozen=True)
class Visits:
    """What each packet spent in each place that it passed, in the order of the packets.

    Attributes
    ----------
    packet, place : arrays
        Positions of the packet and of the place.
    way : array of uint64
        The same number for packets of either side whose hops in that place ran in the same spots, as often, and led
        to the same functions.
    value : array of int64
        Sum of the gaps of its hops there, in ns.
    """

    packet: Ints
    place: Ints
    way: npt.NDArray[np.uint64]
    value: npt.NDArray[np.int64]


def visits(side: Side, place: Ints, places: int) -> Visits:
    """Put together the hops of each packet in each place; hops without a gap, and those of place -1, count for none."""
    rows = np.flatnonzero((side.gap != NAT) & (place >= 0))
    key = side.packet[rows].astype(np.int64) * places + place[rows]
    order = stable_order(key)
    key, rows = key[order], rows[order]
    first = np.flatnonzero(np.concatenate(([True], key[1:] != key[:-1]))) if len(key) else np.empty(0, np.intp)
    if not len(first):
        none = np.empty(0, np.int64)
        return Visits(none, none, none.view(np.uint64), none)
    step = side.spot[rows].astype(np.int64) * np.int64(1 << 20) + side.following[rows]
    return Visits(
        side.packet[rows[first]],
        place[rows[first]],
        np.add.reduceat(mix(step.view(np.uint64)), first),
        np.add.reduceat(side.gap[rows], first),
    )
