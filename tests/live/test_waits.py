"""What a packet waits for, made to happen: a slow link's queue, a neighbour that does not answer, a reader asleep."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

import pandas as pd

from bpfpath_nb import Capture
from bpfpath_nb.analysis.waits import hop_waits
from bpfpath_nb.lab import Lab
from bpfpath_nb.schema import QUEUES

SEND = """
import socket, sys
s = socket.socket(type=socket.SOCK_DGRAM)
for _ in range(int(sys.argv[3])): s.sendto(bytes(1000), (sys.argv[1], int(sys.argv[2])))
"""
READ = """
import socket, sys, time
s = socket.socket(type=socket.SOCK_DGRAM)
s.bind(('', int(sys.argv[1]))); print(flush=True)
time.sleep(float(sys.argv[3]))
for _ in range(int(sys.argv[2])): s.recv(2000)
"""
READ_STREAM = """
import socket, sys, time
s = socket.create_server(('', int(sys.argv[1]))); print(flush=True)
c, _ = s.accept()
time.sleep(float(sys.argv[3]))
c.recv(int(sys.argv[2])); time.sleep(float(sys.argv[3])); c.recv(9999)
"""
SEND_STREAM = (
    "import socket, sys; s = socket.create_connection((sys.argv[1], int(sys.argv[2]))); s.send(bytes(1000)); s.recv(1)"
)
PORT = 5300


def exchange(
    lab: Lab, count: int, sleep: float = 0.0, stream: bool = False, meanwhile: Callable[[], None] | None = None
) -> Capture:
    """Datagrams from the client that the server reads after a while; or one segment, read in two halves."""
    with Capture(f"{'tcp' if stream else 'udp'} dst port {PORT}") as capture:
        reader = lab.popen(
            "server",
            [
                sys.executable,
                "-S",
                "-c",
                READ_STREAM if stream else READ,
                str(PORT),
                "500" if stream else str(count),
                str(sleep),
            ],
            stdout=subprocess.PIPE,
        )
        assert reader.stdout is not None
        reader.stdout.readline()
        sender = [
            sys.executable,
            "-S",
            "-c",
            SEND_STREAM if stream else SEND,
            lab.address("server"),
            str(PORT),
            str(count),
        ]
        lab.run("client", sender, timeout=30)
        if meanwhile:
            meanwhile()
        reader.wait(30)
        reader.stdout.close()
        # What was read may be freed later, by the CPU that allocated it, when that one receives again.
        for cpu in os.sched_getaffinity(0):
            lab.run("server", ["taskset", "-c", str(cpu), "ping", "-c1", "127.0.0.1"])
    return capture


def greet(lab: Lab) -> None:
    """So that no neighbour has to be asked for later."""
    lab.run("client", ["ping", "-c1", lab.address("server")])


def waited(capture: Capture) -> pd.DataFrame:
    """The gaps that were waiting, of packets that were delivered."""
    df, recording = capture.df, capture.recording
    queue = hop_waits(recording.events)
    df = df.assign(queue=[QUEUES[code] if code >= 0 else "" for code in queue])
    delivered = capture.packets.index[capture.packets["verdict"] == "delivered"]
    return df[(df["queue"] != "") & df.index.get_level_values("packet").isin(delivered)]


def longest(capture: Capture) -> pd.Series:
    """The transition in which most time went, which is a wait."""
    first = capture.transitions.iloc[0]
    assert first["kind"] == "wait"
    return first


def test_a_rate_limit_makes_packets_wait_in_the_qdisc(lab: Lab) -> None:
    greet(lab)
    lab.run(
        "client",
        ["tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "400kbit", "burst", "1600", "limit", "100k"],
    )
    capture = exchange(lab, 6)
    in_qdisc = waited(capture).query("queue == 'qdisc'")["gap"]
    # 1,042 bytes take 21 ms at that rate; the first packet goes at once.
    assert len(capture.query("verdict == 'delivered'").packets) == 6
    assert (in_qdisc > pd.Timedelta("15ms")).sum() >= 4
    assert longest(capture)["queue"] == "qdisc"


def test_a_socket_that_nobody_reads_keeps_packets_waiting(lab: Lab) -> None:
    capture = exchange(lab, 2, sleep=0.5)
    in_socket = waited(capture).query("queue == 'socket'")
    assert in_socket.groupby(level="packet")["gap"].max().gt(pd.Timedelta("400ms")).tolist() == [True, True]
    assert longest(capture)["queue"] == "socket"
    assert capture.namespaces.loc[lab.names["server"], "waiting"] > pd.Timedelta("800ms")


def test_a_segment_that_is_read_in_parts_waits_for_each(lab: Lab) -> None:
    capture = exchange(lab, 1, sleep=0.4, stream=True)
    in_socket = waited(capture).query("queue == 'socket' and len > 500")["gap"]
    assert (in_socket > pd.Timedelta("300ms")).sum() == 2


def test_a_neighbour_that_does_not_answer_keeps_packets_waiting(lab: Lab) -> None:
    lab.run("client", ["sysctl", "-q", "-w", "net.ipv4.neigh.eth0.retrans_time_ms=100"])
    lab.run("client", ["sysctl", "-q", "-w", "net.ipv4.neigh.eth0.mcast_solicit=20"])
    lab.run("router", ["sysctl", "-q", "-w", "net.ipv4.conf.all.arp_ignore=8"])

    def answer() -> None:
        time.sleep(0.4)
        lab.run("router", ["sysctl", "-q", "-w", "net.ipv4.conf.all.arp_ignore=0"])

    capture = exchange(lab, 1, meanwhile=answer)
    neighbour = waited(capture).query("queue == 'neighbour'")["gap"]
    assert neighbour.sum() > pd.Timedelta("350ms")
    assert longest(capture)["queue"] == "neighbour"


def test_what_goes_straight_through_does_not_wait(lab: Lab) -> None:
    greet(lab)
    capture = exchange(lab, 20)
    queues = waited(capture)["queue"].value_counts()
    assert set(queues.index) == {"backlog", "socket"}
    assert queues["socket"] == 20
