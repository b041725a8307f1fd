"""What holds for live tests: they need root, and each leaves the machine as it found it.

`leaves_nothing` looks at the machine before and after every test here: BPF programs and links, clsact qdiscs with
their filters, named network namespaces, processes. The kernel frees programs and namespaces some time after the last
user is gone, so what is too much gets a few seconds to go.

Other people may use the machine meanwhile. What is held by a process that did not come from this run of pytest is
theirs; processes of this run are known by `BPFPATH_TEST_SESSION` in their environment.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import secrets
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from bpfpath_nb import tracers
from bpfpath_nb.lab import Lab

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `processes`

SESSION = "BPFPATH_TEST_SESSION"
TRACEFS = "/sys/kernel/tracing"
PATIENCE = 8.0  # seconds in which the kernel must have freed what a test let go

_prefix = f"t{secrets.token_hex(2)}-"
_numbers = count(1)


def pytest_configure() -> None:
    os.environ[SESSION] = secrets.token_hex(8)


def pytest_runtest_setup() -> None:
    if os.geteuid() != 0:
        pytest.skip("live tests load BPF programs and make network namespaces: run them as root (sudo make test)")


@pytest.fixture(scope="session", autouse=True)
def tracefs() -> Iterator[None]:
    """Where nobody has mounted tracefs yet: some tests hold ours against what stands there, and tcpdrop wants it."""
    if Path(TRACEFS, "events").is_dir() or Path("/sys/kernel/debug/tracing/events").is_dir():
        yield
        return
    mounted = subprocess.run(["mount", "-t", "tracefs", "nodev", TRACEFS], capture_output=True, check=False)
    yield
    if mounted.returncode == 0:
        subprocess.run(["umount", TRACEFS], check=True)


@pytest.fixture
def lab_prefix() -> str:
    """A prefix for the namespaces of a test's lab, used once."""
    return f"{_prefix}{next(_numbers)}-"


@pytest.fixture
def lab(lab_prefix: str) -> Iterator[Lab]:
    """Client, router and server with dnsmasq, under names of their own."""
    with Lab.dns(prefix=lab_prefix) as lab:
        yield lab


@pytest.fixture(autouse=True)
def leaves_nothing() -> Iterator[None]:
    """Fail a test that leaves anything of ours on the machine."""
    before = look()
    yield
    tracers.close_idle()  # one may wait for the next capture; that is no leftover
    deadline = time.monotonic() + PATIENCE
    while left := leftovers(before, look()):
        if time.monotonic() > deadline:
            pytest.fail("left behind: " + "; ".join(left))
        time.sleep(0.1)


@pytest.fixture(scope="session", autouse=True)
def no_process_stays() -> Iterator[None]:
    """At the end the tracers that were kept go too, and then no process of this run is left."""
    yield
    if "bpfpath_nb.tracers" in sys.modules:
        sys.modules["bpfpath_nb.tracers"].close_idle()
    assert list(_processes_of_this_run()) == []


@dataclass(frozen=True)
class Look:
    """What is on the machine at one moment."""

    programs: frozenset[int]
    links: frozenset[int]
    filters: frozenset[tuple[str, str, str]]
    namespaces: frozenset[str]
    processes: frozenset[tuple[int, str]]


def look() -> Look:
    namespaces = _namespaces()
    return Look(
        programs=frozenset(_ids(_PROG_GET_NEXT_ID)),
        links=frozenset(_ids(_LINK_GET_NEXT_ID)),
        filters=frozenset(line for name in ("", *sorted(namespaces)) for line in _filters(name)),
        namespaces=namespaces,
        processes=frozenset(_processes_of_this_run()),
    )


def leftovers(before: Look, after: Look) -> list[str]:
    """What `after` has too much, in words."""
    programs, links = after.programs - before.programs, after.links - before.links
    if programs or links:
        others_programs, others_links = _held_by_others()
        programs, links = programs - others_programs, links - others_links
    namespaces = {name for name in after.namespaces - before.namespaces if not _of_others(name)}
    filters = {line for line in after.filters - before.filters if line[0] in before.namespaces | namespaces | {""}}
    return [
        *(f"BPF program {number} ({_program_name(number)})" for number in sorted(programs)),
        *(f"BPF link {number}" for number in sorted(links)),
        *(f"{what} on {dev} in {name or 'the main namespace'}" for name, dev, what in sorted(filters)),
        *(f"network namespace {name}" for name in sorted(namespaces)),
        *(f"process {pid} ({command})" for pid, command in sorted(after.processes - before.processes)),
    ]


# BPF: the kernel's own list, by bpf(2).

_SYS_BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
_PROG_GET_NEXT_ID, _PROG_GET_FD_BY_ID, _OBJ_GET_INFO_BY_FD, _LINK_GET_NEXT_ID = 11, 13, 15, 31
_libc = ctypes.CDLL(None, use_errno=True)


def _bpf(command: int, attributes: bytes) -> tuple[int, bytes]:
    buffer = ctypes.create_string_buffer(attributes, 128)
    return _libc.syscall(_SYS_BPF, command, buffer, 128), buffer.raw


def _ids(command: int) -> Iterator[int]:
    current = 0
    while True:
        result, answer = _bpf(command, struct.pack("=I", current))
        if result < 0:
            return
        current = struct.unpack_from("=I", answer, 4)[0]
        yield current


def _program_name(number: int) -> str:
    fd, _ = _bpf(_PROG_GET_FD_BY_ID, struct.pack("=I", number))
    if fd < 0:
        return "gone by now"
    try:
        info = ctypes.create_string_buffer(232)
        result, _ = _bpf(_OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", fd, len(info), ctypes.addressof(info)))
        return info.raw[64:80].rstrip(b"\0").decode() if result == 0 else "unknown"
    finally:
        os.close(fd)


# Processes.


def _processes() -> Iterator[tuple[Path, bool]]:
    """Every process with its /proc folder, and whether it came from this run."""
    mine = f"{SESSION}={os.environ[SESSION]}".encode()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                # pytest's own /proc/self/environ shows what it was started with, not what it set since.
                ours = int(folder.name) == os.getpid() or mine in (folder / "environ").read_bytes().split(b"\0")
                yield folder, ours


def _processes_of_this_run() -> Iterator[tuple[int, str]]:
    idle = _idle_tracers()
    for folder, ours in _processes():
        if ours and int(folder.name) not in {os.getpid(), *idle}:
            with contextlib.suppress(OSError):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                # Python's own, started with the first process pool of a run; it ends with pytest.
                if "multiprocessing.resource_tracker" not in command:
                    yield int(folder.name), command


def _idle_tracers() -> set[int]:
    """Tracers that are kept for the next capture. They hold nothing in the kernel."""
    tracers = sys.modules.get("bpfpath_nb.tracers")
    return {tracer.pid for kept in tracers._idle.values() for tracer in kept} if tracers else set()


def _held_by_others() -> tuple[set[int], set[int]]:
    """Programs and links that a process outside of this run has open."""
    programs, links = set(), set()
    for folder, ours in _processes():
        if ours:
            continue
        with contextlib.suppress(OSError):
            for entry in (folder / "fdinfo").iterdir():
                with contextlib.suppress(OSError):
                    for line in entry.read_text().splitlines():
                        if line.startswith("prog_id:"):
                            programs.add(int(line.split()[1]))
                        elif line.startswith("link_id:"):
                            links.add(int(line.split()[1]))
    return programs, links


# Namespaces and qdiscs.


def _namespaces() -> frozenset[str]:
    folder = Path("/run/netns")
    return frozenset(path.name for path in folder.iterdir()) if folder.is_dir() else frozenset()


def _of_others(name: str) -> bool:
    """Whether a namespace is of a lab that someone else's process keeps."""
    from bpfpath_nb.lab import ledger

    keeper = ledger.owner(name)
    return keeper is not None and any(int(f.name) == keeper and not ours for f, ours in _processes())


def _filters(namespace: str) -> Iterator[tuple[str, str, str]]:
    """The clsact qdiscs of a namespace, and the filters in them."""
    tc = ["tc", *(["-n", namespace] if namespace else []), "-json"]
    for qdisc in _json([*tc, "qdisc", "show"]):
        if qdisc.get("kind") != "clsact":
            continue
        yield namespace, qdisc["dev"], "clsact"
        for side in ("ingress", "egress"):
            for rule in _json([*tc, "filter", "show", "dev", qdisc["dev"], side]):
                if "options" in rule:
                    yield namespace, qdisc["dev"], f"{side} filter {rule['options'].get('bpf_name', rule['kind'])}"


def _json(command: list[str]) -> list[dict]:
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    return json.loads(shown.stdout or "[]") if shown.returncode == 0 else []
