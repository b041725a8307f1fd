"""A recording as JSON lines, for jq and for programs that have no Parquet.

The first line says what the recording is, each further one is a packet::

    {"recording": {"version": 1, "start": {...}, "counters": {...}, "end": {...}, "quality": {...}}}
    {"packet": 1, "first": "2026-11-22T11:56:22.467653438Z", "total": 20127612, "verdict": "delivered", ...,
     "snapshots": [{"hop": 0, "link": 101, "len": 85, ..., "headers": "4500..."}],
     "hops": [{"time": "...", "since": 0, "gap": 2610399, "func": "ip_send_skb", ...}, ...]}

The keys of a packet are the columns of `Recording.packets`, those of a hop the columns of `Recording.df`, with the
same meaning; only `hops` is the list and not its length. `start` is the start record, `quality` the series of that
name. A snapshot tells from which hop on the packet began with these bytes. Times are text (ISO 8601, UTC, with all nine
digits), durations are whole ns, addresses in the kernel are text as ``0xffff...`` since not every reader of JSON has
integers of 64 bits, and what is missing is null. No number is anything but finite.

As in `columns`, lines are joins of whole columns; a name is escaped once, not once per row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from bpfpath_nb.io.columns import content, join
from bpfpath_nb.io.replace import replacing
from bpfpath_nb.schema import FACTS

if TYPE_CHECKING:
    from bpfpath_nb.recording import Recording

_CHUNK_HOPS: Final = 1 << 18
_ADDRESSES: Final = frozenset({"skb"})
_SNAPSHOT: Final = tuple(c.name for c in FACTS if c.name not in {"time", "packet", "snapshot", "kind", "headers"})


def json_text(recording: Recording) -> str:
    """All lines, as one text."""
    return b"".join(_lines(recording)).decode()


def save_json(recording: Recording, path: Path) -> Path:
    """Write all lines to a file; an existing one is replaced in one step."""
    path = path.expanduser()
    with replacing(path) as file:
        for part in _lines(recording):
            file.write(part)
    return path


def _lines(recording: Recording) -> Iterator[bytes | memoryview]:
    events = recording.events
    about = {
        "version": recording.start.version,
        "start": recording.start.raw,
        "counters": dict(events.counters),
        "end": events.end,
        "quality": recording.quality.to_dict(),
    }
    yield json.dumps({"recording": _finite(about)}, allow_nan=False, separators=(",", ":")).encode() + b"\n"
    taken = _taken(recording)
    done, begin = np.cumsum(events.counts), 0
    while begin < len(done):
        before = done[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(done, before + _CHUNK_HOPS, "right")))
        yield _packets(recording, slice(begin, end), taken)
        begin = end


def _finite(value: Any) -> Any:
    """What came as JSON, without the numbers that are none (Python's parser takes them)."""
    if isinstance(value, dict):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value.item() if isinstance(value, np.generic) else value


def _packets(recording: Recording, packets: slice, taken: npt.NDArray[np.intp]) -> memoryview:
    events = recording.events
    first, counts = events.first[packets], events.counts[packets]
    rows = slice(int(first[0]), int(first[-1] + counts[-1]))
    hops = _lists(_objects(recording.df.iloc[rows]), counts)
    which = np.searchsorted(taken, (rows.start, rows.stop))  # snapshots are in the order of their hops
    snapshots = _lists(_snapshots(recording, slice(*which), taken), np.bincount(
        events.packet_of[taken[slice(*which)]] - packets.start, minlength=len(counts)
    ))  # fmt: skip
    frame = recording.packets.iloc[packets]
    number = pc.cast(pa.array(frame.index.to_numpy()), pa.string())
    told = _fields(frame.drop(columns="hops"))
    return content(join('{"packet":', number, ",", told, ',"snapshots":', snapshots, ',"hops":', hops, "}\n"))


def _taken(recording: Recording) -> npt.NDArray[np.intp]:
    """Row of the first hop at which each snapshot holds, ascending, of those that any hop has."""
    events = recording.events
    rows = np.flatnonzero(events.fact_of >= 0)[::-1]
    taken = np.full(len(events.facts), -1, np.intp)
    taken[events.fact_of[rows]] = rows  # the last one assigned is the first of the rows
    return np.sort(taken[taken >= 0])


def _snapshots(recording: Recording, which: slice, taken: npt.NDArray[np.intp]) -> Any:
    events = recording.events
    row = taken[which]
    facts = events.facts[events.fact_of[row]]
    told = {"hop": events.hop[row]} | {name: facts[name] for name in _SNAPSHOT}
    within = np.repeat(np.arange(facts["headers"].shape[1])[None], len(facts), 0) < facts["caplen"][:, None]
    digits = _hexadecimal(facts["headers"]).reshape(*within.shape, 2)[within]
    offsets = np.concatenate(([0], np.cumsum(facts["caplen"].astype(np.int32) * 2))).astype(np.int32)
    headers = pa.StringArray.from_buffers(len(facts), pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(digits)))
    return join("{", _fields(pd.DataFrame(told)), ',"headers":"', headers, '"}')


def _objects(frame: pd.DataFrame) -> Any:
    return join("{", _fields(frame), "}")


def _fields(frame: pd.DataFrame) -> Any:
    """Each row as the inside of an object of JSON."""
    parts: list[Any] = []
    for name in frame.columns:
        parts += [f'{"," if parts else ""}"{name}":', _values(frame[name])]
    return join(*parts)


def _values(column: pd.Series[Any]) -> Any:
    """Each value as JSON."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        words = pa.array([*(json.dumps(str(word)) for word in column.cat.categories), "null"], pa.string())
        codes = column.cat.codes.to_numpy()
        return words.take(pa.array(np.where(codes < 0, len(words) - 1, codes).astype(np.int32)))
    if isinstance(column.dtype, pd.DatetimeTZDtype):
        written = pc.cast(pa.array(column), pa.string())
        return pc.coalesce(join('"', pc.replace_substring(written, " ", "T", max_replacements=1), '"'), "null")
    if column.dtype.kind == "m":
        ns = column.to_numpy().view(np.int64)
        return pc.coalesce(pc.cast(pa.array(ns, mask=np.isnat(column.to_numpy())), pa.string()), "null")
    if column.name in _ADDRESSES:
        digits = _hexadecimal(column.to_numpy().astype(">u8").view(np.uint8).reshape(len(column), 8))
        offsets = np.arange(len(column) + 1, dtype=np.int32) * 16
        return join('"0x', pa.StringArray.from_buffers(len(column), pa.py_buffer(offsets), pa.py_buffer(digits)), '"')
    return pc.coalesce(pc.cast(pa.array(column), pa.string()), "null")


def _hexadecimal(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Two digits for each byte of a matrix."""
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    return np.stack([digits[data >> 4], digits[data & 15]], axis=-1).reshape(len(data), 2 * data.shape[1])


def _lists(objects: Any, counts: npt.NDArray[Any]) -> Any:
    ends = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
    return join("[", pc.binary_join(pa.ListArray.from_arrays(pa.array(ends), objects), ","), "]")
