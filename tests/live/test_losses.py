"""Nothing is lost without being counted, and a number is never two packets."""

from __future__ import annotations

import subprocess

import numpy as np

from bpfpath_nb import Capture
from bpfpath_nb.lab import Lab
from bpfpath_nb.schema import EVENT_FLAGS

BLAST = """
import socket, sys, time
out = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(8)]
for i in range(int(sys.argv[3])):
    out[i % 8].sendto(b"x" * (20 + i * 37 % 900), (sys.argv[1], int(sys.argv[2])))
    if i % 100 == 0:
        time.sleep(0.002)
"""
SINK = """
import socket, sys
s = socket.socket(type=socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE
s.bind(("", int(sys.argv[1])))
print("ready", flush=True)
for _ in range(int(sys.argv[2])):
    s.recv(2000)
print("all", flush=True)
"""


def blast(lab: Lab, port: int, count: int) -> None:
    """Send so many datagrams across the router, and have all of them read."""
    sink = lab.popen("server", ["python3", "-c", SINK, str(port), str(count)], stdout=subprocess.PIPE)
    assert sink.stdout is not None
    assert sink.stdout.readline() == "ready\n"
    lab.run("client", ["python3", "-c", BLAST, lab.address("server"), str(port), str(count)], timeout=60)
    assert sink.stdout.readline() == "all\n"
    sink.wait(5)


def test_buffers_are_reused_and_packets_stay_apart(lab: Lab) -> None:
    count = 50_000
    with Capture("udp port 7100", events_ring=1 << 26, facts_ring=1 << 25) as cap:
        blast(lab, 7100, count)

    packets, events = cap.packets, cap.recording.events
    assert len(packets) == count
    assert packets["complete"].all()
    assert (packets["verdict"] == "delivered").all()
    entries = events.hops["flags"] & EVENT_FLAGS["entry"] != 0
    assert entries[events.first].all(), "every path begins where the filter took the packet"
    assert entries.sum() == count, "and nowhere else"
    assert (cap.df["flow"].groupby(level="packet", observed=True).nunique() == 1).all()
    assert (packets["namespaces"] == " > ".join(lab.names.values())).all()
    buffers = cap.df["skb"].groupby(level="packet").first()
    assert buffers.nunique() < count / 10, "addresses were in fact reused"


def test_a_full_ring_loses_and_every_loss_is_counted(lab: Lab) -> None:
    """lost + received = sent, exactly: the kernel numbers the events of each CPU."""
    with Capture("udp port 7101", events_ring=1 << 12, facts_ring=1 << 14) as cap:
        blast(lab, 7101, 5_000)

    events, quality = cap.recording.events, cap.quality
    assert quality["events_lost"] > 0
    assert quality["facts_lost"] > 0
    cpus = np.unique(events.hops["cpu"])
    last = [int(events.hops["seq"][events.hops["cpu"] == cpu].max()) + 1 for cpu in cpus]
    assert len(events) + quality["events_lost"] >= sum(last)
    counted = cap._collector.counters
    assert counted["events"] == len(events)
    assert not cap.packets["complete"].all()
    assert "lost" in repr(cap).lower()
    assert "lost" in cap._repr_html_().lower()


def test_every_packet_that_is_not_followed_is_counted(lab: Lab) -> None:
    with Capture("udp port 7102", packets=10) as cap:
        blast(lab, 7102, 50)
        cap.wait(seconds=5)
    assert len(cap.packets) == 10
    assert cap.status.reason == "packets"


def test_long_filters_load_with_all_of_our_programs(lab: Lab) -> None:
    hosts = " or ".join(f"host 10.{n // 200}.{n % 200}.9" for n in range(200))
    with Capture(f"udp port 7103 and ({hosts} or dst host {lab.address('router')})") as cap:
        lab.run("client", ["python3", "-c", BLAST, lab.address("router"), "7103", "1"])
        cap.wait(packets=1, seconds=5)
    assert cap.packets["dport"].tolist() == [7103]
