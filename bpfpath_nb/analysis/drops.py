"""The frame of drops: where the kernel gave packets up, and why.

One row for each sk_buff that was freed as dropped, in order of time. A packet that several copies had may have several
rows, and one row of these does not mean that the packet was lost: `packets.verdict` tells. What was only a
bystander's end (see `analysis.packets`) is left out.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfpath_nb.analysis import names
from bpfpath_nb.analysis.advice import advice, match_drops
from bpfpath_nb.analysis.ends import given_up_at, given_up_by, real_drops
from bpfpath_nb.analysis.events import Events
from bpfpath_nb.analysis.flows import Flows
from bpfpath_nb.analysis.headers import tcp_flags
from bpfpath_nb.analysis.hops import hop_flows, nullable, timestamps
from bpfpath_nb.schema import DROPS

# include/net/tcp_states.h
_TCP_STATES: Final = {
    1: "ESTABLISHED", 2: "SYN_SENT", 3: "SYN_RECV", 4: "FIN_WAIT1", 5: "FIN_WAIT2", 6: "TIME_WAIT", 7: "CLOSE",
    8: "CLOSE_WAIT", 9: "LAST_ACK", 10: "LISTEN", 11: "CLOSING", 12: "NEW_SYN_RECV", 13: "BOUND_INACTIVE",
}  # fmt: skip


def drops_frame(events: Events, flows: Flows) -> pd.DataFrame:
    """All drops, by time.

    Returns
    -------
    DataFrame
        RangeIndex; columns as schema.DROPS.
    """
    rows = drop_rows(events)
    location = given_up_at(events, rows)
    known = np.array([address in events.locations for address in location.tolist()], bool)
    offset = [events.locations[address][1] for address in location[known].tolist()]
    offsets = np.zeros(len(rows), np.uint32)
    offsets[known] = offset
    reason, func, stack = names.reasons(events, rows), given_up_by(events, rows), drop_stacks(events, rows)
    proto = names.distinct_names(flows.which, flows.proto).take(events.fact_of[rows])
    rule = match_drops(reason, func, stack, proto)
    columns: dict[str, Any] = {
        "time": timestamps(events.utc[rows]),
        "packet": events.hops["packet"][rows],
        "reason": reason.categorical(),
        "func": func.categorical(),
        "offset": nullable(offsets, ~known),
        "stack": stack.categorical(),
        "flow": hop_flows(events, flows, rows).categorical(),
        "netns": names.netns(events).take(rows).categorical(),
        "dev": names.devices(events).take(rows).categorical(),
        "tcp_state": _tcp_states(events, rows).categorical(),
        "tcp_flags": tcp_flags(events.facts, events.fact_of[rows]).categorical(),
        "advice": advice(rule).categorical(),
    }
    return pd.DataFrame({column.name: columns[column.name] for column in DROPS}, index=pd.RangeIndex(len(rows)))


def drop_rows(events: Events) -> npt.NDArray[np.intp]:
    """Rows of all drops, by time."""
    rows = np.flatnonzero(real_drops(events))
    return rows[np.argsort(events.hops["time"][rows], kind="stable")]


def drop_stacks(events: Events, rows: npt.NDArray[np.intp]) -> names.Named:
    """Of each drop the functions that led to it, the innermost first; each distinct stack is written once."""
    of = events.stack_of[rows]
    frames = events.stacks["frames"][of[of >= 0]]
    distinct, which = np.unique(frames, axis=0, return_inverse=True)
    code = np.full(len(rows), -1, np.intp)
    code[of >= 0] = which.reshape(-1)
    texts = [
        " < ".join(events.locations.get(address, (f"{address:#x}", 0))[0] for address in stack if address)
        for stack in distinct.tolist()
    ]
    return names.distinct_names(code, [text or None for text in texts])


def _tcp_states(events: Events, rows: npt.NDArray[np.intp]) -> names.Named:
    of = events.stack_of[rows]
    state = np.zeros(len(rows), np.uint16)
    state[of >= 0] = events.stacks["tcp_state"][of[of >= 0]]
    return names.look_up(state, lambda number: _TCP_STATES.get(number, f"state {number}") if number else None)
