"""A recording as one Parquet file.

Each row is a hop, in order. The first columns are for whoever opens the file with pandas, polars or DuckDB: times,
names and flows as `Recording.df` shows them. The others are numbers as they came from the kernel; from these, and
from these alone, `load` rebuilds the recording, so that every frame is exactly what it was. A packet's stored bytes
stand in the row of the hop where they were taken, a drop's stack in the row of the drop (files of version 1 have no
stacks).

What is not rows is JSON in the file's metadata under the key `bpfpath_nb`: the start record, counters, end, and the
names of processes, devices and places in the kernel. It also holds a checksum of each column, and a digest of the
JSON stands beside it under `bpfpath_nb.digest`: Parquet notices a damaged page but not a damaged footer, and a file
that is only a little wrong must not become a frame that is a little wrong.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from bpfpath_nb.analysis import names
from bpfpath_nb.analysis.events import Columns, Events, Lost
from bpfpath_nb.analysis.flows import flows
from bpfpath_nb.analysis.hops import hop_flows
from bpfpath_nb.analysis.losses import lost_between
from bpfpath_nb.errors import RecordingError
from bpfpath_nb.io.replace import replacing
from bpfpath_nb.schema import (
    EVENT,
    EVENT_FLAGS,
    FACTS,
    FACTS_DTYPE,
    HEADERS_BYTES,
    SCHEMA_VERSION,
    STACK_DEPTH,
    STACKS,
    STACKS_DTYPE,
    TIME_LIMIT,
)
from bpfpath_nb.start import StartRecord, StartRecordError
from bpfpath_nb.stream import checked_counters, checked_end, stacks_checked

_KEY, _DIGEST_KEY = b"bpfpath_nb", b"bpfpath_nb.digest"

_NAMES: Final = ("func", "layer", "probe", "netns", "dev", "comm", "flow", "reason")
"""Columns of names, for other readers; `load` makes its own from the numbers."""

_NUMBERS: Final = {
    "packet": "packet", "netns": "netns_inum", "ifindex": "ifindex", "cpu": "cpu", "pid": "pid", "len": "len",
    "mark": "mark", "skb": "skb", "func": "function", "reason": "reason_number", "location": "location", "seq": "seq",
    "snapshot": "snapshot", "flags": "flags",
}  # fmt: skip
"""Column of schema.EVENT -> its name in the file. `time` is there too, as a timestamp."""

_FACTS: Final = {
    "parent": "parent",
    "len": "packet_len",
    "link": "link",
    "vlan_tpid": "vlan_tpid",
    "vlan_tci": "vlan_tci",
}
"""Column of schema.FACTS -> its name in the file; null but where a snapshot was taken, as is `headers`."""


_STACK, _TCP_STATE = "stack", "tcp_state"
"""Names of the columns that hold `frames` and `tcp_state` of schema.STACKS; null but where a packet was dropped."""

_DURATION: Final = "duration"
"""Of a hop the time until its function returned, in ns; null where that is not known."""

_SINCE_2: Final = (_STACK, _TCP_STATE, _DURATION)
"""Columns that files of version 1 lack."""


# --- writing


def save(events: Events, path: Path) -> Path:
    """Write a recording; an existing file is replaced in one step."""
    table = _table(events)
    metadata = json.dumps(_metadata(events), separators=(",", ":")).encode()
    table = table.replace_schema_metadata({_KEY: metadata, _DIGEST_KEY: _digest(metadata)})
    path = path.expanduser()
    with replacing(path) as file:
        pyarrow.parquet.write_table(table, file, **_layout(table))
    return path


def _table(events: Events) -> Any:
    hops = events.hops
    named = {
        "func": names.functions(events), "layer": names.functions(events, "layer"),
        "probe": names.functions(events, "probe"), "netns": names.netns(events), "dev": names.devices(events),
        "comm": names.processes(events), "flow": hop_flows(events, flows(events.facts)),
        "reason": names.reasons(events),
    }  # fmt: skip
    columns: dict[str, Any] = {
        "packet": pa.array(hops["packet"]),
        "hop": pa.array(events.hop),
        "time": pa.array(events.utc).cast(pa.timestamp("ns", "UTC")),
    }
    for name in _NAMES:
        codes = named[name].codes
        indices = pa.array(codes, mask=codes < 0)
        columns[name] = pa.DictionaryArray.from_arrays(indices, pa.array(named[name].names, pa.string()))
    columns |= {to: pa.array(hops[name]) for name, to in _NUMBERS.items()}
    taken = _snapshot_rows(events)
    for name, to in _FACTS.items():
        values = np.zeros(len(events), FACTS_DTYPE[name])
        values[taken] = events.facts[name]
        columns[to] = pa.array(values, mask=~_at(taken, len(events)))
    columns["headers"] = _headers_column(events, taken)
    columns[_TCP_STATE], columns[_STACK] = _stack_columns(events)
    columns[_DURATION] = pa.array(events.duration, mask=events.return_of < 0)
    return pa.table(columns)


def _snapshot_rows(events: Events) -> npt.NDArray[np.intp]:
    """Row of the first hop at which each snapshot holds; every one has one."""
    rows = np.flatnonzero(events.fact_of >= 0)[::-1]
    taken = np.zeros(len(events.facts), np.intp)
    taken[events.fact_of[rows]] = rows  # the last one assigned is the first of the rows
    return taken


def _at(rows: npt.NDArray[np.intp], count: int) -> npt.NDArray[np.bool_]:
    mask = np.zeros(count, bool)
    mask[rows] = True
    return mask


def _headers_column(events: Events, taken: npt.NDArray[np.intp]) -> Any:
    caplen = np.zeros(len(events), np.int64)
    caplen[taken] = events.facts["caplen"]
    order = np.argsort(taken, kind="stable")
    # Snapshots of a packet need not begin in the order of their numbers.
    facts = events.facts[order]
    data = facts["headers"][np.arange(HEADERS_BYTES) < facts["caplen"][:, None]]
    offsets = np.concatenate(([0], np.cumsum(caplen)))
    large = pa.LargeBinaryArray.from_buffers(
        pa.large_binary(),
        len(events),
        [
            pa.array(_at(taken, len(events))).buffers()[1],
            pa.py_buffer(offsets),
            pa.py_buffer(np.ascontiguousarray(data)),
        ],
    )
    return large.cast(pa.binary()) if len(data) < 1 << 31 else large


def _stack_columns(events: Events) -> tuple[Any, Any]:
    """State of the TCP socket and stack of each drop, a stack as its bytes."""
    of, has = events.stack_of, events.stack_of >= 0
    state = np.zeros(len(events), np.uint16)
    state[has] = events.stacks["tcp_state"][of[has]]
    # Stacks are few, and of these few differ: as a dictionary they take next to nothing.
    frames = np.ascontiguousarray(events.stacks["frames"]).view(f"V{8 * STACK_DEPTH}").reshape(-1)
    distinct, which = np.unique(frames, return_inverse=True)
    width = pa.binary(8 * STACK_DEPTH)
    values = pa.FixedSizeBinaryArray.from_buffers(width, len(distinct), [None, pa.py_buffer(distinct.tobytes())])
    code = np.zeros(len(events), np.int32)
    code[has] = which.reshape(-1)[of[has]]
    stack = pa.DictionaryArray.from_arrays(pa.array(code, mask=~has), values)
    return pa.array(state, mask=~has), stack.cast(width)


def _layout(table: Any) -> dict[str, Any]:
    """How each column is best packed: names and repeating numbers by dictionary, counting ones by difference."""
    by_difference = ["packet", "hop", "time", "seq"]
    return {
        "compression": "zstd",
        "compression_level": 3,
        "use_dictionary": [name for name in table.column_names if name not in (*by_difference, "headers")],
        "column_encoding": dict.fromkeys(by_difference, "DELTA_BINARY_PACKED"),
        "write_page_checksum": True,
        "write_statistics": ["packet", "time"],
        "store_schema": True,
    }


def _metadata(events: Events) -> dict[str, Any]:
    return {
        "version": SCHEMA_VERSION,
        "start": events.start.raw,
        "counters": events.counters,
        "end": events.end,
        "processes": list(events.processes.items()),
        "devices": [
            (since, netns, ifindex, name)
            for (netns, ifindex), called in events.devices.items()
            for since, name in called
        ],
        "locations": [(address, symbol, offset) for address, (symbol, offset) in events.locations.items()],
        "reads": sorted(events.reads),
        # Of returns the file has the time only; what their numbers tell of losses is kept with it.
        "lost": _lost(lost_between(events) if len(events.returns["time"]) else events.lost),
        "rows": len(events),
        "checksums": _checksums(events),
    }


def _lost(lost: Lost | None) -> dict[str, Any] | None:
    """What a recording of some of a capture's packets knows of losses; the hops of all tell it themselves."""
    if lost is None:
        return None
    return {"begin": lost.begin.tolist(), "end": lost.end.tolist(), "events": lost.events}


def _read_lost(lost: dict[str, Any] | None) -> Lost | None:
    if lost is None:
        return None
    begin, end = (np.array(lost[name], np.int64) for name in ("begin", "end"))
    if begin.ndim != 1 or begin.shape != end.shape or (begin > end).any() or (begin < 0).any():
        raise ValueError("losses at times that no clock shows")
    return Lost(begin, end, int(lost["events"]))


def _checksums(events: Events) -> dict[str, int]:
    checksums = {name: zlib.crc32(np.ascontiguousarray(values).data) for name, values in events.hops.items()}
    tables = {"facts": events.facts, "stacks": events.stacks, _DURATION: events.duration}
    return checksums | {
        name: zlib.crc32(np.ascontiguousarray(rows).view(np.uint8).data) for name, rows in tables.items()
    }


def _digest(metadata: bytes) -> bytes:
    return hashlib.blake2b(metadata, digest_size=16).hexdigest().encode()


# --- reading


def load(path: Path) -> Events:
    """Read a recording and check it.

    Raises
    ------
    RecordingError
        The file is no recording, is damaged or cut short, or comes from a newer version.
    OSError
        There is no such file, or it may not be read.
    """
    path = path.expanduser()
    with path.open("rb") as file:
        if file.read(4) != b"PAR1":
            raise RecordingError(f"{path} is no recording: it is no Parquet file. {_HOW}")
    try:
        parquet = pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)
        raw = parquet.schema_arrow.metadata or {}
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(path, error) from error
    if _KEY not in raw:
        raise RecordingError(f"{path} is a Parquet file, but no recording of bpfpath_nb. {_HOW}")
    try:
        metadata = json.loads(raw[_KEY])
        _check_version(path, metadata)
        if raw.get(_DIGEST_KEY) != _digest(raw[_KEY]):
            raise ValueError("its metadata is not what was written")
        return _read(parquet, metadata)
    except StartRecordError as error:
        raise RecordingError(f"{path} cannot be read: {error}.") from None
    except (
        pa.ArrowException,
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        OverflowError,
        RecursionError,
    ) as error:
        raise _damaged(path, error) from error


_HOW = "Recordings are written by `save` of a Capture or a Recording; check the path."


def _damaged(path: Path, error: Exception) -> RecordingError:
    detail = " ".join(str(error).split())[:200]
    return RecordingError(
        f"{path} is damaged or cut short ({detail}). Copy it again from where it was saved, or capture again; nothing "
        "of it was used."
    )


def _check_version(path: Path, metadata: Any) -> None:
    version = metadata["version"]
    if type(version) is not int or version < 1:
        raise ValueError("its version is no number")
    if version > SCHEMA_VERSION:
        raise RecordingError(
            f"{path} has version {version} of the format, and this bpfpath_nb reads up to {SCHEMA_VERSION}. "
            "Upgrade with `pip install -U bpfpath_nb` and load it again."
        )


def _read(parquet: Any, metadata: dict[str, Any]) -> Events:
    start = StartRecord.from_dict(metadata["start"])
    if parquet.metadata.num_rows != metadata["rows"]:
        raise ValueError("it has not the rows that were written")
    more = [name for name in _SINCE_2 if name in parquet.schema_arrow.names]
    table = parquet.read(["time", *_NUMBERS.values(), *_FACTS.values(), "headers", *more])
    table.validate(full=True)
    hops: Columns = {}
    for column in EVENT:
        if column.name == "time":
            hops["time"] = _numbers(table["time"].cast(pa.int64()), np.dtype("int64")) - (
                start.realtime - start.monotonic
            )
            if len(table) and not 0 <= int(hops["time"].min()) <= int(hops["time"].max()) < TIME_LIMIT:
                raise ValueError("a time that no clock shows")
            hops["time"] = hops["time"].astype(np.uint64)
        else:
            hops[column.name] = _numbers(table[_NUMBERS[column.name]], np.dtype(column.dtype))
    if len(table) and int(hops["func"].max()) >= len(start.functions):
        raise ValueError("a hop of a function that its start record does not have")
    events = Events.build(
        start,
        _with_returns(table, hops) if _DURATION in more else hops,
        _read_facts(table, hops),
        stacks=_read_stacks(table, hops) if _STACK in more else None,
        processes=metadata["processes"],
        devices=metadata["devices"],
        locations=metadata["locations"],
        reads=np.array(metadata["reads"], np.uint32).tolist(),
        counters=checked_counters(metadata["counters"]),
        end=checked_end(metadata["end"]),
        lost=_read_lost(metadata.get("lost")),
    )
    checksums, written = _checksums(events), metadata["checksums"]
    if any(written.get(name) != value and (name in written or name in hops) for name, value in checksums.items()):
        raise ValueError("its columns are not what was written")
    return events


def _numbers(column: Any, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    if column.null_count or column.type != pa.from_numpy_dtype(dtype):
        raise ValueError("a column of numbers with another type, or with gaps")
    return np.asarray(column.to_numpy())


def _read_facts(table: Any, hops: Columns) -> npt.NDArray[np.void]:
    headers = table["headers"].cast(pa.large_binary()).combine_chunks()
    taken = np.flatnonzero(headers.is_valid().to_numpy(zero_copy_only=False))
    facts = np.zeros(len(taken), FACTS_DTYPE)
    present = headers.drop_null()
    lengths = pd.Series(pa.compute.binary_length(present).to_numpy(zero_copy_only=False)).to_numpy()
    if len(taken) and int(lengths.max()) > HEADERS_BYTES:
        raise ValueError("a snapshot longer than there is room for")
    facts["caplen"] = lengths
    room = np.zeros((len(taken), HEADERS_BYTES), np.uint8)
    room[np.arange(HEADERS_BYTES) < lengths[:, None]] = np.frombuffer(b"".join(present.to_pylist()), np.uint8)
    facts["headers"] = room
    for name in ("packet", "snapshot"):
        facts[name] = hops[name][taken]
    for name, column in _FACTS.items():
        values = table[column].take(pa.array(taken))
        facts[name] = _numbers(values, FACTS_DTYPE[name])
    return facts


def _with_returns(table: Any, hops: Columns) -> Columns:
    """Hops and the returns of their functions, as events."""
    duration = table[_DURATION].combine_chunks()
    rows = np.flatnonzero(duration.is_valid().to_numpy(zero_copy_only=False))
    if not len(rows):
        return hops
    lasted = _numbers(duration.drop_null(), np.dtype(np.int64))
    if not 0 <= int(lasted.min()) <= int(lasted.max()) < TIME_LIMIT:
        raise ValueError("a duration that no clock shows")
    returns = {name: values[rows] for name, values in hops.items()}
    returns["time"] = returns["time"] + lasted.astype(np.uint64)
    returns["flags"] = np.full(len(rows), EVENT_FLAGS["return"], np.uint16)
    return {name: np.concatenate((hops[name], returns[name])) for name in hops}


def _read_stacks(table: Any, hops: Columns) -> npt.NDArray[np.void]:
    frames = table[_STACK].combine_chunks()
    if frames.type != pa.binary(8 * STACK_DEPTH):
        raise ValueError("stacks of another length")
    rows = np.flatnonzero(frames.is_valid().to_numpy(zero_copy_only=False))
    stacks = np.zeros(len(rows), STACKS_DTYPE)
    data = b"".join(frames.drop_null().to_pylist())
    stacks["frames"] = np.frombuffer(data, "<u8").reshape(len(rows), STACK_DEPTH)
    stacks["tcp_state"] = _numbers(table[_TCP_STATE].take(pa.array(rows)), STACKS_DTYPE["tcp_state"])
    for name in ("time", "packet"):
        stacks[name] = hops[name][rows]
    return stacks_checked(stacks)


assert {column.name for column in STACKS} == {"time", "packet", _TCP_STATE, "frames"}
assert {column.name for column in FACTS} == {*_FACTS, "packet", "snapshot", "caplen", "headers", "time", "kind"}
