"""The command line, as a shell sees it."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from streams import capture

from bpfpath_nb import cli
from bpfpath_nb.analysis.events import Collector
from bpfpath_nb.doctor import doctor
from bpfpath_nb.recording import Recording
from bpfpath_nb.stream import Reader
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


def test_a_file_that_cannot_be_written_is_said_before_anything_is_captured() -> None:
    done = bpfpath("icmp", "-o", "/no/such/folder/x.parquet")

    assert done.returncode == 1
    assert "capturing" not in done.stderr
    assert done.stderr.startswith("bpfpath: [Errno 2]")
    assert "Traceback" not in done.stderr


def test_whoever_names_a_file_is_told_how_it_is_read() -> None:
    done = bpfpath("bpfpath_nb/samples/dns.parquet")

    assert done.returncode == 1
    assert "`bpfpath_nb.Recording.load('bpfpath_nb/samples/dns.parquet')`" in done.stderr


@pytest.mark.parametrize("words", [("udp", "prot", "53"), ("udp prot 53 or " + "x" * 400,)])
def test_a_filter_that_does_not_parse_is_one_paragraph(words: tuple[str, ...]) -> None:
    done = bpfpath(*words)

    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("bpfpath: ")
    assert "Traceback" not in done.stderr


class Growing:
    """A capture that brings one more batch between two looks, and then ends."""

    def __init__(self, packets: int, looks: int) -> None:
        reader = Reader(io.BytesIO(capture(packets, kinds=("answered",)).write(batches=looks)))
        self._batches = list(reader)[:looks]
        self._collector = Collector(reader.start)
        self.wait(0)

    @property
    def recording(self) -> Recording:
        return Recording(self._collector.events())

    @property
    def status(self) -> SimpleNamespace:
        return SimpleNamespace(state="capturing" if self._batches else "stopped")

    def wait(self, seconds: float) -> None:
        self._collector.add(self._batches.pop(0))


def followed(capsys: pytest.CaptureFixture[str], packets: int, looks: int) -> tuple[list[int], list[int]]:
    """Which packets were printed, and how many were said to be left out at a time."""
    cli._follow(Growing(packets, looks), quiet=False)  # type: ignore[arg-type]
    text = capsys.readouterr().out
    shown = [int(number) for number in re.findall(r"^packet (\d+) ", text, re.M)]
    return shown, [int(number) for number in re.findall(r"^\.\.\. and (\d+) more packets", text, re.M)]


def test_every_path_is_printed_once_and_when_it_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert followed(capsys, 40, 5) == ([*range(1, 41)], [])


def test_of_more_paths_than_can_be_printed_the_rest_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    shown, left_out = followed(capsys, 2000, 4)
    assert len(shown) == len(set(shown)) <= 4 * cli._PATHS_PER_LOOK
    assert len(shown) + sum(left_out) == 2000


def test_a_long_table_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    cli._summarise(capture(cli._TABLE_ROWS + 7).recording())
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "... and 7 more packets"
    assert sum("udp 10.0." in line for line in lines) == cli._TABLE_ROWS
