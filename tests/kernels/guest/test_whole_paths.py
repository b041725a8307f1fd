"""With kprobes: what becomes of packets in tunnels, of copies, and of what receiving merges; and tcpdrop beside ours.

One capture saw all of the traffic; the tests look at its parts.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

import pandas as pd
import pytest
from test_merging import CUT_BY_DEVICE, datagrams, features, merge_datagrams
from test_tcpdrop import tcpdrop, test_whatever_tcpdrop_prints_is_in_the_drops

from bpfpath_nb import Capture, Recording
from bpfpath_nb.lab import Lab
from bpfpath_nb.lab.scene import Scene

__all__ = ["tcpdrop", "test_whatever_tcpdrop_prints_is_in_the_drops"]

pytestmark = pytest.mark.only("6.12")

MODULES = ("veth", "tun", "nf_tables", "nf_dup_ipv4", "nft_dup_ipv4", "ipip", "ip_gre", "cls_bpf")
TUNNELS = {"ipip": 5502, "gre": 5503}
COPIED, LISTED = 5504, 5505
PATIENCE = 60.0  # seconds; emulated, everything takes long


@pytest.fixture
def lab_prefix() -> str:
    return "drops-"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    for module in MODULES:
        subprocess.run(["modprobe", "-q", module], check=False)
    with Lab(prefix="whole-") as lab:
        yield lab


@pytest.fixture(scope="module")
def recording(lab: Lab) -> Iterator[Recording]:
    with Scene(lab) as scene:
        for number, kind in enumerate(TUNNELS):
            tunnel(scene, kind, f"10.{78 + number}.0")
        dup = f"udp dport {COPIED} dup to {scene.server}"
        rules = f"table ip copies {{\nchain pre {{ type filter hook prerouting priority 0; {dup}; }}\n}}\n"
        assert lab.run("router", ["nft", "-f", "-"], input=rules, timeout=PATIENCE).returncode == 0
        features(lab, "client", dict.fromkeys(CUT_BY_DEVICE, False))
        features(lab, "router", {"rx-gro": True})
        merge_datagrams(scene, "rx-gro-list")
        there = {port: scene.listen("server", port) for port in (*TUNNELS.values(), COPIED, LISTED)}
        for receiving in there.values():
            receiving.settimeout(PATIENCE)
        with Capture("udp portrange 5500-5509", timeout=900) as cap:
            for number, port in enumerate(TUNNELS.values()):
                scene.udp("client", f"10.{78 + number}.0.2", port, payload=b"through")
                assert there[port].recv(99) == b"through"
            scene.udp("client", scene.server, COPIED, payload=b"twice")
            assert [there[COPIED].recv(99) for _ in range(2)] == [b"twice"] * 2
            datagrams(scene, LISTED)
            assert [len(there[LISTED].recv(9999)) for _ in range(5)] == [1000] * 5
            time.sleep(3)
        print(cap.packets[["flow", "length", "hops", "verdict", "where", "parent", "merged_into"]].to_string())
        for kind, port in TUNNELS.items():
            print(kind, cap.text(packet=int(to_port(cap.recording, port).index[0])))
        yield cap.recording


def tunnel(scene: Scene, kind: str, net: str) -> None:
    """A tunnel from the router to the server; the client has left no room for its headers."""
    ends = (scene.lab.address("router", towards="server"), scene.server)
    for number, (ns, own, other) in enumerate([("router", *ends), ("server", *reversed(ends))], start=1):
        scene.run(ns, f"ip link add to-{kind} type {kind} local {own} remote {other}")
        scene.run(ns, f"ip address add {net}.{number}/24 dev to-{kind}")
        scene.run(ns, f"ip link set to-{kind} up")
    scene.run("client", f"ip route replace {net}.0/24 via {scene.router}")
    scene.run("server", "sh -c 'for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $f; done'")


def to_port(recording: Recording, port: int) -> pd.DataFrame:
    return recording.packets[recording.packets["dport"] == port]


def functions(recording: Recording, packet: int) -> list[str]:
    return [str(name) for name in recording.df.loc[packet, "func"]]


@pytest.mark.parametrize("kind", TUNNELS)
def test_a_tunnel_gives_a_packet_another_buffer_and_it_keeps_its_number(
    recording: Recording, lab: Lab, kind: str
) -> None:
    packets = to_port(recording, TUNNELS[kind])
    (number,) = packets.index
    hops = recording.df.loc[number]
    assert packets.loc[number, "verdict"] == "delivered"
    assert packets.loc[number, "namespaces"] == " > ".join(lab.names.values())
    assert "pskb_expand_head" in functions(recording, number)
    flows = hops["flow"].astype(str)
    inner, outer = flows.iloc[0], f"{lab.address('router', towards='server')} > {lab.address('server')}"
    assert inner.endswith(f":{TUNNELS[kind]}")
    wrapped = flows.str.endswith(outer)
    # Inner, outer, and inner again, in the server and at the tunnel's device.
    assert wrapped.any()
    assert not wrapped.iloc[0]
    assert flows.iloc[-1] == inner
    assert set(hops.loc[wrapped, "netns"].dropna().astype(str)) >= {lab.names["router"]}
    assert f"to-{kind}" in set(hops.loc[hops["netns"] == lab.names["server"], "dev"].astype(str))


def test_a_copy_has_its_parent(recording: Recording) -> None:
    """nftables' `dup` makes one, in the router."""
    packets = to_port(recording, COPIED)
    first, copy = packets.index
    assert pd.isna(packets.loc[first, "parent"])
    assert packets.loc[copy, "parent"] == first
    assert set(packets["verdict"]) == {"delivered"}
    assert "__pskb_copy_fclone" in functions(recording, first)
    assert "__pskb_copy_fclone" not in functions(recording, copy)


def test_what_is_merged_into_a_list_comes_out_again(recording: Recording) -> None:
    packets = to_port(recording, LISTED)
    merged = packets[packets["merged_into"].notna()]
    assert len(merged) == 4
    assert merged["merged_into"].nunique() == 1
    assert set(merged["verdict"]) == {"delivered"}
