"""Before and below the network layer: programs that refuse, queues, bridges, neighbours, tunnels."""

from __future__ import annotations

import fcntl
import os
import socket
import struct

from bpfpath_nb.lab import programs, wire
from bpfpath_nb.lab.cases.case import case
from bpfpath_nb.lab.scene import Scene, inside

EXPERIMENTAL = 0x88B5
"""An ethertype that IEEE 802 leaves to local experiments."""


@case("an XDP program refuses the packet", reason="XDP NOT_SPECIFIED", where="do_xdp_generic netif_receive_generic_xdp")
def xdp_drop(scene: Scene) -> None:
    programs.attach_xdp(scene, "server", "eth0")
    scene.udp("client", scene.server, 7001)


@case("a TC program refuses what comes in", reason="TC_INGRESS", where="__netif_receive_skb_core")
def tc_ingress_drop(scene: Scene) -> None:
    programs.attach_tc(scene, "server", "eth0", "ingress")
    scene.udp("client", scene.server, 7003)


@case("a TC program refuses what goes out", reason="TC_EGRESS", where="__dev_queue_xmit", ns="client")
def tc_egress_drop(scene: Scene) -> None:
    programs.attach_tc(scene, "client", "eth0", "egress")
    scene.udp("client", scene.server, 7004)


@case(
    "the queue of the interface is full",
    reason="QDISC_DROP QDISC_OVERLIMIT",
    where="__dev_queue_xmit",
    ns="client",
    modules="sch_tbf",
)
def qdisc_full(scene: Scene) -> None:
    through_bucket(scene, 7005, limit=1600, arrive=2)


@case("a rate limit holds the packet back", verdict="delivered", ns="client", modules="sch_tbf")
def qdisc_delay(scene: Scene) -> None:
    through_bucket(scene, 7006, limit=20000, arrive=4)


def through_bucket(scene: Scene, port: int, limit: int, arrive: int) -> None:
    """Four datagrams of 1,000 bytes through a token bucket, in whose queue `limit` bytes wait; so many arrive."""
    receiver = scene.listen("server", port)
    scene.change(
        "client", f"tc qdisc add dev eth0 root tbf rate 80kbit burst 1600 limit {limit}", "tc qdisc del dev eth0 root"
    )
    scene.udp("client", scene.server, port, bytes(1000), count=4)
    for _ in range(arrive):
        receiver.recv(2000)


@case("the frame is addressed to another machine", reason="OTHERHOST", where="ip_rcv_core ip_rcv", ns="router")
def other_host(scene: Scene) -> None:
    datagram = wire.udp(scene.client, scene.router, 4000, 7007, b"hello")
    packet = wire.ipv4(scene.client, scene.router, socket.IPPROTO_UDP, datagram)
    scene.frame("client", "eth0", bytes.fromhex("02deadbeef01"), wire.IP, packet)


@case("no protocol takes the frame", reason="UNHANDLED_PROTO", where="__netif_receive_skb_core", ns="router")
def unknown_ethertype(scene: Scene) -> None:
    scene.frame("client", "eth0", scene.mac("router", "eth0"), EXPERIMENTAL, b"local experiment" * 4)


@case("nobody answers for the address in ARP", reason="NEIGH_FAILED", where="neigh_invalidate", ns="router")
def neighbour_failed(scene: Scene) -> None:
    quick_neighbours(scene, "router", "eth1")
    scene.udp("client", "10.0.2.77", 7008)
    scene.pause(0.5)


@case(
    "too many packets wait for one neighbour",
    reason="NEIGH_QUEUEFULL",
    where="__neigh_event_send",
    ns="client",
    also="NEIGH_FAILED",
)
def neighbour_queue_full(scene: Scene) -> None:
    quick_neighbours(scene, "client", "eth0")
    scene.sysctl("client", ipv4__neigh__eth0__unres_qlen_bytes=2000)
    scene.udp("client", "10.0.1.77", 7009, bytes(1000), count=3)
    scene.pause(0.5)


def quick_neighbours(scene: Scene, ns: str, dev: str, every: int = 60) -> None:
    """Ask for an absent neighbour every so many milliseconds, three times, instead of every second."""
    scene.sysctl(ns, **{f"ipv4__neigh__{dev}__retrans_time_ms": every})


@case("the next hop answers late", verdict="delivered", ns="client")
def neighbour_late(scene: Scene) -> None:
    quick_neighbours(scene, "client", "eth0", every=400)
    scene.sysctl("client", ipv4__neigh__eth0__mcast_solicit=10)  # a slow machine takes long to add the address
    listening = scene.listen("router", 7011)
    scene.udp("client", "10.0.1.78", 7011)
    scene.pause(0.03)
    scene.change("router", "ip addr add 10.0.1.78/32 dev eth0", "ip addr del 10.0.1.78/32 dev eth0")
    listening.recv(100)


TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 1, 0x1000


def tun(scene: Scene) -> None:
    """Addresses for an interface `scene0` of the client that a program holds the other end of."""
    scene.run("client", "sh -c 'echo 1 > /proc/sys/net/ipv6/conf/scene0/disable_ipv6'")
    scene.run("client", "ip addr add 10.6.0.1/24 dev scene0")
    scene.run("client", "ip link set scene0 up txqueuelen 1")


@case(
    "the program behind the interface does not read",
    reason="FULL_RING",
    where="tun_net_xmit",
    ns="client",
    also="NOT_SPECIFIED",
    modules="tun",
)
def tun_full(scene: Scene) -> None:
    with inside(scene.lab.names["client"]):
        program = os.open("/dev/net/tun", os.O_RDWR)
        scene.later(lambda: os.close(program))
        fcntl.ioctl(program, TUNSETIFF, struct.pack("16sH22x", b"scene0", IFF_TUN | IFF_NO_PI))
    tun(scene)
    scene.udp("client", "10.6.0.2", 7012, count=3)


@case("the interface has no carrier: its peer is down", reason="QDISC_DROP", where="__dev_queue_xmit", ns="router")
def no_carrier(scene: Scene) -> None:
    scene.run("router", "ip link add scene0 type veth peer name scene1")
    scene.later(lambda: scene.run("router", "ip link del scene0"))
    scene.run("router", "ip link set scene0 up")
    scene.frame("router", "scene0", bytes.fromhex("02deadbeef02"), wire.IP, bytes(64))


def bridge(scene: Scene) -> bytes:
    """A bridge in the router with one port; what goes into `scene0` arrives at it. The bridge's own address."""
    for command in (
        "ip link add scenebr type bridge mcast_snooping 0",
        "ip link add scene0 type veth peer name scene1",
        "ip link set scene1 master scenebr",
    ):
        scene.run("router", command)
    scene.later(lambda: scene.run("router", "ip link del scenebr"))
    scene.later(lambda: scene.run("router", "ip link del scene0"))
    for dev in ("scenebr", "scene0", "scene1"):
        scene.run("router", f"sh -c 'echo 1 > /proc/sys/net/ipv6/conf/{dev}/disable_ipv6; ip link set {dev} up'")
    scene.pause(0.02)
    return scene.mac("router", "scenebr")


@case(
    "the port of the bridge is blocked",
    reason="BRIDGE_INGRESS_STP_STATE NOT_SPECIFIED",
    where="br_handle_frame",
    ns="router",
    modules="bridge",
)
def bridge_port_blocked(scene: Scene) -> None:
    to = bridge(scene)
    scene.run("router", "bridge link set dev scene1 state 0")
    scene.frame("router", "scene0", to, EXPERIMENTAL, bytes(64))


@case(
    "the bridge has no other port to send the frame out of",
    reason="NO_TX_TARGET NOT_SPECIFIED",
    where="br_flood br_handle_frame_finish",
    ns="router",
    modules="bridge",
)
def bridge_no_target(scene: Scene) -> None:
    bridge(scene)
    scene.frame("router", "scene0", bytes.fromhex("02deadbeef03"), EXPERIMENTAL, bytes(64))


@case(
    "the frame's source is no address of a machine",
    reason="MAC_INVALID_SOURCE NOT_SPECIFIED",
    where="br_handle_frame",
    ns="router",
    modules="bridge",
)
def bridge_invalid_source(scene: Scene) -> None:
    to = bridge(scene)
    sender = scene.open_socket("router", socket.AF_PACKET, socket.SOCK_RAW)
    sender.bind(("scene0", 0))
    sender.send(to + bytes.fromhex("03deadbeef04") + struct.pack("!H", EXPERIMENTAL) + bytes(64))


def vxlan(scene: Scene) -> None:
    """A tunnel on the server, number 42, that lets datagrams to port 4789 in."""
    scene.run("server", "ip link add scenevx type vxlan id 42 dstport 4789 local 10.0.2.2 dev eth0")
    scene.later(lambda: scene.run("server", "ip link del scenevx"))
    scene.run("server", "sh -c 'echo 1 > /proc/sys/net/ipv6/conf/scenevx/disable_ipv6; ip link set scenevx up'")


@case(
    "no tunnel has the network number of the VXLAN packet",
    reason="VXLAN_VNI_NOT_FOUND NOT_SPECIFIED",
    where="vxlan_rcv",
    modules="vxlan",
)
def vxlan_unknown_network(scene: Scene) -> None:
    vxlan(scene)
    scene.udp("client", scene.server, 4789, struct.pack("!II", 0x08000000, 43 << 8) + bytes(64))


@case("the VXLAN header is none", reason="VXLAN_INVALID_HDR NOT_SPECIFIED", where="vxlan_rcv", modules="vxlan")
def vxlan_bad_header(scene: Scene) -> None:
    vxlan(scene)
    scene.udp("client", scene.server, 4789, bytes(72))


@case("IPv6 is switched off on the interface", reason="IPV6DISABLED", where="ip6_rcv_core")
def ipv6_disabled(scene: Scene) -> None:
    address = scene.lab.address("server", 6)
    mac = scene.mac("server", "eth0").hex(":")
    scene.change(
        "router",
        f"ip -6 neigh replace {address} lladdr {mac} dev eth1 nud permanent",
        f"ip -6 neigh del {address} dev eth1",
    )
    scene.later(lambda: scene.run("server", "ip -6 route replace fd00:1::/64 via fd00:2::1"))
    scene.later(lambda: scene.run("server", f"ip addr replace {address}/64 dev eth0 nodad"))
    scene.sysctl("server", ipv6__conf__eth0__disable_ipv6=1)
    scene.udp("client", address, 7010)
    scene.pause(0.02)
