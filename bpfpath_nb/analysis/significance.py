"""What chance alone could have done: tests of shares, and the correction for how many things are compared.

A comparison looks at dozens of paths, functions and drops at once, and of a hundred tests at 5 % five find something
where nothing is. So every p here is corrected with Holm's method (Scandinavian Journal of Statistics 6, 1979): the
chance of one false claim or more in the whole table stays under 5 %, however the tests depend on each other, and they
do, since a slow packet is slow in several functions. The method of Benjamini and Hochberg would let a twentieth of
what is claimed be false, which is the right bargain for screening, and the wrong one for a sentence in a ticket.

A share is tested exactly (Fisher), not by an approximation: a drop that nobody saw before is often a handful of
packets. What is so rare that no outcome could be told from chance is not tested at all, which spares the correction
for the rest (Tarone, Biometrics 46, 1990). How rare that is follows from the two sides together, never from how they
differ, so it does no harm to what the tests promise.

The interval of a difference of shares is Newcombe's (Statistics in Medicine 17, 1998, method 10), made of two score
intervals: it has its 95 % also near 0 and 1, where most paths and drops are.
"""

from __future__ import annotations

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


def score_interval(count: Ints, of: int) -> tuple[Floats, Floats]:
    """Wilson's 95 % interval of a share."""
    if not of:
        return np.zeros(len(count)), np.ones(len(count))
    share = count / of
    middle = share + _Z**2 / (2 * of)
    half = _Z * np.sqrt(share * (1 - share) / of + _Z**2 / (4 * of**2))
    return (middle - half) / (1 + _Z**2 / of), (middle + half) / (1 + _Z**2 / of)


def difference_interval(count_a: Ints, of_a: int, count_b: Ints, of_b: int) -> tuple[Floats, Floats]:
    """Newcombe's 95 % interval of the share in b less the share in a."""
    share_a, share_b = count_a / max(of_a, 1), count_b / max(of_b, 1)
    low_a, high_a = score_interval(count_a, of_a)
    low_b, high_b = score_interval(count_b, of_b)
    difference = share_b - share_a
    return (
        difference - np.sqrt((share_b - low_b) ** 2 + (high_a - share_a) ** 2),
        difference + np.sqrt((high_b - share_b) ** 2 + (share_a - low_a) ** 2),
    )
