"""`bpfpath FILTER` on a shell, with real packets."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bpfpath_nb import Recording
from bpfpath_nb.lab import Lab

ROOT = Path(__file__).parents[2]
ASK = ["dig", "+short", "+time=1", "+tries=1", "@10.0.2.2", "www.example.test", "A"]


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "bpfpath_nb.cli", *words]


@contextmanager
def capturing(lab: Lab, *words: str) -> Iterator[subprocess.Popen[str]]:
    """The command, from the moment when it captures."""
    namespaces = [word for name in lab.names.values() for word in ("-n", name)]
    with subprocess.Popen(
        command(*words, *namespaces), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "capturing; Ctrl-C ends it\n"
        yield process
        process.kill()


def test_paths_are_printed_and_saved(lab: Lab, tmp_path: Path) -> None:
    saved = tmp_path / "dns.parquet"
    with capturing(lab, "udp port 53", "-c", "2", "-o", str(saved)) as process:
        lab.run("client", ASK)
        printed, complained = process.communicate(timeout=60)

    assert process.returncode == 0, complained
    assert printed.count("packet 1 ") == printed.count("packet 2 ") == 1
    assert "10.0.1.1" in printed
    assert len(Recording.load(saved).packets) == 2


def test_ctrl_c_ends_it_with_a_summary(lab: Lab) -> None:
    with capturing(lab, "udp", "port", "53", "-q") as process:
        lab.run("client", ASK)
        process.send_signal(signal.SIGINT)
        printed, complained = process.communicate(timeout=60)

    assert process.returncode == 0, complained
    assert "verdict" in printed
    assert "Traceback" not in complained


def test_a_reader_that_has_seen_enough(lab: Lab) -> None:
    with capturing(lab, "udp port 53", "-c", "2") as process:
        assert process.stdout is not None
        process.stdout.close()
        lab.run("client", ASK)
        process.wait(timeout=60)
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["udp prot 53"], "prot"),
        (["-n", "no-such-namespace", "udp"], "no-such-namespace"),
        (["--on", "ftp://somewhere", "udp"], "ssh://user@host"),
        (["-d", "-1", "udp"], "duration"),
    ],
)
def test_mistakes_are_one_paragraph(words: list[str], said: str) -> None:
    done = subprocess.run(
        command(*words),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"TERM": "dumb"},
    )

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("bpfpath: ")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
