"""The plan of a lab: who gets which name, address and route."""

from __future__ import annotations

import ipaddress

import pytest

from bpfpath_nb.errors import LabError
from bpfpath_nb.lab.plan import Interface, Route, node_script, plan


def test_router_stands_between_two_links() -> None:
    client, router, server = plan(("client", "router", "server"), "x-").nodes

    assert [node.namespace for node in (client, router, server)] == ["x-client", "x-router", "x-server"]
    assert client.interfaces == (Interface("eth0", "router", "10.0.1.1", "fd00:1::1"),)
    assert router.interfaces == (
        Interface("eth0", "client", "10.0.1.2", "fd00:1::2"),
        Interface("eth1", "server", "10.0.2.1", "fd00:2::1"),
    )
    assert client.routes == (Route("10.0.2.0/24", "10.0.1.2"), Route("fd00:2::/64", "fd00:1::2"))
    assert router.routes == ()
    assert server.routes == (Route("10.0.1.0/24", "10.0.2.1"), Route("fd00:1::/64", "fd00:2::1"))
    assert [node.forwards for node in (client, router, server)] == [False, True, False]


def test_two_need_no_route() -> None:
    assert [node.routes for node in plan(("a", "b")).nodes] == [(), ()]


@pytest.mark.parametrize("length", [2, 3, 5, 20])
def test_every_namespace_reaches_every_link_over_a_neighbour(length: int) -> None:
    nodes = plan([f"n{i}" for i in range(length)]).nodes

    for node in nodes:
        own = [ipaddress.ip_network(f"{i.ipv4}/24", strict=False) for i in node.interfaces]
        own += [ipaddress.ip_network(f"{i.ipv6}/64", strict=False) for i in node.interfaces]
        assert len(own) + len(node.routes) == 2 * (length - 1)
        for route in node.routes:
            assert ipaddress.ip_network(route.to) not in own
            assert any(ipaddress.ip_address(route.via) in net for net in own)
            assert any(route.via in (i.ipv4, i.ipv6) for other in nodes for i in other.interfaces if other is not node)


def test_links_join_neighbours() -> None:
    assert plan(("a", "b", "c")).link_batch() == (
        "link add name eth0 index 11 netns a type veth peer name eth0 index 12 netns b\n"
        "link add name eth1 index 21 netns b type veth peer name eth0 index 22 netns c\n"
    )


def test_only_those_in_between_forward() -> None:
    scripts = [node_script(node) for node in plan(("a", "b", "c")).nodes]

    assert ["echo 1 > /proc/sys/net/ipv4/ip_forward" in script for script in scripts] == [False, True, False]
    assert ["ipv6/conf/all/forwarding" in script for script in scripts] == [False, True, False]
    assert all("accept_dad" in script for script in scripts)


@pytest.mark.parametrize(
    "chain", [(), ("alone",), ("a", "a"), ("a", ""), ("a", "b/c"), ("a", "-b"), ("a", "x" * 62), "ab"]
)
def test_bad_chains_are_refused(chain: tuple[str, ...]) -> None:
    with pytest.raises(LabError):
        plan(chain)
