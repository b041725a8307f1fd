"""From the numbers of events to the names that people use, as categories.

A categorical column is an array of small codes and a short list of names. The codes come from a table look-up over
the numbers, the names are made once for each number that occurs, so that a million hops in three namespaces cost
three names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfpath_nb.analysis.events import Events


@dataclass(frozen=True)
class Named:
    """Codes into names; -1 is no name."""

    codes: npt.NDArray[np.integer[Any]]
    names: list[str]

    def take(self, rows: npt.NDArray[Any]) -> Named:
        """The same names for some of the rows; a row of -1 has none."""
        if not len(self.codes):
            return Named(np.full(len(rows), -1, np.int8), self.names)
        return Named(np.where(rows < 0, self.codes.dtype.type(-1), self.codes[rows]), self.names)

    def categorical(self) -> pd.Categorical[Any]:
        """As a pandas column, without the names that do not occur."""
        used = np.zeros(len(self.names) + 1, bool)
        used[self.codes] = True  # -1 marks the spare last place
        keep = used[:-1]
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
    unique = list(dict.fromkeys(name for name in names if name is not None))
    code = {name: at for at, name in enumerate(unique)}
    to = np.array([-1 if name is None else code[name] for name in names] + [-1], _code_type(len(unique)))
    return Named(to[numbers], unique)


def _code_type(count: int) -> type[np.signedinteger[Any]]:
    return np.int8 if count < 1 << 7 else np.int16 if count < 1 << 15 else np.int32


def look_up(numbers: npt.NDArray[Any], name: Callable[[int], str | None]) -> Named:
    """Name each distinct number once; the names come in the order of their numbers."""
    if not len(numbers):
        return Named(np.empty(0, np.int8), [])
    # Runs of the same number are long, and pandas' hash table is faster than sorting.
    codes, distinct = pd.factorize(numbers, sort=True)
    return distinct_names(codes, [name(int(number)) for number in distinct])


def functions(events: Events, attribute: str = "name") -> Named:
    """Of each hop the function's name, or its layer, probe or target."""
    return distinct_names(events.hops["func"], [getattr(function, attribute) for function in events.start.functions])


def netns(events: Events) -> Named:
    """Of each hop the namespace's name."""
    return look_up(events.hops["netns"], lambda inum: _netns_name(events, inum))


def _netns_name(events: Events, inum: int) -> str | None:
    return (events.devices.get((inum, 0)) or f"net:[{inum}]") if inum else None


def devices(events: Events) -> Named:
    """Of each hop the interface's name."""
    place = (events.hops["netns"].astype(np.uint64) << np.uint64(32)) | events.hops["ifindex"]

    def name(number: int) -> str | None:
        inum, ifindex = number >> 32, number & 0xFFFFFFFF
        return (events.devices.get((inum, ifindex)) or f"if{ifindex}") if ifindex else None

    return look_up(place, name)


def processes(events: Events) -> Named:
    """Of each hop the process's name."""
    return look_up(events.hops["pid"], events.processes.get)


def reasons(events: Events) -> Named:
    """Of each hop the drop reason."""
    return look_up(events.hops["reason"], lambda number: events.start.reason(number) if number else None)
