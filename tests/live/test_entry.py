"""Where a packet is met first, whatever becomes of it, and whatever lay in its buffer before."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from bpfpath_nb import Capture
from bpfpath_nb.lab import Lab, wire
from bpfpath_nb.lab.faults import Drop
from bpfpath_nb.lab.scene import Scene, inside

PORT = 7410
SOL_PACKET, PACKET_QDISC_BYPASS = 263, 20
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


@pytest.mark.parametrize(("match", "seen"), [("entry", 3), ("tc", 0)])
def test_what_routing_refuses_before_any_interface_is_seen_where_packets_set_out(
    lab: Lab, match: str, seen: int
) -> None:
    with Scene(lab) as scene:
        marks = f"type route hook output priority -150; udp dport {PORT} meta mark set 5;"
        scene.nft("client", f"chain again {{ {marks} }}")  # a packet with a new mark is routed again
        scene.change("client", "ip rule add fwmark 5 blackhole", "ip rule del fwmark 5 blackhole")
        with Capture(f"udp port {PORT}", match=match) as cap:
            scene.udp("client", scene.server, PORT, count=3)

    assert len(cap.packets) == seen
    assert set(cap.packets["verdict"]) == ({"dropped"} if seen else set())
    assert set(cap.packets["where"]) == ({"nf_hook_slow"} if seen else set())
    assert not set(cap.df["func"]) & {"tc_egress", "net_dev_queue"}


@contextmanager
def on_one_cpu() -> Iterator[None]:
    """Stay on the first."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def begins(capture: Capture, count: int) -> set[str]:
    """The functions in which the packets to `PORT` were met first, of which there are so many."""
    sent = capture.packets.index[capture.packets["dport"] == PORT]
    assert len(sent) == count
    return set(capture.df.loc[sent].groupby(level="packet")["func"].first())


def test_a_sender_begins_where_it_sends_in_the_buffer_of_what_was_refused_and_dropped(lab: Lab) -> None:
    """The allocator gives a CPU first what it freed last."""
    count = 50
    with Scene(lab) as scene, Capture(f"udp port {PORT}", namespaces=[lab.names["client"]]) as cap:
        out = scene.open_socket("client")
        with on_one_cpu(), Drop(lab, "client", f"udp dport {PORT + 1}", "output") as drop:
            for _ in range(count):
                with suppress(PermissionError):  # what a sender is told of such a drop
                    out.sendto(b"other", (scene.server, PORT + 1))
                out.sendto(b"ours!", (scene.server, PORT))
            dropped = drop.packets
        cap.wait(packets=count, seconds=30)

    assert dropped == count
    assert begins(cap, count) <= {"nf_output", "ip_send_skb"}


def test_a_receiver_begins_where_it_receives_in_the_buffer_of_what_was_refused_and_read(lab: Lab) -> None:
    """Past the queue a packet is met where its receiver has it."""
    count = 50
    with Scene(lab) as scene, Capture(f"udp port {PORT}") as cap:
        datagram = wire.udp(scene.client, scene.server, 4000, PORT, b"ours")
        packet = wire.ipv4(scene.client, scene.server, 17, datagram)
        frame = scene.mac("router", "eth0") + scene.mac("client", "eth0") + b"\x08\0" + packet
        ours, other = scene.open_socket("client", socket.AF_PACKET, socket.SOCK_RAW), scene.open_socket("client")
        ours.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
        ours.bind(("eth0", 0))
        with inside(lab.names["client"]):
            tun = os.open("/dev/net/tun", os.O_RDWR)
            scene.later(lambda: os.close(tun))
            fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", b"tun7", IFF_TUN | IFF_NO_PI))
        scene.run("client", "ip address add 10.77.1.1/24 dev tun7")
        scene.run("client", "ip link set tun7 up")
        with on_one_cpu():
            for _ in range(count):
                other.sendto(bytes(len(packet)), ("10.77.1.2", PORT + 1))
                read = b""
                while not read.endswith(bytes(len(packet))):  # IPv6 has something to say of a new interface
                    assert select.select([tun], [], [], 5)[0]
                    read = os.read(tun, 2000)
                ours.send(frame)
        cap.wait(packets=count, seconds=5)

    assert begins(cap, count) == {"netif_rx_entry"}
