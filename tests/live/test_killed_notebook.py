"""A notebook that is killed while it captures: what had arrived is in the file, and nothing stays attached."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import is_there, soon, tracer_of

from bpfpath_nb.capture import Capture
from bpfpath_nb.lab import Lab
from bpfpath_nb.recording import Recording

CAPTURING = """
import sys, time
from bpfpath_nb import Capture
with Capture("icmp", namespaces=sys.argv[2:], save=sys.argv[1]) as cap:
    print("armed", flush=True)
    while True:
        cap.wait(seconds=0.1)
        print(len(cap.packets), flush=True)
"""


@pytest.fixture
def lab(lab_prefix: str):
    with Lab(("left", "right"), prefix=lab_prefix) as lab:
        yield lab


def ping(lab: Lab, count: int) -> None:
    done = lab.run("left", ["ping", "-c", str(count), "-i", "0.05", "-W", "2", lab.address("right")])
    assert done.returncode == 0


def test_a_killed_notebook_leaves_what_had_arrived(lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    process = subprocess.Popen(
        [sys.executable, "-c", CAPTURING, str(path), *lab.names.values()], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "armed\n"
        tracer = tracer_of(process.pid)
        ping(lab, 3)
        while int(process.stdout.readline()) < 6:
            pass
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()

    loaded = Recording.load(path)

    assert loaded.quality["end"] == "broken off"
    echoes = loaded.packets["flow"].str.startswith("icmp echo")
    assert echoes.sum() == 6
    assert (loaded.packets["verdict"] == "delivered").sum() >= 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.parquet"]
    assert soon(lambda: not is_there(tracer))


def test_a_stopped_capture_leaves_the_parquet_file(lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    with Capture("icmp", namespaces=list(lab.names.values()), save=path) as capture:
        ping(lab, 2)
        capture.wait(packets=4, seconds=10)
        assert len(Recording.load(path).packets) > 0  # also while it runs
        assert path.read_bytes()[:4] != b"PAR1"

    assert path.read_bytes()[:4] == b"PAR1"
    assert Recording.load(path).df.equals(capture.df)


def test_where_no_file_can_be_there_is_no_capture(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Capture("icmp", save=tmp_path / "missing" / "x.parquet")


def test_a_capture_that_cannot_start_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(LookupError):
        Capture("icmp", namespaces=["no-such-namespace"], save=tmp_path / "x.parquet")

    assert list(tmp_path.iterdir()) == []
