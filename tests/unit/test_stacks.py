"""Of each drop the stack that led there: told beside the events, found by packet and time, kept in files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from streams import HOOK, INDEX, IP_RCV, UDP_RCV, capture, start_record

from bpfpath_nb.errors import TracerError
from bpfpath_nb.recording import Recording
from bpfpath_nb.schema import EVENT_FLAGS, STACKS_DTYPE, TIME_LIMIT
from bpfpath_nb.stream import Reader, Writer

VERSION_1 = Path(__file__).parents[1] / "recordings" / "version1.parquet"


def test_each_drop_has_its_stack() -> None:
    events = capture(200, lost=0.1).recording().events
    drops = (events.hops["func"] == INDEX["kfree_skb"]) & (events.hops["flags"] & EVENT_FLAGS["end"] != 0)
    assert drops.any()
    np.testing.assert_array_equal(events.stack_of >= 0, drops)
    stacks = events.stacks[events.stack_of[drops]]
    np.testing.assert_array_equal(stacks["packet"], events.hops["packet"][drops])
    np.testing.assert_array_equal(stacks["time"], events.hops["time"][drops])
    np.testing.assert_array_equal(stacks["frames"][:, 0], events.hops["location"][drops])
    assert (stacks["frames"][:, 1] == IP_RCV).all()
    assert not stacks["frames"][:, 2:].any()
    np.testing.assert_array_equal(stacks["tcp_state"], 1 + stacks["packet"] % 11)


def test_a_stack_whose_end_was_lost_is_left_out() -> None:
    made = capture(50)
    made.events = made.events[made.events["func"] != INDEX["kfree_skb"]]
    assert len(made.stacks) > 0
    assert len(made.recording().events.stacks) == 0


def test_of_two_stacks_for_one_end_the_last_told_counts() -> None:
    made = capture(50)
    again = made.stacks.copy()
    again["link"] = 7
    made.stacks = np.concatenate([made.stacks, again])
    assert set(made.recording().events.stacks["tcp_state"]) == {7}


def test_nothing_stands_behind_a_stacks_end() -> None:
    made = capture(50)
    made.stacks["headers"].view("<u8")[:, 1:] = [0, HOOK, *[UDP_RCV] * 13]
    frames = made.recording().events.stacks["frames"]
    assert frames[:, 0].all()
    assert not frames[:, 1:].any()


def test_a_drop_at_an_impossible_time_is_refused() -> None:
    rows = capture(10).stacks
    rows["time"][0] = TIME_LIMIT
    sink = io.BytesIO()
    writer = Writer(sink, start_record())
    writer.write(side={"facts": rows})
    writer.close()
    with pytest.raises(TracerError, match="no clock"):
        list(Reader(io.BytesIO(sink.getvalue())))


def test_files_keep_stacks(tmp_path: Path) -> None:
    recording = capture(100, lost=0.05).recording()
    loaded = Recording.load(recording.save(tmp_path / "x.parquet"))
    assert len(loaded.events.stacks) > 0
    np.testing.assert_array_equal(loaded.events.stacks, recording.events.stacks)
    np.testing.assert_array_equal(loaded.events.stack_of, recording.events.stack_of)


def test_a_file_of_version_1_has_none_and_is_read_all_the_same(tmp_path: Path) -> None:
    old = Recording.load(VERSION_1)
    assert old.start.version == 1
    assert old.packets["verdict"].value_counts().to_dict() == {
        "delivered": 3, "dropped": 2, "sent": 1, "consumed": 1, "unfinished": 1,
    }  # fmt: skip
    assert len(old.df) == 104
    assert old.events.stacks.dtype == STACKS_DTYPE
    assert len(old.events.stacks) == 0
    assert (old.events.stack_of == -1).all()
    again = Recording.load(old.save(tmp_path / "x.parquet"))
    assert again.packets.equals(old.packets)
