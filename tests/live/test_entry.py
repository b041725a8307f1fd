"""Packets that routing refuses on their way out: they never come to an interface, where TC would see them."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from contextlib import suppress

import pytest

from bpfpath_nb import Capture
from bpfpath_nb.lab import Lab, wire
from bpfpath_nb.lab.faults import Drop
from bpfpath_nb.lab.scene import Scene, inside

PORT = 7410


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


SOL_PACKET, PACKET_QDISC_BYPASS = 263, 20
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


@pytest.mark.parametrize("end", ["dropped", "read"])
def test_what_was_refused_says_nothing_of_the_next_packet_in_its_buffer(lab: Lab, end: str) -> None:
    """The allocator gives a CPU first what it freed last. Past the queue a packet is met where its receiver has it."""
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
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(allowed)})
        with Drop(lab, "client", f"udp dport {PORT + 1}", "output") as drop:
            for _ in range(count):
                with suppress(PermissionError):  # what a sender is told of such a drop
                    other.sendto(bytes(len(packet)), ("10.77.1.2", PORT + 1 if end == "dropped" else PORT + 2))
                while end == "read" and not os.read(tun, 2000).endswith(bytes(len(packet))):
                    pass  # what IPv6 has to say of a new interface
                ours.send(frame)
            dropped = drop.packets
        os.sched_setaffinity(0, allowed)
        cap.wait(packets=count, seconds=5)

    sent = cap.packets.index[cap.packets["dport"] == PORT]
    assert (len(sent), dropped) == (count, count if end == "dropped" else 0)
    assert set(cap.df.loc[sent].groupby(level="packet")["func"].first()) == {"netif_rx_entry"}
