"""Mixed traffic for a while, with interfaces, namespaces and captures coming and going: at the end all is as before.

Twenty seconds by default; `make soak` takes ten (`BPFPATH_SOAK` in the environment, in seconds).
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from bpfpath_nb import Capture, Recording, tracers
from bpfpath_nb.lab import Lab
from bpfpath_nb.lab.scene import Scene
from bpfpath_nb.schema import EVENT_FLAGS
from bpfpath_nb.tracer.syscall import bpf

SECONDS = float(os.environ.get("BPFPATH_SOAK", "20"))
FILTERS = ("udp", "tcp", "icmp", "udp portrange 6001-6003", "", "host 10.0.2.2 and not tcp")
MAP_GET_NEXT_ID = 12
MEGABYTE = 1 << 20
GROWTH = 64 * MEGABYTE
"""What a process may hold more than after its first captures: allocators keep some."""


@pytest.fixture
def scene() -> Iterator[Scene]:
    with Lab(prefix=f"so{secrets.token_hex(2)}-") as lab, Scene(lab) as scene:
        yield scene


class Background:
    """Things that are done again and again, each in a thread, until the end; the first error is raised there."""

    def __init__(self) -> None:
        self._end = threading.Event()
        self._threads: list[threading.Thread] = []
        self._errors: list[Exception] = []
        self.rounds: dict[str, int] = {}

    def again(self, name: str, action: Callable[[], None], pause: float) -> None:
        def run() -> None:
            while not self._end.wait(pause):
                try:
                    action()
                except Exception as error:
                    self._errors.append(error)
                    return
                self.rounds[name] = self.rounds.get(name, 0) + 1

        self._threads.append(threading.Thread(target=run, name=name))
        self._threads[-1].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(30)
        if self._errors:
            raise self._errors[0]


def traffic(scene: Scene, background: Background) -> None:
    """Datagrams that are read, that nobody wants, that are large; connections; echoes."""
    wanted = scene.listen("server", 6001)
    sender = scene.open_socket("client")
    listening = scene.listen("server", 6010, kind=socket.SOCK_STREAM)

    def datagrams() -> None:
        for _ in range(20):
            sender.sendto(secrets.token_bytes(100), (scene.server, 6001))
            wanted.recv(4096)
        sender.sendto(bytes(3000), (scene.server, 6001))
        wanted.recv(4096)
        with contextlib.suppress(ConnectionRefusedError):
            sender.sendto(b"nobody", (scene.server, 6002))

    def connection() -> None:
        with contextlib.closing(scene.open_socket("client", kind=socket.SOCK_STREAM)) as here:
            here.connect((scene.server, 6010))
            there, _ = listening.accept()
            with contextlib.closing(there):
                here.sendall(bytes(50_000))
                left = 50_000
                while left:
                    left -= len(there.recv(65536))
                there.sendall(b"thanks")
                assert here.recv(9) == b"thanks"

    def echo() -> None:
        asking = scene.open_socket("client", kind=socket.SOCK_RAW, protocol=socket.IPPROTO_ICMP)
        with contextlib.closing(asking):
            head = struct.pack("!BBHHH", 8, 0, 0, os.getpid() & 0xFFFF, 1)
            check = ~(sum(struct.unpack("!4H", head)) % 0xFFFF) & 0xFFFF
            asking.sendto(head[:2] + struct.pack("!H", check) + head[4:], (scene.router, 0))
            asking.recv(99)

    background.again("datagrams", datagrams, 0.1)
    background.again("connection", connection, 0.3)
    background.again("echo", echo, 0.2)


def churn(background: Background, prefix: str) -> None:
    """Namespaces with interfaces, born and gone; a lab's keeper has them, so that none stays where this is killed."""
    numbers = iter(range(1 << 30))

    def come_and_go() -> None:
        with Lab(("left", "right"), prefix=f"{prefix}{next(numbers)}-") as born:
            for command in (
                "ip link add soak0 type veth peer name soak1",
                "ip addr add 10.99.0.1/24 dev soak0",
                "ip link set soak0 up",
                "ip link set soak1 up",
                "ip link del soak0",
            ):
                assert born.run("left", command).returncode == 0

    background.again("namespaces", come_and_go, 0.3)


def check(recording: Recording) -> None:
    """What holds for every packet, whatever was captured."""
    events, packets = recording.events, recording.packets
    if not len(events):
        return
    entries = events.hops["flags"] & EVENT_FLAGS["entry"] != 0
    whole = packets["complete"].to_numpy()
    assert entries[events.first[whole]].all()
    assert (events.hops["packet"][entries].tolist()) == sorted(set(events.hops["packet"][entries].tolist()))
    flows = recording.df["flow"].groupby(level="packet", observed=True).nunique()
    assert (flows <= 1).all(), recording.text(int(flows.index[flows > 1][0]))
    assert recording.quality["events_lost"] == recording.quality["probe_misses"] == 0


def held(pid: int) -> tuple[int, int]:
    """Open files and resident memory of a process."""
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return len(list(Path(f"/proc/{pid}/fd").iterdir())), resident


def maps() -> set[int]:
    found, last = set(), 0
    with contextlib.suppress(FileNotFoundError):
        while True:
            last = struct.unpack_from("=I", bpf(MAP_GET_NEXT_ID, struct.pack("=III", last, 0, 0))[1], 4)[0]
            found.add(last)
    return found


def test_after_all_of_it_the_machine_is_as_before(scene: Scene) -> None:
    chance = random.Random(7)
    captures, first = 0, (0, 0)
    with (
        Capture("udp or tcp", namespaces=list(scene.lab.names.values()), max_events=20_000_000) as long,
        Background() as background,
    ):
        traffic(scene, background)
        churn(background, f"{scene.lab.names['client'].removesuffix('client')}x")
        steady = tracers.acquire("local")  # one that serves all the short captures, so that its leaks would add up
        tracers.release(steady)
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline or captures < 4:
            with Capture(chance.choice(FILTERS), namespaces=list(scene.lab.names.values())) as cap:
                assert cap._tracer is steady
                time.sleep(chance.uniform(0.1, 1.0))
            check(cap.recording)
            captures += 1
            if captures == 2:
                first = held(steady.pid)
        last = held(steady.pid)
    check(long.recording)
    print(captures, "captures,", len(long.recording), "hops in the long one,", background.rounds, first, last)
    assert all(background.rounds.get(name, 0) > 3 for name in ("datagrams", "connection", "echo", "namespaces"))
    assert last[0] == first[0]
    assert last[1] < first[1] + GROWTH


def test_nothing_of_a_capture_stays() -> None:
    """After the last tracer has gone there are as many maps and open files as before; programs and links: conftest."""
    with Capture("udp port 9"):
        pass
    tracers.close_idle()
    before, files = maps(), held(os.getpid())[0]
    for _ in range(2):
        with Capture("udp port 9"):
            assert maps() - before
        tracers.close_idle()
    deadline = time.monotonic() + 8
    while (left := maps() - before) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left
    assert held(os.getpid())[0] == files
