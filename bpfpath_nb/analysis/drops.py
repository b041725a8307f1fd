"""The frame of drops: where the kernel gave packets up, and why.

One row for each sk_buff that was freed as dropped, in order of time. A packet that several copies had may have several
rows, and one row of these does not mean that the packet was lost: `packets.verdict` tells. What was only a
bystander's end (see `analysis.packets`) is left out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from bpfpath_nb.analysis import names
from bpfpath_nb.analysis.events import Events
from bpfpath_nb.analysis.flows import Flows
from bpfpath_nb.analysis.headers import tcp_flags
from bpfpath_nb.analysis.hops import hop_flows, nullable, timestamps
from bpfpath_nb.analysis.packets import given_up_by, real_drops
from bpfpath_nb.schema import DROPS


def drops_frame(events: Events, flows: Flows) -> pd.DataFrame:
    """All drops, by time.

    Returns
    -------
    DataFrame
        RangeIndex; columns as schema.DROPS.
    """
    rows = np.flatnonzero(real_drops(events))
    rows = rows[np.argsort(events.hops["time"][rows], kind="stable")]
    location = events.hops["location"][rows]
    known = np.array([address in events.locations for address in location.tolist()], bool)
    offset = [events.locations[address][1] for address in location[known].tolist()]
    offsets = np.zeros(len(rows), np.uint32)
    offsets[known] = offset
    columns: dict[str, Any] = {
        "time": timestamps(events.utc[rows]),
        "packet": events.hops["packet"][rows],
        "reason": names.reasons(events).take(rows).categorical(),
        "func": given_up_by(events, rows).categorical(),
        "offset": nullable(offsets, ~known),
        "stack": _missing(len(rows)),
        "flow": hop_flows(events, flows).take(rows).categorical(),
        "netns": names.netns(events).take(rows).categorical(),
        "dev": names.devices(events).take(rows).categorical(),
        "tcp_state": _missing(len(rows)),
        "tcp_flags": tcp_flags(events.facts, events.fact_of[rows]).categorical(),
        "advice": _missing(len(rows)),
    }
    return pd.DataFrame({column.name: columns[column.name] for column in DROPS}, index=pd.RangeIndex(len(rows)))


def _missing(count: int) -> pd.Categorical[Any]:
    return names.categorical(np.full(count, -1, np.int8), [])
