"""What a packet went through, in order, as one value.

A path is the ordered list of a packet's functions, and the namespaces it visited are such a list too. Comparing lists
for millions of packets is too slow, so each list is folded into one 64-bit number: every item's number is mixed with
its position, and the results are added up over the packet's rows (`numpy.add.reduceat`). Equal lists give equal
numbers, and with mixing as thorough as splitmix64's (Steele, Lea, Flood: "Fast splittable pseudorandom number
generators", OOPSLA 2014) two different ones meet once in 2^64 pairs. Names and text are made once for each list that
differs, never for each packet.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Scatter numbers over all 64 bits, so that sums of them tell sets apart (splitmix64)."""
    values = (values + np.uint64(1)) * _GOLDEN
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def distinct(
    items: npt.NDArray[Any], position: npt.NDArray[Any], first: npt.NDArray[np.intp]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Tell lists apart.

    Parameters
    ----------
    items : array of small integers, one per row
    position : array, one per row
        The row's place in its list.
    first : array
        First row of each list; a list reaches to the next one's first row.

    Returns
    -------
    examples : array
        For each distinct list the position in `first` of one that has it, in order of first appearance.
    which : array
        For each list the position in `examples` of its own kind.
    """
    if not len(first):
        return np.empty(0, np.intp), np.empty(0, np.intp)
    item = mix(np.arange(int(items.max()) + 1, dtype=np.uint64))
    place = mix(np.arange(int(position.max()) + 1, dtype=np.uint64) + (np.uint64(1) << np.uint64(32)))
    place |= np.uint64(1)
    # A product of an item's and a place's number, not their sum: two items that change places must change the total.
    product = place[position]
    product *= item[items]
    return group(np.add.reduceat(product, first))


def stable_order(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
    """The rows in the order of their numbers, equal ones in that of the rows; as numpy's stable `argsort`, but faster.

    A number and its row in one integer make a plain sort stable, and numpy's plain sort of integers is several times as
    fast as any `argsort` of 64 bits. Numbers too far apart for that are sorted as they are.
    """
    count = len(numbers)
    bits = count.bit_length()
    if not count:
        return np.empty(0, np.intp)
    least = int(numbers.min())
    if (int(numbers.max()) - least).bit_length() + bits > 63:
        return np.argsort(numbers, kind="stable")
    together = numbers.astype(np.int64) - least
    together <<= bits
    together |= np.arange(count)
    together.sort()
    together &= (1 << bits) - 1
    return together


def folded(rows: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Each row of 64-bit numbers as one; equal rows give equal numbers, which are never 0."""
    place = mix(np.arange(rows.shape[1], dtype=np.uint64) + (np.uint64(1) << np.uint64(32)))
    total: npt.NDArray[np.uint64] = (mix(rows) * (place | np.uint64(1))).sum(axis=1, dtype=np.uint64)
    return np.where(total == 0, np.uint64(1), total)


def group(values: npt.NDArray[Any]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Position of the first of each distinct value, and for each value which of those it equals."""
    _, examples, which = np.unique(values, return_index=True, return_inverse=True)
    order = np.argsort(examples)
    rank = np.empty(len(order), np.intp)
    rank[order] = np.arange(len(order))
    return examples[order], rank[which.reshape(-1)]
