"""What another tracer recorded, as events of ours.

Each tool's reader (`pwru`, `retis`) brings its events as columns: when, which sk_buff, which function by name, where.
Here these become what a capture of ours would have sent, so that every frame, plot and comparison works on them: names
become a table of functions with the layers and roles that our catalogue knows, drop reasons and callers become tables,
and headers become snapshots, a new one where the packet's bytes changed.

What a tool does not tell is missing and not made up. None of them counts what it loses, which the imported recording
says where ours would say how the probes were attached.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfpath_nb.analysis.events import Events
from bpfpath_nb.kernel import catalogue
from bpfpath_nb.schema import EVENT, EVENT_FLAGS, FACTS_DTYPE, HEADERS_BYTES, LAYERS, SCHEMA_VERSION, TIME_LIMIT
from bpfpath_nb.start import StartRecord

_FREED: Final = "kfree_skbmem"
"""The function that every freed sk_buff goes through at last (net/core/skbuff.c)."""
_TRANSMIT: Final = frozenset({"dev_hard_start_xmit", "net_dev_start_xmit"})
_NONE: Final = np.iinfo(np.uint16).max
_SOME_ADDRESS: Final = 0xFFFFFFFF81000000


@dataclass
class Foreign:
    """A tool's events, in any order; each array has a row per event.

    Attributes
    ----------
    time : array
        ns, by the clock that `monotonic` is of.
    packet : array
        Number of the packet, from 1.
    func : list of str
        Names; `func_of` says which each event has, `probe` how each was traced.
    reason, caller : list of str
        Names of drop reasons, and of the functions that called; -1 in `reason_of` and `caller_of` where there is none.
    headers : list of bytes
        Distinct beginnings of packets, which `headers_of` refers to; -1 where they are not known.
    link : array
        Of each of `headers` a value of schema.LINKS.
    numbers : dict of arrays
        Further columns of schema.EVENT: skb, cpu, netns, ifindex, len, mark, pid.
    is_end, is_last : arrays of bool
        Whether the event frees the sk_buff, and with it the packet.
    """

    time: npt.NDArray[np.uint64]
    packet: npt.NDArray[np.uint32]
    func: Sequence[str]
    func_of: npt.NDArray[Any]
    probe: Sequence[str]
    reason: Sequence[str]
    reason_of: npt.NDArray[Any]
    caller: Sequence[str]
    caller_of: npt.NDArray[Any]
    headers: Sequence[bytes]
    headers_of: npt.NDArray[Any]
    link: npt.NDArray[Any]
    numbers: Mapping[str, npt.NDArray[Any]]
    is_end: npt.NDArray[np.bool_]
    is_last: npt.NDArray[np.bool_]
    processes: Mapping[int, str] = field(default_factory=dict)
    devices: Iterable[tuple[int, int, int, str]] = ()


def role_of(name: str) -> str:
    """What a function is in the life of a packet, a value of schema.ROLES."""
    known = catalogue.load()
    if name in known.readers:
        return "deliver"
    if name in _TRANSMIT:
        return "transmit"
    entry = known.find(name) or known.tracepoints.get(name)
    if entry is None:
        return ""
    if entry.drop or entry.final:
        return "drop" if entry.drop else "consume"
    return entry.entry if entry.entry in ("receive", "send") else ""


def packets_by_address(
    skb: npt.NDArray[np.uint64], time: npt.NDArray[np.uint64], freed: npt.NDArray[np.bool_]
) -> npt.NDArray[np.uint32]:
    """Number packets that are known by the address of their sk_buff alone: after it was freed the next one has it."""
    order = np.lexsort((np.arange(len(time)), time, skb))
    address, gone = skb[order], freed[order]
    begins = np.ones(len(order), bool)
    begins[1:] = (address[1:] != address[:-1]) | gone[:-1]
    number = np.empty(len(order), np.int64)
    number[order] = np.cumsum(begins)
    # In the order in which they were first seen.
    first = np.lexsort((np.arange(len(time)), time))
    codes, _ = pd.factorize(number[first])
    packet = np.empty(len(order), np.uint32)
    packet[first] = codes + 1
    return packet


def events(
    foreign: Foreign,
    *,
    tool: str,
    says: str,
    monotonic: int = 0,
    realtime: int = 0,
    release: str = "",
    machine: str = "",
) -> Events:
    """Build the events; what `says` stands where ours tell how they were attached.

    Raises
    ------
    ValueError
        A time or a number of functions that no capture has.
    """
    if len(foreign.time) and int(foreign.time.max()) >= TIME_LIMIT:
        raise ValueError("an event at a time that no clock shows")
    if len(foreign.func) > _NONE or len(foreign.headers_of) >= 1 << 32:
        raise ValueError("more functions or events than a recording holds")
    columns = {column.name: np.zeros(len(foreign.time), column.dtype) for column in EVENT}
    columns["time"][:], columns["packet"][:], columns["func"][:] = foreign.time, foreign.packet, foreign.func_of
    for name, values in foreign.numbers.items():
        columns[name][:] = values
    columns["seq"][:] = _sequence(columns["cpu"], columns["time"])
    first = _first(foreign)
    columns["flags"][first] = EVENT_FLAGS["entry"]
    for name, rows in (("end", foreign.is_end | foreign.is_last), ("last", foreign.is_last)):
        columns["flags"][rows] |= EVENT_FLAGS[name]
    columns["reason"][:] = foreign.reason_of + 1
    known = foreign.caller_of >= 0
    columns["location"][known] = np.uint64(_SOME_ADDRESS) + foreign.caller_of[known].astype(np.uint64)
    facts = _facts(foreign, columns)
    start = StartRecord.from_dict(
        {
            "version": SCHEMA_VERSION,
            "tool": tool,
            "release": release,
            "machine": machine,
            "host": "",
            "filter": "",
            "options": {"imported": tool},
            "functions": [
                {"name": name, "layer": _layer(name), "probe": probe, "target": name, "role": role_of(name)}
                for name, probe in zip(foreign.func, foreign.probe, strict=True)
            ],
            "reasons": {str(at + 1): name for at, name in enumerate(foreign.reason)},
            "readers": sorted(catalogue.load().readers),
            "ladder": says,
            "clock": {"monotonic": monotonic, "realtime": realtime},
        }
    )
    return Events.build(
        start,
        columns,
        facts,
        processes=foreign.processes.items(),
        devices=foreign.devices,
        locations=[(_SOME_ADDRESS + at, name, 0) for at, name in enumerate(foreign.caller)],
    )


def _layer(name: str) -> str:
    layer = catalogue.load().layer_of(name)
    return layer if layer in LAYERS else "skb"


def _sequence(cpu: npt.NDArray[np.uint16], time: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint32]:
    """Number each CPU's events from 0, without a gap: that there was none is not known."""
    order = np.lexsort((time, cpu))
    _, begin, count = np.unique(cpu[order], return_index=True, return_counts=True)
    number = np.empty(len(order), np.uint32)
    number[order] = np.arange(len(order)) - np.repeat(begin, count)
    return number


def _first(foreign: Foreign) -> npt.NDArray[np.intp]:
    order = np.lexsort((np.arange(len(foreign.time)), foreign.time, foreign.packet))
    return order[np.unique(foreign.packet[order], return_index=True)[1]]


def _facts(foreign: Foreign, columns: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.void]:
    """Snapshots, a new one wherever a packet's headers changed; `columns` gets which holds where."""
    order = np.lexsort((np.arange(len(foreign.time)), foreign.time, foreign.packet))
    packet, which = foreign.packet[order], np.asarray(foreign.headers_of)[order]
    begins = np.ones(len(order), bool)
    begins[1:] = packet[1:] != packet[:-1]
    # Where nothing is told the last holds on; before the first of a packet nothing does.
    told = np.maximum.accumulate(np.where((which >= 0) | begins, np.arange(len(order)), 0))
    which = which[told]
    changed = begins.copy()
    changed[1:] |= which[1:] != which[:-1]
    count = np.cumsum(changed)
    snapshot = count - np.repeat(count[begins], np.diff(np.append(np.flatnonzero(begins), len(order))))
    columns["snapshot"][order] = np.minimum(snapshot, _NONE)
    rows = np.flatnonzero(changed & (which >= 0) & (snapshot < _NONE))
    facts = np.zeros(len(rows), FACTS_DTYPE)
    facts["packet"], facts["snapshot"] = packet[rows], snapshot[rows]
    if len(rows):
        begin = [data[:HEADERS_BYTES] for data in foreign.headers]
        room = np.frombuffer(b"".join(data.ljust(HEADERS_BYTES, b"\0") for data in begin), np.uint8)
        facts["headers"] = room.reshape(-1, HEADERS_BYTES)[which[rows]]
        facts["caplen"] = np.array([len(data) for data in begin])[which[rows]]
        facts["link"] = foreign.link[which[rows]]
        facts["len"] = np.maximum(columns["len"][order][rows], facts["caplen"])
    return facts
