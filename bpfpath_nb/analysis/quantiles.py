"""Quantiles of many groups at once, exact.

The group's number and the value go into one 64-bit integer, group first. Sorting those integers, for which numpy has
the processor's vector instructions, puts each group's values in order and side by side, and what counts for none in
front of all; a quantile is then a look at one or two places of the group's run. Only where group and value have too
many bits together, two sorts are needed.

A quantile between two values is interpolated on the line between them, as numpy and pandas do by default, in whole
nanoseconds rounded down.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bpfpath_nb.analysis.returns import NAT

Int64s = npt.NDArray[np.int64]

PERCENTS: Final = {"p50": 50, "p90": 90, "p99": 99, "max": 100}


def quantiles(group: npt.NDArray[Any], count: int, values: Int64s) -> dict[str, Int64s]:
    """Quantiles and sum of each group's values.

    Parameters
    ----------
    group : array of integers, one per value
        From 0 to `count` - 1; a value whose group is negative counts for none.
    count : int
        How many groups there are.
    values : array of int64
        Durations in ns, not negative; a missing one (`hops.NAT`) counts for none.

    Returns
    -------
    dict
        p50, p90, p99, max, total: one value per group, `hops.NAT` for a group without values.
    """
    values, begin = _sorted(group, count, values)
    size, begin = np.diff(begin), begin[:-1]
    found = {name: _at(values, begin, size, percent) for name, percent in PERCENTS.items()}
    return found | {"total": _totals(values, begin, size)}


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


def _at(values: Int64s, begin: Int64s, size: Int64s, percent: int) -> Int64s:
    found = np.full(len(size), NAT)
    some = np.flatnonzero(size)
    low, high, rest = places(size[some], percent)
    found[some] = between(values[begin[some] + low], values[begin[some] + high], rest)
    return found


def _totals(values: Int64s, begin: Int64s, size: Int64s) -> Int64s:
    found = np.full(len(size), NAT)
    some = np.flatnonzero(size)
    if len(some):
        found[some] = np.add.reduceat(values, begin[some])
    return found
