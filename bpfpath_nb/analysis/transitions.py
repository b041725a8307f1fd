"""The frame of transitions: how long packets took from one function to the next, and whether that was work or wait.

A packet may go the same step through a queue or straight, so the gaps of one transition may be of both kinds. The
transition is called what most of its time was, and the queue is the one that has most of the waiting.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfpath_nb.analysis import names
from bpfpath_nb.analysis.hop_columns import HopColumns
from bpfpath_nb.analysis.hops import timedeltas
from bpfpath_nb.analysis.quantiles import quantiles
from bpfpath_nb.schema import QUEUES, TRANSITION_KINDS, TRANSITIONS


def transitions_frame(hops: HopColumns) -> pd.DataFrame:
    """All transitions, by the time that they took in all, most first.

    Returns
    -------
    DataFrame
        Index (from, to); columns as schema.TRANSITIONS.
    """
    functions = len(hops.func.names)
    which, distinct = _number(hops, functions)
    time = np.zeros(len(hops), np.int64)
    np.subtract(hops.time[1:], hops.time[:-1], out=time[:-1])
    count = len(distinct)
    found = quantiles(which, count, time)
    rows = np.flatnonzero((hops.queue >= 0) & (which >= 0))
    place = which[rows] * len(QUEUES) + hops.queue[rows]
    waited = np.bincount(place, weights=time[rows], minlength=count * len(QUEUES)).reshape(count, len(QUEUES))
    waits = 2 * waited.sum(axis=1) > found["total"]
    order = np.argsort(-found["total"], kind="stable")
    columns: dict[str, Any] = {name: timedeltas(values[order]) for name, values in found.items()}
    columns |= {
        "count": np.bincount(which[which >= 0], minlength=count)[order].astype(np.int64),
        "kind": names.categorical(waits[order].astype(np.int8), TRANSITION_KINDS),
        "queue": names.categorical(
            np.where(waits, waited.argmax(axis=1), -1)[order] if count else np.empty(0, np.int8), QUEUES
        ),
    }
    levels: Any = [pd.Index(hops.func.names, dtype="str")] * 2
    codes: Any = [distinct[order] // max(functions, 1), distinct[order] % max(functions, 1)]
    index = pd.MultiIndex(levels=levels, codes=codes, names=["from", "to"]).remove_unused_levels()
    return pd.DataFrame({column.name: columns[column.name] for column in TRANSITIONS}, index=index)


def _number(hops: HopColumns, functions: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.intp]]:
    """Of each hop a number for its function and the next one, from 0, -1 on the last; and the pairs that occur."""
    func = hops.func.codes
    pair: Any = np.full(len(hops), -1, np.int32 if functions < 1 << 15 else np.int64)
    np.multiply(func[:-1], functions, out=pair[:-1], dtype=pair.dtype)
    pair[:-1] += func[1:]
    pair[hops.last] = -1
    seen = np.zeros(functions * functions + 1, bool)
    seen[pair] = True
    distinct = np.flatnonzero(seen[:-1])
    to = np.full(len(seen), -1, np.int32)
    to[distinct] = np.arange(len(distinct), dtype=np.int32)
    return to[pair], distinct
