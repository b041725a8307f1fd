"""The frame of functions: how often each was passed, by how many packets, and how long that took."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfpath_nb.analysis import names
from bpfpath_nb.analysis.hop_columns import HopColumns
from bpfpath_nb.analysis.hops import timedeltas
from bpfpath_nb.analysis.quantiles import Grouped, quantiles
from bpfpath_nb.schema import FUNCTIONS, LAYERS


def functions_frame(hops: HopColumns) -> pd.DataFrame:
    """All functions that were passed, by the time spent in and after them, most first.

    Returns
    -------
    DataFrame
        Index func; columns as schema.FUNCTIONS.
    """
    func, count = hops.func.codes, len(hops.func.names)
    gap = Grouped(count, len(hops))
    for packets, rows in hops.parts():
        gap.add(func[rows], hops.gap_in(packets, rows))
    hits, gaps = gap.found()
    return functions_table(
        hops.func.names,
        hops.layer_of_function,
        hits,
        hops.packets_with(func, count),
        {"gap": gaps, "duration": quantiles(func, count, hops.duration)},
    )


def functions_table(
    functions: list[str],
    layers: npt.NDArray[np.int8],
    hits: npt.NDArray[np.int64],
    packets: npt.NDArray[np.int64],
    times: Mapping[str, Mapping[str, npt.NDArray[np.int64]]],
) -> pd.DataFrame:
    """What is known of each function, as `functions_frame` shows it; `times` are quantiles of gap and duration."""
    columns: dict[str, Any] = {"hits": hits, "packets": packets}
    columns |= {f"{of}_{name}": values for of, found in times.items() for name, values in found.items()}
    order = np.argsort(-columns["gap_total"].clip(min=0), kind="stable")
    order = order[hits[order] > 0]
    columns = {name: values[order] for name, values in columns.items()}
    columns = {name: timedeltas(values) if "_" in name else values for name, values in columns.items()}
    columns["layer"] = names.categorical(layers[order], LAYERS)
    index = pd.Index([functions[at] for at in order.tolist()], dtype="str", name="func")
    return pd.DataFrame({column.name: columns[column.name] for column in FUNCTIONS}, index=index)
