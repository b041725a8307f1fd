"""One file: what is loaded is what was saved, others can read it, and what is damaged is refused."""

from __future__ import annotations

import gc
import json
import os
import pickle
import stat
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import Capture as Made
from streams import capture, facts_row, udp_frame

from bpfpath_nb.errors import RecordingError
from bpfpath_nb.recording import Recording
from bpfpath_nb.schema import EVENT_DTYPE, FACTS_DTYPE, SCHEMA_VERSION, TIME_LIMIT


def assert_same(one: Recording, other: Recording) -> None:
    pd.testing.assert_frame_equal(one.df, other.df)
    pd.testing.assert_frame_equal(one.packets, other.packets)
    pd.testing.assert_series_equal(one.quality, other.quality)
    assert one.text(limit=5) == other.text(limit=5)
    assert one._repr_html_() == other._repr_html_()
    assert repr(one) == repr(other)


READ = capture(100)
READ.reads = tuple((np.flatnonzero(READ.kinds == "waiting") + 1).tolist())


@pytest.mark.parametrize(
    "made",
    [READ, capture(100, lost=0.05), Made(np.empty(0, EVENT_DTYPE), np.empty(0, FACTS_DTYPE), np.empty(0), {})],
    ids=["whole", "lossy", "empty"],
)
def test_what_is_loaded_is_what_was_saved(made, tmp_path):
    recording = made.recording()
    path = recording.save(tmp_path / "one.parquet")
    loaded = Recording.load(path)
    assert_same(loaded, recording)
    assert loaded.start == recording.start
    again = loaded.save(tmp_path / "two.parquet")
    assert again.read_bytes() == path.read_bytes()


numbers = {
    "uint64": st.integers(0, 2**64 - 1),
    "uint32": st.integers(0, 2**32 - 1),
    "uint16": st.integers(0, 2**16 - 1),
}
few = {
    "packet": st.integers(1, 3),
    "func": st.integers(0, 10),
    "snapshot": st.integers(0, 2),
    "time": st.integers(0, 9),
}
far = {"time": st.sampled_from([0, 1, TIME_LIMIT - 1]), "func": st.integers(0, 10)}


def events(special: dict[str, st.SearchStrategy[int]]) -> st.SearchStrategy[list[tuple[int, ...]]]:
    fields = [special.get(name, numbers[str(EVENT_DTYPE[name])]) for name in EVENT_DTYPE.names]
    return st.lists(st.tuples(*fields), max_size=12)


snapshots = st.lists(
    st.tuples(st.integers(1, 3), st.integers(0, 2), st.binary(max_size=128), st.integers(0, 2**16 - 1)), max_size=6
)


@settings(derandomize=True, max_examples=40, deadline=None)
@given(st.one_of(events(few), events(far)), snapshots)
def test_anything_that_can_be_recorded_survives(tmp_path_factory, hops, snapshots):
    facts = [
        facts_row(data, packet=packet, snapshot=at, parent=number, vlan_tpid=number, link=number % 3)
        for packet, at, data, number in snapshots
    ]
    facts = np.concatenate([np.empty(0, FACTS_DTYPE), *facts])
    recording = Made(np.array(hops, EVENT_DTYPE), facts, np.empty(0), {"events_lost": len(hops)}).recording()
    loaded = Recording.load(recording.save(tmp_path_factory.mktemp("any") / "any.parquet"))
    assert_same(loaded, recording)
    for name in EVENT_DTYPE.names:
        np.testing.assert_array_equal(loaded.events.hops[name], recording.events.hops[name])
    np.testing.assert_array_equal(loaded.events.facts, recording.events.facts)


def test_only_the_columns_that_are_needed_are_read(tmp_path):
    recording = Recording.load(capture(200).recording().save(tmp_path / "x.parquet"))
    assert len(recording) > 2000
    _ = recording.functions
    hops = recording.events.hops
    assert set(dict.keys(hops)) == {"packet", "time", "func"}
    assert "facts" not in recording.events.__dict__
    with pytest.raises(KeyError):
        _ = hops["nothing"]


def test_the_file_is_closed_when_nobody_needs_it(tmp_path):
    path = capture(20).recording().save(tmp_path / "x.parquet")
    recording = Recording.load(path)
    _ = recording.functions
    gc.disable()
    try:
        assert str(path) in opened()
        del recording, _
        assert str(path) not in opened()
    finally:
        gc.enable()


def opened() -> set[str]:
    """The files that this process has open."""
    return {str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()}


def test_no_packet_lies_in_two_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr("bpfpath_nb.io.parquet.GROUP", 300)
    recording = capture(100).recording()
    path = recording.save(tmp_path / "x.parquet")
    file = pq.ParquetFile(path)
    groups = [set(file.read_row_group(at, ["packet"])["packet"].to_pylist()) for at in range(file.num_row_groups)]
    assert len(groups) == -(-len(recording) // 300)
    assert sum(len(packets) for packets in groups) == 100
    assert_same(Recording.load(path), recording)


def test_other_readers_see_names_and_times(tmp_path):
    recording = capture(30).recording()
    frame = pd.read_parquet(recording.save(tmp_path / "x.parquet"))
    for name in ("func", "layer", "probe", "netns", "dev", "comm", "flow", "reason"):
        shown = recording.df[name]
        assert [None if pd.isna(v) else v for v in frame[name]] == [None if pd.isna(v) else v for v in shown]
    assert frame["time"].tolist() == recording.df["time"].tolist()
    assert frame["hop"].tolist() == recording.df.index.get_level_values("hop").tolist()
    assert frame["headers"].notna().sum() == 30
    assert frame["headers"].dropna().iloc[0] == udp_frame(40000, 53)


def test_a_hop_takes_few_bytes(tmp_path):
    recording = capture(3000).recording()
    assert recording.save(tmp_path / "x.parquet").stat().st_size < 16 * len(recording)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "x.parquet"
    capture(3).recording().save(path)
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        capture(9).recording().save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    capture(9).recording().save(path)
    assert len(Recording.load(path).packets) == 9


def test_a_file_may_be_read_by_whom_the_umask_allows(tmp_path):
    before = os.umask(0o022)
    try:
        path = capture(1).recording().save(tmp_path / "x.parquet")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.fixture(scope="module")
def whole() -> Recording:
    return capture(40).recording()


@pytest.fixture(scope="module")
def saved(whole, tmp_path_factory) -> bytes:
    return whole.save(tmp_path_factory.mktemp("saved") / "x.parquet").read_bytes()


def refused(data: bytes, path, match: str) -> None:
    path.write_bytes(data)
    with pytest.raises(RecordingError, match=match):
        load_all(path)


def load_all(path) -> Recording:
    """A recording with all its columns read; they are checked when they are."""
    recording = Recording.load(path)
    assert pickle.loads(pickle.dumps(recording.events)).start == recording.start
    return recording


@pytest.mark.parametrize("data", [b"", b"P", b"\x7fELF" + bytes(100), b"packet,hop\n1,0\n"])
def test_no_parquet_file_is_refused(data, tmp_path):
    refused(data, tmp_path / "x", "no Parquet file")


def test_a_foreign_parquet_file_is_refused(tmp_path):
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "x")
    with pytest.raises(RecordingError, match="no recording of bpfpath_nb"):
        Recording.load(tmp_path / "x")


def test_a_file_that_is_not_there_is_pythons_own_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        Recording.load(tmp_path / "x")


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.999])
def test_a_file_that_was_cut_short_is_refused(saved, share, tmp_path):
    refused(saved[: max(8, int(len(saved) * share))], tmp_path / "x", "cut short")


def with_metadata(saved: bytes, change) -> bytes:
    """The file with its metadata changed, and nothing to tell that it was."""
    from bpfpath_nb.io.parquet import _digest

    table = pq.read_table(pa.BufferReader(saved))
    metadata = json.loads(table.schema.metadata[b"bpfpath_nb"])
    metadata = change(metadata) or metadata
    text = json.dumps(metadata).encode()
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({b"bpfpath_nb": text, b"bpfpath_nb.digest": _digest(text)}), sink)
    return sink.getvalue().to_pybytes()


def test_a_newer_version_tells_to_upgrade(saved, tmp_path):
    newer = with_metadata(saved, lambda metadata: metadata.update(version=SCHEMA_VERSION + 1))
    refused(newer, tmp_path / "x", "pip install -U bpfpath_nb")


@pytest.mark.parametrize(
    "change",
    [
        lambda m: [1],
        lambda m: m.update(version="1"),
        lambda m: m.update(rows=3),
        lambda m: m.update(start={}),
        lambda m: m["start"].update(functions=m["start"]["functions"][:2]),
        lambda m: m["start"]["clock"].update(monotonic=0, realtime=1 << 62),
        lambda m: m.pop("processes"),
        lambda m: m.update(processes=[[1]]),
        lambda m: m.update(processes=[[1, 2]]),
        lambda m: m.update(devices=3),
        lambda m: m.update(devices=[[1 << 62, 1, 0, "a"]]),
        lambda m: m.update(devices=[[-1, 1, 0, "a"]]),
        lambda m: m.update(reads=[1 << 32]),
        lambda m: m.update(reads="x"),
        lambda m: m.update(locations=[["a", "b", "c"]]),
        lambda m: m.update(counters={"events_lost": "many"}),
        lambda m: m.update(end="stopped"),
        lambda m: m["checksums"].update(mark=1),
    ],
)
def test_metadata_that_makes_no_sense_is_refused(saved, change, tmp_path):
    refused(with_metadata(saved, change), tmp_path / "x", "damaged|cannot be read")


@pytest.mark.parametrize("column", ["function", "cpu", "headers", "parent", "time"])
def test_a_changed_column_is_refused(saved, column, tmp_path):
    table = pq.read_table(pa.BufferReader(saved))
    at = table.column_names.index(column)
    values = table[column].to_pylist()[::-1]
    other = table.set_column(at, column, pa.array(values, table[column].type))
    pq.write_table(other, tmp_path / "x")
    refused((tmp_path / "x").read_bytes(), tmp_path / "x", "damaged")


@settings(derandomize=True, max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=3))
def test_a_damaged_file_is_never_a_wrong_recording(whole, saved, tmp_path_factory, changes):
    data = bytearray(saved)
    for at, value in changes:
        data[int(at * len(data))] = value
    path = tmp_path_factory.mktemp("damaged") / "x"
    path.write_bytes(data)
    try:
        loaded = load_all(path)
    except RecordingError as error:
        assert str(path) in str(error)  # noqa: PT017 - either it loads or this is raised, both are right
        return
    assert_same(loaded, whole)


@settings(derandomize=True, max_examples=150, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 255))
def test_a_damaged_footer_is_never_a_wrong_recording(whole, saved, tmp_path_factory, at, value):
    # Most of a file is data; the footer needs hits of its own.
    size = int.from_bytes(saved[-8:-4], "little")
    data = bytearray(saved)
    data[len(data) - 8 - 1 - at % size] = value
    path = tmp_path_factory.mktemp("footer") / "x"
    path.write_bytes(data)
    try:
        loaded = load_all(path)
    except RecordingError:
        return
    assert_same(loaded, whole)
