"""Packets that routing refuses on their way out: they never come to an interface, where TC would see them."""

from __future__ import annotations

import pytest

from bpfpath_nb import Capture
from bpfpath_nb.lab import Lab
from bpfpath_nb.lab.scene import Scene

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
