"""Where packets are: at places that were not there when the capture began, and across a bridge."""

from __future__ import annotations

import time

from bpfpath_nb import Capture
from bpfpath_nb.lab import Lab
from bpfpath_nb.lab.scene import Scene


def test_namespaces_that_are_born_during_a_capture_have_their_names(lab_prefix: str) -> None:
    with (
        Capture("udp port 5380") as cap,
        Lab(("left", "right"), prefix=lab_prefix) as lab,
        Scene(lab) as scene,
    ):
        there = scene.listen("right", 5380)
        scene.udp("left", lab.address("right"), 5380)
        assert there.recv(99) == b"hello"
        time.sleep(0.3)
    (number,) = cap.packets.index
    assert cap.packets.loc[number, ["namespaces", "verdict"]].tolist() == [
        f"{lab.names['left']} > {lab.names['right']}",
        "delivered",
    ]
    hops = cap.df.loc[number]
    assert set(hops["dev"].dropna().astype(str)) == {"eth0"}


def test_interfaces_that_are_born_during_a_capture_have_their_names(lab: Lab) -> None:
    """And programs of their own: TC sees what passes there."""
    with Scene(lab) as scene, Capture("udp port 5381", namespaces=[lab.names["client"]]) as cap:
        scene.change("client", "ip link add late0 type veth peer name late1", "ip link del late0")
        for number, dev in enumerate(("late0", "late1"), 1):
            scene.run("client", f"ip addr add 10.67.{number}.1/24 dev {dev}")
            scene.run("client", f"ip link set {dev} up")
        scene.run("client", "ip neigh add 10.67.1.2 lladdr 02:00:00:00:00:02 dev late0")
        deadline = time.monotonic() + 5
        while "tc_egress" not in set(cap.df["func"]) and time.monotonic() < deadline:
            scene.udp("client", "10.67.1.2", 5381)
            time.sleep(0.1)
    hops = cap.df[cap.df["func"].isin(["tc_egress", "net_dev_queue"])]
    assert set(hops["func"].astype(str)) == {"tc_egress", "net_dev_queue"}
    assert set(hops["dev"].astype(str)) == {"late0"}
    assert set(hops["netns"].astype(str)) == {lab.names["client"]}


def test_a_packet_crosses_three_namespaces_by_a_bridge(lab: Lab) -> None:
    with Scene(lab) as scene:
        scene.change("router", "ip link add switch type bridge", "ip link del switch")
        for number, end in enumerate(("client", "server"), 1):
            port = f"to-{end}"
            pair = f"ip link add {port} type veth peer name bridged netns {lab.names[end]}"
            scene.change("router", pair, f"ip link del {port}")
            scene.run("router", f"ip link set {port} master switch up")
            scene.run(end, f"ip addr add 10.68.0.{number}/24 dev bridged")
            scene.run(end, "ip link set bridged up")
        scene.run("router", "ip link set switch up")
        deadline = time.monotonic() + 10
        while scene.run("router", "ip -d link").count("state forwarding") < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        there = scene.listen("server", 5382)
        with Capture("udp port 5382", namespaces=list(lab.names.values())) as cap:
            scene.udp("client", "10.68.0.2", 5382)
            assert there.recv(99) == b"hello"
            time.sleep(0.3)
    (number,) = cap.packets.index
    assert cap.packets.loc[number, "verdict"] == "delivered"
    assert cap.packets.loc[number, "namespaces"] == " > ".join(lab.names.values())
    hops = cap.df.loc[number]
    in_between = hops[hops["netns"] == lab.names["router"]]
    assert in_between["dev"].dropna().astype(str).drop_duplicates().tolist() == ["to-client", "switch", "to-server"]
    assert "nf_input" not in set(in_between["func"]), "it was for nobody there"
