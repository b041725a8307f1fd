"""Where a drop came about: the kernel's stack and the TCP socket's state, beside each drop."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import pandas as pd

from bpfpath_nb import Capture
from bpfpath_nb.lab import Lab

SEND = "import socket, sys; s = socket.socket(type=socket.SOCK_DGRAM); s.sendto(b'x', (sys.argv[1], int(sys.argv[2])))"
CONNECT = """
import contextlib, socket, sys
s = socket.socket()
with contextlib.suppress(ConnectionRefusedError):
    s.connect((sys.argv[1], int(sys.argv[2])))
"""


class Drop(NamedTuple):
    """What is known of a drop: the packet's row, the names of its stack, the state, whether it holds the location."""

    packet: pd.Series
    names: list[str]
    state: int
    holds_location: bool


def dropped(expression: str, traffic: Callable[[], object]) -> Drop:
    """The one packet that is dropped."""
    with Capture(expression) as cap:
        traffic()
        deadline = time.monotonic() + 5
        while not len(cap.recording.events.stacks) and time.monotonic() < deadline:
            time.sleep(0.05)
    events = cap.recording.events
    (stack,) = events.stacks
    (row,) = (events.stack_of >= 0).nonzero()[0]
    assert events.hops["packet"][row] == stack["packet"]
    addresses = [int(address) for address in stack["frames"] if address]
    names = [events.locations[address][0] for address in addresses]
    return (
        cap.packets.loc[stack["packet"]],
        names,
        int(stack["tcp_state"]),
        int(events.hops["location"][row]) in addresses,
    )


def in_order(wanted: list[str], names: list[str]) -> bool:
    rest = iter(names)
    return all(name in rest for name in wanted)


def test_drop_by_a_rule(lab: Lab) -> None:
    def traffic() -> None:
        with lab.drop("router", "udp dport 4100"):
            lab.run("client", ["python3", "-c", SEND, lab.address("server"), "4100"])

    packet, names, state, holds_location = dropped("udp port 4100", traffic)
    assert packet["reason"] == "NETFILTER_DROP"
    assert in_order([packet["where"], "nf_hook_slow", "ip_forward"], names)
    assert holds_location
    assert not any("bpf" in name or name.startswith("0x") for name in names), names
    assert state == 0


def test_drop_at_a_closed_port(lab: Lab) -> None:
    packet, names, state, holds_location = dropped(
        "udp port 4101", lambda: lab.run("client", ["python3", "-c", SEND, lab.address("router"), "4101"])
    )
    assert packet["reason"] == "NO_SOCKET"
    assert in_order([packet["where"], "ip_protocol_deliver_rcu", "ip_local_deliver_finish"], names)
    assert holds_location
    assert state == 0


def test_drop_of_a_connection_to_a_closed_port(lab: Lab) -> None:
    packet, names, state, holds_location = dropped(
        "tcp dst port 4102",
        lambda: lab.run("client", ["python3", "-c", CONNECT, lab.address("server"), "4102"]),
    )
    assert packet["reason"] == "NO_SOCKET"
    assert in_order(["tcp_v4_rcv", "ip_protocol_deliver_rcu"], names)
    assert holds_location
    assert state == 0, "there is no socket"


def test_the_state_of_the_socket_that_drops_a_segment(lab: Lab) -> None:
    """A segment from far outside of the window."""
    script = """
import socket, struct, sys, threading, time
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
listener = socket.create_server(("127.0.0.1", 4103))
client = socket.create_connection(("127.0.0.1", 4103))
server, _ = listener.accept()
source = client.getsockname()[1]
header = struct.pack("!HHIIBBHHH", source, 4103, 1, 1, 5 << 4, 0x10, 100, 0, 0)  # ACK, far from the window
pseudo = bytes((127, 0, 0, 1)) * 2 + struct.pack("!BBH", 0, 6, len(header))
total = sum(struct.unpack("!16H", pseudo + header))
total = (total & 0xFFFF) + (total >> 16)
total = (total & 0xFFFF) + (total >> 16)
ip = struct.pack("!BBHHHBBH4s4s", 69, 0, 40, 1, 0, 64, 6, 0, bytes((127, 0, 0, 1)), bytes((127, 0, 0, 1)))
raw.sendto(ip + header[:16] + struct.pack("!H", ~total & 0xFFFF) + header[18:], ("127.0.0.1", 0))
time.sleep(0.2)
"""
    packet, names, state, holds_location = dropped(
        "tcp dst port 4103 and tcp[4:4] == 1",
        lambda: lab.run("client", ["python3", "-c", script]),
    )
    assert packet["verdict"] == "dropped"
    assert in_order(["tcp_validate_incoming", "tcp_rcv_established", "tcp_v4_do_rcv", "tcp_v4_rcv"], names)
    assert packet["where"] in names
    assert holds_location
    assert state == 1, "TCP_ESTABLISHED"
