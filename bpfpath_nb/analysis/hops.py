"""The frame of hops: one row per function that a packet passed.

Everything here is a copy, a difference or a look-up of whole columns. The index is put together from its codes, since
pandas' own constructors would factorise what is known to be sorted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfpath_nb.analysis import names
from bpfpath_nb.analysis.events import Events
from bpfpath_nb.analysis.flows import Flows
from bpfpath_nb.analysis.returns import NAT
from bpfpath_nb.schema import HOPS, LAYERS, PROBES


def hops_frame(events: Events, flows: Flows) -> pd.DataFrame:
    """All hops, ordered by packet and time.

    Returns
    -------
    DataFrame
        Index (packet, hop); columns as schema.HOPS.
    """
    hops, utc = events.hops, events.utc
    columns: dict[str, Any] = {
        "time": timestamps(utc),
        "since": timedeltas(_since(events)),
        "gap": timedeltas(gaps(events)),
        "duration": timedeltas(np.ascontiguousarray(events.duration)),
        "depth": nullable(events.depth, np.full(len(events), not events.start.options.get("returns"))),
        "func": names.functions(events).categorical(),
        "layer": _fixed(events, "layer", LAYERS),
        "probe": _fixed(events, "probe", PROBES),
        "netns": names.netns(events).categorical(),
        "dev": names.devices(events).categorical(),
        "netns_inum": nullable(hops["netns"], hops["netns"] == 0),
        "ifindex": nullable(hops["ifindex"], hops["ifindex"] == 0),
        "cpu": hops["cpu"],
        "pid": nullable(hops["pid"].view(np.int32)),
        "comm": names.processes(events).categorical(),
        "len": nullable(hops["len"]),
        "mark": nullable(hops["mark"]),
        "flow": hop_flows(events, flows).categorical(),
        "reason": names.reasons(events).categorical(),
        "skb": hops["skb"],
    }
    # Without a copy the frame shares what the recording holds anyway; those arrays are read-only.
    return pd.DataFrame({column.name: columns[column.name] for column in HOPS}, index=hops_index(events), copy=False)


def hops_index(events: Events) -> pd.MultiIndex:
    """(packet, hop) of each row."""
    most = int(events.counts.max()) if len(events) else 0
    levels: Any = [pd.Index(events.packets), pd.Index(np.arange(most, dtype=np.uint32))]
    codes: Any = [events.packet_of, events.hop]
    return pd.MultiIndex(
        levels=levels,
        codes=codes,
        names=["packet", "hop"],
        verify_integrity=False,
    )


def gaps(events: Events, packets: slice = slice(None), rows: slice = slice(None)) -> npt.NDArray[np.int64]:
    """Of each hop the time until its packet's next one, NAT on the last; of some packets if their rows are told too."""
    time = events.hops["time"][rows].view(np.int64)
    gap = np.empty(len(time), np.int64)
    np.subtract(time[1:], time[:-1], out=gap[:-1])
    gap[events.last[packets] - (rows.start or 0)] = NAT
    return gap


def _since(events: Events) -> npt.NDArray[np.int64]:
    since = np.repeat(events.utc[events.first], events.counts)
    return np.subtract(events.utc, since, out=since)


def hop_flows(events: Events, flows: Flows, rows: Any = slice(None)) -> names.Named:
    """Of each hop, or of some, the flow that holds there."""
    return names.distinct_names(flows.which, flows.flow).take(events.fact_of[rows])


def timestamps(utc: npt.NDArray[np.int64]) -> pd.DatetimeIndex:
    """ns since 1970 as a column of UTC times."""
    return pd.DatetimeIndex(utc, dtype="datetime64[ns, UTC]", copy=False)


def timedeltas(ns: npt.NDArray[np.int64]) -> npt.NDArray[np.timedelta64]:
    """ns as a column of durations."""
    return ns.view("m8[ns]")


def nullable(values: npt.NDArray[Any], missing: npt.NDArray[np.bool_] | None = None) -> Any:
    """Integers of which some are missing, in pandas' nullable dtype of the same width."""
    return pd.arrays.IntegerArray(values, np.zeros(len(values), bool) if missing is None else missing)


def _fixed(events: Events, attribute: str, values: tuple[str, ...]) -> pd.Categorical[Any]:
    """A column whose categories are the same in every recording, so that recordings can be put together."""
    code = np.array([values.index(getattr(function, attribute)) for function in events.start.functions], np.int8)
    return names.categorical(code[events.hops["func"]] if len(code) else np.empty(0, np.int8), values)
