"""A lab as a stage for one fault: sockets and packets in any of its namespaces, and everything undone afterwards.

A socket belongs for good to the network namespace in which it was made. So one thread that visits a namespace for the
moment of making a socket can then talk from everywhere at once, with no process for each packet; a fault and its
traffic take milliseconds.

What a scene changes (addresses, routes, settings, rules) it takes back when its `with` block ends, last change first,
so that one lab serves many faults, one after another.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Self

from bpfpath_nb.errors import LabError
from bpfpath_nb.lab import ledger

if TYPE_CHECKING:
    from bpfpath_nb.lab.network import Lab

_CLONE_NEWNET = 0x40000000
_SIOCGIFHWADDR, _SIOCGIFINDEX = 0x8927, 0x8933
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """This thread in a named network namespace, to make sockets there."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        there = os.open(ledger.NETNS / namespace, os.O_RDONLY)
        try:
            _setns(there)
            yield
        finally:
            _setns(home)
            os.close(there)
    finally:
        os.close(home)


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


class Scene:
    """One fault in a lab; a context manager.

    Parameters
    ----------
    lab
        A chain of client, router and server.

    Attributes
    ----------
    lab : Lab
    """

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Undo everything. A second call does nothing."""
        self._undo.close()

    def later(self, action: Callable[[], object]) -> None:
        """Do something when the scene ends."""
        self._undo.callback(action)

    # -- who is who

    @property
    def client(self) -> str:
        """The client's address, IPv4 as all of these."""
        return self.lab.address("client")

    @property
    def router(self) -> str:
        """The router's address on the client's side."""
        return self.lab.address("router")

    @property
    def server(self) -> str:
        """The server's address."""
        return self.lab.address("server")

    def mac(self, ns: str, dev: str) -> bytes:
        """Hardware address of an interface."""
        return self._interface(ns, dev, _SIOCGIFHWADDR)[18:24]

    def ifindex(self, ns: str, dev: str) -> int:
        """Number of an interface."""
        index: int = struct.unpack_from("=i", self._interface(ns, dev, _SIOCGIFINDEX), 16)[0]
        return index

    def _interface(self, ns: str, dev: str, request: int) -> bytes:
        with self.open_socket(ns) as asking:
            return fcntl.ioctl(asking, request, struct.pack("256s", dev.encode()))

    # -- changes

    def run(self, ns: str, command: str) -> str:
        """Run a command in a namespace; it must succeed."""
        done = self.lab.run(ns, command)
        if done.returncode:
            raise LabError(f"`{command}` failed in {ns}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def change(self, ns: str, command: str, back: str) -> None:
        """Run a command now, and another one that takes it back when the scene ends."""
        self.run(ns, command)
        self.later(lambda: self.run(ns, back))

    def sysctl(self, ns: str, **settings: int | str) -> None:
        """Set files under /proc/sys/net until the scene ends; `ipv4__ip_forward=0`, two underscores for a slash."""
        for name, value in settings.items():
            path = f"/proc/sys/net/{name.replace('__', '/')}"
            before = self.run(ns, f"cat {path}").strip()
            self.change(ns, f"sh -c 'echo {value} > {path}'", f"sh -c 'echo {before} > {path}'")

    def nft(self, ns: str, rules: str) -> None:
        """Load nftables rules into a table of their own until the scene ends; `rules` are what stands in the table."""
        text = f"table inet scene {{\n{rules}\n}}\n"
        done = self.lab.run(ns, ["nft", "-f", "-"], input=text)
        if done.returncode:
            raise LabError(f"nft refused {text!r}: {done.stderr.strip()}")
        self.later(lambda: self.run(ns, "nft delete table inet scene"))

    # -- traffic

    def open_socket(
        self, ns: str, family: int = socket.AF_INET, kind: int = socket.SOCK_DGRAM, protocol: int = 0
    ) -> socket.socket:
        """A socket in a namespace, closed when the scene ends at the latest."""
        with inside(self.lab.names[ns]):
            made = socket.socket(family, kind, protocol)
        made.settimeout(5.0)
        self.later(made.close)
        return made

    def listen(
        self, ns: str, port: int, *, kind: int = socket.SOCK_DGRAM, family: int = socket.AF_INET
    ) -> socket.socket:
        """A bound socket; of TCP one that listens."""
        listening = self.open_socket(ns, family, kind)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("", port))
        if kind == socket.SOCK_STREAM:
            listening.listen(8)
        return listening

    def udp(self, ns: str, to: str, port: int, payload: bytes = b"hello", count: int = 1, sport: int = 0) -> None:
        """Datagrams from a socket of their own. What the kernel answers at once (EPERM, ENETUNREACH) is no error."""
        sender = self.open_socket(ns, socket.AF_INET6 if ":" in to else socket.AF_INET)
        if sport:
            sender.bind(("", sport))
        for _ in range(count):
            with suppress(OSError):
                sender.sendto(payload, (to, port))

    def packet(self, ns: str, packet: bytes, to: str) -> None:
        """A whole IPv4 packet as it is (but for its checksum), routed by the kernel."""
        sender = self.open_socket(ns, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        with suppress(PermissionError):
            sender.sendto(packet, (to, 0))

    def frame(self, ns: str, dev: str, to: bytes, ethertype: int, payload: bytes) -> None:
        """An Ethernet frame out of an interface, past the network layer."""
        sender = self.open_socket(ns, socket.AF_PACKET, socket.SOCK_RAW)
        sender.bind((dev, 0))
        sender.send(to + self.mac(ns, dev) + struct.pack("!H", ethertype) + payload)

    def to_router(self, packet: bytes) -> None:
        """A whole packet from the client to the router's interface, as it is."""
        self.frame("client", "eth0", self.mac("router", "eth0"), 0x0800, packet)

    def connection(self, port: int) -> tuple[socket.socket, socket.socket, socket.socket]:
        """A TCP connection from client to server: its two ends, the client's first, and the listening socket."""
        listening = self.listen("server", port, kind=socket.SOCK_STREAM)
        here = self.open_socket("client", kind=socket.SOCK_STREAM)
        here.connect((self.server, port))
        there, _ = listening.accept()
        self.later(there.close)
        return here, there, listening

    def pause(self, seconds: float) -> None:
        """Let the kernel's timers and softirqs get to it."""
        time.sleep(seconds)
