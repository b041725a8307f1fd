"""One packet, one number: through address translation, clones, segments, fragments, tunnels, and from any sender."""

from __future__ import annotations

import ctypes
import fcntl
import secrets
import socket
import struct
import time
from collections.abc import Iterator

import pandas as pd
import pytest

from bpfpath_nb import Capture
from bpfpath_nb.lab import Lab
from bpfpath_nb.lab.scene import Scene
from bpfpath_nb.schema import EVENT_FLAGS

SIOCETHTOOL, ETHTOOL_STSO = 0x8946, 0x1F
UDP_SEGMENT = 103  # linux/udp.h


@pytest.fixture(scope="module")
def chain() -> Iterator[Lab]:
    with Lab(prefix=f"ti{secrets.token_hex(2)}-") as lab:
        yield lab


@pytest.fixture
def scene(chain: Lab) -> Iterator[Scene]:
    with Scene(chain) as scene:
        yield scene


def settle(cap: Capture, packets: int, seconds: float = 3.0) -> None:
    """Wait until so many packets came to their ends."""
    deadline = time.monotonic() + seconds
    while (cap.packets["verdict"] != "unfinished").sum() < packets and time.monotonic() < deadline:
        time.sleep(0.05)


def begins_at_entries(cap: Capture) -> None:
    events = cap.recording.events
    entries = events.hops["flags"] & EVENT_FLAGS["entry"] != 0
    assert entries[events.first].all()
    assert entries.sum() == len(cap.packets)


def hops(cap: Capture, packet: int) -> pd.DataFrame:
    return cap.df.loc[packet]


def translate(scene: Scene, tool: str) -> None:
    """Have the router give what comes to its port 5300 to the server's 5301, in its own name."""
    if tool == "nft":
        scene.nft(
            "router",
            f"chain pre {{ type nat hook prerouting priority -100; udp dport 5300 dnat ip to {scene.server}:5301; }}\n"
            "chain post { type nat hook postrouting priority 100; udp dport 5301 masquerade; }",
        )
        return
    for rule in (
        f"PREROUTING -p udp --dport 5300 -j DNAT --to-destination {scene.server}:5301",
        "POSTROUTING -p udp --dport 5301 -j MASQUERADE",
    ):
        scene.change("router", f"{tool} -w -t nat -A {rule}", f"{tool} -w -t nat -D {rule}")


@pytest.mark.parametrize("tool", ["nft", "iptables-nft", "iptables-legacy"])
def test_translated_addresses_keep_the_number_and_the_reply_has_its_own(scene: Scene, tool: str) -> None:
    translate(scene, tool)
    there = scene.listen("server", 5301)
    here = scene.open_socket("client")
    with Capture("udp port 5300 or udp port 5301") as cap:
        here.sendto(b"ask", (scene.router, 5300))
        _, back = there.recvfrom(99)
        there.sendto(b"answer", back)
        assert here.recv(99) == b"answer"
        settle(cap, 2)
    begins_at_entries(cap)
    assert len(cap.packets) == 2
    asked, answered = (hops(cap, number) for number in cap.packets.index)
    port = here.getsockname()[1]
    flows = [
        asked["flow"].astype(str).drop_duplicates().tolist(),
        answered["flow"].astype(str).drop_duplicates().tolist(),
    ]
    assert flows[0][0] == f"udp {scene.client}:{port} > {scene.router}:5300"
    assert flows[0][-1] == f"udp {back[0]}:{back[1]} > {scene.server}:5301"
    assert back[0] == scene.lab.address("router", towards="server")
    assert flows[1][0] == f"udp {scene.server}:5301 > {back[0]}:{back[1]}"
    assert flows[1][-1] == f"udp {scene.router}:5300 > {scene.client}:{port}"
    # Where it changes: destination in prerouting, source in postrouting, and so it shows at the next hop.
    in_client = asked["netns"] == scene.lab.names["client"]
    assert asked.loc[in_client, "flow"].nunique() == 1
    assert asked.loc[asked["func"] == "nf_forward", "flow"].tolist() == [
        f"udp {scene.client}:{port} > {scene.server}:5301"
    ]
    in_server = asked["netns"] == scene.lab.names["server"]
    assert asked.loc[in_server, "flow"].unique().tolist() == [flows[0][-1]]


def test_clones_share_the_number_and_differ_by_address(scene: Scene) -> None:
    watching = scene.open_socket("router", socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    there = scene.listen("server", 5310)
    with Capture("udp port 5310") as cap:
        scene.udp("client", scene.server, 5310)
        there.recv(99)
        while struct.pack("!H", 5310) not in watching.recv(999)[36:38]:
            pass
        settle(cap, 1)
    begins_at_entries(cap)
    (number,) = cap.packets.index
    path = hops(cap, number)
    assert path["skb"].nunique() > 1
    assert cap.packets.loc[number, "verdict"] == "delivered"
    # The one that goes on to the server is none of those that the packet socket got.
    on = path[path["netns"] == scene.lab.names["server"]]
    assert on["skb"].nunique() == 1
    clones = cap.recording.events.hops["flags"] & EVENT_FLAGS["clone"] != 0
    assert clones.any()


def test_a_bridge_that_floods_makes_clones_of_one_packet(scene: Scene) -> None:
    """A broadcast into a bridge with three ports comes out of two of them and goes up."""
    ns = "router"
    scene.change(ns, "ip link add flood type bridge", "ip link del flood")
    for port in range(3):
        scene.run(ns, f"ip link add port{port} type veth peer name end{port}")
        scene.later(lambda port=port: scene.run(ns, f"ip link del port{port}"))
        scene.run(ns, f"ip link set port{port} master flood up")
        scene.run(ns, f"ip link set end{port} up")
    scene.run(ns, "ip link set flood up")
    deadline = time.monotonic() + 5
    while scene.run(ns, "ip -d link").count("state forwarding") < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    ip = _with_checksum(struct.pack("!BBHHHBBH4s4s", 69, 0, 28, 1, 0, 64, 17, 0, bytes((10, 7, 0, 1)), b"\xff" * 4))
    with Capture("udp port 5320") as cap:
        scene.frame(ns, "end0", b"\xff" * 6, 0x0800, ip + struct.pack("!HHHH", 9, 5320, 8, 0))
        time.sleep(0.5)
    begins_at_entries(cap)
    (number,) = cap.packets.index
    path = hops(cap, number)
    ports = set(path["dev"].dropna().astype(str))
    assert {"end0", "port0", "port1", "port2", "end1", "end2"} <= ports
    assert path["skb"].nunique() >= 3
    ends = path[path["dev"].astype(str).isin(["end1", "end2"])]
    assert ends.groupby("dev", observed=True)["skb"].first().nunique() == 2


def test_receivers_of_a_multicast_get_clones_of_one_packet(scene: Scene) -> None:
    """Three programs on another host, and one on the sender's own, to which its host loops a clone back."""
    group = "239.7.7.7"
    member = socket.inet_aton(group)
    receivers = [scene.listen(ns, 5325) for ns in ("router", "router", "router", "client")]
    for there, ns in zip(receivers, ("router", "router", "router", "client"), strict=True):
        interface = socket.inet_aton(getattr(scene, ns))
        there.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member + interface)
    sender = scene.open_socket("client")
    sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(scene.client))
    # What could be cut lies in pages, and the copying from there to a reader is seen (skb_copy_datagram_iovec).
    in_pages = [(socket.SOL_UDP, UDP_SEGMENT, struct.pack("H", 1000))]
    with Capture("udp port 5325") as cap:
        sender.sendmsg([b"to all"], in_pages, 0, (group, 5325))
        assert [there.recv(99) for there in receivers] == [b"to all"] * 4
        settle(cap, 1)
        time.sleep(0.2)
    begins_at_entries(cap)
    (number,) = cap.packets.index
    path = hops(cap, number)
    read = path[path["func"] == "skb_copy_datagram_iovec"]
    assert len(read) == read["skb"].nunique() == 4
    assert cap.packets.loc[number, "verdict"] == "delivered"
    assert {scene.lab.names["client"], scene.lab.names["router"]} == set(path["netns"].dropna().astype(str))
    assert cap.quality["unfinished"] == 0


def test_segments_of_a_large_write_have_numbers_of_their_own_and_a_parent(scene: Scene) -> None:
    _ethtool(scene.open_socket("client"), "eth0", ETHTOOL_STSO, 0)  # veth would pass 64 KiB on uncut
    scene.later(lambda: _ethtool(scene.open_socket("client"), "eth0", ETHTOOL_STSO, 1))
    here, there, _ = scene.connection(5330)
    with Capture("tcp dst port 5330 and len > 100") as cap:
        here.sendall(bytes(1 << 16))
        left = 1 << 16
        while left:
            left -= len(there.recv(1 << 16))
        time.sleep(0.5)
    begins_at_entries(cap)
    packets = cap.packets
    cut, whole = packets[packets["parent"].notna()], packets[packets["parent"].isna()]
    large = whole[whole["length"] > 1600]
    assert len(large) >= 1
    assert len(cut) >= 20
    assert set(cut["parent"]) <= set(large.index)
    assert (cut["length"] <= 1514).all()
    # Each large one is cut into as many as its payload needs, and they are there whole.
    headers = 14 + 20 + 32
    for number, row in large.iterrows():
        segments = packets[packets["parent"] == number]
        assert (segments["length"] - headers).sum() == row["length"] - (
            headers if row["length"] % 1448 == headers else headers - 14
        )
    assert (cut["namespaces"] == " > ".join(scene.lab.names.values())).all()


def test_the_next_large_packet_of_a_flow_is_no_segment_of_the_last(scene: Scene) -> None:
    here, there, _ = scene.connection(5331)
    with Capture("tcp dst port 5331 and len > 100", match="tc") as cap:  # first seen where segments are seen, too
        here.sendall(bytes(1 << 18))
        left = 1 << 18
        while left:
            left -= len(there.recv(left))
        time.sleep(0.3)
    packets = cap.packets
    assert (packets["length"] > 1600).sum() >= 3
    assert packets["parent"].isna().all()


def test_what_follows_a_large_packet_on_its_way_is_no_segment_of_it(scene: Scene) -> None:
    """Acknowledgements between large packets, and the FIN behind them, first seen where these are."""
    here, there, _ = scene.connection(5332)
    with Capture("tcp dst port 5332", match="tc") as cap:
        for _ in range(5):
            here.sendall(bytes(1 << 15))
            there.sendall(b"x")
            here.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            here.recv(1)
            left = 1 << 15
            while left:
                left -= len(there.recv(left))
        here.sendall(bytes(1 << 15))
        here.close()
        time.sleep(0.3)
    packets = cap.packets
    assert (packets["length"] > 1600).sum() >= 6
    assert (packets["length"] < 100).sum() >= 3
    assert packets["parent"].isna().all()


def test_fragments_have_a_parent_and_come_together_again(scene: Scene) -> None:
    there = scene.listen("server", 5340)
    # No port stands in a fragment; other labs on this machine have the same addresses.
    with Capture(f"ip proto 17 and src host {scene.client}", namespaces=list(scene.lab.names.values())) as cap:
        scene.udp("client", scene.server, 5340, payload=bytes(4000))
        assert len(there.recv(9999)) == 4000
        time.sleep(0.3)
    begins_at_entries(cap)
    packets = cap.packets
    whole = packets[packets["parent"].isna()]
    fragments = packets[packets["parent"].notna()]
    # The sender's buffer becomes the first fragment, and goes on with the packet's number.
    assert len(whole) == 1
    assert len(fragments) == 2
    assert set(fragments["parent"]) == set(whole.index)
    assert (fragments["namespaces"] == " > ".join(scene.lab.names.values())).all()
    # What comes together goes on as the first of them, which alone is delivered, and the others end in it.
    assert whole["verdict"].tolist() == ["delivered"]
    assert fragments["verdict"].tolist() == ["consumed"] * 2


@pytest.mark.parametrize(("version", "of"), [(4, "icmp"), (6, "icmp6 or ip6 proto 44")])
def test_fragments_of_what_was_used_are_not_dropped(scene: Scene, version: int, of: str) -> None:
    address = scene.lab.address("server", 4 if version == 4 else 6)
    scene.run("client", f"ping -{version} -c1 -W2 {address}")
    with Capture(of, namespaces=list(scene.lab.names.values())) as cap:
        scene.run("client", f"ping -{version} -c1 -W2 -s 5000 {address}")
        time.sleep(0.3)
    fragments = cap.packets[cap.packets["parent"].notna()]
    assert len(fragments) == 6
    assert (fragments["verdict"] == "consumed").sum() >= 4
    assert "dropped" not in set(cap.packets["verdict"])
    assert not set(cap.diagnose().findings["rule"]) & {"not-said", "unread"}


def test_a_packet_keeps_its_number_in_a_tunnel(scene: Scene) -> None:
    """vxlan wants room for its headers, so that the packet gets another buffer on the way."""
    for ns, own, other in (("client", 1, scene.server), ("server", 2, scene.client)):
        scene.change(ns, f"ip link add vx0 type vxlan id 7 remote {other} dstport 4789", "ip link del vx0")
        scene.run(ns, f"ip addr add 10.77.0.{own}/24 dev vx0")
        scene.run(ns, "ip link set vx0 up")
    scene.run("client", "ping -c1 -W2 10.77.0.2")
    there = scene.listen("server", 5350)
    with Capture("udp port 5350") as cap:
        scene.udp("client", "10.77.0.2", 5350, payload=b"through")
        assert there.recv(99) == b"through"
        settle(cap, 1)
    begins_at_entries(cap)
    (number,) = cap.packets.index
    path = hops(cap, number)
    assert cap.packets.loc[number, "verdict"] == "delivered"
    assert cap.packets.loc[number, "namespaces"] == " > ".join(scene.lab.names.values())
    flows = path["flow"].astype(str).tolist()
    assert flows[0].endswith("> 10.77.0.2:5350")
    assert any(flow.endswith(f"> {scene.server}:4789") for flow in flows)
    assert flows[-1].endswith("> 10.77.0.2:5350")
    assert "vx0" in set(path["dev"].astype(str))


def test_senders_that_bypass_layers_begin_where_they_send(scene: Scene) -> None:
    ip = struct.pack(
        "!BBHHHBBH4s4s", 69, 0, 28, 7, 0, 64, 17, 0, socket.inet_aton(scene.client), socket.inet_aton(scene.router)
    )
    with Capture("udp port 5360 or udp port 5361 or udp port 5362") as cap:
        scene.packet("client", ip + struct.pack("!HHHH", 1, 5360, 8, 0), scene.router)
        checksummed = _with_checksum(ip)
        scene.frame(
            "client", "eth0", scene.mac("router", "eth0"), 0x0800, checksummed + struct.pack("!HHHH", 1, 5361, 8, 0)
        )
        scene.udp("client", "127.0.0.1", 5362)
        settle(cap, 3)
    begins_at_entries(cap)
    raw, frame, loopback = (cap.packets[cap.packets["dport"] == port].iloc[0] for port in (5360, 5361, 5362))
    assert raw["verdict"] == frame["verdict"] == loopback["verdict"] == "dropped"
    assert raw["reason"] == frame["reason"] == loopback["reason"] == "NO_SOCKET"
    assert hops(cap, raw.name)["func"].iloc[0] == "nf_output"
    assert hops(cap, frame.name)["func"].iloc[0] in ("net_dev_queue", "tc_egress")
    assert set(hops(cap, loopback.name)["dev"].dropna().astype(str)) == {"lo"}
    assert loopback["namespaces"] == scene.lab.names["client"]


def test_what_nobody_reads_is_unfinished(scene: Scene) -> None:
    there = scene.listen("server", 5370)
    with Capture("udp port 5370") as cap:
        scene.udp("client", scene.server, 5370)
        time.sleep(2.0)
        waiting = cap.packets
        assert there.recv(99) == b"hello"
        settle(cap, 1)
    assert waiting["verdict"].tolist() == ["unfinished"]
    assert waiting["complete"].tolist() == [True]
    assert cap.packets["verdict"].tolist() == ["delivered"]
    assert cap.packets.index.tolist() == waiting.index.tolist()


def test_what_tcp_acknowledged_and_nobody_reads_is_unfinished(scene: Scene) -> None:
    """The router gave the segment a buffer of its own, and the sender frees the one that it kept."""
    here, there, _ = scene.connection(5371)
    with Capture("tcp dst port 5371 and len > 100", namespaces=list(scene.lab.names.values())) as cap:
        here.sendall(bytes(1000))
        time.sleep(0.5)
        waiting = cap.packets
        assert len(there.recv(9999)) == 1000
        settle(cap, 1)
    assert waiting["verdict"].tolist() == ["unfinished"]
    assert cap.packets["verdict"].tolist() == ["delivered"]
    hops_ = cap.df[cap.df["netns"] == scene.lab.names["router"]]
    assert "skb_free_head" not in set(hops_["func"]), "what stayed with the sender did not end at the router"


def _ethtool(asking: socket.socket, dev: str, command: int, value: int) -> None:
    request = ctypes.create_string_buffer(struct.pack("=II", command, value), 8)
    fcntl.ioctl(asking, SIOCETHTOOL, struct.pack("16sQ16x", dev.encode(), ctypes.addressof(request)))


def _with_checksum(ip: bytes) -> bytes:
    total = sum(struct.unpack(f"!{len(ip) // 2}H", ip))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ip[:10] + struct.pack("!H", ~total & 0xFFFF) + ip[12:]


@pytest.mark.parametrize(
    ("verdict", "reason"), [("drop", "NETFILTER_DROP"), ("accept", "NO_SOCKET")], ids=["dropped", "closed port"]
)
def test_a_packet_that_is_changed_on_its_way_to_a_socket_keeps_its_number(
    scene: Scene, verdict: str, reason: str
) -> None:
    """A packet socket holds a clone, so that the change gives the packet a buffer of its own, behind the last hook."""
    scene.open_socket("server", socket.AF_PACKET, socket.SOCK_RAW, 0x0300)  # ETH_P_ALL
    rules = f"udp dport 5340 ip dscp set 10 {verdict};"
    scene.nft("server", f"chain in {{ type filter hook input priority 0; {rules} }}")
    with Capture("udp dst port 5340", namespaces=list(scene.lab.names.values())) as cap:
        scene.udp("client", scene.server, 5340, count=5)
        settle(cap, 5)
    begins_at_entries(cap)
    packets = cap.packets
    assert packets["verdict"].tolist() == ["dropped"] * 5
    assert packets["reason"].tolist() == [reason] * 5
    for packet in packets.index:
        assert "nf_input" in set(hops(cap, packet)["func"])
