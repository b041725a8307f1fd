"""Quantiles of many groups at once, exact.

The group's number and the value go into one integer, group first. Sorting those integers, for which numpy has the
processor's vector instructions, puts each group's values in order and side by side; a quantile is then a look at one or
two places of the group's run.

Sorting is what takes the time, and of 32-bit integers it takes half of what it does of 64-bit ones. Nearly all times
between hops fit into what the group's number leaves of 32 bits. The few that do not are sorted by themselves, in 64;
each of them is longer than each of the others, so a group's places simply go on there. What is missing or too long
keeps a place at the end of its group's run, as the highest number that fits, so that the runs also tell how many values
each group got. All before the sort is done a part at a time, in the processor's cache: to get fresh memory for whole
columns costs more than to compute them. Of many groups, whose numbers leave few bits, all values are sorted in 64.

A quantile between two values is interpolated on the line between them, as numpy and pandas do by default, in whole
nanoseconds rounded down.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bpfpath_nb.analysis.returns import NAT

Int64s = npt.NDArray[np.int64]

PERCENTS: Final = {"p50": 50, "p90": 90, "p99": 99, "max": 100}

PART: Final = 1 << 16
"""So many values are prepared at a time: with what is computed of them they fit into the processor's cache."""

_FEW: Final = 1 << 10
"""So many groups leave room for four milliseconds in 32 bits."""


def quantiles(group: npt.NDArray[Any], count: int, values: Int64s) -> dict[str, Int64s]:
    """Quantiles and sum of each group's values.

    Parameters
    ----------
    group : array of integers, one per value
        From 0 to `count` - 1; a value whose group is -1 counts for none.
    count : int
        How many groups there are.
    values : array of int64
        Durations in ns, not negative; a missing one (`hops.NAT`) counts for none.

    Returns
    -------
    dict
        p50, p90, p99, max, total: one value per group, `hops.NAT` for a group without values.
    """
    # Where no function's return is known, all durations are one number in memory.
    if (values if any(values.strides) else values[:1]).max(initial=NAT) < 0:
        return {name: np.full(count, NAT) for name in (*PERCENTS, "total")}
    if count > _FEW:
        values, begins = _sorted(group, count, values)
        return _columns(np.diff(begins), lambda of, place: values[begins[of] + place], _sums(values, begins))
    grouped = Grouped(count, len(values))
    for begin in range(0, len(values), PART):
        grouped.add(group[begin : begin + PART], values[begin : begin + PART])
    return grouped.found()[1]


class Grouped:
    """Values of groups that come a part at a time, and their quantiles.

    Parameters
    ----------
    count : int
        How many groups there are.
    size : int
        How many values there are.
    """

    def __init__(self, count: int, size: int) -> None:
        self._count = count
        # The group's bits hold `count` too, so that a group of -1, which sets all of them, comes after the last one.
        self._bits = 32 - max(count, 1).bit_length()
        self._top = (1 << self._bits) - 1
        self._keys = np.empty(size, np.uint32)
        self._taken = 0
        self._long: list[tuple[npt.NDArray[Any], Int64s]] = []

    def add(self, group: npt.NDArray[Any], values: Int64s) -> None:
        """Take the next values, as `quantiles` does."""
        keys = self._keys[self._taken : self._taken + len(values)]
        self._taken += len(values)
        keys[:] = group
        keys <<= self._bits
        # A missing value is negative; read without a sign it is longer than any other.
        keys |= np.minimum(values.view(np.uint64), self._top).astype(np.uint32)
        if values.max(initial=NAT) >= self._top:
            rows = np.flatnonzero((values >= self._top) & (group >= 0))
            self._long.append((group[rows], values[rows]))

    def found(self) -> tuple[Int64s, dict[str, Int64s]]:
        """How many values each group got, missing ones too, and what `quantiles` tells of them. To be asked once."""
        keys, top = self._keys, np.uint32(self._top)
        keys.sort()
        first = np.arange(self._count + 1, dtype=np.uint32) << self._bits
        begin = np.searchsorted(keys, first)
        got = np.diff(begin)
        short = np.searchsorted(keys, first[:-1] | top) - begin[:-1]
        none = (np.empty(0, np.int64), np.empty(0, np.int64))
        group, values = (np.concatenate(parts) for parts in zip(none, *self._long, strict=True))
        long, long_begin = _sorted(group, self._count, values)

        def at(of: Int64s, place: Int64s) -> Int64s:
            value = np.empty(len(of), np.int64)
            is_short = place < short[of]
            value[is_short] = keys[(begin[of] + place)[is_short]] & top
            value[~is_short] = long[(long_begin[of] + place - short[of])[~is_short]]
            return value

        # The sum of the keys, without the group's number and without the keys of missing and long values.
        total = _sums(keys, begin) - (np.arange(self._count) << self._bits) * got - self._top * (got - short)
        return got, _columns(short + np.diff(long_begin), at, total + _sums(long, long_begin))


def sort_within(group: npt.NDArray[Any], count: int, values: Int64s) -> Int64s:
    """The values group by group, ascending in each, without those that `quantiles` counts for none."""
    return _sorted(group, count, values)[0]


def _sorted(group: npt.NDArray[Any], count: int, values: Int64s) -> tuple[Int64s, Int64s]:
    """The values as `sort_within` has them, and where each group begins and the last one ends."""
    most = int(values.max(initial=-1))
    bits = max(most, 0).bit_length()
    if most < 0:
        return np.empty(0, np.int64), np.zeros(count + 1, np.int64)
    if bits + count.bit_length() > 63:
        known = (values >= 0) & (group >= 0)
        group, values = group[known], values[known]
        order = np.argsort(values, kind="stable")
        size = np.bincount(group, minlength=count)
        return values[order[np.argsort(group[order], kind="stable")]], np.concatenate(([0], np.cumsum(size)))
    keys: Int64s = group.astype(np.int64)
    keys <<= bits
    keys |= values
    keys.sort()
    # A missing value's number is negative, and so is a group's that counts for none: such keys come first.
    keys = keys[np.searchsorted(keys, 0) :]
    begin = np.searchsorted(keys, np.arange(count + 1) << bits)
    keys &= (1 << bits) - 1
    return keys, begin


def places(size: Int64s, percent: int) -> tuple[Int64s, Int64s, Int64s]:
    """Of so many sorted values the places of the two that a quantile lies between, and how far it is in percent."""
    low, rest = np.divmod((size - 1) * percent, 100)
    return low, np.minimum(low + 1, size - 1), rest


def between(low: Int64s, high: Int64s, percent: Int64s) -> Int64s:
    """The value so far from the one to the other."""
    step = high - low
    # The step times the percentage may not fit; its hundreds and what is beyond them do.
    value: Int64s = low + step // 100 * percent + step % 100 * percent // 100
    return value


def _columns(size: Int64s, at: Callable[[Int64s, Int64s], Int64s], total: Int64s) -> dict[str, Int64s]:
    """What `quantiles` returns, of groups of these sizes; `at` tells the values at one place of each of some groups."""
    some = np.flatnonzero(size)
    columns = {name: np.full(len(size), NAT) for name in (*PERCENTS, "total")}
    for name, percent in PERCENTS.items():
        low, high, rest = places(size[some], percent)
        columns[name][some] = between(at(some, low), at(some, high), rest)
    columns["total"][some] = total[some]
    return columns


def _sums(values: npt.NDArray[Any], begin: Int64s) -> Int64s:
    """The sum of each group's values, 0 of none; `begin` as `_sorted` tells it."""
    some = np.flatnonzero(np.diff(begin))
    found = np.zeros(len(begin) - 1, np.int64)
    if len(some):
        found[some] = np.add.reduceat(values[: begin[-1]], begin[some], dtype=np.int64)
    return found
