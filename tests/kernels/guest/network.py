"""The network of the tests in a stock kernel's machine, and what sends through it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from bpfpath_nb import Capture, tracers
from bpfpath_nb.lab import Lab
from bpfpath_nb.tracer.syscall import program_ids

Note = Callable[[str, object], None]
MODULES = (
    "veth",
    "bridge",
    "nf_tables",
    "nf_conntrack",
    "nf_nat",
    "nft_chain_nat",
    "nft_ct",
    "tun",
    "ip_tables",
    "cls_bpf",
)

SEND = """
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
s = socket.socket(family, socket.SOCK_DGRAM)
for _ in range(int(sys.argv[3])):
    s.sendto(b"0123456789", (sys.argv[1], int(sys.argv[2])))
"""


def plain(*command: str) -> list[str]:
    """The system's own Python: it starts in a second where ours takes ten."""
    return ["/usr/bin/python3", "-S", "-c", *command]


def send(lab: Lab, ns: str, address: str, port: int, count: int = 1) -> None:
    done = lab.run(ns, plain(SEND, address, str(port), str(count)), timeout=300)
    assert done.returncode == 0, done.stderr


def settled(cap: Capture, packets: int, seconds: float = 30.0) -> Capture:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        frame = cap.packets
        if (frame["verdict"] != "unfinished").sum() >= packets:
            break
        time.sleep(0.2)
    return cap


@pytest.fixture(scope="module", autouse=True)
def modules() -> None:
    for module in MODULES:
        subprocess.run(["modprobe", "-q", module], check=False)


@pytest.fixture(scope="module")
def lab(modules: None) -> Iterator[Lab]:
    with Lab.dns() as lab:
        yield lab


@pytest.fixture(scope="module", autouse=True)
def programs_at_the_end() -> Iterator[None]:
    before = set(program_ids())
    yield
    tracers.close_idle()
    deadline = time.monotonic() + 30
    while left := set(program_ids()) - before:
        assert time.monotonic() < deadline, f"BPF programs left: {left}"
        time.sleep(0.2)
