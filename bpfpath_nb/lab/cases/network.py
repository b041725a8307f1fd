"""The network layer: headers, routing, forwarding, fragments."""

from __future__ import annotations

import socket
import struct
from typing import Any

from bpfpath_nb.lab import wire
from bpfpath_nb.lab.cases.case import case
from bpfpath_nb.lab.scene import Scene

ROUTE = "ip_rcv_finish_core ip_rcv_finish"
IP_MTU_DISCOVER, IP_PMTUDISC_DO, IP_PMTUDISC_PROBE = 10, 2, 3


def datagram(scene: Scene, port: int, *, src: str = "", dst: str = "", **fields: Any) -> bytes:
    """A UDP datagram in an IPv4 packet, from client to server."""
    src, dst = src or scene.client, dst or scene.server
    return wire.ipv4(src, dst, socket.IPPROTO_UDP, wire.udp(src, dst, 4000, port, b"hello"), **fields)


@case("the IP header's checksum is wrong", reason="IP_CSUM", where="ip_rcv_core", ns="router")
def ip_checksum(scene: Scene) -> None:
    scene.to_router(datagram(scene, 7201, bad_checksum=True))


@case("the IP header contradicts itself", reason="IP_INHDR", where="ip_rcv_core", ns="router")
def ip_header(scene: Scene) -> None:
    scene.to_router(datagram(scene, 7202, version=5))


@case("the packet is shorter than its header says", reason="PKT_TOO_SMALL", where="ip_rcv_core", ns="router")
def ip_truncated(scene: Scene) -> None:
    scene.to_router(datagram(scene, 7203)[:30])


@case("the time to live is over at the router", reason="IP_INHDR", where="ip_forward", ns="router")
def ttl_exceeded(scene: Scene) -> None:
    scene.packet("client", datagram(scene, 7204, ttl=1), scene.server)


@case(
    "the packet goes round between two routers until its time is over",
    reason="IP_INHDR",
    where="ip_forward",
    ns="router",
)
def routing_loop(scene: Scene) -> None:
    scene.change("router", "ip route add 10.9.0.0/24 via 10.0.2.2", "ip route del 10.9.0.0/24")
    scene.change("server", "ip route add 10.9.0.0/24 via 10.0.2.1", "ip route del 10.9.0.0/24")
    scene.change("client", "ip route add 10.9.0.0/24 via 10.0.1.2", "ip route del 10.9.0.0/24")
    scene.sysctl("server", ipv4__ip_forward=1)
    scene.sysctl("router", ipv4__conf__all__send_redirects=0, ipv4__conf__eth1__send_redirects=0)
    scene.sysctl("server", ipv4__conf__all__send_redirects=0, ipv4__conf__eth0__send_redirects=0)
    scene.packet("client", datagram(scene, 7205, dst="10.9.0.1", ttl=11), "10.9.0.1")
    scene.pause(0.05)


@case("the source address belongs behind another interface", reason="IP_RPFILTER", where=ROUTE, ns="router")
def rp_filter(scene: Scene) -> None:
    scene.sysctl("router", ipv4__conf__all__rp_filter=1, ipv4__conf__eth0__rp_filter=1)
    scene.to_router(datagram(scene, 7206, src="10.0.2.99"))


@case(
    "the source address is none that a packet can have",
    reason="IP_INVALID_SOURCE IP_LOCAL_SOURCE NOT_SPECIFIED",
    where=ROUTE,
    ns="router",
)
def martian_source(scene: Scene) -> None:
    scene.to_router(datagram(scene, 7207, src="255.255.255.255"))


@case("the source address is the receiver's own", reason="IP_LOCAL_SOURCE NOT_SPECIFIED", where=ROUTE, ns="router")
def own_source(scene: Scene) -> None:
    scene.to_router(datagram(scene, 7208, src=scene.router))


@case(
    "the source or destination is of the loopback network", reason="IP_LOCALNET NOT_SPECIFIED", where=ROUTE, ns="router"
)
def loopback_address(scene: Scene) -> None:
    scene.to_router(datagram(scene, 7209, dst="127.0.0.1"))


@case("the destination is no address", reason="IP_INVALID_DEST NOT_SPECIFIED", where=ROUTE, ns="router")
def invalid_destination(scene: Scene) -> None:
    scene.to_router(datagram(scene, 7210, dst="0.0.0.0"))


@case("the router has no route", reason="IP_INNOROUTES", where="ip_error", ns="router")
def no_route(scene: Scene) -> None:
    scene.change("client", "ip route add 10.8.0.0/24 via 10.0.1.2", "ip route del 10.8.0.0/24")
    scene.udp("client", "10.8.0.1", 7211)


def _route_of_type(scene: Scene, kind: str, port: int) -> None:
    scene.change("client", "ip route add 10.8.0.0/24 via 10.0.1.2", "ip route del 10.8.0.0/24")
    scene.change("router", f"ip route add {kind} 10.8.0.0/24", f"ip route del {kind} 10.8.0.0/24")
    scene.udp("client", "10.8.0.1", port)


@case(
    "the route is a blackhole",
    reason="IP_INNOROUTES NOT_SPECIFIED",
    where="dst_discard_out dst_discard ip_error " + ROUTE,
    ns="router",
)
def blackhole_route(scene: Scene) -> None:
    _route_of_type(scene, "blackhole", 7212)


@case("the route says unreachable", reason="IP_INADDRERRORS NOT_SPECIFIED", where="ip_error", ns="router")
def unreachable_route(scene: Scene) -> None:
    _route_of_type(scene, "unreachable", 7213)


@case("the route says prohibited", reason="NOT_SPECIFIED", where="ip_error", ns="router")
def prohibit_route(scene: Scene) -> None:
    _route_of_type(scene, "prohibit", 7214)


@case("a routing rule refuses the packet", reason="NOT_SPECIFIED", where="ip_error", ns="router")
def policy_rule(scene: Scene) -> None:
    scene.change(
        "router",
        "ip rule add to 10.0.2.2 dport 7215 ipproto udp prohibit",
        "ip rule del to 10.0.2.2 dport 7215 ipproto udp prohibit",
    )
    scene.udp("client", scene.server, 7215)


@case("the host does not forward", reason="IP_INADDRERRORS NOT_SPECIFIED", where="ip_error", ns="router")
def forwarding_off(scene: Scene) -> None:
    scene.sysctl("router", ipv4__ip_forward=0)
    scene.udp("client", scene.server, 7216)


@case(
    "the packet is larger than the next link takes, and may not be cut",
    reason="PKT_TOO_BIG",
    where="ip_forward",
    ns="router",
)
def mtu(scene: Scene) -> None:
    scene.change("router", "ip link set eth1 mtu 1300", "ip link set eth1 mtu 1500")
    sender = scene.open_socket("client")
    sender.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE)  # sets DF, and forgets what it is told
    sender.sendto(bytes(1400), (scene.server, 7217))


@case(
    "a fragment never comes", reason="FRAG_REASM_TIMEOUT", where="inet_frag_rbtree_purge ip_expire inet_frags_free_cb"
)
def fragment_missing(scene: Scene) -> None:
    scene.sysctl("server", ipv4__ipfrag_time=1)
    payload = wire.udp(scene.client, scene.server, 4000, 7218, bytes(1024))
    first = wire.ipv4(scene.client, scene.server, socket.IPPROTO_UDP, payload[:512], fragment=wire.MORE_FRAGMENTS)
    scene.packet("client", first, scene.server)
    scene.pause(1.3)


@case("a fragment waits for the others", verdict="unfinished", lasts=True)
def fragment_waits(scene: Scene) -> None:
    payload = wire.udp(scene.client, scene.server, 4000, 7230, bytes(600))
    first = wire.ipv4(
        scene.client, scene.server, socket.IPPROTO_UDP, payload[:512], fragment=wire.MORE_FRAGMENTS, ident=8
    )
    scene.packet("client", first, scene.server)
    scene.pause(0.05)


@case("the same fragment comes twice", reason="DUP_FRAG", where="ip_frag_queue ip_defrag")
def fragment_twice(scene: Scene) -> None:
    payload = wire.udp(scene.client, scene.server, 4000, 7219, bytes(1024))
    listening = scene.listen("server", 7219)
    first = wire.ipv4(
        scene.client, scene.server, socket.IPPROTO_UDP, payload[:512], fragment=wire.MORE_FRAGMENTS, ident=7
    )
    last = wire.ipv4(scene.client, scene.server, socket.IPPROTO_UDP, payload[512:], fragment=64, ident=7)
    for fragment in (first, first, last):
        scene.packet("client", fragment, scene.server)
    listening.recv(2000)


@case(
    "no protocol of the host takes the packet",
    reason="IP_NOPROTO",
    where="ip_local_deliver_finish ip_protocol_deliver_rcu",
)
def unknown_protocol(scene: Scene) -> None:
    scene.packet("client", wire.ipv4(scene.client, scene.server, 200, b"hello"), scene.server)


@case("an unicast packet comes in a broadcast frame", reason="UNICAST_IN_L2_MULTICAST", where=ROUTE, ns="router")
def unicast_in_broadcast(scene: Scene) -> None:
    scene.sysctl("router", ipv4__conf__eth0__drop_unicast_in_l2_multicast=1)
    scene.frame("client", "eth0", b"\xff" * 6, wire.IP, datagram(scene, 7220, dst=scene.router))


@case("the answers take another way than the questions", verdict="delivered")
def asymmetric_path(scene: Scene) -> None:
    """A second link between client and server, which only the server uses."""
    names = scene.lab.names
    scene.run("client", f"ip link add scene0 type veth peer name scene0 netns {names['server']}")
    scene.later(lambda: scene.run("client", "ip link del scene0"))
    for ns, own in (("client", "10.7.0.1"), ("server", "10.7.0.2")):
        scene.run(ns, "sh -c 'echo 1 > /proc/sys/net/ipv6/conf/scene0/disable_ipv6'")
        scene.run(ns, f"ip addr add {own}/24 dev scene0")
        scene.run(ns, "ip link set scene0 up")
    scene.sysctl("client", ipv4__conf__all__rp_filter=0, ipv4__conf__scene0__rp_filter=0)
    scene.change(
        "server", f"ip route replace {scene.client}/32 via 10.7.0.1", f"ip route del {scene.client}/32 via 10.7.0.1"
    )
    here, there = scene.listen("client", 7222), scene.open_socket("server")
    there.bind((scene.server, 7221))
    here.settimeout(1.0)
    for _ in range(3):
        here.sendto(b"question", (scene.server, 7221))
        _, peer = there.recvfrom(100)
        there.sendto(b"answer", peer)
        here.recv(100)


@case("every packet arrives twice", verdict="delivered")
def duplicates(scene: Scene) -> None:
    receiver = scene.listen("server", 7223)
    packet = datagram(scene, 7223, ident=4711)
    for _ in range(2):
        scene.packet("client", packet, scene.server)
        receiver.recv(100)


@case("the hop limit of IPv6 is over at the router", reason="IP_INHDR", where="ip6_forward", ns="router")
def ip6_hop_limit(scene: Scene) -> None:
    sender = scene.open_socket("client", socket.AF_INET6)
    sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 1)
    sender.sendto(b"hello", (scene.lab.address("server", 6), 7225))


@case("the router has no IPv6 route", reason="IP_INNOROUTES", where="ip6_pkt_drop ip6_pkt_discard", ns="router")
def ip6_no_route(scene: Scene) -> None:
    scene.change("client", "ip route add fd00:8::/64 via fd00:1::2", "ip route del fd00:8::/64")
    scene.udp("client", "fd00:8::1", 7226)


@case(
    "neighbour discovery came through a router",
    reason="IPV6_NDISC_HOP_LIMIT NOT_SPECIFIED",
    where="ndisc_rcv icmpv6_rcv",
    ns="router",
)
def ndisc_hop_limit(scene: Scene) -> None:
    """A solicitation whose hop limit is not 255 cannot be of a direct neighbour (RFC 4861)."""
    asking = scene.open_socket("client", socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    asking.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 64)
    router = scene.lab.address("router", 6)
    asking.sendto(struct.pack("!BBHI", 135, 0, 0, 0) + socket.inet_pton(socket.AF_INET6, router), (router, 0))


@case("nobody here joined the multicast group", reason="NOT_SPECIFIED", where="ip6_mc_input", ns="router")
def multicast_unwanted(scene: Scene) -> None:
    sender = scene.open_socket("client", socket.AF_INET6)
    sender.sendto(b"hello", ("ff02::1234", 7228, 0, scene.ifindex("client", "eth0")))


@case(
    "the policy of IPsec forbids the packet",
    reason="XFRM_POLICY",
    where="ip_local_deliver_finish udp_queue_rcv_one_skb",
    modules="xfrm_user",
)
def xfrm_policy(scene: Scene) -> None:
    scene.listen("server", 7227)
    what = f"dir in src {scene.client}/32 dst {scene.server}/32 proto udp dport 7227"
    scene.change("server", f"ip xfrm policy add {what} action block", f"ip xfrm policy del {what}")
    scene.udp("client", scene.server, 7227)
