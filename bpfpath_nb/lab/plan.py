"""Which namespace gets which interfaces, addresses and routes.

A lab is a chain of network namespaces, each joined to the next by a veth pair. Everything follows from the chain:

    client eth0 ------- eth0 router eth1 ------- eth0 server
      10.0.1.1         10.0.1.2  10.0.2.1        10.0.2.2
      fd00:1::1       fd00:1::2  fd00:2::1       fd00:2::2

Link number n is 10.0.n.0/24 and fd00:n::/64; its left end is .1 and its right end is .2. The namespaces between the
two ends forward. Nothing here touches the machine, so that the whole plan can be tested, and shown, without root.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from bpfpath_nb.errors import LabError

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,60}")
_LONGEST = 200


@dataclass(frozen=True)
class Interface:
    """One end of a veth pair."""

    name: str
    peer: str
    """role of the namespace at the other end"""
    ipv4: str
    ipv6: str


@dataclass(frozen=True)
class Route:
    """A way to a link that is not the namespace's own."""

    to: str
    via: str


@dataclass(frozen=True)
class Node:
    """One namespace of the chain."""

    role: str
    namespace: str
    interfaces: tuple[Interface, ...]
    routes: tuple[Route, ...]

    @property
    def forwards(self) -> bool:
        """Whether it stands between two others."""
        return len(self.interfaces) > 1


@dataclass(frozen=True)
class Plan:
    """The whole chain."""

    nodes: tuple[Node, ...]

    def link_batch(self) -> str:
        """What `ip -batch` has to do to join the namespaces.

        The two ends of a link get different interface numbers. Left to itself the kernel would give both the same,
        each being the first of its namespace, and it then takes up to a second to notice that the link is up:
        `linkwatch_urgent_event` in net/core/link_watch.c hurries only for a device whose number differs from its
        peer's.
        """
        pairs = enumerate(zip(self.nodes, self.nodes[1:], strict=False), 1)
        return "".join(
            f"link add name {a.interfaces[-1].name} index {10 * n + 1} netns {a.namespace} type veth "
            f"peer name {b.interfaces[0].name} index {10 * n + 2} netns {b.namespace}\n"
            for n, (a, b) in pairs
        )


def plan(chain: Sequence[str], prefix: str = "") -> Plan:
    """Lay out a chain of namespaces.

    Parameters
    ----------
    chain
        The roles, left to right; at least two, all different.
    prefix
        What the names of the namespaces get in front of the role.

    Raises
    ------
    LabError
        A name that the kernel or `ip` would not take, a name twice, or a chain that is too short or too long.
    """
    if isinstance(chain, str) or not 2 <= len(chain) <= _LONGEST:
        raise LabError(f"a lab is a chain of 2 to {_LONGEST} names, such as ('client', 'server'); got {chain!r}")
    for name in chain:
        if not isinstance(name, str) or not _NAME.fullmatch(prefix + name):
            raise LabError(
                f"{prefix + str(name)!r} cannot be the name of a network namespace: use letters, digits, '-', '_' and "
                "'.', at most 61 of them"
            )
    if len(set(chain)) < len(chain):
        raise LabError(f"every namespace of a lab needs a name of its own; got {tuple(chain)!r}")
    return Plan(tuple(_node(chain, prefix, i) for i in range(len(chain))))


def _node(chain: Sequence[str], prefix: str, i: int) -> Node:
    interfaces = []
    if i > 0:  # link i is to the left: this is its right end
        interfaces.append(Interface("eth0", chain[i - 1], f"10.0.{i}.2", f"fd00:{i:x}::2"))
    if i < len(chain) - 1:
        name = f"eth{len(interfaces)}"
        interfaces.append(Interface(name, chain[i + 1], f"10.0.{i + 1}.1", f"fd00:{i + 1:x}::1"))
    routes = []
    for link in range(1, len(chain)):
        if link < i:
            via4, via6 = f"10.0.{i}.1", f"fd00:{i:x}::1"
        elif link > i + 1:
            via4, via6 = f"10.0.{i + 1}.2", f"fd00:{i + 1:x}::2"
        else:
            continue
        routes.append(Route(f"10.0.{link}.0/24", via4))
        routes.append(Route(f"fd00:{link:x}::/64", via6))
    return Node(chain[i], prefix + chain[i], tuple(interfaces), tuple(routes))


def node_script(node: Node) -> str:
    """The shell script that, run inside the namespace, gives it its addresses, routes and settings.

    The sysctls are written while the links are still down. `accept_dad` off: an address can be used at once instead
    of two seconds later. `accept_ra` off: no router solicitations in between the user's packets. `ip_forward` is
    written on hosts too, because a new namespace inherits IPv4 settings from the machine
    (net.core.devconf_inherit_init_net).
    """
    lines = ["set -e", f"echo {int(node.forwards)} > /proc/sys/net/ipv4/ip_forward"]
    for interface in node.interfaces:
        conf = f"/proc/sys/net/ipv6/conf/{interface.name}"
        lines += [f"echo 0 > {conf}/accept_dad", f"echo 0 > {conf}/accept_ra", f"echo 0 > {conf}/disable_ipv6"]
    if node.forwards:
        lines.append("echo 1 > /proc/sys/net/ipv6/conf/all/forwarding")
    lines += ["ip -batch - <<'BATCH'", "link set lo up"]
    for interface in node.interfaces:
        lines += [
            f"addr add {interface.ipv4}/24 dev {interface.name}",
            f"addr add {interface.ipv6}/64 dev {interface.name} nodad",
            f"link set {interface.name} up",
        ]
    lines += [f"route add {route.to} via {route.via}" for route in node.routes]
    lines.append("BATCH")
    return "\n".join(lines) + "\n"
