"""What kernels before 6.2 and 5.12 have in the place of casts, and of rings and places of our own, on this kernel.
And what processors do that put their stores in another order.

The stock kernels of `tests/kernels` are real ones; here all ways are seen to record the same of the same traffic.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import in_process
import pytest

from bpfpath_nb import Recording
from bpfpath_nb.lab import Lab
from bpfpath_nb.lab.scene import Scene
from bpfpath_nb.tracer import casts, unit
from bpfpath_nb.tracer.request import Request

COUNT = 300
SEND = """
import socket, sys
receiver, sender = (socket.socket(type=socket.SOCK_DGRAM) for _ in range(2))
receiver.bind(("127.0.0.1", 7201))
receiver.settimeout(10)
for n in range(int(sys.argv[1])):
    sender.sendto(b"x" * (n % 700), ("127.0.0.1", 7201))
    assert len(receiver.recv(2000)) == n % 700
"""


@pytest.fixture
def scene(lab: Lab) -> Iterator[Scene]:
    with Scene(lab) as scene:
        yield scene


def ways(recording: Recording, *more: str) -> list[tuple[tuple[str, ...], ...]]:
    """Of each packet its hops. What is missing is a word: no NaN is like another."""
    columns = ["func", "netns", "dev", "len", "mark", "probe", *more]
    hops = recording.df[columns].astype(object).fillna("none").astype(str)
    return sorted(tuple(map(tuple, rows.to_numpy().tolist())) for _, rows in hops.groupby(level="packet"))


def record(lab: Lab) -> Recording:
    """The datagrams of `SEND`, by a tracer in this process."""
    traffic = threading.Thread(target=lab.run, args=("client", ["python3", "-c", SEND, str(COUNT)]))
    return in_process.record(Request(filter="udp port 7201"), traffic)


@pytest.mark.parametrize(
    ("with_casts", "with_exchange", "in_order"),
    [(False, True, True), (True, False, True), (False, False, True), (True, True, False)],
)
def test_older_ways_record_the_same(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, with_casts: bool, with_exchange: bool, in_order: bool
) -> None:
    newest = record(lab)
    if not with_casts:
        monkeypatch.setattr(casts, "macros", lambda types: {})
    if not with_exchange:
        monkeypatch.setattr(unit, "has_fetch_add", lambda: False)
    if not in_order:
        monkeypatch.setattr(unit, "has_total_store_order", lambda: False)
    older = record(lab)

    for recording in (newest, older):
        assert len(recording.packets) == COUNT
        assert recording.packets["complete"].all()
        assert (recording.packets["verdict"] == "delivered").all()
        assert recording.quality["events_lost"] == recording.quality["gaps"] == 0
    assert sorted(older.packets["length"]) == sorted(newest.packets["length"])
    newest_ways, older_ways = (set(ways(recording)) for recording in (newest, older))
    differing = ["newest " * (way in newest_ways) + " ".join(map(":".join, way)) for way in newest_ways ^ older_ways]
    assert not differing, "\n".join(sorted(differing))


def test_plain_hops_are_what_they_are_where_each_is_asked_for_everything(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Addresses that a router translates, IPv6, echoes, and datagrams that are cut and put together again."""
    scene.nft(
        "router",
        f"chain pre {{ type nat hook prerouting priority -100; udp dport 5300 dnat ip to {scene.server}:5301; }}\n"
        "chain post { type nat hook postrouting priority 100; udp dport 5301 masquerade; }",
    )
    scene.change("client", "ip link set eth0 mtu 1280", "ip link set eth0 mtu 1500")
    there, here = scene.listen("server", 5301), scene.open_socket("client")
    echoes = [scene.server, scene.lab.address("server", 6)]

    def send() -> None:
        for n in range(25):
            here.sendto(b"x" * (100 * n), (scene.router, 5300))
            data, back = there.recvfrom(3000)
            there.sendto(data[:n], back)
            assert len(here.recv(3000)) == min(n, len(data))
        for address in echoes:
            scene.lab.run("client", ["ping", "-c", "3", "-i", "0.05", "-e", "77", address])

    def record() -> Recording:
        echo, rest = "icmp or (icmp6 and ip6[40] >= 128 and ip6[40] <= 129)", "ip[6:2] & 0x1fff != 0"
        request = Request(filter=f"udp port 5300 or udp port 5301 or {echo} or {rest}")
        return in_process.record(request, threading.Thread(target=send))

    send()  # so that neighbours are known
    newest = record()
    monkeypatch.setattr(casts, "macros", lambda types: {})
    older = record()

    told = []
    for recording in (newest, older):
        assert recording.quality["events_lost"] == recording.quality["gaps"] == 0
        packets = recording.packets.assign(
            cut=recording.packets["parent"].notna(), joined=recording.packets["merged_into"].notna()
        )
        told.append(
            sorted(map(tuple, packets[["flow", "length", "verdict", "namespaces", "cut", "joined"]].to_numpy()))
        )
    assert len(told[0]) > 62, "with fragments"
    assert any(cut for *_, cut, _ in told[0])
    assert ways(newest, "flow") == ways(older, "flow")
    assert told[0] == told[1]
