"""Quantiles of gaps and durations by any columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfpath_nb.analysis.hops import timedeltas
from bpfpath_nb.analysis.quantiles import quantiles
from bpfpath_nb.errors import OptionError
from bpfpath_nb.schema import LATENCY


def latency_frame(df: pd.DataFrame, by: str | Sequence[str], packets: pd.DataFrame | None = None) -> pd.DataFrame:
    """The time spent in hops, of each group of them.

    Parameters
    ----------
    df : DataFrame
        Hops, as `Recording.df`.
    by : str or sequence of str
        Columns of `df`, `packet`, or columns of `packets`. A hop that has no value there counts in no group.
    packets : DataFrame, optional
        The packets of `df`.

    Returns
    -------
    DataFrame
        Index as `by`, the group in which most time was spent first; columns as schema.LATENCY.

    Raises
    ------
    OptionError
        There is no such column, or none is named.
    """
    by = grouping(by)
    keys = {name: _key(name, df, packets) for name in by}
    which, groups = np.zeros(len(df), np.int64), np.zeros((1, 0), np.int64)
    for codes, level in keys.values():
        joined = np.where((which < 0) | (codes < 0), -1, which * (len(level) + 1) + codes)
        which, distinct = pd.factorize(joined, sort=True)
        if len(distinct) and distinct[0] < 0:
            which, distinct = which - 1, distinct[1:]
        before, code = np.divmod(distinct, len(level) + 1)
        groups = np.column_stack((groups[before], code))
    count = len(groups)
    columns: dict[str, Any] = {"hits": np.bincount(which[which >= 0], minlength=count).astype(np.int64)}
    for of in ("gap", "duration"):
        values = df[of].to_numpy().view(np.int64)
        columns |= {f"{of}_{name}": found for name, found in quantiles(which, count, values).items()}
    order = np.argsort(-columns["gap_total"].clip(min=0), kind="stable")
    columns = {name: values[order] for name, values in columns.items()}
    columns = {name: timedeltas(values) if "_" in name else values for name, values in columns.items()}
    levels: Any = [level for _, level in keys.values()]
    at = groups[order].T
    index = (
        pd.Index(levels[0].take(at[0]), name=next(iter(keys)))
        if len(keys) == 1
        else pd.MultiIndex(levels=levels, codes=list(at), names=list(keys)).remove_unused_levels()
    )
    return pd.DataFrame({column.name: columns[column.name] for column in LATENCY}, index=index)


def grouping(by: Any) -> list[str]:
    """The columns that `by` names."""
    names = [by] if isinstance(by, str) else list(by) if isinstance(by, Iterable) else [by]
    if not all(isinstance(name, str) for name in names):
        raise OptionError(f"`by` names a column or several, and {by!r} does not; the simplest is `by='func'`.")
    if not names:
        raise OptionError("`by` names no column; the simplest is `by='func'`.")
    return names


def _key(name: str, df: pd.DataFrame, packets: pd.DataFrame | None) -> tuple[npt.NDArray[Any], pd.Index[Any]]:
    """Of each hop the code of its value, and the values."""
    if name in df.columns:
        return _codes(df[name])
    at = df.index.get_level_values("packet") if "packet" in df.index.names else None
    if name == "packet" and at is not None:
        codes, level = pd.factorize(at, sort=True)
        return codes, pd.Index(level)
    if packets is not None and at is not None and name in packets.columns:
        codes, level = _codes(packets[name])
        return codes[packets.index.get_indexer(at)], level
    offered = [*df.columns, *([] if packets is None else [c for c in packets.columns if c not in df.columns])]
    raise OptionError(f"There is no column {name!r} to group by. There are: packet, {', '.join(offered)}.")


def _codes(column: pd.Series[Any]) -> tuple[npt.NDArray[Any], pd.Index[Any]]:
    if isinstance(column.dtype, pd.CategoricalDtype):
        return column.cat.codes.to_numpy(), column.cat.categories
    codes, level = pd.factorize(column, sort=True)
    return codes, pd.Index(level)
