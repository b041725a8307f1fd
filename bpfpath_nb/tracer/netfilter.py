"""The hooks of netfilter, through BPF links (kernel 6.4): prerouting, input, forward, output, postrouting of
IPv4 and IPv6.

On a kernel without kprobes they are the only places between an interface and a socket where a packet can be
seen. Our program comes first in each hook: it sees what arrives there, before any rule. On the way out,
`output` is the first function of the network layer with a hook: with it a path begins above the routing of a
packet that a rule then drops.
"""

from __future__ import annotations

import errno
import os

from bpfpath_nb.tracer.places import Namespace, Places
from bpfpath_nb.tracer.probes import HOOKS
from bpfpath_nb.tracer.syscall import link_create_netfilter

FAMILIES = (2, 10)  # NFPROTO_IPV4, NFPROTO_IPV6

FIRST = -(2**31) + 1
"""The lowest priority that a BPF program may have."""

SIDE_BY_SIDE = 64
"""Two BPF programs cannot have the same priority in a hook; so many captures find a place."""


class Hooks:
    """The links, by namespace."""

    def __init__(self, program: int, places: Places) -> None:
        self._program = program
        self._places = places
        self._links: dict[int, list[int]] = {}

    def attach(self, namespace: Namespace) -> None:
        """Attach to all hooks of a namespace.

        Raises
        ------
        OSError
            The kernel refuses; nothing stays attached there.
        """
        if namespace.inum in self._links:
            return
        links: list[int] = []
        with self._places.inside(namespace):
            try:
                links += [self._link(family, hook) for family in FAMILIES for hook in range(len(HOOKS))]
            except OSError:
                _close_all(links)
                raise
        self._links[namespace.inum] = links

    def detach(self, namespace: Namespace) -> None:
        """Let go of a namespace; a link keeps it alive."""
        _close_all(self._links.pop(namespace.inum, []))

    def close(self) -> None:
        """Let go of all."""
        for inum in reversed(list(self._links)):
            _close_all(self._links.pop(inum))

    def _link(self, family: int, hook: int) -> int:
        for priority in range(FIRST, FIRST + SIDE_BY_SIDE):
            try:
                return link_create_netfilter(self._program, family, hook, priority)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
        raise OSError(errno.EBUSY, f"{SIDE_BY_SIDE} programs hold the first places in the hook already")


def _close_all(descriptors: list[int]) -> None:
    for descriptor in reversed(descriptors):
        os.close(descriptor)
