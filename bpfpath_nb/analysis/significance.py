"""What chance alone could have done: tests of shares, and the correction for how many things are compared.

A comparison looks at dozens of paths, functions and drops at once, and of a hundred tests at 5 % five find something
where nothing is. So every p here is corrected with Holm's method (Scandinavian Journal of Statistics 6, 1979): the
chance of one false claim or more in the whole table stays under 5 %, however the tests depend on each other, and they
do, since a slow packet is slow in several functions. The method of Benjamini and Hochberg would let a twentieth of
what is claimed be false, which is the right bargain for screening, and the wrong one for a sentence in a ticket.

A share is tested exactly (Fisher), not by an approximation: a drop that nobody saw before is often a handful of
packets. That test takes each packet for itself, and packets come in runs: a full queue drops ten in a row, and a
transfer sends a hundred alike. Ten drops of one burst are one event, and two captures with two bursts and none do not
differ. So shares are also compared by how much they vary between blocks of consecutive packets (Student's t, as
`analysis.shifts` does for durations), of several sizes, since a run that is longer than a block shows in a larger one;
the largest p counts. Where packets do not depend on each other Fisher's is mostly that.

What is so rare that no outcome could be told from chance is not tested at all, which spares the correction
for the rest (Tarone, Biometrics 46, 1990). How rare that is follows from the two sides together, never from how they
differ, so it does no harm to what the tests promise.

The interval of a difference of shares is Newcombe's (Statistics in Medicine 17, 1998, method 10), made of two score
intervals: it has its 95 % also near 0 and 1, where most paths and drops are. Where shares vary more between blocks than
those of packets that come one by one, it is that of as many fewer packets (Kish's design effect).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy import special, stats

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.integer[Any]]

LEVEL: Final = 0.05
"""A p below it is a claim."""

_Z: Final = 1.959963984540054
"""The normal quantile that leaves 2.5 % on each side."""


def holm(p: Floats, tables: int = 1) -> Floats:
    """p-values corrected for how many there are; NaN where nothing was tested.

    Parameters
    ----------
    p : array
        Of one table; NaN where nothing was tested.
    tables : int
        How many tables share the 5 % evenly.
    """
    corrected = np.full(len(p), np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1) * tables
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1) if len(steps) else steps
    return corrected


def in_reach(least: Floats, level: float = LEVEL) -> npt.NDArray[np.bool_]:
    """Which of several tests can find anything at all, by the least p that each can come to.

    The smallest number k such that at most k tests can come below `level` / k; those are the ones (Tarone 1990).
    """
    least = np.where(np.isnan(least), np.inf, least)
    k = np.arange(1, len(least) + 1)
    fits = np.flatnonzero(np.searchsorted(np.sort(least), level / k, "right") <= k)
    return np.asarray(least <= level / k[fits[0]]) if len(fits) else np.zeros(len(least), bool)


BLOCKS: Final = 40
"""Most blocks of consecutive packets on one side."""

FEWEST_BLOCKS: Final = 8
"""Two blocks are taken together where so many remain."""


@dataclass(frozen=True)
class Tally:
    """How many packets of one side have each of several things, block by block.

    Attributes
    ----------
    count : array of shape (things, blocks)
    size : array of shape (blocks,)
        How many packets each block has.
    """

    count: Ints
    size: Ints

    @classmethod
    def of(cls, packet: Ints, thing: Ints, things: int, packets: int) -> Tally:
        """Count pairs of a packet's place in the order of all `packets` and of what it has; no pair comes twice."""
        block = blocks_of(packets)
        blocks = int(block[-1]) + 1 if packets else 0
        count = np.bincount(thing.astype(np.int64) * blocks + block[packet], minlength=things * blocks)
        return cls(count.reshape(things, blocks), np.bincount(block, minlength=blocks))

    @classmethod
    def of_marks(cls, marks: npt.NDArray[np.bool_]) -> Tally:
        """Count them in an array of shape (packets, things), the packets in their order."""
        begins = np.flatnonzero(np.diff(blocks_of(len(marks)), prepend=-1))
        size = np.diff(np.append(begins, len(marks)))
        if not len(marks):
            return cls(np.empty((marks.shape[1], 0), np.int64), size)
        return cls(np.add.reduceat(marks, begins, axis=0, dtype=np.int64).T, size)

    @property
    def total(self) -> Ints:
        """How many packets have each thing."""
        return np.asarray(self.count.sum(axis=1))

    @property
    def packets(self) -> int:
        """How many packets there are."""
        return int(self.size.sum())

    def coarser(self) -> Tally:
        """Two blocks at a time."""
        begins = np.arange(0, len(self.size), 2)
        return Tally(np.add.reduceat(self.count, begins, axis=1), np.add.reduceat(self.size, begins))

    def variance(self) -> Floats:
        """Of each share, taken between the blocks; infinite where there is one block only."""
        blocks, packets = len(self.size), self.packets
        if blocks < 2:
            return np.full(len(self.count), np.inf)
        expected = np.outer(self.total / packets, self.size)
        return np.asarray(((self.count - expected) ** 2).sum(axis=1) * blocks / (blocks - 1) / packets**2)


def blocks_of(packets: int) -> Ints:
    """The block of each of so many packets; ascending."""
    return np.arange(packets) * min(packets, BLOCKS) // max(packets, 1)


def compare_shares(a: Tally, b: Tally) -> tuple[Floats, Floats, Floats]:
    """Test two shares, two-sided.

    Returns
    -------
    p : array
    least : array
        The least p that so many in all could have come to.
    effect : array
        The design effect: a side's packets tell as much of a share as so many fewer that come one by one.
    """
    p, least = share_test(a.total, a.packets, b.total, b.packets)
    effect = np.ones(len(p))
    if not a.packets or not b.packets:
        return p, least, effect
    difference = np.abs(b.total / b.packets - a.total / a.packets)
    levels = [(a, b)]
    while min(len(side.size) for side in levels[-1]) >= 2 * FEWEST_BLOCKS:
        levels.append((levels[-1][0].coarser(), levels[-1][1].coarser()))
    for sides in levels:
        variance = [side.variance() for side in sides]
        p = np.fmax(p, _student(difference, variance, [len(side.size) - 1 for side in sides]))
        for side, of in zip(sides, variance, strict=True):
            share = side.total / side.packets
            alone = share * (1 - share) / side.packets
            effect = np.fmax(effect, np.where((alone > 0) & np.isfinite(of), of / np.where(alone > 0, alone, 1), 1))
    return p, least, effect


def _student(difference: Floats, variance: Sequence[Floats], freedom: Sequence[int]) -> Floats:
    """p of a difference whose parts have variances with so many degrees of freedom (Welch); NaN where none varies."""
    total = variance[0] + variance[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        together = total**2 / sum(of**2 / max(n, 1) for of, n in zip(variance, freedom, strict=True))
        p = 2 * special.stdtr(together, -difference / np.sqrt(total))
    return np.asarray(np.where(np.isinf(total), 1.0, np.where(total > 0, p, np.nan)))


def share_test(count_a: Ints, of_a: int, count_b: Ints, of_b: int) -> tuple[Floats, Floats]:
    """Fisher's exact test of two shares, two-sided (twice the smaller tail).

    Returns
    -------
    p : array
    least : array
        The least p that so many in all could have come to.
    """
    count_a, count_b = count_a.astype(np.int64), count_b.astype(np.int64)
    both = count_a + count_b
    if not of_a or not of_b:
        return np.ones(len(both)), np.ones(len(both))
    tails = stats.hypergeom(of_a + of_b, both, of_a)
    p = 2 * np.minimum(tails.cdf(count_a), tails.sf(count_a - 1))
    all_in_a = special.gammaln(of_a + 1) - special.gammaln(of_a - np.minimum(both, of_a) + 1)
    all_in_b = special.gammaln(of_b + 1) - special.gammaln(of_b - np.minimum(both, of_b) + 1)
    ways = special.gammaln(of_a + of_b + 1) - special.gammaln(of_a + of_b - both + 1)
    # Where they are too many for one side the other cannot be empty, and the end of the tail lies further in.
    in_a, in_b = np.minimum(both, of_a), np.maximum(both - of_b, 0)
    edge_a, edge_b = tails.pmf(in_a), tails.pmf(in_b)
    least_a = np.where(both <= of_a, np.exp(all_in_a - ways), edge_a)
    least_b = np.where(both <= of_b, np.exp(all_in_b - ways), edge_b)
    return np.clip(p, 0, 1), np.clip(2 * np.minimum(least_a, least_b), 0, 1)


def score_interval(share: Floats, of: Floats) -> tuple[Floats, Floats]:
    """Wilson's 95 % interval of a share of so many."""
    middle = share + _Z**2 / (2 * of)
    half = _Z * np.sqrt(share * (1 - share) / of + _Z**2 / (4 * of**2))
    return (middle - half) / (1 + _Z**2 / of), (middle + half) / (1 + _Z**2 / of)


def difference_interval(
    count_a: Ints, of_a: int, count_b: Ints, of_b: int, effect: Floats | float = 1.0
) -> tuple[Floats, Floats]:
    """Newcombe's 95 % interval of the share in b less the share in a, with a design effect."""
    if not of_a or not of_b:
        return np.full(len(count_a), -1.0), np.ones(len(count_a))
    share_a, share_b = count_a / of_a, count_b / of_b
    low_a, high_a = score_interval(share_a, np.maximum(of_a / effect, 1))
    low_b, high_b = score_interval(share_b, np.maximum(of_b / effect, 1))
    difference = share_b - share_a
    return (
        difference - np.sqrt((share_b - low_b) ** 2 + (high_a - share_a) ** 2),
        difference + np.sqrt((high_b - share_b) ** 2 + (share_a - low_a) ** 2),
    )
