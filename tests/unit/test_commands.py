"""The commands that a diagnosis advises: of the case, for its protocol, and safe to paste."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from streams import capture

from bpfpath_nb import Recording
from bpfpath_nb.analysis.advice import inside, rules
from bpfpath_nb.analysis.diagnose import _Shown, _values

RECORDINGS = Path(__file__).parents[1] / "recordings"


def test_names_of_others_cannot_become_commands_or_markup() -> None:
    made = capture(7, kinds=("closed",))
    record = made.recording().start.raw
    hostile = "x; rm -rf / #$(id)`id`'\"<script>"
    recording = made.recording(**record)
    events = recording.events
    devices = {place: tuple((since, hostile) for since, _ in told) for place, told in events.devices.items()}
    object.__setattr__(events, "devices", devices)

    diagnosis = Recording(events).diagnose()

    commands = diagnosis.findings["check"].iloc[0].splitlines()
    assert commands
    for command in commands:
        # Behind the fixed beginning every word is one word of the rule: nothing of the name stands on its own.
        assert command.startswith('nsenter --net --target "$(lsns --noheadings --output PID ')
        assert "rm" not in shlex.split(command)
    assert "<script>" not in diagnosis._repr_html_()


@pytest.mark.parametrize(
    ("netns", "start"),
    [
        ("host", ""),
        ("web-1.a", "ip netns exec web-1.a "),
        ("-n", "nsenter "),
        ("net:[4026531992]", "nsenter "),
        ("a b", "nsenter "),
    ],
)
def test_how_a_namespace_is_entered(netns: str, start: str) -> None:
    prefix = inside(netns, 4026531992)

    assert prefix.startswith(start)
    assert bool(prefix) == bool(start)


def addressed(rule: str, name: str) -> list[str]:
    """The commands of a rule for the segment of an IPv6 connection."""
    recording = Recording.load(RECORDINGS / f"{name}.parquet").query("src.str.startswith('fd00').fillna(False)")
    shown = _Shown(recording.events, recording._flows)
    rows = np.flatnonzero((shown.proto(np.arange(len(recording.events))).codes >= 0) & (recording.df["dev"].notna()))
    return next(r for r in rules() if r.id == rule).commands(_values(int(rows[0]), shown, "f"))


@pytest.mark.parametrize(
    ("rule", "command"),
    [
        ("neighbour-queue", "sysctl net.ipv6.neigh.eth0.unres_qlen_bytes"),
        ("route-refuses", "ip -6 rule show"),
        ("route-refuses", "sysctl net.ipv6.conf.eth0.forwarding"),
    ],
)
def test_commands_for_ipv6_ask_about_ipv6(rule: str, command: str) -> None:
    assert any(line.endswith(command) for line in addressed(rule, "stock-7.2"))


def test_commands_for_ipv6_are_such_as_ss_reads() -> None:
    (command,) = [line for line in addressed("tcp-window", "stock-7.2") if " ss " in line]

    done = subprocess.run(["ss", *shlex.split(command)[5:]], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


def test_what_waited_in_a_socket_is_looked_for_in_its_namespace() -> None:
    findings = Recording.load(RECORDINGS / "stock-6.12.parquet").diagnose().findings
    waited = findings[findings["rule"] == "wait-socket"]

    assert set(waited["netns"]) <= {"client", "server"}
    assert all("ip netns exec " in line for lines in waited["check"] for line in lines.splitlines())
