"""Mixed traffic for a while, with interfaces, namespaces and captures coming and going: at the end all is as before.

Twenty seconds by default; `make soak` takes ten minutes (`BPFPATH_SOAK` in the environment, in seconds).

One capture lasts for all of the time and has to find every datagram that was sent, no more and no less. Beside it short
ones of every kind come and go, all served by one tracer process, so that whatever it keeps adds up. Beside both, labs
are made and taken down, their interfaces pulled from under datagrams that are on their way. What programs, links,
qdiscs, namespaces and processes are left is the fixture's to look for (`leaves_nothing`); maps, descriptors, threads
and memory are looked at here.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import secrets
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pytest

from bpfpath_nb import Capture, Recording, tracers
from bpfpath_nb.lab import Lab
from bpfpath_nb.lab.scene import Scene
from bpfpath_nb.schema import EVENT_FLAGS
from bpfpath_nb.tracer.syscall import bpf

SECONDS = float(os.environ.get("BPFPATH_SOAK", "20"))
EVERYWHERE = "udp port 6050"
FILTERS = ("udp", "tcp", "icmp", "ip6", "udp portrange 6001-6003", "", "host 10.0.2.2 and not tcp", EVERYWHERE)
KINDS: tuple[dict[str, Any], ...] = (
    {}, {}, {"match": "tc"}, {"match": "every"}, {"functions": "drops"}, {"sample": 3}, {"packets": 5},
)  # fmt: skip
MAP_GET_NEXT_ID = 12
MEGABYTE = 1 << 20
GROWTH = 48 * MEGABYTE
"""What a process may hold more than after its first captures: allocators keep some."""
TRANSLATED = (6040, 6041)
"""The port that is asked for at the router, and the server's that answers there."""


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
        self.rounds: Counter[str] = Counter()

    def again(self, action: Callable[[], None], pause: float) -> None:
        name = action.__name__

        def run() -> None:
            while not self._end.wait(pause):
                try:
                    action()
                except Exception as error:
                    error.add_note(f"in {name}, after {self.rounds[name]} rounds")
                    self._errors.append(error)
                    return
                self.rounds[name] += 1

        self._threads.append(threading.Thread(target=run, name=name))
        self._threads[-1].start()

    def look(self) -> None:
        """Raise the first error, if there is one."""
        if self._errors:
            raise self._errors[0]

    def end(self) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), f"{thread.name} does not end"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
        if error is None:
            self.look()


class Traffic:
    """Datagrams that are read, that nobody wants, that are cut or translated; connections; echoes. IPv4 and IPv6.

    Attributes
    ----------
    sent : Counter
        Datagrams by the port that they were sent to.
    """

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self.sent: Counter[int] = Counter()
        scene.nft(
            "router",
            f"chain pre {{ type nat hook prerouting priority -100; "
            f"udp dport {TRANSLATED[0]} dnat ip to {scene.server}:{TRANSLATED[1]}; }}\n"
            "chain forward { type filter hook forward priority 0; udp dport 6030 drop; }",
        )
        self._families = {4: socket.AF_INET, 6: socket.AF_INET6}
        self._server = {version: scene.lab.address("server", version) for version in self._families}
        self._here = {version: scene.open_socket("client", family) for version, family in self._families.items()}
        self._there = {version: scene.listen("server", 6001, family=socket.AF_INET6) for version in (6,)}
        self._there[4] = self._there[6]  # takes both
        self._listening = scene.listen("server", 6010, kind=socket.SOCK_STREAM, family=socket.AF_INET6)
        self._translated = scene.listen("server", TRANSLATED[1])
        self._asking = scene.open_socket("client")

    def start(self, background: Background) -> None:
        for action, pause in (
            (self.datagrams, 0.1), (self.fragments, 0.4), (self.unwanted, 0.2), (self.translated, 0.2),
            (self.connection, 0.3), (self.echo, 0.2),
        ):  # fmt: skip
            background.again(action, pause)

    def _send(self, version: int, port: int, payload: bytes) -> None:
        self._here[version].sendto(payload, (self._server[version], port))
        self.sent[port] += 1

    def datagrams(self) -> None:
        for number in range(20):
            self._send((4, 6)[number % 2], 6001, secrets.token_bytes(100 + number))
        for _ in range(20):
            self._there[4].recv(4096)

    def fragments(self) -> None:
        """To a socket that another thread does not read."""
        for version, family in self._families.items():
            port = 6020 + version
            with contextlib.closing(self._scene.listen("server", port, family=family)) as there:
                self._send(version, port, bytes(3000))
                assert len(there.recv(4096)) == 3000

    def unwanted(self) -> None:
        """By the server, which says so, and by the router, which does not."""
        for port in (6002, 6030):
            with contextlib.closing(self._scene.open_socket("client")) as here:
                here.sendto(b"nobody", (self._scene.server, port))
                self.sent[port] += 1

    def translated(self) -> None:
        self._asking.sendto(b"question", (self._scene.router, TRANSLATED[0]))
        self.sent[TRANSLATED[0]] += 1
        _, back = self._translated.recvfrom(99)
        self._translated.sendto(b"answer", back)
        assert self._asking.recv(99) == b"answer"

    def connection(self) -> None:
        for version, family in self._families.items():
            with contextlib.closing(self._scene.open_socket("client", family, socket.SOCK_STREAM)) as here:
                here.connect((self._server[version], 6010))
                there, _ = self._listening.accept()
                with contextlib.closing(there):
                    here.sendall(bytes(50_000))
                    left = 50_000
                    while left:
                        left -= len(there.recv(65536))
                    there.sendall(b"thanks")
                    assert here.recv(9) == b"thanks"

    def echo(self) -> None:
        asking = self._scene.open_socket("client", kind=socket.SOCK_RAW, protocol=socket.IPPROTO_ICMP)
        with contextlib.closing(asking):
            head = struct.pack("!BBHHH", 8, 0, 0, os.getpid() & 0xFFFF, 1)
            check = ~(sum(struct.unpack("!4H", head)) % 0xFFFF) & 0xFFFF
            asking.sendto(head[:2] + struct.pack("!H", check) + head[4:], (self._scene.server, 0))
            asking.recv(99)


def churn(background: Background, prefix: str) -> None:
    """Namespaces with interfaces, born and gone; a lab's keeper has them, so that none stays where this is killed."""
    numbers = iter(range(1 << 30))

    def namespaces() -> None:
        with Lab(("left", "right"), prefix=f"{prefix}{next(numbers)}-") as born, Scene(born) as scene:
            for command in (
                "ip link add soak0 type veth peer name soak1",
                "ip addr add 10.99.0.1/24 dev soak0",
                "ip link set soak0 up",
                "ip link set soak1 up",
            ):
                assert born.run("left", command).returncode == 0
            # The first waits for a neighbour that never answers, and goes with the interface.
            scene.udp("left", "10.99.0.9", 6050)
            scene.udp("left", born.address("right"), 6050, count=3)
            assert born.run("left", "ip link del soak0").returncode == 0

    background.again(namespaces, 0.3)


def check(recording: Recording) -> None:
    """What holds for every packet, whatever was captured."""
    assert recording.quality["events_lost"] == recording.quality["facts_lost"] == 0
    assert recording.quality["probe_misses"] == 0
    events, packets = recording.events, recording.packets
    if not len(events):
        return
    flags, row = events.hops["flags"], np.arange(len(events))
    entries = np.flatnonzero(flags & EVENT_FLAGS["entry"])
    assert packets["complete"].all()
    assert entries.tolist() == events.first.tolist(), "each path begins where the filter took the packet, and once"
    # Of a buffer that was copied, and stayed behind, the end comes when it may, under the sk_buff that had it before.
    last, of = np.flatnonzero(flags & EVENT_FLAGS["last"]), events.copies.of
    ended = np.full(len(events.copies.packet), len(events), np.intp)
    np.minimum.at(ended, of[last], last)
    after = np.flatnonzero((row > ended[of]) & (flags & EVENT_FLAGS["end"] == 0))
    told = "nothing passes a function behind its end:\n"
    assert not len(after), told + recording.text(int(events.hops["packet"][after[0]]))
    flows = recording.df["flow"].groupby(level="packet", observed=True).nunique()
    ports = {*TRANSLATED}
    may_change = packets["dport"].isin(ports) | packets["sport"].isin(ports)
    mixed = flows.index[flows > np.where(may_change, 2, 1)]
    assert not len(mixed), "two flows in one path:\n" + recording.text(int(mixed[0]))


def check_whole(recording: Recording, sent: Counter[int]) -> None:
    """What holds for the capture that saw all of the traffic, from before its beginning until after its end."""
    check(recording)
    packets = recording.packets
    asked = packets[packets["parent"].isna() & (packets["proto"] == "udp")]
    asked = asked[~asked["flow"].astype(str).str.startswith("udp fragment")]
    found = asked["dport"].value_counts()
    assert {port: int(found.get(port, 0)) for port in sent} == dict(sent), "each datagram is one packet"
    verdicts = asked.groupby("dport", observed=True)["verdict"].agg(lambda verdicts: set(verdicts.astype(str)))
    expected = {port: {"dropped"} if port in (6002, 6030) else {"delivered"} for port in sent}
    assert {port: verdicts[port] for port in sent} == expected
    unfinished = packets[packets["verdict"] == "unfinished"]
    assert not len(unfinished), recording.text(int(unfinished.index[0]))


def held(pid: int) -> tuple[int, int, int]:
    """Open files, threads and resident memory of a process."""
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    folder = Path(f"/proc/{pid}")
    return len(list((folder / "fd").iterdir())), len(list((folder / "task").iterdir())), resident


def maps() -> set[int]:
    """All maps of the machine, but those that only another's process holds."""
    found, last = set(), 0
    with contextlib.suppress(FileNotFoundError):
        while True:
            last = struct.unpack_from("=I", bpf(MAP_GET_NEXT_ID, struct.pack("=III", last, 0, 0))[1], 4)[0]
            found.add(last)
    return found - _maps_of_others()


def _maps_of_others() -> set[int]:
    mine = f"BPFPATH_TEST_SESSION={os.environ['BPFPATH_TEST_SESSION']}".encode()
    found = set()
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if not folder.name.isdigit() or int(folder.name) == os.getpid():
                continue
            if mine in (folder / "environ").read_bytes().split(b"\0"):
                continue
            for entry in (folder / "fdinfo").iterdir():
                with contextlib.suppress(OSError):
                    lines = entry.read_text().splitlines()
                    found |= {int(line.split()[1]) for line in lines if line.startswith("map_id:")}
    return found


def shown(when: float, captures: int, hops: int, tracers_: dict[str, tuple[int, int, int]]) -> None:
    what = ", ".join(
        f"{name} {files} files {threads} threads {size / MEGABYTE:.0f} MiB"
        for name, (files, threads, size) in tracers_.items()
    )
    print(f"{when:5.0f} s: {captures} captures, {hops} hops in the long one; {what}", flush=True)


def test_after_all_of_it_the_machine_is_as_before(scene: Scene) -> None:
    chance = random.Random(7)
    captures, first, next_look = 0, {}, 0.0
    lab = list(scene.lab.names.values())
    tracers.close_idle()
    before, own = maps(), held(os.getpid())
    with Capture("udp or tcp or icmp", namespaces=lab, max_events=20_000_000, events_ring=1 << 25) as long:
        traffic = Traffic(scene)
        with Background() as background:
            traffic.start(background)
            churn(background, f"{scene.lab.names['client'].removesuffix('client')}x")
            steady = tracers.acquire("local")  # one that serves all the short captures, so that its leaks would add up
            tracers.release(steady)
            started = time.monotonic()
            while (now := time.monotonic() - started) < SECONDS or captures < 6:
                background.look()
                filter_ = chance.choice(FILTERS)
                everywhere = filter_ == EVERYWHERE  # also in the namespaces that come and go
                with Capture(filter_, namespaces=None if everywhere else lab, **chance.choice(KINDS)) as cap:
                    assert cap._tracer is steady
                    time.sleep(chance.uniform(0.1, 1.0))
                check(cap.recording)
                captures += 1
                if captures == 3:
                    first = {"steady": held(steady.pid), "long": held(long._tracer.pid)}
                if now >= next_look:
                    shown(now, captures, len(long.recording), {"steady": held(steady.pid), "own": held(os.getpid())})
                    next_look = now + SECONDS / 10
            last = {"steady": held(steady.pid), "long": held(long._tracer.pid)}
        time.sleep(1.0)  # what was sent last comes to its end
    shown(time.monotonic() - started, captures, len(long.recording), last)
    print(dict(background.rounds), dict(traffic.sent), long.packets["verdict"].value_counts().to_dict())
    check_whole(long.recording, traffic.sent)
    assert set(background.rounds) == {
        "datagrams",
        "fragments",
        "unwanted",
        "translated",
        "connection",
        "echo",
        "namespaces",
    }
    assert min(background.rounds.values()) > 3
    assert {name: (files, threads) for name, (files, threads, _) in last.items()} == {
        name: (files, threads) for name, (files, threads, _) in first.items()
    }
    assert {name: size - first[name][2] < GROWTH for name, (_, _, size) in last.items()} == dict.fromkeys(last, True)
    tracers.close_idle()
    scene.close()
    gc.collect()
    deadline = time.monotonic() + 8
    while (left := maps() - before) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left
    assert held(os.getpid())[:2] == own[:2]


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
