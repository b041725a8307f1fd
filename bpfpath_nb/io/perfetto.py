"""A recording as a Perfetto trace, for https://ui.perfetto.dev and its trace processor.

Each namespace is a track, and below it each interface. While a packet stays in one place (namespace and interface)
there is a slice named by its flow, which tells its number, its verdict and why; in it lies a slice per function, from
its hop to the packet's next one, as `gap` has it. Slices of one packet are joined by a flow, so that arrows lead from
namespace to namespace.

Packets in one place overlap in time, and slices of one track must not: a place has as many tracks of the same name as
it held packets at once, which Perfetto shows as one. Which track a stay gets is decided for all at once: the k-th stay
to begin takes the track of the (k-n)-th to end, where n is the most at once; that one has ended by then.

What is said once (tracks, names, clocks) is put together with the classes of the `perfetto` package. The events are
millions, and all alike: of each kind the package encodes one, with large numbers in it, and numpy copies that pattern
and fills in the real ones. Protocol Buffers allow a number to be written in more bytes than it needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from bpfpath_nb.analysis import names
from bpfpath_nb.analysis.hops import hop_flows
from bpfpath_nb.errors import RequirementError
from bpfpath_nb.io.columns import content, fixed_bytes
from bpfpath_nb.io.replace import replacing
from bpfpath_nb.io.text import loss_lines

if TYPE_CHECKING:
    from bpfpath_nb.recording import Recording

_REALTIME, _MONOTONIC = 1, 3
"""Clocks of Perfetto (protos/perfetto/common/builtin_clock.proto)."""
_SEQUENCE: Final = 1
_STATE_CLEARED, _NEEDS_STATE = 1, 2
_BEGIN, _END = 1, 2

_ROOT, _LANES = 1, 1 << 26
"""Ids of the track that holds all others, and of the first that has slices."""

_ANNOTATIONS: Final = ("packet", "end", "cpu", "length", "reason")
_TEXTS: Final = ("end", "reason")

_WIDTHS: Final = {
    "time": 9, "track": 4, "name": 4, "category": 3, "flow": 8, "packet": 5, "end": 4, "cpu": 3, "length": 5,
    "reason": 4,
}  # fmt: skip
"""Bytes in which each number of an event is written; enough for any that can occur."""

_CHUNK_HOPS: Final = 1 << 19


def save_perfetto(recording: Recording, path: Path) -> Path:
    """Write a recording as a Perfetto trace; an existing file is replaced in one step."""
    protos = _protos()
    path = path.expanduser()
    stays, words = _Stays(recording), _Words(recording)
    with replacing(path) as file:
        file.write(_head(protos, recording, stays, words))
        for part in _events(protos, recording, stays, words):
            file.write(part)
    return path


def _protos() -> Any:
    try:
        from perfetto.protos.perfetto.trace import perfetto_trace_pb2
    except ImportError:
        raise RequirementError(
            "Writing a Perfetto trace needs the package `perfetto`: install it with `pip install perfetto`, or all "
            "of it with `pip install 'bpfpath_nb[perfetto]'`."
        ) from None
    return perfetto_trace_pb2


class _Stays:
    """The stays of packets in places: runs of a packet's hops in one namespace and interface.

    Attributes
    ----------
    first, counts : arrays
        Row of each stay's first hop, and how many hops it has; stays come in the order in which they began.
    track : array
        Which of `tracks` each is in.
    places : list of (namespace, interface)
    tracks : array
        Of each track the position of its place in `places`.
    """

    def __init__(self, recording: Recording) -> None:
        events = recording.events
        netns, devices = names.netns(events), names.devices(events)
        wide = len(devices.names) + 1
        place = (netns.codes.astype(np.int64) + 1) * wide + devices.codes + 1
        moved = np.ones(len(events), bool)
        moved[1:] = (place[1:] != place[:-1]) | (events.packet_of[1:] != events.packet_of[:-1])
        first = np.flatnonzero(moved)
        counts = np.diff(np.append(first, len(events)))
        begin, end = events.utc[first], _ends(recording)[first + counts - 1]
        order = np.argsort(begin, kind="stable")
        self.first, self.counts = first[order], counts[order]
        distinct, which = np.unique(place[self.first], return_inverse=True)
        self.places = [
            (netns.names[at // wide - 1] if at >= wide else "?", devices.names[at % wide - 1] if at % wide else "-")
            for at in distinct.tolist()
        ]
        self.track = np.zeros(len(first), np.int64)
        tracks: list[int] = []
        for at in range(len(distinct)):
            rows = np.flatnonzero(which.reshape(-1) == at)
            lane = lanes(begin[order][rows], end[order][rows])
            self.track[rows] = lane + len(tracks)
            tracks += [at] * (int(lane.max()) + 1)
        self.tracks = np.array(tracks, np.int64)


def _ends(recording: Recording) -> npt.NDArray[np.int64]:
    """When each hop's slice ends: at its packet's next hop, the last at once."""
    utc = recording.events.utc
    ends = np.append(utc[1:], utc[-1:])
    ends[recording.events.last] = utc[recording.events.last]
    return ends


def lanes(begin: npt.NDArray[np.int64], end: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Spread spans over as few lanes as hold them, none over another in its lane.

    Parameters
    ----------
    begin, end : arrays
        Of each span; `begin` ascends.

    Returns
    -------
    array
        The lane of each.
    """
    end = np.maximum(end, begin + 1)
    by_end = np.argsort(end, kind="stable")
    index = np.arange(len(begin))
    most = int((index + 1 - np.searchsorted(end[by_end], begin, "right")).max(initial=1))
    # Each span follows the one whose lane it takes; the first of each lane stand for themselves. Pointers are
    # followed at double the distance each time, until all have arrived.
    before = index.copy()
    before[most:] = by_end[: max(len(begin) - most, 0)]
    while not np.array_equal(further := before[before], before):
        before = further
    return before


# --- what is said once


class _Words:
    """Texts that events refer to by number, from 1: each list of the trace's interned data counts for itself."""

    def __init__(self, recording: Recording) -> None:
        events, frame = recording.events, recording.packets
        flow = hop_flows(events, recording._flows)
        self.functions = [function.name for function in events.start.functions]
        self.layers = [function.layer for function in events.start.functions]
        self.names = [*self.functions, "headers not known", *flow.names]
        self.flow = flow.codes.astype(np.uint64) + np.uint64(len(self.functions) + 2)
        outcome = frame["verdict"].astype(object)
        dropped = frame["verdict"] == "dropped"
        told = frame.loc[dropped, ["reason", "where"]].astype(object).fillna("?")
        outcome[dropped] = "dropped: " + told["reason"] + " in " + told["where"]
        which, outcomes = pd.factorize(outcome)
        reason = names.reasons(events)
        self.values = [*outcomes, *reason.names]
        self.outcome = which.astype(np.uint64) + np.uint64(1)
        self.reason = np.where(reason.codes < 0, 0, reason.codes.astype(np.int64) + 1 + len(outcomes)).astype(np.uint64)


def _head(protos: Any, recording: Recording, stays: _Stays, words: _Words) -> bytes:
    """Clocks, words and tracks."""
    start = recording.start
    trace = protos.Trace()
    clocks = trace.packet.add().clock_snapshot
    clocks.primary_trace_clock = _REALTIME
    for clock, now in ((_REALTIME, start.realtime), (_MONOTONIC, start.monotonic)):
        clocks.clocks.add(clock_id=clock, timestamp=now)

    first = trace.packet.add(trusted_packet_sequence_id=_SEQUENCE, sequence_flags=_STATE_CLEARED)
    first.trace_packet_defaults.timestamp_clock_id = _REALTIME
    interned = first.interned_data
    for into, texts in (
        (interned.event_names, words.names),
        (interned.event_categories, words.layers),
        (interned.debug_annotation_names, _ANNOTATIONS),
    ):
        for at, text in enumerate(texts):
            into.add(iid=at + 1, name=text)
    for at, text in enumerate(words.values):
        interned.debug_annotation_string_values.add(iid=at + 1, str=text.encode())

    told = "; ".join(
        [f"filter: {start.filter or 'every packet'}", *(f"lost: {line}" for line in loss_lines(recording))]
    )
    _track(trace, _ROOT, name=f"packets on {start.host or start.release}", description=told)
    spaces = list(dict.fromkeys(netns for netns, _ in stays.places))
    for at, netns in enumerate(spaces):
        _track(trace, _ROOT + 1 + at, parent_uuid=_ROOT, name=netns, description=f"network namespace {netns}")
    for at, place in enumerate(stays.tracks.tolist()):
        netns, dev = stays.places[place]
        _track(trace, _LANES + at, parent_uuid=_ROOT + 1 + spaces.index(netns), name=dev)
    return bytes(trace.SerializeToString())


def _track(trace: Any, uuid: int, **fields: Any) -> None:
    descriptor = trace.packet.add(trusted_packet_sequence_id=_SEQUENCE).track_descriptor
    descriptor.uuid = uuid
    for name, value in fields.items():
        setattr(descriptor, name, value)


# --- events


@dataclass(frozen=True)
class _Place:
    """A number in a pattern: where it stands, in how many bytes, and whether as a varint."""

    at: int
    width: int
    varint: bool


class _Pattern:
    """The bytes of one kind of event, with places for its numbers."""

    def __init__(self, protos: Any, kind: int, numbers: Sequence[str]) -> None:
        marks = {name: (1 << 7 * (_WIDTHS[name] - 1)) | (0x41 + at) for at, name in enumerate(numbers)}
        trace = protos.Trace()
        packet = trace.packet.add(trusted_packet_sequence_id=_SEQUENCE, sequence_flags=_NEEDS_STATE)
        packet.timestamp = marks["time"]
        event = packet.track_event
        event.type, event.track_uuid = kind, marks["track"]
        for name in numbers:
            if name == "name":
                event.name_iid = marks[name]
            elif name == "category":
                event.category_iids.append(marks[name])
            elif name == "flow":
                event.flow_ids.append(marks[name])
            elif name in _ANNOTATIONS:
                annotation = event.debug_annotations.add(name_iid=_ANNOTATIONS.index(name) + 1)
                setattr(annotation, "string_value_iid" if name in _TEXTS else "uint_value", marks[name])
        data = bytes(trace.SerializeToString())
        self.bytes = np.frombuffer(data, np.uint8)
        self.places = {name: _find(data, mark, _WIDTHS[name], name != "flow") for name, mark in marks.items()}

    def fill(self, **numbers: npt.NDArray[Any]) -> Any:
        """One row of an Arrow column per event."""
        rows = np.tile(self.bytes, (len(numbers["time"]), 1))
        for name, place in self.places.items():
            value = numbers[name].astype(np.uint64)
            for at in range(place.width):
                if place.varint:
                    more = 0x80 if at < place.width - 1 else 0
                    rows[:, place.at + at] = (value >> np.uint64(7 * at)).astype(np.uint8) & 0x7F | more
                else:
                    rows[:, place.at + at] = (value >> np.uint64(8 * at)).astype(np.uint8)
        return fixed_bytes(rows)


def _find(data: bytes, mark: int, width: int, varint: bool) -> _Place:
    if varint:
        written = bytes([(mark >> 7 * at) & 0x7F | (0x80 if at < width - 1 else 0) for at in range(width)])
    else:
        written = mark.to_bytes(width, "little")
    assert data.count(written) == 1
    return _Place(data.index(written), width, varint)


def _events(protos: Any, recording: Recording, stays: _Stays, words: _Words) -> Iterator[memoryview]:
    """The events of all stays, in their order, a run of stays at a time."""
    patterns = {
        "stay": _Pattern(protos, _BEGIN, ("time", "track", "name", "flow", "packet", "end")),
        "hop": _Pattern(protos, _BEGIN, ("time", "track", "name", "category", "cpu", "length")),
        "reason": _Pattern(protos, _BEGIN, ("time", "track", "name", "category", "cpu", "length", "reason")),
        "end": _Pattern(protos, _END, ("time", "track")),
    }
    ends, done = _ends(recording), np.cumsum(stays.counts)
    at = 0
    while at < len(done):
        before = done[at - 1] if at else 0
        to = max(at + 1, int(np.searchsorted(done, before + _CHUNK_HOPS, "right")))
        yield _run(recording, stays, words, slice(at, to), ends, patterns)
        at = to


def _run(
    recording: Recording, stays: _Stays, words: _Words, run: slice, ends: npt.NDArray[np.int64],
    patterns: dict[str, _Pattern],
) -> memoryview:  # fmt: skip
    events = recording.events
    hops, utc = events.hops, events.utc
    first, counts, track = stays.first[run], stays.counts[run], stays.track[run] + _LANES
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = np.repeat(first, counts) + within
    lane = np.repeat(track, counts)
    packet = events.packet_of[first]
    stay = patterns["stay"].fill(
        time=utc[first], track=track, name=words.flow[first], flow=events.packets[packet],
        packet=events.packets[packet], end=words.outcome[packet],
    )  # fmt: skip
    said = words.reason[rows] > 0

    def begins(kind: str, chosen: npt.NDArray[np.bool_]) -> Any:
        row = rows[chosen]
        function = hops["func"][row].astype(np.uint64) + np.uint64(1)
        return patterns[kind].fill(
            time=utc[row], track=lane[chosen], name=function, category=function, cpu=hops["cpu"][row],
            length=hops["len"][row], reason=words.reason[row],
        )  # fmt: skip

    parts = [
        stay,
        begins("hop", ~said),
        begins("reason", said),
        patterns["end"].fill(time=ends[rows], track=lane),
        patterns["end"].fill(time=ends[first + counts - 1], track=track),
    ]
    # A stay's events: its begin, each hop's begin and end, its end.
    base = np.repeat(2 * (np.cumsum(counts) - counts) + 2 * np.arange(len(counts)), counts)
    begin = base + 1 + 2 * within
    outer = 2 * (np.cumsum(counts) - counts) + 2 * np.arange(len(counts))
    position = np.concatenate([outer, begin[~said], begin[said], begin + 1, outer + 2 * counts + 1])
    order = np.empty(len(position), np.int64)
    order[position] = np.arange(len(position))
    return content(pa.concat_arrays(parts).take(pa.array(order)))
