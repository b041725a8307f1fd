"""Durations and depths from the returns of functions, held against a call stack that is played by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from streams import FUNCTIONS, MONOTONIC, capture
from streams import Capture as Made

from bpfpath_nb.recording import Recording
from bpfpath_nb.schema import EVENT_DTYPE, EVENT_FLAGS

RETURN = EVENT_FLAGS["return"]


def played(seed: int, packets: int = 40, calls: int = 30) -> tuple[np.ndarray, dict[int, tuple[int, int]]]:
    """Calls of functions at random, nested, recursive, interrupted and tail-called, two packets on a CPU at a time.

    Returns the events and, by the number of each entry in its CPU's count, the duration and the depth.
    """
    random = np.random.default_rng(seed)
    rows: list[tuple[int, ...]] = []
    truth: dict[int, tuple[int, int]] = {}
    time, seq = MONOTONIC, 0
    for pair in range(0, packets, 2):
        open_calls: list[list[tuple[int, int, int, int]]] = [[], []]  # per packet: seq, time, func, stack pointer
        for step in range(calls * 2):
            which = int(random.integers(0, 2))
            packet, stack = pair + which + 1, open_calls[which]
            time += int(random.integers(1, 500))
            leave = stack and (random.random() < 0.5 or step > calls)
            if leave:
                entered, since, func, pointer = stack.pop()
                rows.append((time, pointer, packet, seq, func, RETURN))
                truth[entered] = (time - since, len(stack))
            elif step <= calls:
                # Recursion has another stack pointer; a tail call has the same and another function.
                func = int(random.integers(0, 4))
                tail = stack and random.random() < 0.3 and func not in {f for _, _, f, p in stack if p == stack[-1][3]}
                top = stack[-1][3] if stack else 0xFFFFC90000010000 + which * 0x4000
                pointer = top if tail else top - 16
                stack.append((seq, time, func, pointer))
                rows.append((time, pointer, packet, seq, func, 0))
            else:
                continue
            seq += 1
    events = np.zeros(len(rows), EVENT_DTYPE)
    for at, name in enumerate(("time", "location", "packet", "seq", "func", "flags")):
        events[name] = [row[at] for row in rows]
    return events, truth


def made(events: np.ndarray) -> Made:
    empty = capture(1)
    return replace(empty, events=events, counters={}, stacks=empty.stacks[:0])


@pytest.mark.parametrize("seed", range(5))
def test_nested_recursive_and_tail_calls_have_their_durations_and_depths(seed: int) -> None:
    events, truth = played(seed)
    recording = made(events).recording(options={"returns": True})
    assert len(recording.df) == (events["flags"] != RETURN).sum() == len(recording)
    entries = recording.events.hops["seq"].tolist()
    duration = recording.df["duration"].astype("int64").tolist()
    assert {seq: (ns, depth) for seq, ns, depth in zip(entries, duration, recording.df["depth"], strict=True)} == truth
    assert recording.quality["gaps"] == 0


def test_a_gap_reaches_to_the_next_hop_whatever_returned_meanwhile() -> None:
    events, _ = played(7)
    with_returns = made(events).recording(options={"returns": True}).df
    without = made(events[events["flags"] != RETURN]).recording().df
    pd.testing.assert_series_equal(with_returns["gap"], without["gap"])
    assert without["duration"].isna().all()
    assert without["depth"].isna().all()


def known_durations(recording: Recording) -> dict[int, int]:
    """By the number of each entry in its CPU's count."""
    duration = recording.df["duration"].dropna()
    seq = recording.events.hops["seq"][recording.df["duration"].notna().to_numpy()]
    return dict(zip(seq.tolist(), duration.astype("int64").tolist(), strict=True))


def test_a_call_whose_return_was_lost_has_no_duration() -> None:
    events, truth = played(3)
    lost = np.flatnonzero(events["flags"] == RETURN)[40:41]

    recording = made(np.delete(events, lost)).recording(options={"returns": True})

    known = known_durations(recording)
    assert len(known) == len(truth) - 1
    assert known.items() <= {seq: ns for seq, (ns, _) in truth.items()}.items()
    assert recording.quality["gaps"] == 1, "returns are counted as events are"


@pytest.mark.parametrize("seed", range(20))
def test_whatever_was_lost_no_duration_is_wrong(seed: int) -> None:
    events, truth = played(seed)
    lost = np.random.default_rng(seed).random(len(events)) < 0.1 * (1 + seed % 5)

    known = known_durations(made(events[~lost]).recording(options={"returns": True}))

    assert len(known) > 30
    assert known.items() <= {seq: ns for seq, (ns, _) in truth.items()}.items()


def test_two_calls_of_which_the_middle_was_lost_are_not_one() -> None:
    events = np.zeros(6, EVENT_DTYPE)
    events["time"] = MONOTONIC + np.array([0, 10, 20, 30, 40, 50])
    events["seq"], events["packet"], events["location"] = np.arange(6), 1, 0xFFFFC90000010000
    events["flags"][[1, 3, 5]] = RETURN

    whole, halved = (made(events[rows]).recording(options={"returns": True}) for rows in (slice(None), [0, 3, 4, 5]))

    assert known_durations(whole) == {0: 10, 2: 10, 4: 10}
    assert known_durations(halved) == {4: 10}, "the loss is not within the last call"
    assert known_durations(halved.query("hops > 0")) == {4: 10}


def test_a_return_whose_entry_was_lost_is_nobodys() -> None:
    events, truth = played(4)
    entries = np.flatnonzero(events["flags"] != RETURN)[::9]
    known = known_durations(made(np.delete(events, entries)).recording(options={"returns": True}))
    assert known.items() <= {seq: ns for seq, (ns, _) in truth.items()}.items()
    assert len(known) > len(truth) / 2


def test_the_frame_of_functions_has_them() -> None:
    events, truth = played(1)
    functions = made(events).recording(options={"returns": True}).functions
    name = FUNCTIONS[0]["name"]
    of_first = [truth[int(row["seq"])][0] for row in events if row["func"] == 0 and row["flags"] != RETURN]
    assert functions.loc[name, "duration_total"].value == sum(of_first)
    assert functions.loc[name, "duration_max"].value == max(of_first)


def test_files_keep_durations_and_what_was_lost(tmp_path: Path) -> None:
    events, _ = played(5)
    recording = made(np.delete(events, [5, 40, 41])).recording(options={"returns": True})
    path = recording.save(tmp_path / "x.parquet")
    loaded = Recording.load(path)
    pd.testing.assert_frame_equal(loaded.df, recording.df)
    pd.testing.assert_frame_equal(loaded.packets, recording.packets)
    pd.testing.assert_series_equal(loaded.quality, recording.quality)
    assert loaded.save(tmp_path / "y.parquet").read_bytes() == path.read_bytes()
