"""Packets that receiving merges (GRO): each ends in the one that it became part of, which keeps its number."""

from __future__ import annotations

import secrets
import socket
import struct
import time
from collections.abc import Iterator

import pandas as pd
import pytest
from pyroute2.ethtool.ioctl import IoctlEthtool

from bpfpath_nb import Capture
from bpfpath_nb.lab import Lab
from bpfpath_nb.lab.scene import Scene, inside

UDP_SEGMENT = 103  # linux/udp.h


CUT_BY_DEVICE = ("tx-tcp-segmentation", "tx-tcp6-segmentation", "tx-tcp-ecn-segmentation", "tx-udp-segmentation")
DATAGRAMS = ("rx-gro-list", "rx-udp-gro-forwarding")


@pytest.fixture(scope="module")
def chain() -> Iterator[Lab]:
    """The client cuts what it sends, and the router's interface towards it merges."""
    with Lab(prefix=f"tm{secrets.token_hex(2)}-") as lab:
        features(lab, "client", dict.fromkeys(CUT_BY_DEVICE, False))
        features(lab, "router", {"rx-gro": True})
        yield lab


@pytest.fixture
def scene(chain: Lab) -> Iterator[Scene]:
    with Scene(chain) as scene:
        yield scene


def features(lab: Lab, ns: str, wanted: dict[str, bool]) -> None:
    """Set features of a namespace's eth0, as `ethtool -K` does."""
    with inside(lab.names[ns]):
        device = IoctlEthtool("eth0")
        known = device.get_features()
        for name, on in wanted.items():
            known[name] = on
        device.set_features(known)


def merge_datagrams(scene: Scene, way: str) -> None:
    """In a list, or as one buffer that is to be forwarded."""
    features(scene.lab, "router", {name: name == way for name in DATAGRAMS})


def datagrams(scene: Scene, port: int, count: int = 5) -> None:
    """Datagrams of 1000 bytes each, sent as one, which is cut below."""
    sender = scene.open_socket("client")
    cut = [(socket.SOL_UDP, UDP_SEGMENT, struct.pack("H", 1000))]
    sender.sendmsg([bytes(1000 * count)], cut, 0, (scene.server, port))


def functions(cap: Capture, packet: int) -> list[str]:
    return [str(name) for name in cap.df.loc[packet, "func"]]


def test_merged_segments_end_in_the_one_that_goes_on(scene: Scene) -> None:
    here, there, _ = scene.connection(5400)
    with Capture("tcp dst port 5400 and len > 100") as cap:
        here.sendall(bytes(30000))
        left = 30000
        while left:
            left -= len(there.recv(left))
        time.sleep(0.3)
    packets = cap.packets
    merged = packets[packets["merged_into"].notna()]
    assert len(merged) >= 10
    assert set(merged["verdict"]) == {"consumed"}
    assert set(merged["where"].astype(str)) == {"skb_gro_receive"}
    assert all(functions(cap, packet)[-1] == "skb_gro_receive" for packet in merged.index)
    assert not set(merged["merged_into"]) & set(merged.index)
    # What goes on is as long as all of it, and cut from the same large packet.
    for number, parts in merged.groupby("merged_into"):
        assert set(parts["parent"]) == {packets.loc[number, "parent"]}
        hops = cap.df.loc[number]
        received = hops.loc[hops["func"] == "netif_receive_skb", "len"].iloc[0]
        headers = 14 + 20 + 32
        assert received == packets.loc[number, "length"] - 14 + (parts["length"] - headers).sum()
    assert cap.quality["unfinished"] == 0


def test_what_is_merged_into_a_list_may_come_out_again(scene: Scene) -> None:
    """Merged whole, as a list, the datagrams are taken apart again for the socket."""
    merge_datagrams(scene, "rx-gro-list")
    there = scene.listen("server", 5401)
    with Capture("udp port 5401") as cap:
        datagrams(scene, 5401)
        assert [len(there.recv(9999)) for _ in range(5)] == [1000] * 5
        time.sleep(0.3)
    merged = cap.packets[cap.packets["merged_into"].notna()]
    assert len(merged) == 4
    assert merged["merged_into"].nunique() == 1
    assert set(merged["verdict"]) == {"delivered"}
    for packet in merged.index:
        assert functions(cap, packet)[2:4] == ["skb_gro_receive", "skb_copy_datagram_iovec"]


def test_a_drop_of_the_whole_is_one_drop(scene: Scene) -> None:
    """What was merged is freed with what it was merged into; it had come to its end before."""
    merge_datagrams(scene, "rx-gro-list")
    scene.nft("router", "chain forward { type filter hook forward priority 0; udp dport 5402 drop; }")
    with Capture("udp port 5402") as cap:
        datagrams(scene, 5402)
        time.sleep(0.3)
    packets = cap.packets
    merged = packets[packets["merged_into"].notna()]
    (number,) = merged["merged_into"].unique()
    assert len(merged) == 4
    assert packets.loc[number, ["verdict", "reason"]].tolist() == ["dropped", "NETFILTER_DROP"]
    assert cap.drops["packet"].tolist() == [number]
    assert set(merged["verdict"]) == {"consumed"}
    assert set(merged["where"].astype(str)) == {"skb_gro_receive"}


def test_of_another_flow_nothing_is_merged(scene: Scene) -> None:
    """Two senders at once: into each flow's packet goes only what is of that flow."""
    for port in (5403, 5404):
        scene.listen("server", port)
    merge_datagrams(scene, "rx-udp-gro-forwarding")
    with Capture("udp port 5403 or udp port 5404") as cap:
        for _ in range(5):
            datagrams(scene, 5403)
            datagrams(scene, 5404)
        time.sleep(0.3)
    packets = cap.packets
    merged = packets[packets["merged_into"].notna()]
    assert merged.groupby("dport").size().tolist() == [20, 20]
    flows = packets["flow"].astype(str)
    assert flows.loc[merged.index].tolist() == flows.loc[merged["merged_into"]].tolist()


def test_a_clone_keeps_its_number_where_its_device_merges(scene: Scene) -> None:
    """TCP sends a clone, for which veth makes a buffer of its own before it hands it to GRO."""
    here, there, _ = scene.connection(5405)
    with Capture("tcp dst port 5405 and len > 100") as cap:
        here.sendall(bytes(1000))
        assert len(there.recv(9999)) == 1000
        time.sleep(0.3)
    (number,) = cap.packets.index
    assert cap.packets.loc[number, "verdict"] == "delivered"
    assert cap.packets.loc[number, "namespaces"] == " > ".join(scene.lab.names.values())
    assert pd.isna(cap.packets.loc[number, "merged_into"])
