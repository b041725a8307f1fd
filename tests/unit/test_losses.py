"""What was lost is counted, placed in time, and marked on the packets that it may have touched."""

from __future__ import annotations

import numpy as np
import pytest
from streams import Capture as Made
from streams import capture

from bpfpath_nb.schema import EVENT_FLAGS


def without(made: Made, rows: np.ndarray) -> Made:
    keep = np.ones(len(made.events), bool)
    keep[rows] = False
    return Made(made.events[keep], made.facts, made.kinds, {"events_lost": int((~keep).sum())})


def test_nothing_lost_nothing_said():
    recording = capture(100).recording()
    assert recording.packets["complete"].all()
    quality = recording.quality
    assert (quality["events_lost"], quality["gaps"], quality["incomplete"]) == (0, 0, 0)
    assert "Lost" not in recording.text()
    assert "LOST" not in repr(recording)


@pytest.mark.parametrize("seed", range(5))
def test_every_packet_that_lost_a_hop_is_marked(seed):
    made = capture(400, seed=seed)
    lost = np.random.default_rng(seed).choice(len(made.events), 12, replace=False)
    touched = set(made.events["packet"][lost].tolist())
    packets = without(made, lost).recording().packets
    incomplete = set(packets.index[~packets["complete"]])
    assert touched & set(packets.index) <= incomplete
    # And not everybody else: a dozen short gaps cannot have touched most of four hundred packets.
    unfinished = set(packets.index[packets["verdict"] == "unfinished"])
    assert len(incomplete - unfinished) < 200


def test_the_gaps_are_where_the_events_are_missing():
    made = capture(100, seed=2)
    events = made.events
    cpu1 = np.flatnonzero(events["cpu"] == 1)
    lost = np.concatenate([cpu1[:2], cpu1[10:13]])  # the first ones of a CPU, and three in a row
    spans = without(made, lost).recording().events.when_lost
    assert spans.events == 5
    assert sorted(zip(spans.begin.tolist(), spans.end.tolist(), strict=True)) == [
        (0, int(events["time"][cpu1[2]])),
        (int(events["time"][cpu1[9]]), int(events["time"][cpu1[13]])),
    ]


@pytest.mark.parametrize("counter", ["events_lost", "events_over"])
def test_a_loss_after_the_last_event_marks_what_had_not_ended(counter):
    made = capture(50, seed=4)
    made.counters[counter] = 3
    packets = made.recording().packets
    assert (packets["complete"] == (packets["verdict"] != "unfinished")).all()


def test_a_packet_without_its_entry_has_lost_its_beginning():
    made = capture(20, seed=6)
    made.events["flags"][made.events["packet"] == 5] &= ~np.uint16(EVENT_FLAGS["entry"])
    packets = made.recording().packets
    assert packets.index[~packets["complete"]].tolist() == [5]


@pytest.mark.parametrize(("release", "told"), [("6.1.0-57-amd64", 2), ("6.12.1", 0)])
def test_a_packet_that_was_seen_while_the_kernel_skipped_programs_may_lack_hops(release, told):
    """Kernels before 6.7 do not count what they skip."""
    made = capture(20, seed=6)
    (hops,) = np.nonzero(made.events["packet"] == 7)
    made.events["flags"][hops[1:3]] |= EVENT_FLAGS["skipped"]
    recording = made.recording(release=release)
    assert recording.packets.index[~recording.packets["complete"]].tolist() == [7]
    assert (recording.quality["probe_misses"], recording.quality["incomplete"]) == (told, 1)
    assert ("2 probe hits were skipped by the kernel: packets may lack hops" in recording.text()) == (told == 2)
    made.counters["probe_misses"] = 41
    assert made.recording(release=release).quality["probe_misses"] == 41


@pytest.mark.parametrize("counter", ["events_lost", "events_over", "facts_lost", "packets_untracked", "probe_misses"])
def test_each_loss_is_loud(counter):
    made = capture(5)
    made.counters[counter] = 41
    recording = made.recording()
    assert recording.quality[counter] == 41
    assert "LOST     41 " in repr(recording)
    assert "Lost: 41 " in recording.text()
    assert "Not everything was recorded" in recording._repr_html_()
    assert "41 " in recording._repr_html_()


def test_a_packet_costs_what_its_hops_were_seen_to_cost():
    made = capture(50)
    cost = {"hop": 100, "refused": 40}
    hops = len(made.events) / 50
    assert made.recording(cost=cost).quality["cost_packet"] == pytest.approx(40 + 100 * hops)
    made.counters |= {"hops_timed": 10, "hops_time": 3_500}
    quality = made.recording(cost=cost).quality
    assert quality["cost_packet"] == pytest.approx(40 + 350 * hops)
    assert quality["cost_hop"] == 100
    assert np.isnan(made.recording().quality["cost_packet"])
