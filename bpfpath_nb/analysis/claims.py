"""From counts and durations to what a table of a comparison may claim.

A claim is a difference whose p, corrected for everything else in the comparison, is below 5 %. Everything short of
that is shown as a number and called the same or unclear.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfpath_nb.analysis import names
from bpfpath_nb.analysis.hops import timedeltas
from bpfpath_nb.analysis.shifts import Shifts
from bpfpath_nb.analysis.significance import LEVEL, Tally, compare_shares, difference_interval, holm, in_reach
from bpfpath_nb.schema import CHANGES, Column

Ints = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int8]

TABLES: Final = 6
"""paths, functions, transitions, places, drops, verdicts: they share the 5 % evenly."""

_CODE: Final = {name: np.int8(at) for at, name in enumerate(CHANGES)}
_CLAIMS: Final = ("added", "gone", "shifted", "slower", "faster")


@dataclass(frozen=True)
class Shares:
    """Of several things how many packets of a and b have each, out of how many, and the test of that.

    `effect` is the design effect (`analysis.significance`).
    """

    count_a: Ints
    count_b: Ints
    of_a: int
    of_b: int
    p: Floats
    least: Floats
    effect: Floats

    @classmethod
    def of(cls, a: Tally, b: Tally) -> Shares:
        """Test the shares of a and of b."""
        return cls(a.total, b.total, a.packets, b.packets, *compare_shares(a, b))

    def columns(self, p: Floats) -> dict[str, Any]:
        """The columns, with the corrected p."""
        low, high = difference_interval(self.count_a, self.of_a, self.count_b, self.of_b, self.effect)
        share_a, share_b = self.count_a / max(self.of_a, 1), self.count_b / max(self.of_b, 1)
        return {
            "packets_a": self.count_a.astype(np.uint32),
            "packets_b": self.count_b.astype(np.uint32),
            "share_a": share_a,
            "share_b": share_b,
            "difference": share_b - share_a,
            "difference_low": low,
            "difference_high": high,
            "share_p": p,
        }

    def changes(self, p: Floats) -> Codes:
        """What may be claimed of the shares, as positions in schema.CHANGES."""
        in_a, in_b = self.count_a > 0, self.count_b > 0
        claimed = p < LEVEL
        cases = [claimed & ~in_a, claimed & ~in_b, claimed, (in_a != in_b) | np.isnan(p)]
        codes = [_CODE[name] for name in ("added", "gone", "shifted", "unclear")]
        return np.select(cases, codes, _CODE["same"]).astype(np.int8)


def corrected_p(shares: Shares, latency: Shifts | None = None) -> tuple[Floats, Floats]:
    """The p of all tests of one table, of shares and of durations, corrected together; NaN where nothing was tested."""
    p = [shares.p] if latency is None else [shares.p, latency.p]
    least = [shares.least] if latency is None else [shares.least, latency.least]
    tested = in_reach(np.concatenate(least), LEVEL / TABLES)
    found = holm(np.where(tested, np.concatenate(p), np.nan), TABLES)
    return found[: len(shares.p)], found[len(shares.p) :]


def latency_columns(latency: Shifts, p: Floats) -> dict[str, Any]:
    """The columns, with the corrected p."""
    columns: dict[str, Any] = {name: getattr(latency, name).astype(np.uint32) for name in ("compared_a", "compared_b")}
    columns |= {
        name: timedeltas(getattr(latency, name).astype(np.int64))
        for name in ("median_a", "median_b", "p99_a", "p99_b", "shift")
    }
    columns |= {
        "shift_low": timedeltas(latency.low),
        "shift_high": timedeltas(latency.high),
    }
    return columns | {"longer": latency.longer, "shift_p": p}


def latency_changes(latency: Shifts, p: Floats) -> Codes:
    """What may be claimed of the durations, as positions in schema.CHANGES."""
    claimed = p < LEVEL
    cases = [claimed & (latency.longer > 0.5), claimed & (latency.longer < 0.5), np.isnan(p)]
    return np.select(cases, [_CODE[name] for name in ("slower", "faster", "unclear")], _CODE["same"]).astype(np.int8)


def one_sided(changes: Codes) -> Codes:
    """Of claims on shares only those on what one side lacks."""
    return np.where(np.isin(changes, [_CODE["added"], _CODE["gone"]]), changes, _CODE["unclear"]).astype(np.int8)


def first_claim(*changes: Codes) -> Codes:
    """The first of several that is a claim; else the same, if any says so."""
    cases = [np.isin(change, [_CODE[name] for name in _CLAIMS]) for change in changes]
    cases += [change == _CODE["same"] for change in changes]
    return np.select(cases, [*changes, *changes], _CODE["unclear"]).astype(np.int8)


def ordered(
    columns: dict[str, Any],
    index: pd.Index[Any],
    schema: Sequence[Column],
    size: str,
    seen: npt.NDArray[np.bool_] | None = None,
) -> pd.DataFrame:
    """A table with what is claimed first, the largest `size` of it on top; then the most frequent.

    Rows that are not `seen` are left out.
    """
    change = columns["change"]
    claimed = np.isin(change, [_CODE[name] for name in _CLAIMS])
    columns["change"] = names.categorical(change, tuple(CHANGES))
    frame = pd.DataFrame({column.name: columns[column.name] for column in schema}, index=index)
    values = np.asarray(columns[size])
    how_much = np.abs(np.nan_to_num(values.astype(np.float64), nan=0.0)) if size == "difference" else _lengths(values)
    packets = columns["packets_a"].astype(np.int64) + columns["packets_b"]
    order = np.lexsort((-packets, np.where(claimed, -how_much, 0), ~claimed))
    return frame.iloc[order if seen is None else order[seen[order]]]


def _lengths(values: npt.NDArray[np.timedelta64]) -> Floats:
    return np.asarray(np.where(np.isnat(values), 0, np.abs(values.view(np.int64).astype(np.float64))))
