"""Exact quantiles of what is spread over parts that do not fit into memory together.

A quantile is a value at some place of the sorted whole, and nobody has the whole. Two looks at each part are enough.
The first counts values in buckets, 128 to each doubling, so that a bucket is at most 0.8 % wide. From the sum of all
parts' counts it is known in which bucket each wanted place lies and how many values come before it. The second look
brings the values of these few buckets only, and of those, sorted, the wanted places are read off.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bpfpath_nb.analysis.quantiles import PERCENTS, between, places
from bpfpath_nb.analysis.returns import NAT

Int64s = npt.NDArray[np.int64]

_BITS: Final = 7
_BUCKETS: Final = 64 << _BITS


@dataclass(frozen=True)
class Counts:
    """How many values each bucket of each group has: `key` is group and bucket in one number, ascending."""

    key: Int64s
    count: Int64s
    total: Int64s
    """Sum of the values in the bucket."""


def bucket(values: Int64s) -> Int64s:
    """The bucket of each value, in the order of the values: the position of its highest bit and the bits after it."""
    # The exponent of a double is the position of the highest bit, but rounding may carry into the next one.
    high = np.frexp(values.astype(np.float64))[1].astype(np.int64) - 1
    high -= (values >> high.clip(min=0)) == 0
    shift = (high - _BITS).clip(min=0)
    return np.where(values < 1 << _BITS, values, (shift << _BITS) + (values >> shift))


def count(group: npt.NDArray[Any], values: Int64s) -> Counts:
    """The first look at a part; a value that is missing, or whose group is negative, counts for none."""
    known = (values >= 0) & (group >= 0)
    key, values = group[known].astype(np.int64) * _BUCKETS + bucket(values[known]), values[known]
    order = np.argsort(key, kind="stable")
    return _summed(key[order], np.ones(len(key), np.int64), values[order])


def merge(parts: Iterable[Counts]) -> Counts:
    """The counts of several parts together."""
    parts = list(parts)
    key = np.concatenate([np.empty(0, np.int64), *(part.key for part in parts)])
    order = np.argsort(key, kind="stable")
    summands = [
        np.concatenate([np.empty(0, np.int64), *(getattr(part, name) for part in parts)])[order]
        for name in ("count", "total")
    ]
    return _summed(key[order], *summands)


def _summed(key: Int64s, counts: Int64s, totals: Int64s) -> Counts:
    if not len(key):
        return Counts(key, counts, totals)
    begin = np.flatnonzero(np.append(True, key[1:] != key[:-1]))
    return Counts(key[begin], np.add.reduceat(counts, begin), np.add.reduceat(totals, begin))


def wanted(counts: Counts) -> Int64s:
    """The keys of the buckets of which the values themselves are needed."""
    _, begin, size = _groups(counts)
    last = np.cumsum(counts.count)
    needed = [begin + place for percent in PERCENTS.values() for place in places(size, percent)[:2]]
    return np.unique(counts.key[np.searchsorted(last, np.concatenate(needed), "right")])


def pick(group: npt.NDArray[Any], values: Int64s, keys: Int64s) -> tuple[Int64s, Int64s]:
    """The second look at a part: the values in the wanted buckets, and the key of each."""
    known = (values >= 0) & (group >= 0)
    key, values = group[known].astype(np.int64) * _BUCKETS + bucket(values[known]), values[known]
    chosen = np.isin(key, keys)
    return key[chosen], values[chosen]


def quantiles(counts: Counts, picked: Iterable[tuple[Int64s, Int64s]], groups: int) -> dict[str, Int64s]:
    """As `quantiles.quantiles` of all parts together."""
    picked = list(picked)
    key, values = (np.concatenate([np.empty(0, np.int64), *(part[at] for part in picked)]) for at in (0, 1))
    order = np.lexsort((values, key))
    key, values = key[order], values[order]
    group, begin, size = _groups(counts)
    last = np.cumsum(counts.count)

    def value(place: Int64s) -> Int64s:
        at = np.searchsorted(last, begin + place, "right")
        before = last[at] - counts.count[at]
        return values[np.searchsorted(key, counts.key[at]) + (begin + place - before)]

    found = {name: np.full(groups, NAT) for name in (*PERCENTS, "total")}
    for name, percent in PERCENTS.items():
        low, high, rest = places(size, percent)
        found[name][group] = between(value(low), value(high), rest)
    if len(group):
        ends = np.flatnonzero(np.append(True, np.diff(counts.key // _BUCKETS) != 0))
        found["total"][group] = np.add.reduceat(counts.total, ends)
    return found


def _groups(counts: Counts) -> tuple[Int64s, Int64s, Int64s]:
    """The groups that have values, how many values come before each, and how many each has."""
    of = counts.key // _BUCKETS
    first = np.flatnonzero(np.append(True, of[1:] != of[:-1])) if len(of) else np.empty(0, np.intp)
    before = np.cumsum(counts.count) - counts.count
    begin = before[first]
    return of[first], begin, np.diff(np.append(begin, counts.count.sum()))
