"""Fragments that come together again where the kernel tells nothing of it: their data lie in pages, and are taken."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from bpfpath_nb import Capture
from bpfpath_nb.lab import Lab, wire
from bpfpath_nb.lab.scene import Scene, inside

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x2, 0x1000
HERE, THERE = "10.9.0.1", "10.9.0.2"
FRAME = bytes.fromhex("0200000000010200000000020800")
PIECE = 1408


@pytest.fixture
def tap(lab: Lab) -> Iterator[int]:
    """What is written here comes out of a TAP device of the client, in page fragments as most drivers have it."""
    with Scene(lab) as scene:
        with inside(lab.names["client"]):
            device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", b"tap0", IFF_TAP | IFF_NO_PI))
        scene.run("client", f"ip addr add {HERE}/24 dev tap0")
        scene.run("client", "ip link set tap0 address 02:00:00:00:00:01 up")
        scene.sysctl("client", ipv4__conf__all__rp_filter=0)
        scene.later(lambda: os.close(device))
        yield device


def fragments(port: int, ident: int) -> list[bytes]:
    """A datagram of three pieces."""
    data = wire.udp(THERE, HERE, 1111, port, bytes(3 * PIECE - 100))
    return [
        FRAME
        + wire.ipv4(
            THERE, HERE, socket.IPPROTO_UDP, data[at : at + PIECE], ident=ident,
            fragment=at // 8 | (wire.MORE_FRAGMENTS if at + PIECE < len(data) else 0),
        )
        for at in range(0, len(data), PIECE)
    ]  # fmt: skip


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_fragments_in_pages_become_part_of_the_first(lab: Lab, tap: int, order: tuple[int, ...]) -> None:
    with Scene(lab) as scene:
        there = scene.listen("client", 7130)
        with Capture(f"ip proto 17 and src host {THERE}", namespaces=[lab.names["client"]]) as cap:
            for ident in (1, 2):
                pieces = fragments(7130, ident)
                for at in order:
                    os.write(tap, pieces[at])
                assert len(there.recv(9999)) == 3 * PIECE - 100
            time.sleep(0.2)
    packets = cap.packets
    later = packets[packets["flow"].astype(str).str.startswith("udp fragment")]
    first = packets[packets["dport"] == 7130]
    assert first["verdict"].tolist() == ["delivered"] * 2
    assert later["verdict"].tolist() == ["consumed"] * 4
    assert later["merged_into"].tolist() == [number for number in first.index for _ in range(2)]


def test_fragments_of_which_one_is_missing_stay_unfinished(lab: Lab, tap: int) -> None:
    with Capture(f"ip proto 17 and src host {THERE}", namespaces=[lab.names["client"]]) as cap:
        for piece in fragments(7131, 3)[:2]:
            os.write(tap, piece)
        time.sleep(0.2)
    assert cap.packets["verdict"].tolist() == ["unfinished"] * 2
    assert cap.packets["merged_into"].isna().all()
