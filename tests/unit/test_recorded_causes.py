"""Every cause that was provoked on real kernels, as their recordings tell it: reason, and function that gave it up."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from bpfpath_nb import Recording
from bpfpath_nb.lab.cases import CASES, Case

RECORDINGS = Path(__file__).parents[1] / "recordings"
NOT_TOLD = {
    "5.10": {"ndisc_hop_limit"},  # before 6.3 the handler of ICMPv6 frees alike what it drops and what it used
    "6.1": {"ndisc_hop_limit"},
    "6.12": set(),
    "6.18": set(),
    "7.2": set(),
}


def dropped(recording: Recording, release: str) -> dict[str, pd.DataFrame]:
    """The packets that were dropped, by case."""
    windows = json.loads((RECORDINGS / f"cases-{release}.json").read_text())
    packets = recording.packets
    first, lost = packets["first"].astype("int64"), packets["verdict"] == "dropped"
    return {name: packets[lost & (first >= begin) & (first < end)] for name, (begin, end) in windows.items()}


def is_named(case: Case, packets: pd.DataFrame, known: set[str]) -> bool:
    right = packets["where"].isin(case.where)
    if known:
        # A kernel that has no name yet for this reason says that it gives none.
        expected = set(case.reason) & known or {"NOT_SPECIFIED"}
        right &= packets["reason"].astype(object).fillna("NOT_SPECIFIED").isin(expected)
    return bool(right.any())


@pytest.mark.parametrize("release", NOT_TOLD)
def test_each_cause_is_named_right(release: str) -> None:
    recording = Recording.load(RECORDINGS / f"cases-{release}.parquet")
    known = set(recording.start.reasons.values())

    packets = {name: lost for name, lost in dropped(recording, release).items() if CASES[name].verdict == "dropped"}
    wrong = {name for name, lost in packets.items() if not is_named(CASES[name], lost, known)}

    assert wrong == NOT_TOLD[release]
    assert len(packets) >= 70
