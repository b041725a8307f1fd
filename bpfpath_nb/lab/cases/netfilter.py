"""Rules and connection tracking."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path

from bpfpath_nb.lab import wire
from bpfpath_nb.lab.cases.case import case
from bpfpath_nb.lab.scene import Scene

NFT = "nf_tables nft_ct nf_conntrack"
CHAIN = "nft_do_chain nf_hook_slow"


def guarded(scene: Scene, ns: str, hook: str, port: int, verdict: str) -> None:
    """A datagram to a port for which a rule in one namespace has a verdict."""
    scene.nft(ns, f"chain guard {{ type filter hook {hook}; udp dport {port} {verdict}; }}")
    scene.udp("client", scene.server, port)


@case("a rule drops what is for this host", reason="NETFILTER_DROP", where=CHAIN, modules=NFT)
def nft_input(scene: Scene) -> None:
    guarded(scene, "server", "input priority 0", 7101, "drop")


@case("a rule drops what is forwarded", reason="NETFILTER_DROP", where=CHAIN, ns="router", modules=NFT)
def nft_forward(scene: Scene) -> None:
    guarded(scene, "router", "forward priority 0", 7102, "drop")


@case("a rule drops what this host sends", reason="NETFILTER_DROP", where=CHAIN, ns="client", modules=NFT)
def nft_output(scene: Scene) -> None:
    guarded(scene, "client", "output priority 0", 7103, "drop")


@case("a rule drops before routing", reason="NETFILTER_DROP", where=CHAIN, ns="router", modules=NFT)
def nft_prerouting(scene: Scene) -> None:
    guarded(scene, "router", "prerouting priority -300", 7104, "drop")


@case("a rule drops after routing", reason="NETFILTER_DROP", where=CHAIN, ns="router", modules=NFT)
def nft_postrouting(scene: Scene) -> None:
    guarded(scene, "router", "postrouting priority 300", 7105, "drop")


@case(
    "a rule rejects, and says so to the sender", reason="NETFILTER_DROP", where=CHAIN, modules=NFT + " nft_reject_inet"
)
def nft_reject(scene: Scene) -> None:
    guarded(scene, "server", "input priority 0", 7106, "reject")


@case(
    "connection tracking calls the segment invalid, and a rule drops that",
    reason="NETFILTER_DROP",
    where=CHAIN,
    modules=NFT,
)
def conntrack_invalid(scene: Scene) -> None:
    # Without a connection that it belongs to, and not taken for the middle of one (tcp_loose).
    scene.nft("server", "chain guard { type filter hook input priority 0; ct state invalid drop; }")
    scene.sysctl("server", netfilter__nf_conntrack_tcp_loose=0)
    segment = wire.tcp(scene.client, scene.server, 4000, 7107, seq=1, ack=1, flags=wire.ACK)
    scene.packet("client", wire.ipv4(scene.client, scene.server, socket.IPPROTO_TCP, segment), scene.server)


@case(
    "the table of connections is full",
    reason="NETFILTER_DROP NOT_SPECIFIED",
    where="nf_hook_slow",
    ns="router",
    modules=NFT,
    whole_machine=True,
)
def conntrack_full(scene: Scene) -> None:
    scene.nft("router", "chain guard { type filter hook forward priority 0; ct state new accept; }")
    # One limit for all namespaces; it counts in each of its own.
    limit = Path("/proc/sys/net/netfilter/nf_conntrack_max")
    before = limit.read_text()
    scene.later(lambda: limit.write_text(before))
    limit.write_text("3")
    listening = scene.listen("server", 7108)
    for port in range(20000, 20006):
        scene.udp("client", scene.server, 7108, sport=port)
        with suppress(TimeoutError):
            # An answer makes the connection one that is not thrown out early for a new one.
            listening.settimeout(0.2)
            _, peer = listening.recvfrom(100)
            listening.sendto(b"answer", peer)


@case("the address is translated on the way", verdict="delivered", modules=NFT + " nft_nat nft_chain_nat nf_nat")
def nat(scene: Scene) -> None:
    receiver = scene.listen("server", 7110)
    scene.nft(
        "router", "chain change { type nat hook prerouting priority -100; udp dport 7109 dnat ip to 10.0.2.2:7110; }"
    )
    scene.udp("client", scene.router, 7109)
    receiver.recv(100)
