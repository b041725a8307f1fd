"""The tables of a comparison, from two selections of packets.

Each table is one question asked of many things at once: which share of the packets took this path, passed this
function, ended so; and how long did they spend in this function, between these two, until their verdict. Shares are
tested as `analysis.significance` has it, durations as `analysis.shifts` does. The six tables share the 5 %
evenly, and within a table Holm's correction holds: the chance that a comparison of two sides that do not differ claims
anything anywhere is under 5 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfpath_nb import schema
from bpfpath_nb.analysis import names
from bpfpath_nb.analysis.alignment import Alignment, no_such_path, telling_ways
from bpfpath_nb.analysis.claims import (
    Shares,
    corrected_p,
    first_claim,
    latency_changes,
    latency_columns,
    one_sided,
    ordered,
)
from bpfpath_nb.analysis.ends import given_up_by
from bpfpath_nb.analysis.paths import Paths, find_paths
from bpfpath_nb.analysis.shifts import Observations, shifts
from bpfpath_nb.analysis.sides import Selection, Side, Sides, sides, visits
from bpfpath_nb.analysis.significance import Tally
from bpfpath_nb.analysis.whole import one_name, whole
from bpfpath_nb.errors import OptionError
from bpfpath_nb.schema import CHANGES, LAYERS, QUEUES, TRANSITION_KINDS, VERDICTS

Ints = npt.NDArray[np.integer[Any]]

_MOST_MARKS: Final = 1 << 26
"""Up to so many pairs of packet and place have a mark each; that is faster than finding the distinct ones."""


@dataclass(frozen=True)
class Fates:
    """What became of one side's packets.

    Attributes
    ----------
    packets : array
        Positions of the packets that are compared, in the recording's events.
    whole : array of bool
        Of each of them whether no hop can be missing.
    verdict : array
        Position in schema.VERDICTS.
    reason, func, netns : Named
        Why, by which function and where that was decided.
    begun : Named
        Where it was first seen.
    time : array of int64
        From its first hop to the one that decided, in ns.
    """

    packets: Ints
    whole: npt.NDArray[np.bool_]
    verdict: Ints
    reason: names.Named
    func: names.Named
    netns: names.Named
    begun: names.Named
    time: npt.NDArray[np.int64]

    @classmethod
    def of(cls, selection: Selection) -> Fates:
        events = selection.events
        known = whole(events)
        verdict, deciding = known.verdicts
        packets = np.flatnonzero(selection.packets)
        deciding = deciding[packets]
        netns = known.netns
        return cls(
            packets,
            known.complete[packets],
            verdict[packets],
            known.reasons.take(deciding),
            given_up_by(events, deciding),
            netns.take(deciding),
            netns.take(events.first[packets]),
            events.utc[deciding] - events.utc[events.first[packets]],
        )


class Tables:
    """The tables of a comparison, each made on first use.

    Parameters
    ----------
    a, b : Selection
        What is compared; neither without packets.
    """

    def __init__(self, a: Selection, b: Selection) -> None:
        self.selections = (a, b)
        self.by_name = a.netns is None and b.netns is None

    @cached_property
    def fates(self) -> tuple[Fates, Fates]:
        """What became of the packets of both sides."""
        a, b = self.selections
        return Fates.of(a), Fates.of(b)

    @cached_property
    def sides(self) -> Sides:
        """The hops of the packets that lack none."""
        lacking_none = []
        for selection, fates in zip(self.selections, self.fates, strict=True):
            packets = np.zeros(len(selection.packets), bool)
            packets[fates.packets[fates.whole]] = True
            lacking_none.append(Selection(selection.events, packets, selection.netns))
        return sides(*lacking_none)

    @cached_property
    def _paths(self) -> Paths:
        """The paths of the packets of a (`Side.first`) and, after them, of b."""
        a, b = self._both_sides()
        position = [np.arange(len(side.row)) - np.repeat(side.first, side.counts) for side in (a, b)]
        func = names.Named(np.concatenate((a.func, b.func)), self.sides.functions)
        return find_paths(func, np.concatenate((a.first, b.first + len(a.func))), np.concatenate(position))

    def _path_of(self, at: int) -> Ints:
        """Of each packet of one side (`Side.first`) its path."""
        count = len(self.sides.a.first)
        return self._paths.which[count:] if at else self._paths.which[:count]

    @cached_property
    def paths(self) -> pd.DataFrame:
        """schema.COMPARED_PATHS."""
        paths = self._paths
        which, known = (self._path_of(0), self._path_of(1)), len(paths.ids)
        shares = Shares.of(*(Tally.of(np.arange(len(of)), of, known, len(of)) for of in which))
        verdict, hops = np.zeros((known, len(VERDICTS)), np.int64), np.zeros(known, np.uint32)
        for of, side, selection, fates in zip(which, self._both_sides(), self.selections, self.fates, strict=True):
            of_packet = np.full(len(selection.packets), -1, np.int8)
            of_packet[fates.packets] = fates.verdict
            np.add.at(verdict, (of, of_packet[side.packet[side.first]]), 1)
            hops[of] = side.counts
        corrected = corrected_p(shares)
        columns = shares.columns(corrected[0]) | {
            "change": shares.changes(corrected[0]),
            "hops": hops,
            "verdict": names.categorical(verdict.argmax(axis=1).astype(np.int8), VERDICTS),
            "functions": _texts(paths.functions),
        }
        index = pd.Index(paths.ids, dtype="str", name="path")
        return ordered(columns, index, schema.COMPARED_PATHS, "difference")

    def align(self, path_a: str | None = None, path_b: str | None = None) -> Alignment | None:
        """Align two paths, by default the two that tell most of the difference; None where a side has no path.

        Raises
        ------
        OptionError
            No packet of that side took that path.
        """
        ids, which = self._paths.ids, (self._path_of(0), self._path_of(1))
        if not len(which[0]) or not len(which[1]):
            return None
        chosen: list[int | None] = [None, None]
        for at, path in enumerate((path_a, path_b)):
            if path is not None and not (path in ids and (which[at] == ids.index(path)).any()):
                raise OptionError(no_such_path(path, "ab"[at], [ids[one] for one in np.unique(which[at])]))
            chosen[at] = None if path is None else ids.index(path)
        frame = self.paths.loc[ids]
        claimed = frame["change"].isin(["added", "gone", "shifted"]).to_numpy()
        lead = np.where(claimed, frame["difference"].to_numpy(np.float64), 0.0)
        (first, a), (second, b) = telling_ways(self._both_sides(), which, lead, chosen)
        return Alignment(self.sides, ids[first], ids[second], a, b)

    @cached_property
    def functions(self) -> pd.DataFrame:
        """schema.COMPARED_FUNCTIONS."""
        count = len(self.sides.functions)
        part = [side.func.astype(np.int64) for side in self._both_sides()]
        columns, seen = self._durations(part, count)
        layer = {
            one_name(function.name): LAYERS.index(function.layer)
            for selection in self.selections
            for function in selection.events.start.functions
        }
        codes = np.array([layer[name] for name in self.sides.functions], np.int8)
        columns["layer"] = names.categorical(codes, LAYERS)
        index = pd.Index(self.sides.functions, dtype="str", name="func")
        return ordered(columns, index, schema.COMPARED_FUNCTIONS, "shift", seen)

    @cached_property
    def transitions(self) -> pd.DataFrame:
        """schema.COMPARED_TRANSITIONS."""
        count = len(self.sides.functions)
        pairs = [
            np.where(side.following < 0, -1, side.func.astype(np.int64) * count + side.following)
            for side in self._both_sides()
        ]
        both, distinct_pairs = pd.factorize(np.concatenate(pairs))
        known = distinct_pairs >= 0
        number = np.where(known, np.cumsum(known) - 1, -1)
        pair = number[both]
        part = [pair[: len(pairs[0])], pair[len(pairs[0]) :]]
        columns, seen = self._durations(part, int(known.sum()))
        begins, ends = np.divmod(distinct_pairs[known], max(count, 1))
        index = pd.MultiIndex.from_arrays(
            [names.categorical(codes, self.sides.functions) for codes in (begins, ends)], names=["from", "to"]
        )
        columns |= self._waits(part, int(known.sum()))
        return ordered(columns, index, schema.COMPARED_TRANSITIONS, "shift", seen)

    @cached_property
    def places(self) -> pd.DataFrame:
        """schema.COMPARED_PLACES."""
        both = self._both_sides()
        count = len(self.sides.functions)
        key = np.concatenate([side.spot * np.int64(max(count, 1)) + side.func for side in both])
        which, distinct_keys = pd.factorize(key)
        part = [which[: len(both[0].row)], which[len(both[0].row) :]]
        columns, seen = self._durations(part, len(distinct_keys))
        columns |= self._waits(part, len(distinct_keys))
        example = np.zeros(len(distinct_keys), np.intp)
        example[which[::-1]] = np.arange(len(which) - 1, -1, -1)
        func, spot, netns, dev = (
            np.concatenate([getattr(side, name) for side in both])[example] for name in ("func", "spot", "netns", "dev")
        )
        index = pd.MultiIndex.from_arrays(
            [
                names.Named(np.where(spot == 0, -1, netns), self.sides.namespaces).categorical(),
                names.Named(np.where(spot <= 0, -1, dev), self.sides.devices).categorical(),
                names.Named(func, self.sides.functions).categorical(),
            ],
            names=["netns", "dev", "func"],
        )
        return ordered(columns, index, schema.COMPARED_PLACES, "shift", seen)

    def _waits(self, place: Sequence[Ints], count: int) -> dict[str, Any]:
        """Of places, given each hop's, whether most of the time there was work or waiting, and in which queue."""
        waited, total = np.zeros((count, len(QUEUES))), np.zeros(count)
        for side, queue, of in zip(self._both_sides(), self._queues, place, strict=True):
            there = np.flatnonzero((of >= 0) & (side.gap >= 0))
            total += np.bincount(of[there], side.gap[there], minlength=count)
            rows = there[queue[there] >= 0]
            np.add.at(waited, (of[rows], queue[rows]), side.gap[rows])
        waits = 2 * waited.sum(axis=1) > total
        queue = waited.argmax(axis=1) if count else np.empty(0, np.int64)
        return {
            "kind": names.categorical(waits.astype(np.int8), TRANSITION_KINDS),
            "queue": names.categorical(np.where(waits, queue, -1).astype(np.int8), QUEUES),
        }

    @cached_property
    def _queues(self) -> list[npt.NDArray[np.int8]]:
        """Of each hop of a and of b the queue that was waited in after it, -1 for work."""
        return [
            whole(selection.events).queues[side.row]
            for side, selection in zip(self._both_sides(), self.selections, strict=True)
        ]

    @cached_property
    def drops(self) -> pd.DataFrame:
        """schema.COMPARED_DROPS."""
        rows = []
        for fates, selection in zip(self.fates, self.selections, strict=True):
            dropped = fates.verdict == VERDICTS.index("dropped")
            if selection.netns is not None:
                there = np.array([name == selection.netns for name in fates.netns.names] + [False], bool)
                dropped &= there[fates.netns.codes]
            rows.append(np.flatnonzero(dropped))
        netns = [fates.netns for fates in self.fates]
        if not self.by_name:
            together = " / ".join(dict.fromkeys(str(selection.netns) for selection in self.selections))
            netns = [names.Named(np.zeros(len(named.codes), np.int8), [together]) for named in netns]
        levels = [
            _shared([named.take(at) for named, at in zip(of, rows, strict=True)])
            for of in ([f.reason for f in self.fates], [f.func for f in self.fates], netns)
        ]
        key = np.zeros(sum(map(len, rows)), np.int64)
        for codes, known in levels:
            key = key * (len(known) + 1) + codes + 1
        which, distinct_keys = pd.factorize(key)
        _, example = np.unique(which, return_index=True)
        parts = which[: len(rows[0])], which[len(rows[0]) :]
        shares = Shares.of(
            *(
                Tally.of(at, part, len(distinct_keys), len(fates.packets))
                for at, part, fates in zip(rows, parts, self.fates, strict=True)
            )
        )
        corrected = corrected_p(shares)
        index = pd.MultiIndex.from_arrays(
            [names.categorical(codes[example], known) for codes, known in levels], names=["reason", "func", "netns"]
        )
        columns = shares.columns(corrected[0]) | {"change": shares.changes(corrected[0])}
        return ordered(columns, index, schema.COMPARED_DROPS, "difference")

    @cached_property
    def verdicts(self) -> pd.DataFrame:
        """schema.COMPARED_VERDICTS."""
        shares = Shares.of(
            *(
                Tally.of(np.arange(len(fates.packets)), fates.verdict, len(VERDICTS), len(fates.packets))
                for fates in self.fates
            )
        )
        begun, _ = _shared([fates.begun for fates in self.fates], only_common=True)
        decided, _ = _shared([fates.netns for fates in self.fates], only_common=True)
        way = begun.astype(np.int64) << 32 | (decided + 1)
        if not self.by_name:
            way = np.zeros_like(way)
        whole = np.concatenate([fates.whole for fates in self.fates])
        latency = shifts(
            Observations(
                np.concatenate([fates.verdict for fates in self.fates])[whole].astype(np.int64),
                way[whole],
                np.repeat([False, True], [len(fates.packets) for fates in self.fates])[whole],
                np.concatenate([self._times(at) for at in (0, 1)])[whole],
            ),
            len(VERDICTS),
        )
        corrected = corrected_p(shares, latency)
        by_share, by_time = shares.changes(corrected[0]), latency_changes(latency, corrected[1])
        columns = shares.columns(corrected[0]) | latency_columns(latency, corrected[1])
        columns["change"] = names.categorical(first_claim(by_share, by_time), tuple(CHANGES))
        index = pd.CategoricalIndex(names.categorical(np.arange(len(VERDICTS)), VERDICTS), name="verdict")
        return pd.DataFrame({c.name: columns[c.name] for c in schema.COMPARED_VERDICTS}, index=index)

    def _times(self, at: int) -> npt.NDArray[np.int64]:
        """Of each packet of a side the time to its verdict; of a namespace the time that it spent there."""
        fates, side = self.fates[at], self._both_sides()[at]
        if self.selections[at].netns is None:
            return fates.time
        spent = np.bincount(
            side.packet, np.where(side.gap > 0, side.gap, 0), minlength=len(self.selections[at].packets)
        )
        return np.asarray(spent[fates.packets].astype(np.int64))

    def _both_sides(self) -> tuple[Side, Side]:
        return self.sides.a, self.sides.b

    def _durations(self, place: Sequence[Ints], count: int) -> tuple[dict[str, Any], npt.NDArray[np.bool_]]:
        """Columns of shares and latencies of places, given each hop's; and which places any packet passed."""
        tallies, parts = [], []
        for side, of in zip(self._both_sides(), place, strict=True):
            tallies.append(_passing(side, of, count))
            parts.append(visits(side, of, count))
        shares = Shares.of(*tallies)
        latency = shifts(
            Observations(
                np.concatenate([part.place for part in parts]).astype(np.int64),
                np.concatenate([part.way for part in parts]),
                np.repeat([False, True], [len(part.place) for part in parts]),
                np.concatenate([part.value for part in parts]),
            ),
            count,
        )
        corrected = corrected_p(shares, latency)
        columns = shares.columns(corrected[0]) | latency_columns(latency, corrected[1])
        by_share, by_time = shares.changes(corrected[0]), latency_changes(latency, corrected[1])
        columns["change"] = first_claim(one_sided(by_share), by_time, by_share)
        return columns, shares.count_a + shares.count_b > 0


def _passing(side: Side, place: Ints, count: int) -> Tally:
    """How many packets passed each place, given each hop's; hops of place -1 count for none."""
    packets = len(side.first)
    at = np.repeat(np.arange(packets) * np.int64(count + 1), side.counts) + (place + 1)
    if packets * (count + 1) <= _MOST_MARKS:
        marks = np.zeros(packets * (count + 1), bool)
        marks[at] = True
        return Tally.of_marks(marks.reshape(packets, count + 1)[:, 1:])
    at = pd.unique(at)
    packet, passed = np.divmod(at[at % (count + 1) > 0], count + 1)
    return Tally.of(packet, passed - 1, count, packets)


def _shared(named: Sequence[names.Named], *, only_common: bool = False) -> tuple[Ints, list[str]]:
    """Codes of a and b, one after the other, into names that both share; -1 for none, or where one alone has it."""
    known = list(dict.fromkeys(name for part in named for name in _used(part)))
    common = set(known).intersection(*(_used(part) for part in named)) if only_common else set(known)
    code = {name: at for at, name in enumerate(known) if name in common}
    codes = [np.array([code.get(name, -1) for name in part.names] + [-1], np.int32)[part.codes] for part in named]
    return np.concatenate(codes), known


def _used(named: names.Named) -> list[str]:
    used = np.bincount(named.codes + 1, minlength=len(named.names) + 1)[1:] > 0
    return [name for name, is_used in zip(named.names, used, strict=True) if is_used]


def _texts(values: list[str]) -> pd.Categorical[Any]:
    return names.distinct_names(np.arange(len(values)), values).categorical()
