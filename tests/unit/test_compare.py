"""Comparisons: what was planted is found, with the right sign and an interval that holds it; what was not, is not."""

from __future__ import annotations

import numpy as np
import streams

from bpfpath_nb import Recording
from bpfpath_nb.analysis.compare import Tables
from bpfpath_nb.analysis.sides import Selection

TABLES = ("verdicts", "drops", "paths", "functions", "transitions")
CLAIMS = ["added", "gone", "shifted", "slower", "faster"]
USUAL = ("answered", "closed", "left")


def claims(tables) -> list[str]:
    """Everything that is claimed, as text."""
    found = []
    for name in TABLES:
        table = getattr(tables, name)
        found += [f"{name} {key} {change}" for key, change in table["change"].items() if change in CLAIMS]
        # A p under the level is a claim, whatever `change` makes of it.
        small = table.filter(regex="_p$").lt(0.05).any(axis=1)
        assert set(table.index[table["change"].isin(CLAIMS)]) == set(table.index[small])
    return found


def part(recording, packets) -> Selection:
    return Selection(recording.events, packets)


def rec(packets, seed, **options) -> Recording:
    return streams.capture(packets, seed=seed, **options).recording()


# What is not there


def test_halves_of_one_capture_do_not_differ() -> None:
    random = np.random.default_rng(7)
    captures = {
        spread: rec(2000, at, kinds=(*USUAL, "filtered", "tapped"), spread=spread, weights=(0.5, 0.2, 0.2, 0.07, 0.03))
        for at, spread in enumerate(streams.SPREADS)
    }
    alarms = []
    for at in range(200):
        recording = captures[list(captures)[at % len(captures)]]
        size = (30, 100, 250, 600)[at // 4 % 4]
        order = random.permutation(2000)
        halves = []
        # Every third pair is of sizes that differ by far.
        for begin, end in ((0, size), (size, 2 * size if at % 3 else 3 * size)):
            chosen = np.zeros(2000, bool)
            chosen[order[begin:end]] = True
            halves.append(part(recording, chosen))
        found = claims(Tables(*halves))
        alarms += [(at, found)] if found else []

    assert len(alarms) < 10, alarms
