"""The file of a capture while it runs: at every moment readable as far as it goes, and never wrong."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import capture

from bpfpath_nb.errors import RecordingError
from bpfpath_nb.io.live import LiveFile
from bpfpath_nb.recording import Recording

MADE = capture(40)
SIZES = (4, 4, 700, 8, 4000)


def written(path: Path, stream: bytes, keep: int | None = None) -> Path:
    """The file as it is when so much of the stream had come, in reads of many sizes."""
    file = LiveFile(path)
    at, turn = 0, 0
    stream = stream[:keep]
    while at < len(stream):
        size = SIZES[turn % len(SIZES)]
        file.write(stream[at : at + size])
        at, turn = at + size, turn + 1
    file.show()
    file.close()
    return path


def test_a_whole_stream_is_the_recording(tmp_path: Path) -> None:
    loaded = Recording.load(written(tmp_path / "x.parquet", MADE.write()))

    assert loaded.df.equals(MADE.recording().df)
    assert loaded.quality["end"] == "stopped"
    assert "LOST" not in repr(loaded)


def test_what_had_come_is_there_and_said_to_be_a_part(tmp_path: Path) -> None:
    stream = MADE.write(batches=8, end=False)

    loaded = Recording.load(written(tmp_path / "x.parquet", stream, len(stream) // 2))

    whole = MADE.recording().df
    assert 0 < len(loaded) < len(whole)
    assert loaded.quality["end"] == "broken off"
    assert "broken off" in repr(loaded)
    seen = set(zip(loaded.df["time"], loaded.df["func"], loaded.df["skb"], strict=True))
    assert seen < set(zip(whole["time"], whole["func"], whole["skb"], strict=True))


def test_a_part_can_be_saved_and_still_says_so(tmp_path: Path) -> None:
    stream = MADE.write(end=False)
    loaded = Recording.load(written(tmp_path / "x", stream, len(stream) // 2))

    assert Recording.load(loaded.save(tmp_path / "y")).quality["end"] == "broken off"


def test_a_file_of_nothing_yet_is_refused(tmp_path: Path) -> None:
    for keep in (0, 3, 100):
        with pytest.raises(RecordingError, match="nothing in it"):
            Recording.load(written(tmp_path / "x", MADE.write(), keep))


def test_an_older_file_stays_until_the_new_one_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")

    file = LiveFile(path)
    file.write(b"new")

    assert path.read_text() == "old"
    file.close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]
    assert path.read_text() == "old"


def test_a_full_disk_ends_the_copy_and_nothing_else(tmp_path: Path) -> None:
    file = LiveFile(tmp_path / "x")
    os.dup2(os.open("/dev/full", os.O_WRONLY), file._handle)

    file.write(b"data")
    file.write(b"data")

    assert isinstance(file.error, OSError)
    file.close()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return written(tmp_path_factory.mktemp("kept") / "x", MADE.write(batches=4)).read_bytes()


@settings(derandomize=True, max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=3))
def test_a_damaged_file_is_never_a_wrong_recording(kept: bytes, tmp_path_factory, changes) -> None:
    data = bytearray(kept)
    for at, value in changes:
        data[int(at * len(data))] = value
    path = tmp_path_factory.mktemp("damaged") / "x"
    path.write_bytes(data)
    try:
        loaded = Recording.load(path)
    except RecordingError as error:
        assert str(path) in str(error)  # noqa: PT017 - either it loads or this is raised, both are right
        return
    whole = MADE.recording().df
    seen = set(zip(loaded.df["time"], loaded.df["func"], loaded.df["skb"], strict=True))
    assert seen <= set(zip(whole["time"], whole["func"], whole["skb"], strict=True))
    assert loaded.quality["end"] == ("broken off" if len(loaded) < len(whole) else loaded.quality["end"])


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.floats(0, 1))
def test_cut_anywhere_it_is_a_part_or_refused(kept: bytes, tmp_path_factory, share: float) -> None:
    path = tmp_path_factory.mktemp("cut") / "x"
    path.write_bytes(kept[: max(8, int(len(kept) * share))])
    try:
        loaded = Recording.load(path)
    except RecordingError:
        assert share < 0.5  # only where not even the start record had come
        return
    assert (loaded.quality["end"] == "broken off") == (share < 1)
