"""Any frame of ours as a static table."""

from __future__ import annotations

import pandas as pd

from bpfpath_nb.html.table import table


def frame_html(frame: pd.DataFrame, rows: int = 20) -> str:
    """The first rows of any frame of ours as a table, with its index, and how many rows there are beyond.

    Times become microseconds (the head says so), moments the time of day, what is missing an empty cell. Columns that
    have no value in these rows are left out.
    """
    shown = frame.head(rows)
    shown = shown.dropna(axis="columns", how="all") if len(shown) else shown
    indexed = not isinstance(frame.index, pd.RangeIndex)
    levels = [shown.index.get_level_values(at).to_series() for at in range(shown.index.nlevels)] if indexed else []
    columns = [*levels, *(shown[name] for name in shown.columns)]
    head = [str(column.name) + ("/us" if column.dtype.kind == "m" else "") for column in columns]
    more = len(frame) - len(shown)
    rest = f"<p>… and {more} more rows</p>" if more else ""
    return table(head, zip(*(cells(column) for column in columns), strict=True)) + rest


def cells(column: pd.Series) -> list[str]:
    """The values of a column as people read them."""
    values: list[object] = column.tolist()
    if column.dtype.kind == "m":
        shown = [f"{value / 1000:.3f}" for value in column.fillna(pd.Timedelta(0)).astype("int64").tolist()]
    elif column.dtype.kind == "M":
        nanoseconds = column.astype("int64").tolist()
        shown = [f"{value:%H:%M:%S}.{ns % 10**9:09d}" if pd.notna(value) else "" for value, ns in
                 zip(column, nanoseconds, strict=True)]  # fmt: skip
    elif column.dtype.kind == "f":
        shown = [f"{value:.4g}" for value in values]
    else:
        shown = [str(value) for value in values]
    missing = column.isna().tolist()
    return ["" if gone else value for gone, value in zip(missing, shown, strict=True)]
