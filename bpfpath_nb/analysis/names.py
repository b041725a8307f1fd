"""From the numbers of events to the names that people use, as categories.

A categorical column is an array of small codes and a short list of names. The codes come from a table look-up over
the numbers, the names are made once for each number that occurs, so that a million hops in three namespaces cost
three names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

if TYPE_CHECKING:
    from bpfpath_nb.analysis.events import Events, Names


@dataclass(frozen=True)
class Named:
    """Codes into names; -1 is no name."""

    codes: npt.NDArray[np.integer[Any]]
    names: list[str]

    def take(self, rows: npt.NDArray[Any]) -> Named:
        """The same names for some of the rows; a row of -1 has none."""
        if not len(self.codes):
            return Named(np.full(len(rows), -1, np.int8), self.names)
        if len(rows) > len(self.codes):
            # The code after the last is what -1 stands for; one look at many rows instead of three.
            return Named(np.append(self.codes, self.codes.dtype.type(-1))[rows], self.names)
        return Named(np.where(rows < 0, self.codes.dtype.type(-1), self.codes[rows]), self.names)

    def categorical(self) -> pd.Categorical[Any]:
        """As a pandas column, without the names that do not occur."""
        used = np.zeros(len(self.names) + 1, bool)
        keep = used[:-1]
        for begin in range(0, len(self.codes), _LOOK):
            used[self.codes[begin : begin + _LOOK]] = True  # -1 marks the spare last place
            if keep.all():
                break
        if keep.all():
            return categorical(self.codes, self.names)
        to = np.full(len(self.names) + 1, -1, np.int32)
        to[:-1][keep] = np.arange(int(keep.sum()), dtype=np.int32)
        return categorical(to[self.codes], [name for name, kept in zip(self.names, keep, strict=True) if kept])


def categorical(codes: npt.NDArray[Any], names: Sequence[str]) -> pd.Categorical[Any]:
    """A column of these codes; the names have the string dtype that pandas gives them, also where there are none."""
    return pd.Categorical.from_codes(
        codes,
        dtype=pd.CategoricalDtype(pd.Index(list(names), dtype="str")),
        validate=False,
    )


def distinct_names(numbers: npt.NDArray[Any], names: Sequence[str | None]) -> Named:
    """Codes for `numbers` that point into `names`, of which several may be the same and some may be missing."""
    unique = [name for name in dict.fromkeys(names) if name is not None]
    if len(unique) == len(names) > numbers.max(initial=0):
        return Named(numbers.astype(_code_type(len(unique))), unique)  # each number is its name's code already
    code: dict[str | None, int] = {name: at for at, name in enumerate(unique)}
    code[None] = -1
    to = np.array([*map(code.__getitem__, names), -1], _code_type(len(unique)))
    return Named(to[numbers], unique)


_ALL: Final = slice(None)

_LOOK: Final = 1 << 16
"""So many rows are looked through at a time for names that occur: mostly the first have them all."""


def _code_type(count: int) -> type[np.signedinteger[Any]]:
    return np.int8 if count < 1 << 7 else np.int16 if count < 1 << 15 else np.int32


def _runs(numbers: npt.NDArray[Any]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Where each run of the same number begins, and how long it is.

    Runs are long in what hops tell, so that it is enough to look up where they begin.
    """
    begin = np.flatnonzero(np.append(True, numbers[1:] != numbers[:-1]))
    return begin, np.diff(begin, append=len(numbers))


def look_up(numbers: npt.NDArray[Any], name: Callable[[int], str | None]) -> Named:
    """Name each distinct number once; the names come in the order of their numbers."""
    if not len(numbers):
        return Named(np.empty(0, np.int8), [])
    begin, length = _runs(numbers)
    codes, distinct = pd.factorize(numbers[begin], sort=True)  # its hash table is faster than sorting
    named = distinct_names(codes, [name(int(number)) for number in distinct])
    return Named(np.repeat(named.codes, length), named.names)


def look_up_at(numbers: npt.NDArray[Any], times: npt.NDArray[np.uint64], called: Callable[[int], Names]) -> Named:
    """Name each number as it was called at the time; before its first name it has that one.

    Nearly every number has one name all along. Only rows of the others look at their time.
    """
    if not len(numbers):
        return Named(np.empty(0, np.int8), [])
    begin_of, length = _runs(numbers)
    which, distinct = pd.factorize(numbers[begin_of], sort=True)
    steps = [called(int(number)) for number in distinct]
    count = np.array([len(names) for names in steps])
    # One list holds all names of all numbers, in order; `at` becomes the position in it.
    begin = np.cumsum(count) - count
    at = np.where(count > 0, begin, -1)[which]
    texts = [name for names in steps for _, name in names]
    if count.max() <= 1:
        named = distinct_names(at, texts)
        return Named(np.repeat(named.codes, length), named.names)
    which, at = np.repeat(which, length), np.repeat(at, length)
    rows = np.flatnonzero((count > 1)[which])
    if len(rows):
        since = np.array([since for names in steps for since, _ in names], np.uint64)
        # Number and time in one integer that sorts: times count by how many of all the changes they come after.
        changes = np.unique(since)
        owner = np.repeat(np.arange(len(steps)), count)
        known = owner * (len(changes) + 1) + np.searchsorted(changes, since, "right")
        wanted = which[rows] * (len(changes) + 1) + np.searchsorted(changes, times[rows], "right")
        at[rows] = np.maximum(np.searchsorted(known, wanted, "right") - 1, begin[which[rows]])
    return distinct_names(at, texts)


def functions(events: Events, attribute: str = "name", rows: Any = _ALL) -> Named:
    """Of each hop, or of some, the function's name, or its layer, probe or target."""
    return distinct_names(
        events.hops["func"][rows], [getattr(function, attribute) for function in events.start.functions]
    )


def netns(events: Events) -> Named:
    """Of each hop the name that its namespace had then."""

    def called(inum: int) -> Names:
        return (events.devices.get((inum, 0)) or ((0, f"net:[{inum}]"),)) if inum else ()

    return look_up_at(events.hops["netns"], events.hops["time"], called)


def devices(events: Events) -> Named:
    """Of each hop the name that its interface had then."""
    place = (events.hops["netns"].astype(np.uint64) << np.uint64(32)) | events.hops["ifindex"]

    def called(number: int) -> Names:
        inum, ifindex = number >> 32, number & 0xFFFFFFFF
        return (events.devices.get((inum, ifindex)) or ((0, f"if{ifindex}"),)) if ifindex else ()

    return look_up_at(place, events.hops["time"], called)


def processes(events: Events) -> Named:
    """Of each hop the process's name."""
    return look_up(events.hops["pid"], events.processes.get)


def reasons(events: Events, rows: Any = _ALL) -> Named:
    """Of each hop, or of some, the drop reason."""
    return look_up(events.hops["reason"][rows], lambda number: events.start.reason(number) if number else None)
