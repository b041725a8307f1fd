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
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet

from bpfpath_nb.analysis import names
from bpfpath_nb.analysis.events import Events
from bpfpath_nb.analysis.flows import flows
from bpfpath_nb.analysis.hops import hop_flows
from bpfpath_nb.analysis.jumps import Lost
from bpfpath_nb.errors import RecordingError
from bpfpath_nb.io.replace import replacing
from bpfpath_nb.io.stored import DURATION, NUMBERS, SNAPSHOTS, STACK, TCP_STATE, checksum, open_events, reading
from bpfpath_nb.schema import EVENT, FACTS_DTYPE, HEADERS_BYTES, SCHEMA_VERSION, STACK_DEPTH
from bpfpath_nb.start import StartRecord
from bpfpath_nb.stream import checked_counters, checked_end

_KEY, _DIGEST_KEY = b"bpfpath_nb", b"bpfpath_nb.digest"

GROUP = 1 << 20
"""Hops in a row group, but for the rest of the last packet."""

_NAMES: Final = ("func", "layer", "probe", "netns", "dev", "comm", "flow", "reason")
"""Columns of names, for other readers; `load` makes its own from the numbers."""

# --- writing


def save(events: Events, path: Path) -> Path:
    """Write a recording; an existing file is replaced in one step."""
    table = _table(events)
    metadata = json.dumps(_metadata(events), separators=(",", ":")).encode()
    table = table.replace_schema_metadata({_KEY: metadata, _DIGEST_KEY: _digest(metadata)})
    path = path.expanduser()
    at = table.column_names.index(STACK)
    schema = table.schema.set(at, pa.field(STACK, table.schema.field(STACK).type.value_type))
    with replacing(path) as file, pyarrow.parquet.ParquetWriter(file, schema, **_layout(table)) as writer:
        for begin, end in _groups(events):
            # Written out, a stack is wider than all the rest of a row; one row group's are enough at a time.
            rows = table.slice(begin, end - begin)
            writer.write_table(rows.cast(schema), row_group_size=max(end - begin, 1))
    return path


def _groups(events: Events) -> list[tuple[int, int]]:
    """The rows of each row group: packets are not split between two, so that each can be analysed alone."""
    ends = np.append(events.first[1:], len(events))
    begins = np.unique(np.append(0, ends[np.searchsorted(ends, np.arange(GROUP, len(events), GROUP))])).tolist()
    return [
        (begin, end) for begin, end in zip(begins, [*begins[1:], len(events)], strict=True) if begin < end or not end
    ]


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
    columns |= {to: pa.array(hops[name]) for name, to in NUMBERS.items()}
    taken = _snapshot_rows(events)
    for name, to in SNAPSHOTS.items():
        values = np.zeros(len(events), FACTS_DTYPE[name])
        values[taken] = events.facts[name]
        columns[to] = pa.array(values, mask=~_at(taken, len(events)))
    columns["headers"] = _headers_column(events, taken)
    columns[TCP_STATE], columns[STACK] = _stack_columns(events)
    columns[DURATION] = pa.array(events.duration, mask=events.return_of < 0)
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
    """State of the TCP socket and stack of each drop, a stack as its bytes in a dictionary."""
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
    return pa.array(state, mask=~has), stack


def _layout(table: Any) -> dict[str, Any]:
    """How each column is best packed: names and repeating numbers by dictionary, counting ones by difference."""
    by_difference = ["packet", "hop", "time", "seq"]
    return {
        "compression": "snappy",  # a fifth larger than zstd, and read in less time
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
        "lost": _lost(events.when_lost),
        "rows": len(events),
        "checksums": _checksums(events),
    }


def _lost(lost: Lost) -> dict[str, Any]:
    """When events were lost: the hops of all packets tell it, those of some, or of a part of the file, do not."""
    return {name: getattr(lost, name).tolist() for name in ("begin", "end", "count")} | {"events": lost.events}


def _read_lost(lost: dict[str, Any] | None) -> Lost | None:
    if lost is None:
        return None
    begin, end = (np.array(lost[name], np.int64) for name in ("begin", "end"))
    if begin.ndim != 1 or begin.shape != end.shape or (begin > end).any() or (begin < 0).any():
        raise ValueError("losses at times that no clock shows")
    # Older files only say how many there were in all, and of each span that it had one at least.
    among = np.ones(len(begin), np.int64)
    among[:1] += int(lost["events"]) - len(begin)
    count = np.array(lost.get("count", among), np.int64)
    if count.shape != begin.shape or (count < 1).any() or int(count.sum()) != int(lost["events"]):
        raise ValueError("losses of another number than that of all")
    return Lost(begin, end, count)


def _checksums(events: Events) -> dict[str, int]:
    tables = {**events.hops, "facts": events.facts, "stacks": events.stacks, DURATION: events.duration}
    return {name: checksum(values) for name, values in tables.items()}


def _digest(metadata: bytes) -> bytes:
    return hashlib.blake2b(metadata, digest_size=16).hexdigest().encode()


# --- reading


def load(path: Path) -> Events:
    """Open a recording; its columns are read, and checked, when they are first needed (`io.stored`).

    Raises
    ------
    RecordingError
        The file is no recording, is damaged or cut short, or comes from a newer version; of a damaged column when
        it is read.
    OSError
        There is no such file, or it may not be read.
    """
    return _open(path)


def open_part(path: Path, group: int) -> Events:
    """The events of one row group of a recording, which has whole packets; errors as of `load`."""
    events = _open(path, group)
    # Older files do not say it, and the whole of them does.
    return events if events.lost is not None else replace(events, lost=_open(path).when_lost)


def row_groups(path: Path) -> list[tuple[int, int]]:
    """The first and the last packet of each row group of a recording that has hops; errors as of `load`."""
    parquet, _ = _file(path)
    with reading(path):
        groups = [at for at in range(parquet.num_row_groups) if parquet.metadata.row_group(at).num_rows]
        # Read, and not from the statistics: where these are damaged, asking pyarrow for them ends the process.
        packets = (parquet.read_row_group(at, columns=["packet"])["packet"] for at in groups)
        return [(packet[0].as_py(), packet[-1].as_py()) for packet in packets]


def _open(path: Path, group: int | None = None) -> Events:
    parquet, metadata = _file(path)
    with reading(path):
        if parquet.metadata.num_rows != metadata["rows"]:
            raise ValueError("it has not the rows that were written")
        beside = Events.build(
            StartRecord.from_dict(metadata["start"]),
            {column.name: np.empty(0, column.dtype) for column in EVENT},
            np.empty(0, FACTS_DTYPE),
            processes=metadata["processes"],
            devices=metadata["devices"],
            locations=metadata["locations"],
            reads=np.array(metadata["reads"], np.uint32).tolist(),
            counters=checked_counters(metadata["counters"]),
            end=checked_end(metadata["end"]),
            lost=_read_lost(metadata.get("lost")),
        )
        checksums = {name: int(value) for name, value in metadata["checksums"].items()}
        missing = {*(column.name for column in EVENT), "facts"} - set(checksums)
        if missing:
            raise ValueError(f"no checksum of {', '.join(sorted(missing))}")
        return open_events(path, parquet, beside, {} if group is not None else checksums, group)


def _file(path: Path) -> tuple[Any, dict[str, Any]]:
    """The file, open, and its metadata, checked."""
    path = path.expanduser()
    with path.open("rb") as file:
        if file.read(4) != b"PAR1":
            raise RecordingError(f"{path} is no recording: it is no Parquet file. {_HOW}")
    with reading(path):
        parquet = pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)
        raw = parquet.schema_arrow.metadata or {}
        if _KEY not in raw:
            raise RecordingError(f"{path} is a Parquet file, but no recording of bpfpath_nb. {_HOW}")
        metadata = json.loads(raw[_KEY])
        _check_version(path, metadata)
        if raw.get(_DIGEST_KEY) != _digest(raw[_KEY]):
            raise ValueError("its metadata is not what was written")
        _check_size(parquet.metadata, path.stat().st_size)
    return parquet, metadata


_HOW = "Recordings are written by `save` of a Capture or a Recording; check the path."


def _check_version(path: Path, metadata: Any) -> None:
    version = metadata["version"]
    if type(version) is not int or version < 1:
        raise ValueError("its version is no number")
    if version > SCHEMA_VERSION:
        raise RecordingError(
            f"{path} has version {version} of the format, and this bpfpath_nb reads up to {SCHEMA_VERSION}. "
            "Upgrade with `pip install -U bpfpath_nb` and load it again."
        )


_ROWS_PER_BYTE: Final = 8
"""A file has at most so many hops for each of its bytes; a real one has one hop in some ten bytes."""
_ROW_BYTES: Final = 1024
"""A hop takes at most so many bytes of its columns, before they are compressed."""


def _check_size(described: Any, size: int) -> None:
    """Refuse a file that would unfold to much more than any capture of its size: a few bytes can claim any number."""
    # Of the whole row group: where a column's statistics are damaged, asking pyarrow for that column ends the process.
    claimed = sum(described.row_group(group).total_byte_size for group in range(described.num_row_groups))
    if described.num_rows > _ROWS_PER_BYTE * size or claimed > _ROW_BYTES * (described.num_rows + 1000):
        raise ValueError("it claims more hops than fit into a file of its size")
