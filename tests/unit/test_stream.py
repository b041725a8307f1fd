"""The stream: what is written is read, to the byte, and what is broken is said to be."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import DEVICES, LOCATIONS, capture, facts_row, start_record, udp_frame

from bpfpath_nb.errors import FilterError, TracerError
from bpfpath_nb.schema import EVENT_DTYPE, FACTS_DTYPE
from bpfpath_nb.stream import EVENT_SCHEMA, METADATA_KEY, SIDE_SCHEMAS, Reader, Writer


def read_all(data: bytes):
    reader = Reader(io.BytesIO(data))
    return reader, list(reader)


def test_what_is_written_is_read():
    made = capture(30)
    reader, batches = read_all(made.write(batches=4))
    for name in EVENT_DTYPE.names:
        got = np.concatenate([batch.events[name] for batch in batches])
        assert got.dtype == EVENT_DTYPE[name]
        np.testing.assert_array_equal(got, made.events[name])
    np.testing.assert_array_equal(batches[0].facts, made.facts)
    assert batches[0].processes == [(77, "dig")]
    assert batches[0].devices == DEVICES
    assert batches[0].locations == LOCATIONS
    assert batches[0].counters == {"events_lost": 0}
    assert reader.end == batches[-1].end
    assert reader.end["reason"] == "stopped"
    assert reader.start.functions[-1].name == "ip_rcv"


def test_events_may_be_a_strided_view_of_a_ring_that_is_used_again():
    ring = np.zeros(100, np.dtype([("header", "u8"), ("event", EVENT_DTYPE)]))
    ring["event"]["time"] = np.arange(100)
    sink = io.BytesIO()
    writer = Writer(sink, start_record())
    writer.write(ring["event"])
    writer.write(ring["event"][:1])
    ring["event"]["time"] = 7
    writer.write(end={"reason": "stopped", "time": 0})
    _, batches = read_all(sink.getvalue())
    np.testing.assert_array_equal(batches[0].events["time"], np.arange(100))
    assert batches[1].events["time"].tolist() == [0]


def test_every_batch_is_out_when_write_returns():
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "wb") as sink:
        writer = Writer(sink, start_record())
        writer.write()
        batches = iter(Reader(read_end))  # this and what follows would block for ever if anything were held back
        assert len(next(batches)) == 0
        writer.write(capture(1).events)
        assert len(next(batches)) > 0
    os.close(read_end)


def test_a_reader_stops_at_the_byte_where_its_stream_ends():
    read_end, write_end = os.pipe()
    streams = [capture(200, seed=seed).write() for seed in (1, 2, 3)]

    def send() -> None:
        # Odd pieces, so that reads come back short.
        with os.fdopen(write_end, "wb", buffering=0) as pipe:
            data = b"".join(streams) + b"and then"
            for at in range(0, len(data), 4099):
                pipe.write(data[at : at + 4099])

    sender = threading.Thread(target=send)
    sender.start()
    for data in streams:
        got = sum(len(batch) for batch in Reader(read_end))
        assert got == sum(len(batch) for batch in read_all(data)[1])
    assert os.read(read_end, 100) == b"and then"
    sender.join()
    os.close(read_end)


def test_a_refusal_is_raised_under_its_own_type_and_leaves_the_pipe_at_the_next_stream():
    sink = io.BytesIO()
    error = FilterError("no such thing as `udpp`")
    Writer(sink, start_record(functions=[], clock={}, error=error.to_record())).close()
    sink.write(capture(3).write())
    sink.seek(0)
    with pytest.raises(FilterError, match="udpp"):
        Reader(sink)
    assert sum(len(batch) for batch in Reader(sink)) > 0


def test_a_refusal_needs_no_more_than_its_error():
    sink = io.BytesIO()
    Writer(sink, {"version": 1, "error": {"type": "FilterError", "message": "m"}}).close()
    with pytest.raises(FilterError, match=r"^m$"):
        Reader(io.BytesIO(sink.getvalue()))


def test_a_tracer_that_dies_leaves_what_it_had_said():
    made = capture(300)
    data = made.write(end=False)  # killed: what there is ends after a whole message, without the end mark
    batches = []
    with pytest.raises(TracerError, match="killed"):
        batches.extend(Reader(io.BytesIO(data)))  # extend keeps what came before the error
    assert sum(len(batch) for batch in batches) == len(made.events)


@pytest.mark.parametrize("data", [b"", b"\xff\xff", b"not a stream at all, but long enough to be one", b"\0" * 64])
def test_what_is_no_stream_is_a_tracer_error(data):
    with pytest.raises(TracerError):
        Reader(io.BytesIO(data))


def with_metadata(record: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, EVENT_SCHEMA.with_metadata({METADATA_KEY: record})):
        pass
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    "record",
    [b"{}", b"[]", b"{", b'{"version": true}', b'{"version": 0}', b'{"version": 1}', b"[" * 100_000],
)
def test_a_start_record_that_is_none_is_a_tracer_error(record):
    with pytest.raises(TracerError, match="start record"):
        Reader(io.BytesIO(with_metadata(record)))


@pytest.mark.parametrize(
    "changes",
    [
        {"functions": [{"name": "f", "layer": "magic", "probe": "kprobe"}]},
        {"functions": [{"name": 3, "layer": "ip", "probe": "kprobe"}]},
        {"functions": [{"name": "", "layer": "ip", "probe": "kprobe"}]},
        {"functions": {}},
        {"reasons": {"x": "y"}},
        {"reasons": {"²": "y"}},
        {"reasons": []},
        {"clock": {"monotonic": 1}},
        {"clock": {"monotonic": -1, "realtime": 1}},
        {"clock": {"monotonic": 1 << 63, "realtime": 1}},
        {"filter": 5},
        {"error": "text"},
    ],
)
def test_a_field_of_the_start_record_that_is_wrong_is_a_tracer_error(changes):
    sink = io.BytesIO()
    Writer(sink, start_record(**changes)).close()
    with pytest.raises(TracerError, match="start record"):
        Reader(io.BytesIO(sink.getvalue()))


def test_a_newer_tracer_is_told_apart():
    sink = io.BytesIO()
    Writer(sink, start_record(version=99)).close()
    with pytest.raises(TracerError, match="upgrade"):
        Reader(io.BytesIO(sink.getvalue()))


def test_other_columns_are_refused():
    sink = pa.BufferOutputStream()
    schema = pa.schema([("time", pa.uint64())], metadata={METADATA_KEY: b"{}"})
    with pa.ipc.new_stream(sink, schema):
        pass
    with pytest.raises(TracerError, match="columns"):
        Reader(io.BytesIO(sink.getvalue().to_pybytes()))


@pytest.mark.parametrize(("column", "value"), [("func", 9999), ("time", 1 << 63)])
def test_a_number_out_of_its_range_is_refused(column, value):
    events = capture(2).events
    events[column][3] = value
    sink = io.BytesIO()
    writer = Writer(sink, start_record())
    writer.write(events)
    writer.close()
    with pytest.raises(TracerError, match="damaged"):
        list(Reader(io.BytesIO(sink.getvalue())))


@pytest.mark.parametrize(
    "value", [str(1 << 63), "1" + "0" * 4000, "1" + "0" * 5000, "-1", "true", "1.5", '"1"'], ids=lambda text: text[:20]
)
def test_a_counter_that_nothing_can_count_is_refused(value):
    metadata = {b"counters": b'{"events_lost": %s}' % value.encode()}
    with pytest.raises(TracerError, match="damaged"):
        list(Reader(io.BytesIO(arrow_stream(metadata=metadata))))


def arrow_stream(compression=None, metadata=None) -> bytes:
    """A stream of one batch of a hundred events, as Arrow itself writes it."""
    events = np.zeros(100, EVENT_DTYPE)
    batch = pa.RecordBatch.from_arrays(
        [pa.array(events[name].copy()) for name in EVENT_SCHEMA.names], schema=EVENT_SCHEMA
    )
    schema = EVENT_SCHEMA.with_metadata({METADATA_KEY: json.dumps(start_record()).encode()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_batch(batch, custom_metadata=metadata or {b"end": b'{"reason": "stopped", "time": 0}'})
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_a_compressed_batch_is_refused(compression):
    # It might unfold to any size.
    assert len(list(Reader(io.BytesIO(arrow_stream())))) == 1
    with pytest.raises(TracerError, match="compressed"):
        list(Reader(io.BytesIO(arrow_stream(compression))))


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_a_compressed_side_table_is_refused(compression):
    table = pa.Table.from_arrays([pa.array([1] * 1000, pa.uint32())], schema=SIDE_SCHEMAS["reads"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)
    with pytest.raises(TracerError, match="compressed"):
        list(Reader(io.BytesIO(arrow_stream(metadata={b"reads": sink.getvalue().to_pybytes()}))))


def test_a_name_from_an_impossible_time_on_is_refused():
    sink = io.BytesIO()
    writer = Writer(sink, start_record())
    writer.write(side={"devices": [(1 << 62, 1, 0, "a")]})
    writer.close()
    with pytest.raises(TracerError, match="no clock"):
        list(Reader(io.BytesIO(sink.getvalue())))


@pytest.mark.parametrize("time", ["noon", 1.5, -1, 1 << 62, None, True])
def test_an_end_at_an_impossible_time_is_refused(time):
    sink = io.BytesIO()
    Writer(sink, start_record()).write(end={"reason": "stopped", "time": time})
    with pytest.raises(TracerError, match="no clock"):
        list(Reader(io.BytesIO(sink.getvalue())))


def test_a_snapshot_that_claims_more_than_its_room_is_refused():
    sink = io.BytesIO()
    writer = Writer(sink, start_record())
    writer.write(side={"facts": facts_row(udp_frame(1, 2), caplen=129)})
    writer.close()
    with pytest.raises(TracerError, match="snapshot"):
        list(Reader(io.BytesIO(sink.getvalue())))


def test_bytes_beyond_the_snapshot_are_not_the_packets():
    row = facts_row(udp_frame(1, 2), caplen=20)
    sink = io.BytesIO()
    writer = Writer(sink, start_record())
    writer.write(side={"facts": row})
    writer.close()
    (batch,) = Reader(io.BytesIO(sink.getvalue()))
    assert bytes(batch.facts["headers"][0]) == udp_frame(1, 2)[:20].ljust(128, b"\0")


def test_a_process_name_ends_at_its_first_nul_and_the_last_one_counts():
    rows = np.zeros(3, FACTS_DTYPE)
    rows["kind"], rows["packet"] = 1, [5, 6, 5]
    for at, comm in enumerate([b"old", b"a\0garbage", b"\xffnew"]):
        rows["headers"][at, : len(comm)] = np.frombuffer(comm, np.uint8)
    sink = io.BytesIO()
    writer = Writer(sink, start_record())
    writer.write(side={"facts": rows})
    writer.close()
    (batch,) = Reader(io.BytesIO(sink.getvalue()))
    assert dict(batch.processes) == {5: "\\xffnew", 6: "a"}
    assert len(batch.facts) == 0


STREAM = capture(20).write()


@settings(derandomize=True, max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(STREAM) - 1), st.integers(0, 255)), min_size=1, max_size=4), st.integers(0)
)
def test_a_damaged_stream_is_read_or_refused_and_nothing_else(changes, cut):
    data = bytearray(STREAM)
    for at, value in changes:
        data[at] = value
    functions = None
    try:
        reader = Reader(io.BytesIO(data[: len(data) - cut % len(data)]))
        functions = len(reader.start.functions)
        for batch in reader:
            assert {len(values) for values in batch.events.values()} == {len(batch)}
            assert not len(batch) or batch.events["func"].max() < functions
    except TracerError:
        pass


def test_the_writing_end_needs_no_pandas():
    code = "import sys, bpfpath_nb.stream; print(sorted({'pandas', 'IPython', 'matplotlib', 'bcc'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
