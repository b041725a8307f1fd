"""JSON lines: read back by a plain parser they are the frames again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from streams import Capture, capture

from bpfpath_nb import sample
from bpfpath_nb.recording import Recording
from bpfpath_nb.schema import EVENT_DTYPE, FACTS_DTYPE


def strict(text: str) -> list[dict[str, Any]]:
    """Lines, parsed by the letter of RFC 8259."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def restored(entries: list[dict[str, Any]], like: pd.DataFrame) -> pd.DataFrame:
    """Parsed objects as a frame with the columns and dtypes of another."""
    columns = {}
    for name in like.columns:
        values, dtype = [entry[name] for entry in entries], like[name].dtype
        if dtype.kind == "m":
            values = np.array(["NaT" if value is None else value for value in values], "m8[ns]")
        elif name == "skb":
            values = np.array([int(value, 16) for value in values], np.uint64)
        elif isinstance(dtype, pd.DatetimeTZDtype):
            values = pd.to_datetime(pd.Series(values, dtype=object), utc=True, format="ISO8601").astype(dtype)
        columns[name] = pd.Series(values).astype(dtype).array
    return pd.DataFrame(columns, index=like.index)


@pytest.mark.parametrize("recording", [sample("dns"), capture(60, lost=0.05).recording()], ids=["dns", "lossy"])
def test_the_frames_come_back(recording: Recording) -> None:
    head, *packets = strict(recording.to_json())

    counted = [{**packet, "hops": len(packet["hops"])} for packet in packets]
    pd.testing.assert_frame_equal(restored(counted, recording.packets), recording.packets)
    assert [packet["packet"] for packet in packets] == recording.packets.index.tolist()
    hops = [hop for packet in packets for hop in packet["hops"]]
    pd.testing.assert_frame_equal(restored(hops, recording.df), recording.df)
    quality = {name: None if value != value else value for name, value in recording.quality.items()}  # noqa: PLR0124
    assert head["recording"]["quality"] == quality
    assert head["recording"]["start"] == recording.start.raw


def test_the_stored_bytes_come_back() -> None:
    recording = sample("dns")

    packets = strict(recording.to_json())[1:]

    told = [(p["packet"], s) for p in packets for s in p["snapshots"]]
    facts = recording.events.facts
    assert len(told) == len(facts)
    for (number, snapshot), fact in zip(told, facts, strict=True):
        assert number == fact["packet"]
        assert bytes.fromhex(snapshot["headers"]) == fact["headers"][: fact["caplen"]].tobytes()
        assert [snapshot[name] for name in ("link", "len", "parent")] == [fact[n] for n in ("link", "len", "parent")]
        rows = recording.events.hops["packet"] == number
        assert recording.events.hops["snapshot"][rows][snapshot["hop"]] == fact["snapshot"]


def test_a_file_is_the_same_text(tmp_path: Path) -> None:
    recording = sample("dns")

    assert recording.to_json(tmp_path / "x.jsonl").read_text() == recording.to_json()


def test_names_with_quotes_and_numbers_that_are_none_stay_json() -> None:
    made = capture(20)
    recording = made.recording(host='a"b\\c\u2028', timing={"compile": float("nan"), "all": [float("inf")]})

    head = strict(recording.to_json())[0]["recording"]

    assert head["start"]["timing"] == {"compile": None, "all": [None]}
    assert head["start"]["host"] == 'a"b\\c\u2028'


def test_packets_without_any_bytes_have_no_snapshots() -> None:
    made = Capture(np.zeros(2, EVENT_DTYPE), np.empty(0, FACTS_DTYPE), np.empty(0), {})
    made.events["packet"] = made.events["time"] = made.events["seq"] = [1, 2]

    packets = strict(made.recording().to_json())[1:]

    assert [packet["snapshots"] for packet in packets] == [[], []]


def test_a_recording_of_nothing_is_its_first_line() -> None:
    empty = Capture(np.empty(0, EVENT_DTYPE), np.empty(0, FACTS_DTYPE), np.empty(0), {}).recording()

    assert [list(line) for line in strict(empty.to_json())] == [["recording"]]


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    recording = capture(100, lost=0.05).recording()
    whole = recording.to_json()
    monkeypatch.setattr("bpfpath_nb.io.json_lines._CHUNK_HOPS", 40)

    assert recording.to_json() == whole
