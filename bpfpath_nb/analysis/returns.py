"""How long functions took, and which was called within which: from the returns of functions.

A function's entry and its return carry the same stack pointer, the one at entry (`location`). Two living calls never
share it, unless the first one ended by jumping into the second, and then the functions differ. So within a packet an
entry and the next return with its function and stack pointer belong together, whatever was called meanwhile: nested
calls, a softirq that came on top of a system call, the same function once more.

Unless events were lost meanwhile: the return of one call and the entry of the next one in the same place may be among
them, and what is left looks like one long call. So where two or more may be missing between an entry and its return,
on whatever CPU, neither has a partner. A duration that is not known is better than one that is wrong.

The depth of a hop is the number of calls that were open around it: entered before and returned after, for the same
packet, on the same CPU and in the same process. A softirq that runs on top of a system call, on a stack of its own, is
within it by this count, as it is for ftrace's `function_graph`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from bpfpath_nb.analysis.jumps import Lost
from bpfpath_nb.schema import EVENT, EVENT_FLAGS

Columns = Mapping[str, npt.NDArray[Any]]

RETURN_COLUMNS: Final = ("time", "location", "packet", "seq", "func", "cpu")
"""What is kept of a return, by the names of schema.EVENT."""

NAT: Final = np.iinfo(np.int64).min
"""How numpy and pandas write "not a time"."""

_JOINS: Final = 2
"""So many lost events may make two calls look like one: the return of the first, and the entry of the second."""

_PRIMES: Final = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F), np.uint64(0x165667B19E3779F9))


def no_returns() -> dict[str, npt.NDArray[Any]]:
    """The columns of no return."""
    return {column.name: np.empty(0, column.dtype) for column in EVENT if column.name in RETURN_COLUMNS}


def split(columns: Columns) -> tuple[dict[str, npt.NDArray[Any]], dict[str, npt.NDArray[Any]]]:
    """Events that are hops, and those that are returns."""
    is_return = columns["flags"] & EVENT_FLAGS["return"] != 0
    if not is_return.any():
        return dict(columns), no_returns()
    hops = {name: values[~is_return] for name, values in columns.items()}
    return hops, {name: columns[name][is_return] for name in RETURN_COLUMNS}


def pair(hops: Columns, returns: Columns, lost: Lost) -> npt.NDArray[np.intp]:
    """Of each hop the row of its return, -1 where that is not known. Both tables in any order."""
    of = np.full(len(hops["time"]), -1, np.intp)
    calls = np.flatnonzero((hops["location"] != 0) & (hops["flags"] & EVENT_FLAGS["end"] == 0))
    if not len(calls):
        return of
    names = ("packet", "location", "func")
    joined = {name: np.concatenate((hops[name][calls], returns[name])) for name in (*names, "time")}
    key = _mixed(*(joined[name] for name in names))
    order = np.lexsort((joined["time"], key))  # stable, so that of one time the entry comes first
    before, after = order[:-1], order[1:]
    met = (key[before] == key[after]) & (before < len(calls)) & (after >= len(calls))
    # Numbers that are mixed may meet, if hardly ever.
    for name in names:
        met &= joined[name][before] == joined[name][after]
    before, after = before[met], after[met]
    time = joined["time"].astype(np.int64)
    sure = lost.between(time[before] + 1, time[after] - 1) < _JOINS  # what was lost next to the two is not within
    before, after = before[sure], after[sure]
    of[calls[before]] = after - len(calls)
    return of


def durations(hops: Columns, returns: Columns, return_of: npt.NDArray[np.intp]) -> npt.NDArray[np.int64]:
    """Of each hop the time from entry to return in ns, NAT where the return is not known."""
    if not len(returns["time"]):
        return np.broadcast_to(NAT, return_of.shape)
    duration = np.full(len(return_of), NAT)
    known = return_of >= 0
    duration[known] = (returns["time"][return_of[known]] - hops["time"][known]).astype(np.int64)
    return duration


def depths(hops: Columns, returns: Columns, return_of: npt.NDArray[np.intp]) -> npt.NDArray[np.int16]:
    """Of each hop how many calls are open around it."""
    called = np.flatnonzero(return_of >= 0)
    if not len(called):
        return np.zeros(len(return_of), np.int16)
    context = _mixed(hops["packet"], hops["cpu"], hops["pid"])
    context = np.concatenate((context, context[called]))
    time = np.concatenate((hops["time"], returns["time"][return_of[called]]))
    step = np.zeros(len(time), np.int32)
    step[called] = 1
    step[len(return_of) :] = -1
    order = np.lexsort((time, context))
    # Each context opens as many calls as it closes, so that one sum over all of them begins anew in each.
    open_before = np.cumsum(step[order]) - step[order]
    depth = np.empty(len(time), np.int32)
    depth[order] = open_before
    return depth[: len(return_of)].clip(0, np.iinfo(np.int16).max).astype(np.int16)


def _mixed(*columns: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """Several numbers as one, by which equal ones are found together."""
    mixed = np.zeros(len(columns[0]), np.uint64)
    for values, prime in zip(columns, _PRIMES, strict=True):
        mixed = (mixed ^ values.astype(np.uint64)) * prime
        mixed ^= mixed >> np.uint64(29)
    return mixed
