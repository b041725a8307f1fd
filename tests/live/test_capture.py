"""Real packets through real namespaces, seen by the real kernel, as frames."""

from __future__ import annotations

import subprocess
import threading
import time
from pathlib import Path

import pandas as pd
import pytest

from bpfpath_nb import Capture, Recording, schema
from bpfpath_nb.errors import (
    BpfpathError,
    FilterError,
    FunctionError,
    InterfaceError,
    NamespaceError,
    OptionError,
    RequirementError,
)
from bpfpath_nb.lab import Lab

ASK = ["dig", "+short", "+time=1", "+tries=1"]
SEND = "import socket, sys; s = socket.socket(type=socket.SOCK_DGRAM); s.sendto(b'x', (sys.argv[1], int(sys.argv[2])))"


def send(lab: Lab, ns: str, address: str, port: int) -> None:
    """One UDP datagram."""
    lab.run(ns, ["python3", "-c", SEND, address, str(port)])


def settled(capture: Capture, packets: int, seconds: float = 5.0) -> Capture:
    """Wait until so many packets have come to their ends."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        frame = capture.packets
        if len(frame) >= packets and (frame["verdict"] != "unfinished").sum() >= packets:
            break
        time.sleep(0.05)
    return capture


def functions(capture: Capture | Recording, packet: int) -> list[str]:
    return capture.df.loc[packet, "func"].astype(str).tolist()


def test_closed_port_is_one_packet_in_both_namespaces(lab: Lab) -> None:
    with Capture("udp port 5353") as cap:
        send(lab, "client", lab.address("router"), 5353)
        settled(cap, 1)

    assert len(cap.packets) == 1
    hops = cap.df.loc[cap.packets.index[0]]
    client, router = lab.names["client"], lab.names["router"]
    by_namespace = {ns: set(hops.loc[hops["netns"] == ns, "func"].astype(str)) for ns in (client, router)}
    assert {"tc_egress", "net_dev_queue", "net_dev_start_xmit"} <= by_namespace[client]
    assert {"tc_ingress", "netif_receive_skb", "kfree_skb"} <= by_namespace[router]
    packet = cap.packets.iloc[0]
    assert packet["verdict"] == "dropped"
    assert packet["reason"] == "NO_SOCKET"
    assert packet["where"].startswith(("__udp4_lib_rcv", "udp_"))
    assert packet["namespaces"] == f"{client} > {router}"
    assert packet["flow"].endswith(f"> {lab.address('router')}:5353")
    assert packet["complete"]
    assert hops["time"].is_monotonic_increasing
    assert hops[["netns", "dev"]].dropna().drop_duplicates().to_numpy().tolist() == [[client, "eth0"], [router, "eth0"]]
    assert (hops["comm"].astype(str).str.startswith("python3")).any()


def test_query_that_is_answered(lab: Lab) -> None:
    with Capture("udp port 53") as cap:
        answer = lab.run("client", [*ASK, f"@{lab.address('server')}", "www.example.test"])
        settled(cap, 2)

    assert answer.stdout.strip() == lab.address("server")
    packets = cap.packets
    query = packets[packets["dport"] == 53].iloc[0]
    reply = packets[packets["sport"] == 53].iloc[0]
    names = lab.names
    assert query["namespaces"] == f"{names['client']} > {names['router']} > {names['server']}"
    assert reply["namespaces"] == f"{names['server']} > {names['router']} > {names['client']}"
    assert query["verdict"] == reply["verdict"] == "delivered"
    assert query["first"] < reply["first"]
    # The router's part shows as such: through its hook `forward`, in on one interface and out on the other.
    forwarded = cap.df.loc[query.name]
    forwarded = forwarded[forwarded["netns"] == names["router"]]
    assert "nf_forward" in set(forwarded["func"])
    assert forwarded["dev"].dropna().nunique() == 2


def test_query_that_the_router_drops(lab: Lab) -> None:
    with Capture("udp port 53") as cap, lab.drop("router", "udp dport 53"):
        lab.run("client", [*ASK, f"@{lab.address('server')}", "www.example.test"])
        settled(cap, 1)

    packet = cap.packets.iloc[0]
    assert (packet["verdict"], packet["reason"]) == ("dropped", "NETFILTER_DROP")
    assert packet["where"].startswith(("nft_do_chain", "nf_hook_slow"))
    assert packet["namespaces"] == f"{lab.names['client']} > {lab.names['router']}"


def test_packet_dropped_on_its_way_out_is_seen(lab: Lab) -> None:
    """It never meets TC: the filter runs in the first hook of the send path, and where packets are dropped."""
    with Capture("udp port 4000") as cap, lab.drop("client", "udp dport 4000", hook="output"):
        lab.run("client", ["python3", "-c", SEND, lab.address("server"), "4000"])
        settled(cap, 1)

    assert functions(cap, cap.packets.index[0]) == ["nf_output", "kfree_skb"]
    assert cap.packets.iloc[0]["reason"] == "NETFILTER_DROP"


def test_ipv6_and_icmp(lab: Lab) -> None:
    with Capture("icmp6[0] == 128 or icmp6[0] == 129 or icmp") as cap:
        lab.run("client", ["ping", "-c1", "-W1", lab.address("server", 6)])
        lab.run("client", ["ping", "-c1", "-W1", lab.address("server", 4)])
        settled(cap, 4)

    packets = cap.packets
    assert len(packets) == 4
    assert packets["proto"].value_counts().to_dict() == {"icmp6": 2, "icmp": 2}
    # Requests are answered by the kernel, replies read by ping.
    assert sorted(packets["verdict"].astype(str)) == ["consumed", "consumed", "delivered", "delivered"]


def test_tcp_connection(lab: Lab) -> None:
    server = lab.popen(
        "server",
        [
            "python3",
            "-c",
            "import socket; s = socket.create_server(('', 8080)); c, _ = s.accept(); c.sendall(c.recv(99))",
        ],
    )
    talk = (
        "import socket, sys, time\n"
        "for _ in range(100):\n"
        "    try: c = socket.create_connection((sys.argv[1], 8080)); break\n"
        "    except ConnectionRefusedError: time.sleep(0.05)\n"
        "c.sendall(b'ping'); assert c.recv(99) == b'ping'; c.close()"
    )
    with Capture("tcp port 8080 and tcp[13] & 4 == 0") as cap:
        lab.run("client", ["python3", "-c", talk, lab.address("server")])
        server.wait(5)
        time.sleep(0.3)

    packets = cap.packets
    syn = packets.iloc[0]
    assert syn["dport"] == 8080
    assert len(packets) >= 7
    data = packets[packets["verdict"] == "delivered"]
    assert set(data["dport"]) >= {8080}
    # A connection that ends well loses nothing: its FINs go with the closed sockets.
    assert not (packets["verdict"] == "dropped").any()
    # One number is one packet: none holds hops of both directions.
    assert (cap.df.groupby("packet")["flow"].nunique() == 1).all()


def test_reading_while_it_runs(lab: Lab) -> None:
    with Capture("udp port 6000") as cap:
        seen = []
        for _ in range(3):
            send(lab, "client", lab.address("router"), 6000)
            settled(cap, len(seen) + 1)
            seen.append(len(cap.packets))
            assert cap.status.state == "capturing"
            assert cap.df.index.is_monotonic_increasing
        assert seen == [1, 2, 3]
    assert cap.status.state == "stopped"
    assert cap.status.reason == "stopped"
    cap.stop()
    assert len(cap.packets) == 3


def test_columns_and_dtypes_are_those_of_the_schema(lab: Lab) -> None:
    with Capture("udp port 6001") as cap:
        assert list(cap.df.columns) == [c.name for c in schema.HOPS]
        empty = cap.df.dtypes
        send(lab, "client", lab.address("router"), 6001)
        settled(cap, 1)
    pd.testing.assert_index_equal(empty.index, cap.df.dtypes.index)
    kinds = [str(getattr(dtype, "name", dtype)) for dtype in cap.df.dtypes]
    assert kinds == [str(getattr(dtype, "name", dtype)) for dtype in empty]


def test_saved_and_loaded_it_is_the_same(lab: Lab, tmp_path) -> None:
    with Capture("udp port 53") as cap:
        lab.run("client", [*ASK, f"@{lab.address('server')}", "www.example.test"])
        settled(cap, 2)
    path = tmp_path / "dns.parquet"
    cap.save(path)
    again = Recording.load(path)
    pd.testing.assert_frame_equal(again.df, cap.df)
    pd.testing.assert_frame_equal(again.packets, cap.packets)
    assert again.text() == cap.text()


def test_text_and_repr_tell_the_path(lab: Lab) -> None:
    with Capture("udp port 6002") as cap:
        send(lab, "client", lab.address("router"), 6002)
        settled(cap, 1)
    text = cap.text()
    order = [text.index(name) for name in ("nf_output", "tc_egress", "tc_ingress", "kfree_skb")]
    assert order == sorted(order)
    assert "NO_SOCKET" in text
    assert max(map(len, text.splitlines())) <= 100
    assert "udp port 6002" in repr(cap)
    assert "NO_SOCKET" in cap._repr_html_()
    assert "<script" not in cap._repr_html_()


class TestEnds:
    def test_duration(self, lab: Lab) -> None:
        cap = Capture("udp", duration=0.3)
        assert cap.wait(seconds=5).status.reason == "duration"
        assert cap.status.state == "stopped"
        cap.stop()

    def test_packets(self, lab: Lab) -> None:
        with Capture("udp port 6003", packets=2) as cap:
            for _ in range(4):
                send(lab, "client", lab.address("router"), 6003)
            cap.wait(seconds=5)
            assert cap.status.reason == "packets"
        assert len(cap.packets) == 2
        assert (cap.packets["verdict"] == "dropped").all()

    def test_max_events(self, lab: Lab) -> None:
        with Capture("udp port 6004", max_events=20) as cap:
            for _ in range(3):
                send(lab, "client", lab.address("router"), 6004)
            cap.wait(seconds=5)
            assert cap.status.reason == "max_events"
        assert len(cap.df) == 20
        assert cap.quality["events_over"] > 0
        assert cap.status.packets == len(cap.packets) < 3

    def test_waiting_for_packets(self, lab: Lab) -> None:
        with Capture("udp port 6005") as cap:
            threading.Timer(0.2, send, (lab, "client", lab.address("router"), 6005)).start()
            cap.wait(packets=1, seconds=10)
            assert cap.status.packets == 1
            assert cap.status.state == "capturing"

    def test_waiting_without_an_end_is_refused(self) -> None:
        with Capture("udp port 9") as cap, pytest.raises(OptionError, match="stop"):
            cap.wait()


class TestSideBySide:
    def test_two_captures_see_their_own(self, lab: Lab) -> None:
        with Capture("udp port 6006") as one, Capture("udp port 6007") as other:
            send(lab, "client", lab.address("router"), 6006)
            send(lab, "client", lab.address("router"), 6007)
            settled(one, 1)
            settled(other, 1)
        assert one.packets["dport"].tolist() == [6006]
        assert other.packets["dport"].tolist() == [6007]

    def test_two_captures_of_the_same_see_it_once_each_and_alike(self, lab: Lab) -> None:
        with Capture("udp port 6008") as one, Capture("udp port 6008") as other:
            send(lab, "client", lab.address("router"), 6008)
            settled(one, 1)
            settled(other, 1)
        assert len(one.packets) == len(other.packets) == 1
        assert functions(one, one.packets.index[0]) == functions(other, other.packets.index[0])

    def test_one_ends_the_other_goes_on(self, lab: Lab) -> None:
        with Capture("udp port 6009") as one:
            with Capture("udp port 6009"):
                pass
            send(lab, "client", lab.address("router"), 6009)
            settled(one, 1)
        assert len(one.packets) == 1


class TestWhere:
    def test_only_the_named_namespaces(self, lab: Lab) -> None:
        router = lab.names["router"]
        with Capture("udp port 53", namespaces=[router]) as cap:
            lab.run("client", [*ASK, f"@{lab.address('server')}", "www.example.test"])
            settled(cap, 2, seconds=1)
        assert set(cap.df["netns"].astype(str)) == {router}
        assert len(cap.packets) == 2
        assert (cap.packets["verdict"] == "sent").all()

    def test_only_the_named_interfaces(self, lab: Lab) -> None:
        with Capture("udp port 6010", interfaces=["lo"]) as cap:
            send(lab, "client", lab.address("router"), 6010)
            send(lab, "client", lab.address("client"), 6010)
            settled(cap, 1)
        assert len(cap.packets) == 1
        assert set(cap.df["dev"].astype(str)) == {"lo"}

    def test_namespaces_and_interfaces_that_appear_meanwhile(self, lab_prefix: str) -> None:
        with Capture("udp port 6011") as cap, Lab(prefix=lab_prefix) as lab:
            time.sleep(0.3)
            send(lab, "client", lab.address("router"), 6011)
            settled(cap, 1)
            names = lab.names
        packet = cap.packets.iloc[0]
        assert packet["namespaces"] == f"{names['client']} > {names['router']}"
        assert {"tc_egress", "tc_ingress", "nf_output"} <= set(functions(cap, packet.name))
        assert set(cap.df["dev"].dropna()) == {"eth0"}

    def test_a_namespace_can_be_deleted_while_it_is_watched(self, lab_prefix: str) -> None:
        name = f"{lab_prefix}gone"
        with Capture("udp port 9"):
            subprocess.run(["ip", "netns", "add", name], check=True)
            subprocess.run(
                ["ip", "-n", name, "link", "add", f"{lab_prefix}v", "type", "veth", "peer", "name", "w"], check=True
            )
            subprocess.run(["ip", "-n", name, "link", "set", "w", "netns", "1"], check=True)
            time.sleep(0.3)
            subprocess.run(["ip", "netns", "del", name], check=True)
            deadline = time.monotonic() + 5
            # The kernel takes the pair away when nobody holds the namespace any more.
            while subprocess.run(["ip", "link", "show", "w"], capture_output=True, check=False).returncode == 0:
                assert time.monotonic() < deadline, "the deleted namespace is kept alive"
                time.sleep(0.05)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"filter": "udp prot 53"}, FilterError, "prot"),
        ({"filter": 53}, OptionError, "text"),
        ({"functions": ["kfree_skbb"]}, FunctionError, "kfree_skb"),
        ({"functions": "/nowhere/kp_funcs.txt"}, FunctionError, "kp_funcs"),
        ({"namespaces": ["no-such-namespace"]}, NamespaceError, "ip netns list"),
        ({"interfaces": ["eth99"]}, InterfaceError, "ip link"),
        ({"match": "somewhere"}, OptionError, "entry"),
        ({"returns": "yes"}, OptionError, "returns"),
        ({"packets": 0}, OptionError, "packets"),
        ({"duration": -1}, OptionError, "duration"),
        ({"duration": float("nan")}, OptionError, "duration"),
        ({"max_events": 1.5}, OptionError, "max_events"),
        ({"sample": 0}, OptionError, "sample"),
        ({"events_ring": 5000}, OptionError, "events_ring"),
        ({"namespaces": "router"}, OptionError, "list"),
        ({"namespaces": [object()]}, OptionError, "namespaces"),
        ({"functions": []}, OptionError, "empty"),
        ({"functions": "nosuch"}, FunctionError, "nearest are"),
        ({"functions": "/" + "a?" * 200 + "/"}, FunctionError, "300 characters"),
        ({"functions": ["x" * 100] * 15_000}, OptionError, "longer"),
        ({"on": "telnet://host"}, OptionError, "ssh://"),
        ({"on": 3}, OptionError, "ssh://"),
        ({"on": "ssh://[x"}, OptionError, "ssh://"),
        ({"on": "ssh://host\0"}, OptionError, "ssh://"),
        ({"timeout": "x"}, OptionError, "timeout"),
        ({"timeout": -1}, OptionError, "timeout"),
        ({"timeout": float("nan")}, OptionError, "timeout"),
        ({"on": "ssh://-oProxyCommand=true"}, OptionError, "host"),
    ],
)
def test_bad_input_gets_one_clear_error(options: dict[str, object], error: type[BpfpathError], says: str) -> None:
    with pytest.raises(error, match=says) as caught:
        Capture(**options)  # type: ignore[arg-type]
    assert str(caught.value).strip().count("\n\n") == 0
    # And the next capture is as good as ever.
    with Capture("udp port 9") as cap:
        assert cap.status.state == "capturing"


def test_sampling_follows_whole_packets(lab: Lab) -> None:
    burst = SEND.replace("s.sendto", "[s.sendto") + " for _ in range(200)]"
    with Capture("udp port 6012", sample=10) as cap:
        lab.run("client", ["python3", "-c", burst, lab.address("router"), "6012"])
        settled(cap, 20)
    assert len(cap.packets) == 20
    assert (cap.packets["verdict"] == "dropped").all()
    assert cap.packets["path"].value_counts().iloc[0] >= 15


def test_returns_are_refused_where_functions_cannot_be_probed() -> None:
    if Path("/sys/bus/event_source/devices/kprobe").exists():
        pytest.skip("this kernel has kprobes: tests/kernels traces returns there")
    with pytest.raises(RequirementError, match=r"no kprobes.*CONFIG_KPROBES.*ssh://"):
        Capture("udp port 9", returns=True)
