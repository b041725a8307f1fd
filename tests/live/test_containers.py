"""A namespace without a name of its own is called by the container whose processes live in it."""

from __future__ import annotations

import secrets
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpfpath_nb import Capture

SEND = "import socket, sys; s = socket.socket(type=socket.SOCK_DGRAM); sys.stdin.readline(); "
SEND += "s.sendto(b'x', ('127.0.0.1', 5400)); sys.stdin.readline()"


def _hierarchy() -> Path:
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(place)
    pytest.skip("this machine lacks: a cgroup2 hierarchy")


@pytest.fixture
def container() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A process in a network namespace and a cgroup such as Docker makes; it sends when it is told to."""
    identifier = secrets.token_hex(32)
    group = _hierarchy() / f"docker-{identifier}.scope"
    group.mkdir()
    up = "ip link set lo up && exec python3 -c " + f'"{SEND}"'
    process = subprocess.Popen(["unshare", "-n", "sh", "-c", up], stdin=subprocess.PIPE, text=True)
    (group / "cgroup.procs").write_text(str(process.pid))
    yield f"docker:{identifier[:12]}", process
    process.communicate("\n\n", timeout=10)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            group.rmdir()
            break
        except OSError:
            time.sleep(0.1)


def test_it_is_shown_and_can_be_asked_for(container: tuple[str, subprocess.Popen[str]]) -> None:
    name, process = container
    assert process.stdin is not None
    time.sleep(0.5)
    with Capture("udp port 5400", namespaces=[name]) as cap:
        process.stdin.write("\n")
        process.stdin.flush()
        deadline = time.monotonic() + 5
        while not len(cap.packets) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.2)
    assert cap.packets["netns"].tolist() == [name]
    assert cap.packets["verdict"].tolist() == ["dropped"]
