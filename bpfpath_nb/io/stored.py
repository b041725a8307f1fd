"""The events of a saved recording, read from its file column by column when they are asked for.

Loading a recording reads the file's metadata only. Each column is read, and held against its checksum, when something
first needs it: the frame of functions of ten million hops needs four of them, and a file that is larger than memory
can be opened and handed on in parts. The file stays open meanwhile; a column that is damaged is an error then, never a
wrong frame.
"""

from __future__ import annotations

import contextlib
import dataclasses
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from bpfpath_nb.analysis.events import Columns, Events, hop_order, ordered
from bpfpath_nb.analysis.returns import NAT, RETURN_COLUMNS, no_returns
from bpfpath_nb.errors import RecordingError
from bpfpath_nb.schema import (
    EVENT,
    FACTS,
    FACTS_DTYPE,
    HEADERS_BYTES,
    STACK_DEPTH,
    STACKS,
    STACKS_DTYPE,
    TIME_LIMIT,
)
from bpfpath_nb.start import StartRecordError
from bpfpath_nb.stream import stacks_checked

NUMBERS: Final = {
    "packet": "packet", "netns": "netns_inum", "ifindex": "ifindex", "cpu": "cpu", "pid": "pid", "len": "len",
    "mark": "mark", "skb": "skb", "func": "function", "reason": "reason_number", "location": "location", "seq": "seq",
    "snapshot": "snapshot", "flags": "flags",
}  # fmt: skip
"""Column of schema.EVENT -> its name in the file. `time` is there too, as a timestamp."""

SNAPSHOTS: Final = {
    "parent": "parent",
    "len": "packet_len",
    "link": "link",
    "vlan_tpid": "vlan_tpid",
    "vlan_tci": "vlan_tci",
}
"""Column of schema.FACTS -> its name in the file; null but where a snapshot was taken, as is `headers`."""

STACK, TCP_STATE = "stack", "tcp_state"
"""Names of the columns that hold `frames` and `tcp_state` of schema.STACKS; null but where a packet was dropped."""


DURATION: Final = "duration"
"""Of a hop the time until its function returned, in ns; null where that is not known."""

_STACK_ROWS: Final = 1 << 15
"""So many rows' stacks are looked at together."""

_READ_LATER: Final = ("hops", "facts", "returns", "stacks")
"""Fields of Events that a file has as columns."""


class StoredColumns(dict[str, npt.NDArray[Any]]):
    """The columns of schema.EVENT, each read when it is first asked for."""

    def __init__(self, read: Callable[[str, StoredColumns], npt.NDArray[Any]]) -> None:
        super().__init__()
        self._read = read

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        if name not in self:
            raise KeyError(name)
        if not super().__contains__(name):
            super().__setitem__(name, self._read(name, self))
        return super().__getitem__(name)

    def __iter__(self) -> Iterator[str]:
        return (column.name for column in EVENT)

    def __len__(self) -> int:
        return len(EVENT)

    def __contains__(self, name: object) -> bool:
        return name in tuple(self)

    def keys(self) -> Any:
        """The names of all columns."""
        return list(self)

    def values(self) -> Any:
        """All columns."""
        return [self[name] for name in self]

    def items(self) -> Any:
        """All columns with their names."""
        return [(name, self[name]) for name in self]


class StoredEvents(Events):
    """As `Events`, of a file; `open_events` makes it.

    A copy with changes (`dataclasses.replace`, `select`) has all its columns and no file.
    """

    path: Path
    _parquet: Any
    _checksums: Mapping[str, int]
    _group: int | None

    def __reduce__(self) -> Any:
        hops = {name: self.hops[name] for name in self.hops}
        return Events, (self.start, hops, *(getattr(self, f.name) for f in dataclasses.fields(Events)[2:]))

    def __len__(self) -> int:
        if "_parquet" not in self.__dict__:
            return super().__len__()
        metadata, group = self._parquet.metadata, self._group
        return int(metadata.num_rows if group is None else metadata.row_group(group).num_rows)

    @cached_property
    def facts(self) -> npt.NDArray[np.void]:
        """As `Events.facts`."""
        with reading(self.path):
            return self._checked("facts", self._read_facts())

    @cached_property
    def returns(self) -> Columns:
        """As `Events.returns`."""
        if DURATION not in self._parquet.schema_arrow.names:  # version 1
            return no_returns()
        with reading(self.path):
            return self._read_returns()

    @cached_property
    def stacks(self) -> npt.NDArray[np.void]:
        """As `Events.stacks`."""
        if STACK not in self._parquet.schema_arrow.names:  # version 1
            return np.empty(0, STACKS_DTYPE)
        with reading(self.path):
            return self._checked("stacks", self._read_stacks())

    def _table(self, *names: str) -> Any:
        columns = list(names)
        if self._group is None:
            return self._parquet.read(columns)
        return self._parquet.read_row_group(self._group, columns)

    def _column(self, name: str) -> npt.NDArray[Any]:
        with reading(self.path):
            if name == "time":
                values = self._time()
            else:
                dtype = next(np.dtype(column.dtype) for column in EVENT if column.name == name)
                values = _numbers(self._table(NUMBERS[name])[0], dtype)
            if name == "func" and len(values) and int(values.max()) >= len(self.start.functions):
                raise ValueError("a hop of a function that its start record does not have")
            if name == "packet" and (values[1:] < values[:-1]).any():
                raise ValueError("packets out of order")
            return self._checked(name, values)

    def _time(self) -> npt.NDArray[np.uint64]:
        values = _numbers(self._table("time")[0].cast(pa.int64()), np.dtype("int64"))
        values = values - (self.start.realtime - self.start.monotonic)
        if len(values) and not 0 <= int(values.min()) <= int(values.max()) < TIME_LIMIT:
            raise ValueError("a time that no clock shows")
        times = values.view(np.uint64)
        packet = self.hops["packet"]
        if not ((packet[1:] > packet[:-1]) | (times[1:] > times[:-1])).all():
            # Where two hops have one time, the processor and the number of the event decide.
            by = {"packet": packet, "time": times, "cpu": self.hops["cpu"], "seq": self.hops["seq"]}
            order = hop_order(by)
            if order is not None and (order[1:] < order[:-1]).any():
                raise ValueError("hops out of order")
        return times

    def _checked(self, name: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if name in self._checksums and checksum(values) != self._checksums[name]:
            raise ValueError(f"{name} is not what was written")
        values.flags.writeable = False
        return values

    def _read_facts(self) -> npt.NDArray[np.void]:
        table = self._table(*SNAPSHOTS.values(), "headers")
        headers = table["headers"].cast(pa.large_binary()).combine_chunks()
        headers.validate(full=True)
        taken = np.flatnonzero(headers.is_valid().to_numpy(zero_copy_only=False))
        facts = np.zeros(len(taken), FACTS_DTYPE)
        present = headers.drop_null()
        lengths = pa.compute.binary_length(present).to_numpy()
        if len(taken) and int(lengths.max()) > HEADERS_BYTES:
            raise ValueError("a snapshot longer than there is room for")
        facts["caplen"] = lengths
        room = np.zeros((len(taken), HEADERS_BYTES), np.uint8)
        room[np.arange(HEADERS_BYTES) < lengths[:, None]] = np.frombuffer(b"".join(present.to_pylist()), np.uint8)
        facts["headers"] = room
        for name in ("packet", "snapshot"):
            facts[name] = self.hops[name][taken]
        for name, column in SNAPSHOTS.items():
            facts[name] = _numbers(table[column].take(pa.array(taken)), FACTS_DTYPE[name])
        key = facts["packet"].astype(np.int64) << 16 | facts["snapshot"]
        if (key[1:] <= key[:-1]).any():
            facts = facts[np.argsort(key, kind="stable")]
            if (np.diff(np.sort(key)) == 0).any():
                raise ValueError("a snapshot that was taken twice")
        return facts

    def _read_returns(self) -> Columns:
        column = self._table(DURATION)[0].combine_chunks()
        rows = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
        lasted = _numbers(column.drop_null(), np.dtype(np.int64))
        duration = np.full(len(self), NAT)
        duration[rows] = lasted
        self._checked(DURATION, duration)
        if not len(rows):
            return no_returns()
        if not 0 <= int(lasted.min()) <= int(lasted.max()) < TIME_LIMIT:
            raise ValueError("a duration that no clock shows")
        returns = {name: self.hops[name][rows] for name in RETURN_COLUMNS}
        returns["time"] = returns["time"] + lasted.astype(np.uint64)
        return ordered(returns)

    def _read_stacks(self) -> npt.NDArray[np.void]:
        # In memory a stack takes its room in every row, so some thousand rows at a time.
        groups = None if self._group is None else [self._group]
        found, begin = [np.empty(0, STACKS_DTYPE)], 0
        for table in self._parquet.iter_batches(_STACK_ROWS, groups, columns=[STACK, TCP_STATE]):
            frames = table[STACK]
            if frames.type != pa.binary(8 * STACK_DEPTH):
                raise ValueError("stacks of another length")
            rows = np.flatnonzero(frames.is_valid().to_numpy(zero_copy_only=False))
            stacks = np.zeros(len(rows), STACKS_DTYPE)
            data = b"".join(frames.drop_null().to_pylist())
            stacks["frames"] = np.frombuffer(data, "<u8").reshape(len(rows), STACK_DEPTH)
            stacks["tcp_state"] = _numbers(table[TCP_STATE].take(pa.array(rows)), STACKS_DTYPE["tcp_state"])
            for name in ("time", "packet"):
                stacks[name] = self.hops[name][begin + rows]
            found.append(stacks)
            begin += len(table)
        return stacks_checked(np.concatenate(found))


def open_events(
    path: Path, parquet: Any, beside: Events, checksums: Mapping[str, int], group: int | None = None
) -> StoredEvents:
    """The events of a file, none of them read yet.

    Parameters
    ----------
    path : Path
        Where the file is, for errors.
    parquet : pyarrow.parquet.ParquetFile
        The file, open.
    beside : Events
        What is known beside the columns.
    checksums : dict
        What each column must come to; where it is empty, the pages' own checksums are all there is.
    group : int, optional
        Only this part of the file, a row group; it has whole packets.
    """
    known = {field.name: getattr(beside, field.name) for field in dataclasses.fields(Events)}
    for name in _READ_LATER:
        del known[name]

    def with_hops(hops: StoredColumns) -> StoredEvents:
        events = object.__new__(StoredEvents)
        events.__dict__.update(known, hops=hops, path=path, _parquet=parquet, _checksums=checksums, _group=group)
        return events

    # The columns do not hold the events that hold them, so that both go, and the file is closed, as soon as nobody
    # needs them.
    return with_hops(StoredColumns(lambda name, hops: with_hops(hops)._column(name)))


def checksum(values: npt.NDArray[Any]) -> int:
    """The checksum of a column or a table."""
    values = np.ascontiguousarray(values)
    return zlib.crc32(values.data if values.dtype.names is None else values.view(np.uint8).data)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever a damaged or hostile file makes go wrong in this block is one error, which says what to do."""
    try:
        yield
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
        if isinstance(error, RecordingError):
            raise
        detail = " ".join(str(error).split())[:200]
        raise RecordingError(
            f"{path} is damaged or cut short ({detail}). Copy it again from where it was saved, or capture again; "
            "nothing of it was used."
        ) from error


def _numbers(column: Any, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    if column.null_count or column.type != pa.from_numpy_dtype(dtype):
        raise ValueError("a column of numbers with another type, or with gaps")
    return np.asarray(column.to_numpy())


assert {column.name for column in STACKS} == {"time", "packet", TCP_STATE, "frames"}
assert {column.name for column in FACTS} == {*SNAPSHOTS, "packet", "snapshot", "caplen", "headers", "time", "kind"}
