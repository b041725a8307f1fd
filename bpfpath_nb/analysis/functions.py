"""The frame of functions: how often each was passed, by how many packets, and how long that took."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from bpfpath_nb.analysis import names
from bpfpath_nb.analysis.hop_columns import HopColumns
from bpfpath_nb.analysis.hops import timedeltas
from bpfpath_nb.analysis.quantiles import quantiles
from bpfpath_nb.schema import FUNCTIONS, LAYERS


def functions_frame(hops: HopColumns) -> pd.DataFrame:
    """All functions that were passed, by the time spent in and after them, most first.

    Returns
    -------
    DataFrame
        Index func; columns as schema.FUNCTIONS.
    """
    func, count = hops.func.codes, len(hops.func.names)
    hits = np.bincount(func[func >= 0], minlength=count)
    layer = np.full(count, -1, np.int8)
    layer[func] = np.array([LAYERS.index(name) for name in hops.layer.names], np.int8)[hops.layer.codes]
    columns: dict[str, Any] = {"hits": hits.astype(np.int64), "packets": hops.packets_with(func, count)}
    for of, values in (("gap", hops.gap), ("duration", hops.duration)):
        columns |= {f"{of}_{name}": found for name, found in quantiles(func, count, values).items()}
    order = np.argsort(-columns["gap_total"].clip(min=0), kind="stable")
    order = order[hits[order] > 0]
    columns = {name: values[order] for name, values in columns.items()}
    columns = {name: timedeltas(values) if "_" in name else values for name, values in columns.items()}
    columns["layer"] = names.categorical(layer[order], LAYERS)
    index = pd.Index([hops.func.names[at] for at in order.tolist()], dtype="str", name="func")
    return pd.DataFrame({column.name: columns[column.name] for column in FUNCTIONS}, index=index)
