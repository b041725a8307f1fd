"""The command line, as a shell sees it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bpfpath_nb.doctor import doctor
from bpfpath_nb.version import __version__

ROOT = Path(__file__).parents[2]


def bpfpath(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bpfpath_nb.cli", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_doctor_prints_the_table_and_says_by_its_status_whether_captures_work() -> None:
    done = bpfpath("doctor")

    expected = doctor()
    assert done.returncode == (0 if expected.able else 1)
    assert done.stdout.endswith(expected.verdict + "\n")
    assert done.stderr == ""


def test_version() -> None:
    assert bpfpath("--version").stdout == f"bpfpath_nb {__version__}\n"


def test_mistakes_on_the_command_line_have_status_2() -> None:
    assert bpfpath("--no-such-option").returncode == 2
    assert bpfpath("doctor", "now").returncode == 2
    assert bpfpath("-c", "many").returncode == 2


def test_a_filter_that_does_not_parse_is_one_paragraph() -> None:
    done = bpfpath("udp", "prot", "53")

    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("bpfpath: ")
    assert "Traceback" not in done.stderr
