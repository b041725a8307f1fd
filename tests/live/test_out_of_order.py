"""TCP's out-of-order queue, made to be waited in: what is lost on the way is sent again, and the rest lies there."""

from __future__ import annotations

import socket
import threading
import time

import pandas as pd

from bpfpath_nb import Capture
from bpfpath_nb.analysis.waits import hop_waits
from bpfpath_nb.lab import Lab
from bpfpath_nb.lab.cases import CASES
from bpfpath_nb.lab.cases.transport import sequence
from bpfpath_nb.lab.faults import Drop, Hook
from bpfpath_nb.lab.scene import Scene
from bpfpath_nb.schema import QUEUES

HEADERS = 20 + 32  # of IPv4, and of TCP with timestamps
MS = pd.Timedelta("1ms")


def waited(capture: Capture) -> pd.DataFrame:
    """The gaps in which segments of data waited at a socket: `queue`, `gap`, and `size`, the bytes of data."""
    recording = capture.recording
    df = recording.df[["gap"]].copy()
    df["queue"] = [QUEUES[code] if code >= 0 else "" for code in hop_waits(recording.events)]
    df["size"] = recording.packets["length"].astype(int).reindex(df.index, level="packet") - HEADERS
    return df[df["queue"].isin(["socket", "out-of-order"]) & (df["size"] > 0)]


def test_segments_behind_a_lost_one_wait_out_of_order(lab: Lab) -> None:
    with Scene(lab) as scene, Capture("tcp port 7332", namespaces=list(lab.names.values())) as capture:
        CASES["tcp_out_of_order"].provoke(scene)
        time.sleep(0.2)
        capture.stop()
    gaps = waited(capture)
    held = gaps[gaps["queue"] == "out-of-order"]

    # b"waits" and b"waits too"; not b"lost" and b"lost too", nor what came in order before them and after.
    assert held["size"].tolist() == [5, 9]
    assert (held["gap"] > 15 * MS).all()
    sizes = set(gaps.loc[gaps["queue"] == "socket", "size"])
    assert sizes >= {8, 14}
    # b"lost" comes again alone; or, where it comes before the sender has heard of the others, in one segment with them.
    assert sizes & {4, 18}
    assert "out-of-order" in set(capture.transitions.query("kind == 'wait'")["queue"])


def lose_first(lab: Lab, ns: str, hook: Hook, here: socket.socket, there: socket.socket) -> None:
    """Send `lost`, which comes late, and `behind`; return when both are there, unread for 0.15 s."""
    here.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with Drop(lab, ns, f"tcp sequence {sequence(here)[0]}", hook):
        here.sendall(b"lost")
        here.sendall(b"behind")
        time.sleep(0.02)
    there.recv(1, socket.MSG_PEEK)
    time.sleep(0.15)


def test_a_segment_waits_out_of_order_and_then_for_its_reader(lab: Lab) -> None:
    with Scene(lab) as scene, Capture("tcp port 7400", namespaces=list(lab.names.values())) as capture:
        here, there, _ = scene.connection(7400)
        lose_first(lab, "router", "forward", here, there)
        read = there.recv(100)
        here.sendall(b"in order")
        time.sleep(0.15)
        read += there.recv(100)
        capture.stop()
    gaps = waited(capture)

    assert read == b"lostbehindin order"
    assert gaps.loc[gaps["queue"] == "out-of-order", "size"].tolist() == [6]
    assert {4, 8} <= set(gaps.loc[(gaps["queue"] == "socket") & (gaps["gap"] > 100 * MS), "size"])


def test_the_loopback_interface_leads_to_the_queue_too(lab: Lab) -> None:
    with Scene(lab) as scene, Capture("tcp port 7401", namespaces=[lab.names["server"]]) as capture:
        listening = scene.listen("server", 7401, kind=socket.SOCK_STREAM)
        here = scene.open_socket("server", kind=socket.SOCK_STREAM)
        here.connect(("127.0.0.1", 7401))
        there, _ = listening.accept()
        there.settimeout(5)
        lose_first(lab, "server", "input", here, there)
        read = there.recv(100)
        there.close()
        time.sleep(0.05)
        capture.stop()
    gaps = waited(capture)

    assert read == b"lostbehind"
    assert gaps.loc[gaps["queue"] == "out-of-order", "size"].tolist() == [6]


def test_a_slow_reader_alone_keeps_nothing_out_of_order(lab: Lab) -> None:
    with Scene(lab) as scene, Capture("tcp port 7402", namespaces=list(lab.names.values())) as capture:
        here, there, _ = scene.connection(7402)
        sender = threading.Thread(target=here.sendall, args=(bytes(300_000),))
        sender.start()
        missing = 300_000
        while missing:
            time.sleep(0.01)
            missing -= len(there.recv(30_000))
        sender.join()
        time.sleep(0.05)
        capture.stop()
    gaps = waited(capture)

    assert set(gaps["queue"]) == {"socket"}
    assert gaps["gap"].max() > 5 * MS
