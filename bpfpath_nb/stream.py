"""The stream between the tracer and the notebook: its writing and its reading end.

The layout is told at the head of `schema`. One Arrow IPC stream is one capture; several follow one another on one
pipe, because a tracer that is already running arms the next capture in a fraction of the time. So the reader must
stop at the byte where a stream ends. Arrow's own stream reader asks for exactly the bytes of the next message and
never for more, and `_Exactly` keeps that promise towards a pipe, whose reads may return less than they were asked
for.

Neither end touches an event one by one: the writer takes the ring's records as one structured array and copies its
columns, the reader hands out the columns as they lie in Arrow's memory. Only numpy and pyarrow are imported, since
the tracer is to start fast.

The reader trusts nothing. A remote host's tracer is another machine's word: types, sizes and indices are checked
here, before any analysis sees a number.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.ipc

from bpfpath_nb.errors import BpfpathError, TracerError
from bpfpath_nb.schema import (
    COUNTERS,
    EVENT,
    EVENT_DTYPE,
    FACTS_DTYPE,
    FACTS_KINDS,
    HEADERS_BYTES,
    SIDE_TABLES,
    STACKS_DTYPE,
    TIME_LIMIT,
    Column,
)
from bpfpath_nb.start import StartRecord, StartRecordError

METADATA_KEY: Final = b"bpfpath_nb"

MESSAGE_LIMIT: Final = 1 << 28
"""Most bytes that one message may claim. A run of events is far smaller; a broken length would ask for gigabytes."""

REQUEST_LIMIT: Final = 1 << 20
"""Most bytes that a request to the tracer may have; a list of all functions of a kernel is a small part of it."""

_RECORD_BATCH: Final = b"\x03"
"""The kind of a message that is a batch, in Arrow's format."""

COUNTER_LIMIT: Final = (1 << 63) - 1
"""Most that a counter can have counted."""

_NEXT_STEP = (
    "What arrived before is kept. Start the capture again; if it recurs, `doctor()` tells what the machine lacks."
)


def _arrow_type(column: Column) -> Any:
    if column.dtype.startswith("bytes["):
        return pa.binary(int(column.dtype[6:-1]))
    return pa.string() if column.dtype == "str" else pa.type_for_alias(column.dtype)


def _arrow_schema(columns: Sequence[Column]) -> Any:
    return pa.schema([pa.field(column.name, _arrow_type(column), nullable=False) for column in columns])


EVENT_SCHEMA: Final = _arrow_schema(EVENT)
SIDE_SCHEMAS: Final = {name: _arrow_schema(columns) for name, columns in SIDE_TABLES.items()}

_STRUCTURED: Final = {"facts": FACTS_DTYPE, "stacks": STACKS_DTYPE}
"""Side tables that are arrays on both ends; the others are short, and lists of tuples."""


class Sink(Protocol):
    """What a `Writer` needs of a file."""

    def write(self, data: bytes, /) -> int | None: ...
    def flush(self) -> None: ...


class Source(Protocol):
    """What a `Reader` needs of a file; a raw pipe, a buffered one and `BytesIO` all do."""

    def read(self, size: int, /) -> bytes | None: ...


# --- the tracer's end


class Writer:
    """Writes one capture's stream.

    The start record leaves with the first batch, or with `close` (Arrow holds it back until then). An empty batch is
    one too: the reader of a capture waits for it as the sign that everything is live.

    Parameters
    ----------
    sink : binary file
        Where to. It is flushed after every batch and never closed.
    start_record : dict
        As `schema.START_RECORD` says. With the key `error` it is all that the stream says: call `close` next.
    """

    def __init__(self, sink: Sink, start_record: Mapping[str, Any]) -> None:
        self._sink = sink
        self._buffer = _Gather()
        metadata = {METADATA_KEY: json.dumps(start_record).encode()}
        self._writer = pyarrow.ipc.new_stream(pa.PythonFile(self._buffer, "w"), EVENT_SCHEMA.with_metadata(metadata))
        self._closed = False

    def write(
        self,
        events: npt.NDArray[np.void] | None = None,
        side: Mapping[str, npt.NDArray[np.void] | Sequence[tuple[Any, ...]]] | None = None,
        counters: Mapping[str, int] | None = None,
        end: Mapping[str, Any] | None = None,
        refused: Sequence[Mapping[str, str]] = (),
    ) -> None:
        """Send a run of events and what goes beside them; all of it has left the process when this returns.

        Parameters
        ----------
        events : structured array of schema.EVENT_DTYPE, optional
            May be a strided view of the ring: its columns are copied, and nothing of it is kept.
        side : dict, optional
            New rows of side tables. `facts` is a structured array of schema.FACTS_DTYPE, in which rows of the kind
            `process` become rows of `processes` and those of the kind `drop` rows of `stacks`. The other tables are
            lists of tuples in the order of their columns.
        counters : dict, optional
            Present value of the counters of schema.COUNTERS.
        end : dict, optional
            `reason` and `time`. The stream is closed after it.
        refused : list, optional
            What could not be traced that came after the start record; rows as in its `refused`.
        """
        metadata: dict[bytes, bytes] = {}
        for name, table in _side_tables(side or {}).items():
            metadata[name.encode()] = _to_bytes(table)
        if counters is not None:
            metadata[b"counters"] = json.dumps({name: int(value) for name, value in counters.items()}).encode()
        if end is not None:
            metadata[b"end"] = json.dumps(end).encode()
        if refused:
            metadata[b"refused"] = json.dumps(list(refused)).encode()
        if events is None:
            events = np.empty(0, EVENT_DTYPE)
        columns = [pa.array(np.ascontiguousarray(events[name])) for name in EVENT_SCHEMA.names]
        batch = pa.RecordBatch.from_arrays(columns, schema=EVENT_SCHEMA)
        self._writer.write_batch(batch, custom_metadata=metadata)
        self._send()
        if end is not None:
            self.close()

    def close(self) -> None:
        """End the stream. The sink stays open, for the next one."""
        if not self._closed:
            self._closed = True
            self._writer.close()
            self._send()

    def _send(self) -> None:
        data = memoryview(self._buffer.take())
        while data:  # a raw pipe may take a part
            data = data[self._sink.write(data) or 0 :]  # type: ignore[arg-type]
        self._sink.flush()


class _Gather:
    """Collects the many small writes of a message, so that it goes out in one."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass

    def take(self) -> bytes:
        data = b"".join(self._parts)
        self._parts.clear()
        return data


def _side_tables(side: Mapping[str, npt.NDArray[np.void] | Sequence[tuple[Any, ...]]]) -> dict[str, Any]:
    rows: dict[str, list[tuple[Any, ...]]] = {
        name: list(table) for name, table in side.items() if not isinstance(table, np.ndarray)
    }
    tables = {}
    facts = side.get("facts")
    if isinstance(facts, np.ndarray):
        kind = facts["kind"]
        rows.setdefault("processes", []).extend(_process_names(facts[kind == FACTS_KINDS["process"]]))
        for name, of_kind in (("facts", "snapshot"), ("stacks", "drop")):
            chosen = facts[kind == FACTS_KINDS[of_kind]]
            if len(chosen):
                tables[name] = structured_table(name, chosen if name == "facts" else drop_stacks(chosen))
    for name, entries in rows.items():
        if entries:
            schema = SIDE_SCHEMAS[name]
            columns = zip(*entries, strict=True)
            arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
            tables[name] = pa.Table.from_arrays(arrays, schema=schema)
    return tables


def _process_names(rows: npt.NDArray[np.void]) -> list[tuple[int, str]]:
    comms = np.ascontiguousarray(rows["headers"][:, :16]).view("S16")[:, 0]
    # One name is told again and again in a busy capture; a dict keeps the last of each process.
    last = dict(zip(rows["packet"].tolist(), comms.tolist(), strict=True))
    return [(pid, comm.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")) for pid, comm in last.items()]


def drop_stacks(facts: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """Rows of schema.STACKS_DTYPE from facts of the kind `drop`, as the BPF programs write them."""
    stacks = np.zeros(len(facts), STACKS_DTYPE)
    stacks["time"], stacks["packet"], stacks["tcp_state"] = facts["time"], facts["packet"], facts["link"]
    stacks["frames"] = np.ascontiguousarray(facts["headers"]).view(np.uint64)
    return stacks


def structured_table(name: str, rows: npt.NDArray[np.void]) -> Any:
    """A structured array as an Arrow table of `SIDE_SCHEMAS[name]`; arrays within a row become its bytes."""
    schema = SIDE_SCHEMAS[name]
    arrays = []
    for column in schema:
        values = np.ascontiguousarray(rows[column.name])
        if pa.types.is_fixed_size_binary(column.type):
            arrays.append(pa.FixedSizeBinaryArray.from_buffers(column.type, len(rows), [None, pa.py_buffer(values)]))
        else:
            arrays.append(pa.array(values))
    return pa.Table.from_arrays(arrays, schema=schema)


def _to_bytes(table: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


# --- the notebook's end


@dataclass(frozen=True)
class Batch:
    """A checked piece of a stream.

    `events` has a contiguous array per column of schema.EVENT, `facts` and `stacks` are structured arrays of
    schema.FACTS_DTYPE and STACKS_DTYPE, the other side tables are lists of tuples.
    """

    events: dict[str, npt.NDArray[Any]]
    facts: npt.NDArray[np.void]
    stacks: npt.NDArray[np.void]
    processes: list[tuple[int, str]] = field(default_factory=list)
    devices: list[tuple[int, int, int, str]] = field(default_factory=list)
    locations: list[tuple[int, str, int]] = field(default_factory=list)
    reads: list[tuple[int]] = field(default_factory=list)
    counters: dict[str, int] | None = None
    end: dict[str, Any] | None = None
    refused: list[dict[str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.events["time"])


class Reader:
    """Reads one capture's stream and stops where it ends.

    Parameters
    ----------
    source : binary file or file descriptor
        Where from. Nothing is read beyond the end of this stream.

    Attributes
    ----------
    start : StartRecord
        What the capture says of itself. What is refused later is added to its `refused` with the batch that tells.
    end : dict or None
        `reason` and `time` once the last batch was read.

    Raises
    ------
    BpfpathError
        On construction, of the type that the tracer reported, where the capture could not start.
    TracerError
        The stream is none, is damaged, or breaks off. When iterating, all batches before it have been handed out.
    """

    def __init__(self, source: Source | int) -> None:
        self._source = _Exactly(source)
        self.end: dict[str, Any] | None = None
        try:
            self._reader = pyarrow.ipc.open_stream(pa.PythonFile(self._source, "r"))
            schema = self._reader.schema
        except (pa.ArrowException, OSError, ValueError) as error:
            if not self._source.count:
                raise TracerError(f"The tracer ended before it said anything. {_NEXT_STEP}") from error
            raise _damaged("its head cannot be read", error) from error
        if not schema.equals(EVENT_SCHEMA, check_metadata=False):
            raise _damaged("its columns are not those of this version")
        try:
            self.start = StartRecord.from_json((schema.metadata or {}).get(METADATA_KEY, b""))
        except StartRecordError as error:
            raise _damaged(str(error)) from None
        if self.start.error is not None:
            # The rest of the stream is its end mark. It has to be read, or the next capture would begin with it.
            for _ in self:
                pass
            raise BpfpathError.from_record(self.start.error)

    @property
    def broke_off(self) -> bool:
        """Whether the source had less than the stream needed."""
        return self._source.broke_off

    def __iter__(self) -> Iterator[Batch]:
        while True:
            try:
                batch, metadata = self._reader.read_next_batch_with_custom_metadata()
            except StopIteration:
                # Arrow takes a closed pipe between two messages for an end; only the mark, or such a batch, is one.
                if self._source.broke_off and self.end is None and self.start.error is None:
                    raise TracerError(f"The tracer ended without a word, as if it was killed. {_NEXT_STEP}") from None
                return
            except (pa.ArrowException, OSError, ValueError) as error:
                if self._source.broke_off:
                    raise TracerError(f"The tracer ended in the middle of a message. {_NEXT_STEP}") from error
                raise _damaged("a batch cannot be read", error) from error
            yield self._checked(batch, dict(metadata or {}))

    def _checked(self, batch: Any, metadata: dict[bytes, bytes]) -> Batch:
        try:
            batch.validate(full=True)
            if any(column.null_count for column in batch.columns):
                raise ValueError("a missing value in an event")
            events = {name: column.to_numpy() for name, column in zip(EVENT_SCHEMA.names, batch.columns, strict=True)}
            if len(batch):
                if int(events["func"].max()) >= len(self.start.functions):
                    raise ValueError("an event of a function that the start record does not have")
                if int(events["time"].max()) >= TIME_LIMIT:
                    raise ValueError("an event of a time that no clock shows")
            side = {name: _read_side(name, metadata.get(name.encode())) for name in SIDE_TABLES}
            counters = checked_counters(json.loads(metadata[b"counters"])) if b"counters" in metadata else None
            end = checked_end(json.loads(metadata[b"end"])) if b"end" in metadata else None
            if refused := json.loads(metadata.get(b"refused", b"[]")):
                # Checked as the start record is, so that nothing behind has to know the difference.
                self.start = StartRecord.from_dict(
                    {**self.start.raw, "refused": [*self.start.raw.get("refused", []), *refused]}
                )
            self.end = end or self.end
        except (pa.ArrowException, OSError, ValueError, TypeError, RecursionError) as error:
            raise _damaged("a batch holds", error) from error
        return Batch(events, counters=counters, end=end, refused=refused, **side)


class _Exactly:
    """A file for Arrow that reads exactly as many bytes as it is asked for, and knows when there were fewer."""

    closed = False

    def __init__(self, source: Source | int) -> None:
        self._read = source.read if not isinstance(source, int) else (lambda size: os.read(source, size))
        self.broke_off = False
        self.count = 0
        self._before = b""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MESSAGE_LIMIT:
            raise OSError(f"a message that claims {size} bytes")
        parts, missing = [], size
        while missing:
            part = self._read(min(missing, 1 << 20))
            if not part:
                self.broke_off = True
                break
            parts.append(part)
            missing -= len(part)
            self.count += len(part)
        data = b"".join(parts) if len(parts) != 1 else parts[0]
        # Arrow reads the length of a message's head, then the head, then the body.
        if len(self._before) == 4 and int.from_bytes(self._before, "little") == size and _is_compressed(data):
            raise OSError("a compressed batch, which the tracer never writes")
        self._before = data if size == 4 else b""
        return data

    def close(self) -> None:
        pass  # the next stream comes through the same pipe


def _is_compressed(head: bytes) -> bool:
    """Whether the head of an Arrow message is that of a compressed batch.

    A small batch may claim to unfold to any size, and Arrow would try. The head is a flatbuffer: a table begins with
    the distance back to its list of fields, which has the place of each, or 0 (format/Message.fbs of Apache Arrow).
    """

    def place(table: int, number: int) -> int:
        fields = table - int.from_bytes(head[table : table + 4], "little", signed=True)
        at = fields + 4 + 2 * number
        is_there = at + 2 <= fields + int.from_bytes(head[fields : fields + 2], "little")
        offset = int.from_bytes(head[at : at + 2], "little") if is_there else 0
        return table + offset if offset else 0

    message = int.from_bytes(head[:4], "little")
    kind, header = place(message, 1), place(message, 2)
    if not kind or not header or head[kind : kind + 1] != _RECORD_BATCH:
        return False
    return place(header + int.from_bytes(head[header : header + 4], "little"), 3) != 0


def _damaged(what: str, error: Exception | None = None) -> TracerError:
    detail = f": {' '.join(str(error).split())[:300]}" if error else ""
    return TracerError(f"What the tracer sent is damaged; {what}{detail}. {_NEXT_STEP}")


def _read_side(name: str, data: bytes | None) -> Any:
    schema = SIDE_SCHEMAS[name]
    if data is None:
        return np.empty(0, _STRUCTURED[name]) if name in _STRUCTURED else []
    table = pyarrow.ipc.open_stream(pa.PythonFile(_Exactly(io.BytesIO(data)), "r")).read_all()
    if not table.schema.equals(schema, check_metadata=False):
        raise ValueError(f"a table `{name}` with other columns")
    table.validate(full=True)
    if any(column.null_count for column in table.columns):
        raise ValueError(f"a missing value in `{name}`")
    if name in _STRUCTURED:
        return _facts_checked(_structured(table, name)) if name == "facts" else stacks_checked(_structured(table, name))
    if name == "devices" and len(table) and int(table["time"].to_numpy().max()) >= TIME_LIMIT:
        raise ValueError("a name from a time on that no clock shows")
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def _structured(table: Any, name: str) -> npt.NDArray[np.void]:
    """An Arrow table of `SIDE_SCHEMAS[name]` as a structured array."""
    rows = np.zeros(len(table), _STRUCTURED[name])
    for column in SIDE_SCHEMAS[name]:
        values = table[column.name].combine_chunks()
        if pa.types.is_fixed_size_binary(column.type):
            chunks = values.chunks if isinstance(values, pa.ChunkedArray) else [values]
            data = b"".join(_fixed_bytes(chunk) for chunk in chunks)
            rows[column.name] = np.frombuffer(data, rows.dtype[column.name].base).reshape(len(table), -1)
        else:
            rows[column.name] = values.to_numpy()
    return rows


def _facts_checked(facts: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    if len(facts) and int(facts["caplen"].max()) > HEADERS_BYTES:
        raise ValueError("a snapshot longer than there is room for")
    facts["headers"][np.arange(HEADERS_BYTES) >= facts["caplen"][:, None]] = 0
    return facts


def stacks_checked(stacks: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """Refuse impossible times; what stands behind a stack's end is none of it."""
    if len(stacks) and int(stacks["time"].max()) >= TIME_LIMIT:
        raise ValueError("a drop at a time that no clock shows")
    stacks["frames"][np.logical_or.accumulate(stacks["frames"] == 0, axis=1)] = 0
    return stacks


def _fixed_bytes(array: Any) -> bytes:
    width = array.type.byte_width
    data = array.buffers()[1]
    return b"" if data is None else data.to_pybytes()[array.offset * width : (array.offset + len(array)) * width]


def checked_counters(counters: Any) -> dict[str, int]:
    """The counters of schema.COUNTERS that an object of JSON holds."""
    if not isinstance(counters, dict) or not all(
        type(value) is int and 0 <= value <= COUNTER_LIMIT for value in counters.values()
    ):
        raise ValueError("counters that are no numbers")
    return {name: value for name, value in counters.items() if name in COUNTERS}


def checked_end(end: Any) -> dict[str, Any] | None:
    """What an object of JSON says of a capture's end."""
    if end is not None and not isinstance(end, dict):
        raise ValueError("an end that is not an object")
    if type(time := (end or {}).get("time", 0)) is not int or not 0 <= time < TIME_LIMIT:
        raise ValueError("an end at a time that no clock shows")
    return end
