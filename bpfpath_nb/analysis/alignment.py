"""Two paths side by side: which functions they share, and where they part.

From where the two part, the hops are aligned as `difflib` aligns lines of two files (Ratcliff and Obershelp's matching
of the longest common run, and so on to both sides of it), which people know how to read. What is not in common stands
on one side alone. Packets may take one path through several places: a query and its answer often pass the same
functions. Then those of one list of places are taken. A hop's gap is their median.

The first divergence is the first hop, counted from the beginning, at which the two do not do the same in the same
place. Places count as far as both sides have their names (`analysis.sides`).
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import SequenceMatcher, get_close_matches
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfpath_nb import schema
from bpfpath_nb.analysis import names
from bpfpath_nb.analysis.hops import nullable, timedeltas
from bpfpath_nb.analysis.returns import NAT
from bpfpath_nb.analysis.sequences import distinct
from bpfpath_nb.analysis.sides import Side, Sides
from bpfpath_nb.printable import printable

Ints = npt.NDArray[np.integer[Any]]

SIDES: Final = ("both", "a", "b")

_MOST_HOPS: Final = 2000
"""Of longer paths, such as a loop's, the beginning is aligned: the effort grows with the square."""

_MOST_CANDIDATES: Final = 20
"""Paths that are looked at to find the one to align with."""

_MOST_VARIANTS: Final = 8
"""Lists of places that are told apart of one path, such as those of a query and of its answer."""

_MOST_CELLS: Final = 4_000_000
"""Hops of one path's packets that are looked at; of more packets the first ones stand for all."""


@dataclass(frozen=True)
class Way:
    """One path as its packets took it: of each hop function, spot, namespace, interface (codes) and median gap."""

    func: Ints
    spot: Ints
    netns: Ints
    dev: Ints
    gap: npt.NDArray[np.int64]
    hops: int

    @classmethod
    def of(cls, side: Side, rows: Ints, hops: int) -> Way:
        """The path of packets that took the same one through the same places; `rows` are packet by hop."""
        gap = side.gap[rows]
        # All packets lack the gap of the last hop, or have it where only the namespace was left.
        median = np.full(rows.shape[1], NAT)
        known = (gap != NAT).all(axis=0)
        median[known] = np.rint(np.median(gap[:, known], axis=0)).astype(np.int64)
        return cls(side.func[rows[0]], side.spot[rows[0]], _most(side.netns[rows]), _most(side.dev[rows]), median, hops)

    def shared(self, other: Way) -> int:
        """How many hops from the first on both do the same in the same places."""
        least = min(len(self.func), len(other.func))
        differ = np.flatnonzero((self.func[:least] != other.func[:least]) | (self.spot[:least] != other.spot[:least]))
        return int(differ[0]) if len(differ) else least


def _most(codes: Ints) -> Ints:
    """Of each column the most frequent code."""
    width = int(codes.max(initial=-1)) + 2
    hops = codes.shape[1]
    count = np.bincount(((codes + 1) + np.arange(hops) * width).reshape(-1), minlength=hops * width)
    return np.asarray(count.reshape(hops, width).argmax(axis=1) - 1)


def telling_ways(
    both: tuple[Side, Side], which: tuple[Ints, Ints], lead: npt.NDArray[np.float64], chosen: list[int | None]
) -> tuple[tuple[int, Way], tuple[int, Way]]:
    """The path of a and the path of b to align: those that are chosen, or that tell most of the difference.

    What b has most more of tells most, or else what a has most more of. Held against it is the path of the other side
    that goes the same way for longest; of several that which the other side has most more of, or the most frequent.
    Where neither has more of any, both sides have a path in common that is as good as any.

    Parameters
    ----------
    both : (Side, Side)
    which : (array, array)
        Of each packet of a and of b (`Side.first`) its path.
    lead : array
        Of each path how much larger its share is in b, beyond chance; else 0.
    chosen : list
        A path of a and one of b, or None.
    """
    taken = [np.bincount(of, minlength=len(lead)) for of in which]
    lead_of = (-lead, lead)
    if chosen == [None, None]:
        common = np.minimum(*taken)
        if not lead.any() and common.any():
            chosen = [int(common.argmax())] * 2
        else:
            at = 1 if lead.max() > 0 or not lead.any() else 0
            chosen[at] = int((lead_of[at] if lead.any() else taken[at]).argmax())
    at = 1 if chosen[1] is not None else 0
    path = chosen[at]
    assert path is not None
    way = ways(both[at], np.flatnonzero(which[at] == path))[0]
    other = chosen[1 - at]
    if other is not None:
        near = np.array([other])
    else:
        there = np.flatnonzero(taken[1 - at])
        there = there[there != path] if len(there) > 1 else there
        near = there[np.lexsort((-taken[1 - at][there], -lead_of[1 - at][there]))][:_MOST_CANDIDATES]
    candidates = [
        (one, variant) for one in near.tolist() for variant in ways(both[1 - at], np.flatnonzero(which[1 - at] == one))
    ]
    best = candidates[int(np.argmax([variant.shared(way) for _, variant in candidates]))]
    return (best, (path, way)) if at else ((path, way), best)


def ways(side: Side, packets: Ints) -> list[Way]:
    """The ways of packets that all took the same path: one for each list of places, the most frequent first."""
    hops = int(side.counts[packets[0]])
    shown = min(hops, _MOST_HOPS)
    packets = packets[: max(1, _MOST_CELLS // max(shown, 1))]
    rows = side.first[packets][:, None] + np.arange(shown)
    spot, _ = pd.factorize(side.spot[rows].reshape(-1))
    position = np.tile(np.arange(shown), len(packets))
    examples, of = distinct(spot, position, np.arange(len(packets)) * shown)
    frequent = np.argsort(-np.bincount(of, minlength=len(examples)), kind="stable")[:_MOST_VARIANTS]
    return [Way.of(side, rows[of == variant], hops) for variant in frequent.tolist()]


@dataclass(frozen=True)
class Place:
    """Where a hop of a path ran."""

    func: str
    netns: str | None
    dev: str | None

    def __str__(self) -> str:
        where = [f"in netns {self.netns}" if self.netns else "", f"on {self.dev}" if self.dev else ""]
        return " ".join(part for part in (self.func, *where) if part)


@dataclass(frozen=True)
class Divergence:
    """Where two paths part.

    Attributes
    ----------
    hop : int
        Number of the first hop that differs, from 0.
    after : Place or None
        The last hop that they share; None where they never had one in common.
    a, b : Place or None
        What each does then; None where it ends there.
    """

    hop: int
    after: Place | None
    a: Place | None
    b: Place | None

    def sentence(self, first: str, second: str) -> str:
        """In words, given what the two sides are called."""

        def goes_on(name: str, place: Place | None) -> str:
            return f"{name} goes on to {place}" if place is not None else f"{name} ends"

        start = f"The ways part after {self.after}" if self.after else "The ways part at the first hop"
        return f"{start}: {goes_on(first, self.a)}, {goes_on(second, self.b)}."


class Alignment:
    """A path of a and a path of b, aligned.

    Attributes
    ----------
    path_a, path_b : str
        Their ids.
    frame : DataFrame
        One row per hop of either, columns as schema.ALIGNMENT.
    divergence : Divergence or None
        Where they part; None where they are the same.
    beyond : int
        Hops of the longer one that are not shown.
    """

    def __init__(self, shared: Sides, path_a: str, path_b: str, a: Way, b: Way) -> None:
        self.path_a, self.path_b = path_a, path_b
        self.frame = _frame(shared, a, b, _align(a, b))
        self.divergence = _divergence(shared, a, b)
        self.beyond = max(a.hops - len(a.func), b.hops - len(b.func))

    def __len__(self) -> int:
        return len(self.frame)

    def __repr__(self) -> str:
        common = int((self.frame["side"] == "both").sum())
        beyond = f", {self.beyond} more not shown" if self.beyond else ""
        parting = self.divergence.sentence("a", "b") if self.divergence else "Both do the same in the same places."
        paths = f"path {self.path_a} of a and {self.path_b} of b"
        return f"<Alignment: {paths}, {common} of {len(self)} hops in common{beyond}>\n{parting}"


def no_such_path(path: object, side: str, known: list[str]) -> str:
    """What to say of a path that no packet took."""
    path = str(path)
    near = get_close_matches(path, known, 3, 0.5) or known[:3]
    return (
        f"No packet of {side} took the path {printable(path)!r}; `paths` lists those that were taken, such as "
        f"{', '.join(near)}."
    )


def _align(a: Way, b: Way) -> npt.NDArray[np.int64]:
    """Pairs of hops, -1 where a side has none."""
    begin = a.shared(b)
    pairs = [(at, at) for at in range(begin)]
    # A hop is its function and its place: a router's and a server's receiving are not the same.
    steps = [list(zip(way.func[begin:].tolist(), way.spot[begin:].tolist(), strict=True)) for way in (a, b)]
    for what, a_from, a_to, b_from, b_to in SequenceMatcher(None, steps[0], steps[1], autojunk=False).get_opcodes():
        in_a, in_b = range(begin + a_from, begin + a_to), range(begin + b_from, begin + b_to)
        if what == "equal":
            pairs += zip(in_a, in_b, strict=True)
        else:
            pairs += [(at, -1) for at in in_a]
            pairs += [(-1, at) for at in in_b]
    return np.array(pairs, np.int64).reshape(-1, 2)


def _frame(shared: Sides, a: Way, b: Way, rows: npt.NDArray[np.int64]) -> pd.DataFrame:
    in_a, in_b = rows[:, 0], rows[:, 1]
    func = np.where(in_a >= 0, _take(a.func, in_a), _take(b.func, in_b))
    side = np.where(in_b < 0, 1, np.where(in_a < 0, 2, 0))
    columns: dict[str, Any] = {
        "func": names.Named(func, shared.functions).categorical(),
        "side": names.categorical(side.astype(np.int8), SIDES),
        "hop_a": nullable(in_a.clip(min=0).astype(np.uint32), in_a < 0),
        "hop_b": nullable(in_b.clip(min=0).astype(np.uint32), in_b < 0),
    }
    for name, way, at in (("a", a, in_a), ("b", b, in_b)):
        columns[f"netns_{name}"] = names.Named(_take(way.netns, at), shared.namespaces).categorical()
        columns[f"dev_{name}"] = names.Named(_take(way.dev, at), shared.devices).categorical()
        columns[f"gap_{name}"] = timedeltas(np.where(at >= 0, _take(way.gap, at), NAT))
    return pd.DataFrame({column.name: columns[column.name] for column in schema.ALIGNMENT})


def _take(values: Ints, at: npt.NDArray[np.int64]) -> Ints:
    return np.where(at >= 0, values[np.maximum(at, 0)], -1) if len(values) else np.full(len(at), -1)


def _divergence(shared: Sides, a: Way, b: Way) -> Divergence | None:
    hop = a.shared(b)
    if hop == len(a.func) == len(b.func) and a.hops == b.hops:
        return None

    def place(way: Way, at: int) -> Place | None:
        if not 0 <= at < len(way.func):
            return None
        return Place(
            shared.functions[way.func[at]],
            shared.namespaces[way.netns[at]] if way.netns[at] >= 0 else None,
            shared.devices[way.dev[at]] if way.dev[at] >= 0 else None,
        )

    return Divergence(hop, place(b, hop - 1), place(a, hop), place(b, hop))
