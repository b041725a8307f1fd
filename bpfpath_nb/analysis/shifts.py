"""How much longer it takes: the shift of the median in many places at once, its interval, and a rank test.

**What is one observation.** One packet in one place (a function, a transition): the time that it spent there, summed
over its hops there. Hops of one packet are not independent, packets are the unit. Nor are packets that follow each
other, since they meet the same queue and the same warm caches; so every variance is taken between blocks of
consecutive packets (at most `BLOCKS` on each side), which is never far from the plain one where they do not depend on
each other, and the right one where they do, as long as what they share is shorter than a block. So blocks are taken
two by two, too, until `FEWEST_BLOCKS` remain, and the largest variance counts.

**Like with like.** Half as many answers make every function that only answers pass look changed. So packets are
compared within strata, packets that passed the place in the same way (`analysis.sides`), and the strata are put
together with the weight that they have on both sides together. A stratum that one side lacks tells of the mix, which
other tables show, and counts for nothing here.

**The test** is Wilcoxon's rank sum within strata (van Elteren). Ranks care neither for heavy tails nor for
units, and ties count half. Two variances are taken, that of a random relabelling of the packets, and that between
blocks with Student's t; the larger p counts. The first is too bold where nearly all values are the same, the second
where there are few packets; p is also never smaller than the number of ways to label the packets allows.

**The interval** is made of order statistics: the place of the median in each side's own order is uncertain by the
standard error of the share of packets below it, and the values at the ends of that are the ends of the interval
(Woodruff, Journal of the American Statistical Association 47, 1952, the usual way with strata and clusters). The two
are put together as Zou and Donner do (Statistics in Medicine 27, 2008). Unlike a bootstrap it needs no random numbers,
sorts once for all places, and stays honest for the median of a few dozen packets, where a bootstrap has few distinct
values to draw from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import special

from bpfpath_nb.analysis.returns import NAT
from bpfpath_nb.analysis.sequences import stable_order
from bpfpath_nb.analysis.significance import BLOCKS, FEWEST_BLOCKS

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.integer[Any]]
Spans = npt.NDArray[np.int64]

FEWEST: Final = 4
"""Packets that each side must have in a place, in strata that both have, to be tested."""


@dataclass(frozen=True)
class Observations:
    """Durations of packets in places; a side's rows in the order of its packets.

    Attributes
    ----------
    place, stratum : arrays of int64
        Where, and which packets are alike there (any number).
    side : array of bool
        Whether it is of b.
    value : array of int64
        In ns.
    """

    place: Ints
    stratum: Ints
    side: npt.NDArray[np.bool_]
    value: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Shifts:
    """Of each place what a and b show there.

    Attributes
    ----------
    packets_a, packets_b : arrays of int64
        Packets with a duration there.
    compared_a, compared_b : arrays of int64
        Those of them that have a like on the other side.
    median_a, median_b, p99_a, p99_b : arrays of int64
        In ns, of the compared ones; where there are none, of all.
    shift, low, high : arrays of int64
        Median of b less that of a, and its 95 % interval; `hops.NAT` where nothing can be compared.
    longer : array
        How likely a packet of b takes longer than one of a, ties counting half; NaN where nothing can be compared.
    p : array
        Of the rank test, uncorrected; NaN where too few can be compared.
    least : array
        The least p that so many packets could have come to.
    """

    packets_a: Ints
    packets_b: Ints
    compared_a: Ints
    compared_b: Ints
    median_a: Spans
    median_b: Spans
    p99_a: Spans
    p99_b: Spans
    shift: Spans
    low: Spans
    high: Spans
    longer: Floats
    p: Floats
    least: Floats


def shifts(seen: Observations, places: int) -> Shifts:
    """Compare the two sides in each place from 0 to `places` - 1."""
    packets = [np.bincount(seen.place[seen.side == b], minlength=places) for b in (False, True)]
    alike, of_cell, count = _cells(seen)
    both = count.min(axis=0) > 0
    some = np.zeros(places, bool)
    some[seen.place[both[alike]]] = True
    # A place without any likes shows its plain quantiles and no shift.
    kept = np.flatnonzero(both[alike] | ~some[seen.place])
    sample = _Sample.of(
        Observations(seen.place[kept], seen.stratum[kept], seen.side[kept], seen.value[kept]),
        places,
        _of_some(alike[kept], of_cell, count),
    )
    compared = sample.size * some
    enough = some & (compared.min(axis=0) >= FEWEST)
    longer, p, least = _rank_test(sample)
    order = _WeightedOrder.of(sample)
    p99_a, p99_b = order.quantile(0.99)
    (median_a, median_b), low, high = order.median()
    median_a, median_b = np.rint(median_a), np.rint(median_b)
    shift = median_b - median_a
    below = np.hypot(median_b - low[1], high[0] - median_a)
    above = np.hypot(high[1] - median_b, median_a - low[0])
    return Shifts(
        packets_a=packets[0],
        packets_b=packets[1],
        compared_a=compared[0],
        compared_b=compared[1],
        median_a=_whole(median_a),
        median_b=_whole(median_b),
        p99_a=_whole(p99_a),
        p99_b=_whole(p99_b),
        shift=_whole(np.where(some, shift, np.nan)),
        low=_whole(np.where(some, shift - below, np.nan)),
        high=_whole(np.where(some, shift + above, np.nan)),
        longer=np.where(some, longer, np.nan),
        p=np.where(enough, p, np.nan),
        least=np.where(enough, least, np.nan),
    )


def _whole(ns: Floats) -> npt.NDArray[np.int64]:
    found = np.full(len(ns), NAT)
    known = ~np.isnan(ns)
    found[known] = np.rint(ns[known]).astype(np.int64)
    return found


def _cells(seen: Observations) -> tuple[Ints, Ints, Ints]:
    """A cell is a stratum of a place. Each row's cell, each cell's place, and how many rows it has, side by cell."""
    cell, first = _numbered(seen.stratum, seen.place)
    count = np.stack([np.bincount(cell[seen.side == b], minlength=len(first)) for b in (False, True)])
    return cell, seen.place[first], count


def _of_some(cell: Ints, of_cell: Ints, count: Ints) -> tuple[Ints, Ints, Ints]:
    """The cells of some of the rows, of which each has all of its own: those numbered anew."""
    used = np.zeros(len(of_cell), bool)
    used[cell] = True
    return (np.cumsum(used) - 1)[cell], of_cell[used], count[:, used]


def _numbered(stratum: Ints, place: Ints) -> tuple[Ints, Ints]:
    strata, _ = pd.factorize(stratum)
    together = place.astype(np.int64) * (int(strata.max(initial=0)) + 1) + strata
    cell, values = pd.factorize(together)
    first = np.empty(len(values), np.intp)
    first[cell[::-1]] = np.arange(len(cell) - 1, -1, -1)
    return cell, first


@dataclass(frozen=True)
class _Sample:
    """Observations with everything that the test and the intervals share.

    A group is a side of a place, numbered side by side: `side * places + place`.

    Attributes
    ----------
    places : int
    seen : Observations
    cell, of_cell : arrays
        Each row's cell, and each cell's place.
    count : array
        Rows of each cell, side by cell.
    group : array
        Each row's group.
    size : array
        Rows of each group, side by place.
    block : array
        Each row's block; a group's blocks are numbered one after another.
    blocks : array
        How many blocks each group has, side by place.
    by_value : array
        The rows in the order of their values.
    """

    places: int
    seen: Observations
    cell: Ints
    of_cell: Ints
    count: Ints
    group: Ints
    size: Ints
    block: Ints
    blocks: Ints
    by_value: Ints

    @classmethod
    def of(cls, seen: Observations, places: int, cells: tuple[Ints, Ints, Ints]) -> _Sample:
        cell, of_cell, count = cells
        group = seen.side * np.int64(places) + seen.place
        size = np.bincount(group, minlength=2 * places)
        order = _sorted(np.arange(len(group)), group, 2 * places)
        at = np.empty(len(group), np.int64)
        at[order] = np.arange(len(group)) - np.repeat(np.cumsum(size) - size, size)
        blocks = np.minimum(size, BLOCKS)
        block = (np.cumsum(blocks) - blocks)[group] + at * blocks[group] // np.maximum(size, 1)[group]
        by_value = stable_order(seen.value)
        sizes = size.reshape(2, places), blocks.reshape(2, places)
        return cls(places, seen, cell, of_cell, count, group, sizes[0], block, sizes[1], by_value)

    def variances(self, influence: Floats) -> Iterator[Floats]:
        """Of each group's sum of the rows' influences the variance, taken between blocks.

        Once for each size of blocks: two by two they are taken together, as long as enough remain.
        """
        count = self.blocks.reshape(-1)
        total = np.bincount(self.block, influence, minlength=int(count.sum()))
        while True:
            group = np.repeat(np.arange(len(count)), count)
            mean = np.bincount(group, total, minlength=len(count)) / np.maximum(count, 1)
            spread = np.bincount(group, (total - mean[group]) ** 2, minlength=len(count))
            with np.errstate(divide="ignore", invalid="ignore"):
                variance = np.where(count > 1, spread * count / (count - 1), np.inf)
            yield variance.reshape(2, self.places)
            many = count >= 2 * FEWEST_BLOCKS
            if not many.any():
                return
            within = np.arange(len(group)) - np.repeat(np.cumsum(count) - count, count)
            count = np.where(many, (count + 1) // 2, count)
            to = np.repeat(np.cumsum(count) - count, np.bincount(group, minlength=len(count))) + np.where(
                many[group], within // 2, within
            )
            total = np.bincount(to, total, minlength=int(count.sum()))

    def centred(self, values: Floats) -> Floats:
        """The rows' values less their mean in the cell and side, as widely spread as those of the whole are."""
        cells = len(self.of_cell)
        where = self.seen.side * np.int64(cells) + self.cell
        count = self.count.reshape(-1)
        mean = np.bincount(where, values, minlength=2 * cells) / np.maximum(count, 1)
        # One value alone shows no spread; it keeps its distance from 0, where the values of the place are centred.
        alone = count == 1
        factor = np.sqrt(np.where(alone, 1, count / np.maximum(count - 1, 1)))
        return np.asarray((values - np.where(alone, 0, mean)[where]) * factor[where])


def _rank_test(sample: _Sample) -> tuple[Floats, Floats, Floats]:
    """How likely b takes longer, the p of the stratified rank test, and the least p there could be."""
    seen, cells = sample.seen, len(sample.of_cell)
    count_a, count_b = sample.count
    count = count_a + count_b
    rank = _ranks(sample) / count[sample.cell] - 0.5
    both = (count_a > 0) & (count_b > 0)
    weight = np.where(both, count_a * count_b / count, 0.0)
    mean = [
        np.bincount(sample.cell, rank * (seen.side == b), minlength=cells) / np.maximum(sample.count[int(b)], 1)
        for b in (False, True)
    ]

    def by_place(values: Floats) -> Floats:
        return np.bincount(sample.of_cell, values, minlength=sample.places).astype(np.float64)

    effect, weights = by_place(weight * (mean[1] - mean[0])), by_place(weight)
    squares = np.bincount(sample.cell, rank**2, minlength=cells)
    relabelled = by_place(weight * squares / np.maximum(count - 1, 1))
    influence = sample.centred(rank) * (weight / np.maximum(sample.count, 1))[seen.side.astype(np.intp), sample.cell]
    with np.errstate(divide="ignore", invalid="ignore"):
        largest = 2 * special.ndtr(-np.abs(effect) / np.sqrt(relabelled))
        for variance in sample.variances(influence):
            between = variance.sum(axis=0)
            freedom = between**2 / (variance**2 / np.maximum(sample.blocks - 1, 1)).sum(axis=0)
            largest = np.fmax(largest, 2 * special.stdtr(freedom, -np.abs(effect) / np.sqrt(between)))
    ways = special.gammaln(count + 1) - special.gammaln(count_a + 1) - special.gammaln(count_b + 1)
    least = np.minimum(2 * np.exp(-by_place(np.where(both, ways, 0.0))), 1)
    # No spread at all: nothing differs.
    p = np.where(relabelled > 0, np.fmax(largest, least), 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return 0.5 + effect / weights, np.minimum(p, 1), least


def _ranks(sample: _Sample) -> Floats:
    """Each row's place among the values of its cell, both sides together, from 0; ties share their middle."""
    value = sample.seen.value
    order = _sorted(sample.by_value, sample.cell, len(sample.of_cell))
    cell, value = sample.cell[order], value[order]
    count = sample.count.sum(axis=0)
    begin = np.cumsum(count) - count
    changes = np.ones(len(cell), bool)
    changes[1:] = (cell[1:] != cell[:-1]) | (value[1:] != value[:-1])
    first = np.flatnonzero(changes)
    run = np.diff(np.append(first, len(cell)))
    rank = np.empty(len(cell))
    rank[order] = np.repeat(first + run / 2, run) - begin[cell]
    return rank


def _sorted(rows: Ints, label: Ints, labels: int) -> Ints:
    """The rows by their label, those of one label in the order in which they are."""
    # numpy has a radix sort for 16 bits.
    wanted = label[rows].astype(np.uint16) if labels <= 1 << 16 else label[rows]
    return np.asarray(rows[np.argsort(wanted, kind="stable")])


@dataclass(frozen=True)
class _WeightedOrder:
    """Each group's values in their order, with weights that give both sides of a place the mix of the two together.

    Attributes
    ----------
    sample : _Sample
    weight : array
        Of each row of the sample.
    total : array
        Weight of each group.
    value : array
        Of all groups, one after the other, ascending in each.
    stands : array
        Where each value stands: its group's number and, after the point, the share of the weight below its middle.
    """

    sample: _Sample
    weight: Floats
    total: Floats
    value: Floats
    stands: Floats

    @classmethod
    def of(cls, sample: _Sample) -> _WeightedOrder:
        seen, groups = sample.seen, 2 * sample.places
        mix = sample.count.sum(axis=0) / np.maximum(sample.count, 1)
        weight = np.where(sample.count.min(axis=0) > 0, mix, 1.0)[seen.side.astype(np.intp), sample.cell]
        order = _sorted(sample.by_value, sample.group, groups)
        size = sample.size.reshape(-1)
        group, heavy = sample.group[order], weight[order]
        total = np.bincount(group, heavy, minlength=groups).astype(np.float64)
        until = np.cumsum(heavy)
        before = np.concatenate(([0.0], until))[np.cumsum(size) - size]
        stands = group + (until - before[group] - heavy / 2) / total[group]
        return cls(sample, weight, total, seen.value[order].astype(np.float64), stands)

    def quantile(self, share: float) -> Floats:
        """The value at a share of the weight, on the line between two where it falls between; side by place."""
        shares = np.full(len(self.total), share)
        return _at(self.stands, self.value, self.sample.size.reshape(-1), shares, "between").reshape(2, -1)

    def median(self) -> tuple[Floats, Floats, Floats]:
        """The median and its 95 % interval; side by place."""
        sample = self.sample
        value, size = sample.seen.value, sample.size.reshape(-1)
        found = self.quantile(0.5).reshape(-1)
        middle = found[sample.group]
        below = (value < middle) + 0.5 * (value == middle) - 0.5
        influence = sample.centred(below) * self.weight / self.total[sample.group]
        error = np.sqrt(np.max(list(sample.variances(influence)), axis=0).reshape(-1))
        freedom = np.maximum(sample.blocks.reshape(-1) - 1, 1)
        margin = special.stdtrit(freedom, 0.975) * error
        low = _at(self.stands, self.value, size, 0.5 - margin, "below")
        high = _at(self.stands, self.value, size, 0.5 + margin, "above")
        # Where all values are equal the interval is that value; else it holds the median.
        low, high = np.minimum(low, found), np.maximum(high, found)
        return found.reshape(2, -1), low.reshape(2, -1), high.reshape(2, -1)


def _at(stands: Floats, value: Floats, size: Ints, share: Floats, which: str) -> Floats:
    """Of each group the value at a share of its order: on the line between two values, or the one below or above."""
    begin = np.cumsum(size) - size
    some = np.flatnonzero(size)
    wanted = some + np.clip(np.nan_to_num(share[some], nan=0.5), 0, 1)
    # Rows are sorted by `stands`, whose whole part is the group.
    right = np.searchsorted(stands, wanted, "left")
    left = np.clip(right - 1, begin[some], begin[some] + size[some] - 1)
    right = np.clip(right, begin[some], begin[some] + size[some] - 1)
    found = np.full(len(size), np.nan)
    if which == "below":
        found[some] = value[left]
    elif which == "above":
        found[some] = value[right]
    else:
        span = stands[right] - stands[left]
        part = np.divide(wanted - stands[left], span, out=np.zeros(len(some)), where=span > 0)
        found[some] = value[left] + (value[right] - value[left]) * np.clip(part, 0, 1)
    return found
