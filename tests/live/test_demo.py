"""`make demo` without its notebook: what it shows, and that it goes when it is interrupted."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from bpfpath_nb.lab import ledger

ROOT = Path(__file__).parents[2]


def demo(prefix: str) -> list[str]:
    return [sys.executable, "-m", "bpfpath_nb.lab.demo", "--no-notebook", "--prefix", prefix]


def test_three_queries_with_three_ends(lab_prefix: str) -> None:
    done = subprocess.run(demo(lab_prefix), cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode == 0, done.stderr
    table = done.stdout.partition("cap\n")[2].partition("cap.text")[0]
    rows = table.partition("verdict\n")[2].partition("\n\n")[0].replace("\n        ", " ").splitlines()
    answered, answer, dropped, refused = rows
    assert max(map(len, table.splitlines())) <= 80
    assert "udp 10.0.1.1:" in answered
    assert "> 10.0.2.2:53" in answered
    assert "udp 10.0.2.2:53 > 10.0.1.1:" in answer
    assert "dropped" in dropped
    assert "NETFILTER_DROP" in dropped
    assert "> 10.0.1.2:53" in refused
    assert "NO_SOCKET" in refused
    assert "the path of a dropped packet" in done.stdout


def test_interrupted(lab_prefix: str) -> None:
    process = subprocess.Popen(demo(lab_prefix), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while "Capturing" not in (line := process.stdout.readline()):
        assert line, "it ended before it captured"

    process.send_signal(signal.SIGINT)
    _, complained = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "everything is taken down" in complained
    assert not [path for path in ledger.NETNS.iterdir() if path.name.startswith(lab_prefix)]
