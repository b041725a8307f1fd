"""What kernels before 6.2 and 5.12 have in the place of casts, and of rings and places of our own, on this kernel.
And what processors do that put their stores in another order.

The stock kernels of `tests/kernels` are real ones; here all ways are seen to record the same of the same traffic.
"""

from __future__ import annotations

import threading

import in_process
import pytest

from bpfpath_nb import Recording
from bpfpath_nb.lab import Lab
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
    columns = ["func", "netns", "dev", "len", "mark", "probe"]
    ways = [
        {tuple(map(tuple, hops[columns].astype(str).to_numpy())) for _, hops in recording.df.groupby(level="packet")}
        for recording in (newest, older)
    ]
    differing = ["newest " * (way in ways[0]) + " ".join(":".join(hop) for hop in way) for way in ways[0] ^ ways[1]]
    assert not differing, "\n".join(sorted(differing))
