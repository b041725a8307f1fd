"""Real causes, each provoked and each named right: reason, function and namespace, as the running kernel has them."""

from __future__ import annotations

import time
from secrets import token_hex

import pandas as pd
import pytest

from bpfpath_nb import Capture, Recording
from bpfpath_nb.lab import Lab
from bpfpath_nb.lab.cases import CASES, FILTER, Case, provoked

ALL = [case for case in CASES.values() if not case.whole_machine]


@pytest.fixture(scope="module")
def recorded() -> tuple[dict[str, pd.DataFrame], Recording, dict[str, str]]:
    """Packets by case, the recording of all, and the namespaces' names: one lab and one capture for everything."""
    prefix = f"c{token_hex(2)}-"
    with (
        Lab(prefix=prefix) as lab,
        Capture(FILTER, namespaces=list(lab.names.values())) as capture,
        provoked(lab, ALL) as windows,
    ):
        time.sleep(0.3)
        capture.stop()
    recording = capture.recording
    packets, events = recording.packets, recording.events
    ends = recording.df.dropna(subset="reason").groupby(level="packet").last()
    packets = packets.assign(netns_of_end=ends["netns"].reindex(packets.index).astype(str))
    first = events.hops["time"][events.first].astype("int64")
    by_case = {name: packets[(first >= begin) & (first < end)] for name, (begin, end) in windows.items()}
    return by_case, recording, lab.names


def drops(packets: pd.DataFrame) -> set[tuple[str, str, str]]:
    """(reason, function, namespace) of what was dropped; what was freed without a word has no reason."""
    dropped = packets[packets["verdict"] == "dropped"]
    reasons = dropped["reason"].astype(object).fillna("NOT_SPECIFIED")
    return set(zip(reasons, dropped["where"].astype(str), dropped["netns_of_end"].astype(str), strict=True))


def is_named_right(case: Case, packets: pd.DataFrame, netns: str) -> bool:
    """Whether what is expected is there, and no drop beside it."""
    found = drops(packets)
    expected = {(r, w, n) for r, w, n in found if r in case.reason and w in case.where and n == netns}
    others = {reason for reason, _, _ in found - expected} - set(case.also)
    there = bool(expected) if case.verdict == "dropped" else case.verdict in set(packets["verdict"])
    return there and not others


def test_each_cause_is_named_right(recorded: tuple) -> None:
    packets, _, names = recorded

    wrong = {
        case.name: (sorted(set(packets[case.name]["verdict"])), sorted(drops(packets[case.name])))
        for case in ALL
        if not is_named_right(case, packets[case.name], names[case.ns])
    }

    assert wrong == {}
    assert sum(case.verdict == "dropped" for case in ALL) >= 20


def test_nothing_was_missed(recorded: tuple) -> None:
    quality = recorded[1].quality

    assert quality["events_lost"] == quality["facts_lost"] == quality["incomplete"] == 0
