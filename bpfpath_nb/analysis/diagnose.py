"""What is wrong in a recording, as findings: drops and other symptoms, each with its meaning, evidence and next steps.

Every drop gets the rule that fits it, and the rules of other kinds find their symptoms (`advice`, `symptoms`). Rows
that say the same (rule, reason, function, namespace, interface) are one finding. Its evidence are the hops that show
it; the flow that shows it most often lends its addresses and ports to the commands.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from bpfpath_nb.analysis import names
from bpfpath_nb.analysis.advice import NOT_SAID, Rule, inside, match_drops, rules
from bpfpath_nb.analysis.drops import drop_rows, drop_stacks
from bpfpath_nb.analysis.ends import given_up_by
from bpfpath_nb.analysis.events import Events
from bpfpath_nb.analysis.flows import Flows
from bpfpath_nb.analysis.hops import timedeltas, timestamps
from bpfpath_nb.analysis.returns import NAT
from bpfpath_nb.analysis.symptoms import Ground, find
from bpfpath_nb.schema import FINDINGS, SEVERITIES, VERDICTS

Rows = npt.NDArray[np.intp]

MOST_FINDINGS: Final = 200
"""A recording that shows more different things is cut there, the gravest first."""

_OF_ALL: Final = "losses"
"""The kind that is the capture's own: one finding, of no place, though packets in many places show it."""

_UNWANTED: Final = NOT_SAID | {"NO_SOCKET"}


@dataclass(frozen=True)
class Finding:
    """Hops that show the same thing in the same place.

    Attributes
    ----------
    rule : Rule
    rows : array
        Rows of the recording.
    example : int
        The row that is shown: the first of the flow that has most.
    """

    rule: Rule
    rows: Rows
    example: int


def diagnose(events: Events, flows: Flows, verdict: npt.NDArray[np.int8]) -> tuple[pd.DataFrame, list[Rows]]:
    """Everything that the rules find in a recording.

    Parameters
    ----------
    events, flows
        The recording.
    verdict
        Of each packet, as `packets.verdicts` has it.

    Returns
    -------
    DataFrame
        RangeIndex, the gravest and then most frequent first; columns as schema.FINDINGS.
    list of arrays
        Of each finding the rows of the recording that show it.
    """
    ground = Ground(events, flows, verdict)
    shown = _Shown(events, flows)
    found = [*_drops(shown, ground), *_symptoms(shown, ground)]
    packets = {id(finding): len(np.unique(events.packet_of[finding.rows])) for finding in found}
    found.sort(key=lambda f: (SEVERITIES.index(f.rule.severity), -packets[id(f)], int(f.rows[0])))
    found = found[:MOST_FINDINGS]
    return _frame(found, shown, ground.gap), [finding.rows for finding in found]


def _placed(events: Events) -> Rows:
    """For each hop the packet's latest one, up to it, whose namespace is known: a packet in a socket has no interface.

    Where none is, the hop itself.
    """
    rows = np.arange(len(events))
    latest = np.maximum.accumulate(np.where(events.hops["netns"] != 0, rows, -1))
    return np.where(latest >= events.first[events.packet_of], latest, rows)


class _Shown:
    """The names by which hops are grouped and shown."""

    def __init__(self, events: Events, flows: Flows) -> None:
        self.events, self.flows = events, flows
        self.at = _placed(events)
        self.netns, self.dev = names.netns(events).take(self.at), names.devices(events)
        self.func, self.reason = names.functions(events), names.reasons(events)
        fact = events.fact_of
        known = flows.which[fact.clip(min=0)] if len(flows.which) else np.zeros(len(fact), np.intp)
        self.flow = np.where(fact >= 0, known, -1) if len(flows.which) else np.full(len(fact), -1, np.intp)

    def proto(self, rows: Rows) -> names.Named:
        return names.distinct_names(
            np.where(self.flow[rows] < 0, len(self.flows.proto), self.flow[rows]), [*self.flows.proto, None]
        )


def _drops(shown: _Shown, ground: Ground) -> Iterator[Finding]:
    rows = drop_rows(shown.events)
    # Where one copy was delivered, that nobody wanted another one is no loss: ping reads its replies from a copy.
    unwanted = np.array([name in _UNWANTED for name in shown.reason.names] + [True], bool)[shown.reason.codes[rows]]
    delivered = ground.verdict[shown.events.packet_of[rows]] == VERDICTS.index("delivered")
    rows = rows[~(unwanted & delivered)]
    reason, func = shown.reason.take(rows), given_up_by(shown.events, rows)
    rule = match_drops(reason, func, drop_stacks(shown.events, rows), shown.proto(rows))
    yield from _grouped(shown, rows, rule, reason.codes, func.codes)


def _symptoms(shown: _Shown, ground: Ground) -> Iterator[Finding]:
    for at, rule in enumerate(rules()):
        if rule.kind == "drop":
            continue
        rows = find(rule, ground)
        if rule.kind == _OF_ALL and len(rows):
            yield _finding(shown, rule, rows)
            continue
        # One direction of a conversation, one place: not each port of a busy server.
        yield from _grouped(shown, rows, np.full(len(rows), at), np.zeros(len(rows)), np.zeros(len(rows)))


def _grouped(shown: _Shown, rows: Rows, *same: npt.NDArray[Any]) -> Iterator[Finding]:
    """Findings of rows; `same` are the rule and what else has to be alike, beside namespace and interface."""
    if not len(rows):
        return
    columns = [*same, shown.netns.codes[rows], shown.dev.codes[rows]]
    group = pd.MultiIndex.from_arrays(columns).factorize()[0]
    order = np.argsort(group, kind="stable")
    for part in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        yield _finding(shown, rules()[int(same[0][part[0]])], rows[part])


def _finding(shown: _Shown, rule: Rule, rows: Rows) -> Finding:
    _, first, count = np.unique(shown.flow[rows], return_index=True, return_counts=True)
    most = first[np.lexsort((first, -count))[0]]
    return Finding(rule, rows, int(rows[most]))


def _frame(found: list[Finding], shown: _Shown, waits: npt.NDArray[np.int64]) -> pd.DataFrame:
    events = shown.events
    example = np.array([finding.example for finding in found], np.intp)
    packets = np.array([len(np.unique(events.packet_of[f.rows])) for f in found], np.int64)
    times = [(events.utc[f.rows].min(), events.utc[f.rows].max()) for f in found]
    first, last = (np.array([pair[end] for pair in times], np.int64) for end in (0, 1))
    placed = np.array([finding.rule.kind != _OF_ALL for finding in found], bool)
    place = np.where(placed, example, -1)
    is_drop = np.array([finding.rule.kind == "drop" for finding in found], bool)
    func = names.distinct_names(np.where(placed, np.arange(len(found)), -1), _functions(found, shown))
    values = [
        _values(finding.example, shown, name) for finding, name in zip(found, _functions(found, shown), strict=True)
    ]
    flow = names.distinct_names(
        np.where(shown.flow[example] < 0, len(shown.flows.flow), shown.flow[example]), [*shown.flows.flow, None]
    )
    columns: dict[str, Any] = {
        "severity": names.categorical(
            np.array([SEVERITIES.index(f.rule.severity) for f in found], np.int8), SEVERITIES
        ),
        "rule": _texts([finding.rule.id for finding in found]),
        "title": _texts([finding.rule.title for finding in found]),
        "packets": packets,
        "share": packets / max(len(events.packets), 1),
        "first": timestamps(first),
        "last": timestamps(last),
        "longest": timedeltas(np.array([_longest(finding, waits) for finding in found], np.int64)),
        "netns": shown.netns.take(place).categorical(),
        "dev": shown.dev.take(place).categorical(),
        "func": func.categorical(),
        "reason": shown.reason.take(np.where(is_drop, example, -1)).categorical(),
        "flow": flow.categorical(),
        "example": events.hops["packet"][example].astype(np.uint32),
        "meaning": _texts([finding.rule.meaning for finding in found]),
        "check": _texts(["\n".join(f.rule.commands(value)) for f, value in zip(found, values, strict=True)]),
    }
    return pd.DataFrame({column.name: columns[column.name] for column in FINDINGS}, index=pd.RangeIndex(len(found)))


def _longest(finding: Finding, waits: npt.NDArray[np.int64]) -> int:
    """How long a packet waited at most, where the finding is of waiting: the gap before what shows it."""
    return int(waits[finding.rows - 1].max()) if finding.rule.kind == "stall" else NAT


def _functions(found: list[Finding], shown: _Shown) -> list[str]:
    """Where each finding was seen: of a drop the function that gave the packet up."""
    example = np.array([finding.example for finding in found], np.intp)
    gave_up = given_up_by(shown.events, example)
    return [
        gave_up.names[up] if finding.rule.kind == "drop" else shown.func.names[at]
        for finding, up, at in zip(found, gave_up.codes.tolist(), shown.func.codes[example].tolist(), strict=True)
    ]


def _values(row: int, shown: _Shown, func: str) -> dict[str, str]:
    """What may be put into the commands for the case that a hop shows; what is not known is left out."""
    flows, flow = shown.flows, int(shown.flow[row])
    netns, dev = (_name(column, row) for column in (shown.netns, shown.dev))
    inum = int(shown.events.hops["netns"][shown.at[row]])
    values = {
        "inside": inside(netns, inum),
        "netns": netns,
        "dev": dev,
        "dev_key": dev.replace(".", "/"),  # as sysctl(8) writes a name with a dot in it
        "func": func,
        "reason": _name(shown.reason, row),
    }
    if flow >= 0:
        values |= {"proto": flows.proto[flow], "src": flows.src[flow] or "", "dst": flows.dst[flow] or ""}
        values |= {f"{end}_host": _bracketed(values[end]) for end in ("src", "dst")} | {
            "version": _version(values["src"])
        }
        values |= {end: str(port) for end in ("sport", "dport") if (port := int(getattr(flows, end)[flow])) >= 0}
    return values


def _version(address: str) -> str:
    """Of IP; nothing for an address that is not IP's."""
    try:
        return str(ipaddress.ip_address(address).version)
    except ValueError:
        return ""


def _bracketed(address: str) -> str:
    return f"[{address}]" if _version(address) == "6" else address


def _name(column: names.Named, row: int) -> str:
    code = int(column.codes[row])
    return column.names[code] if code >= 0 else ""


def _texts(texts: list[str]) -> Any:
    return names.distinct_names(np.arange(len(texts)), texts).categorical()
