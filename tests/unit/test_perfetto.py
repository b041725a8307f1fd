"""The Perfetto trace, parsed back: every hop a slice, in its place, with its gap."""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from perfetto.protos.perfetto.trace import perfetto_trace_pb2
from streams import Capture, capture

from bpfpath_nb import sample
from bpfpath_nb.errors import RequirementError
from bpfpath_nb.io.perfetto import lanes
from bpfpath_nb.recording import Recording
from bpfpath_nb.schema import EVENT_DTYPE, FACTS_DTYPE


class Trace:
    """A trace as its reader sees it: slices with their names, places and what they tell."""

    def __init__(self, path: Path) -> None:
        self.packets = perfetto_trace_pb2.Trace.FromString(path.read_bytes()).packet
        first = next(p for p in self.packets if p.HasField("interned_data"))
        assert first.sequence_flags & 1
        interned = first.interned_data
        self.names = {entry.iid: entry.name for entry in interned.event_names}
        self.categories = {entry.iid: entry.name for entry in interned.event_categories}
        self.keys = {entry.iid: entry.name for entry in interned.debug_annotation_names}
        self.values = {entry.iid: entry.str.decode() for entry in interned.debug_annotation_string_values}
        told = (p.track_descriptor for p in self.packets if p.HasField("track_descriptor"))
        self.tracks = {track.uuid: track for track in told}
        self.stays, self.hops = self._slices()

    def place(self, uuid: int) -> tuple[str, str]:
        track = self.tracks[uuid]
        return self.tracks[track.parent_uuid].name, track.name

    def _slices(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Slices of packets and of functions. Readers order by time and keep the file's order where it is the same."""
        open_: dict[int, list[dict[str, Any]]] = defaultdict(list)
        found: list[list[dict[str, Any]]] = [[], []]
        events = [p for p in self.packets if p.HasField("track_event")]
        for packet in sorted(events, key=lambda p: p.timestamp):
            event = packet.track_event
            stack = open_[event.track_uuid]
            if event.type == event.TYPE_SLICE_END:
                ended = stack.pop()
                ended["end"] = packet.timestamp
                continue
            assert len(stack) < 2, "slices overlap in a track"
            told = {
                self.keys[a.name_iid]: self.values[a.string_value_iid]
                if a.HasField("string_value_iid")
                else a.uint_value
                for a in event.debug_annotations
            }
            new = {"begin": packet.timestamp, "name": self.names[event.name_iid], "flows": list(event.flow_ids)}
            new |= {"place": self.place(event.track_uuid), "layers": [self.categories[c] for c in event.category_iids]}
            new |= {"told": told, "packet": told["packet"] if not stack else stack[0]["packet"]}
            found[len(stack)].append(new)
            stack.append(new)
        assert not any(open_.values()), "a slice that does not end"
        return found[0], found[1]


@pytest.fixture(scope="module", params=["dns", "made"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recording, Trace]:
    recording = sample("dns") if request.param == "dns" else capture(200, lost=0.02).recording()
    return recording, Trace(recording.to_perfetto(tmp_path_factory.mktemp("trace") / "x.pftrace"))


def test_each_hop_is_a_slice_as_long_as_its_gap(written: tuple[Recording, Trace]) -> None:
    recording, trace = written

    of_packet = defaultdict(list)
    for hop in trace.hops:
        of_packet[hop["packet"]].append(hop)
    assert sorted(of_packet) == recording.packets.index.tolist()
    for number, hops in of_packet.items():
        rows = recording.df.loc[number]
        assert [hop["name"] for hop in hops] == rows["func"].tolist()
        assert [hop["layers"] for hop in hops] == [[layer] for layer in rows["layer"]]
        assert [hop["begin"] for hop in hops] == [time.value for time in rows["time"]]
        assert [hop["end"] - hop["begin"] for hop in hops[:-1]] == [gap.value for gap in rows["gap"][:-1]]
        assert hops[-1]["end"] == hops[-1]["begin"]
        assert [hop["place"] for hop in hops] == [
            (netns, dev if isinstance(dev, str) else "-") for netns, dev in zip(rows["netns"], rows["dev"], strict=True)
        ]
        assert [hop["told"]["cpu"] for hop in hops] == rows["cpu"].tolist()
        assert [hop["told"].get("reason", "") for hop in hops] == rows["reason"].astype(object).fillna("").tolist()


def test_stays_of_a_packet_are_joined_and_tell_its_end(written: tuple[Recording, Trace]) -> None:
    recording, trace = written

    for stay in trace.stays:
        packet = recording.packets.loc[stay["packet"]]
        assert stay["flows"] == [stay["packet"]]
        assert stay["name"] in set(recording.df.loc[stay["packet"]]["flow"])
        dropped = f"dropped: {packet['reason']} in {packet['where']}"
        assert stay["told"]["end"] == (dropped if packet["verdict"] == "dropped" else packet["verdict"])
    assert {stay["place"][0] for stay in trace.stays} == {"client", "router", "server"}


def test_what_was_lost_stands_at_the_root(tmp_path: Path) -> None:
    trace = Trace(capture(50, lost=0.1).recording().to_perfetto(tmp_path / "x"))

    root = next(track for track in trace.tracks.values() if not track.parent_uuid)
    assert "udp port 53" in root.description
    assert "events were lost" in root.description


def test_a_recording_of_nothing_is_a_trace_of_nothing(tmp_path: Path) -> None:
    empty = Capture(np.empty(0, EVENT_DTYPE), np.empty(0, FACTS_DTYPE), np.empty(0), {}).recording()

    assert Trace(empty.to_perfetto(tmp_path / "x")).stays == []


def test_chunks_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = capture(100).recording()
    whole = recording.to_perfetto(tmp_path / "whole").read_bytes()
    monkeypatch.setattr("bpfpath_nb.io.perfetto._CHUNK_HOPS", 40)

    assert recording.to_perfetto(tmp_path / "parts").read_bytes() == whole


def test_without_the_package_it_is_said_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "perfetto.protos.perfetto.trace", None)

    with pytest.raises(RequirementError, match="pip install perfetto"):
        sample("dns").to_perfetto(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 10)), min_size=1, max_size=30))
def test_lanes_hold_no_two_at_once_and_are_as_few_as_can_be(spans: list[tuple[int, int]]) -> None:
    begin = np.sort(np.array([start for start, _ in spans]))
    end = begin + [length for _, length in spans]

    lane = lanes(begin, end)

    end = np.maximum(end, begin + 1)
    for one in set(lane.tolist()):
        rows = np.flatnonzero(lane == one)
        assert (begin[rows][1:] >= end[rows][:-1]).all()
    most = max(int(((begin <= t) & (t < end)).sum()) for t in range(45))
    assert len(set(lane.tolist())) == most
