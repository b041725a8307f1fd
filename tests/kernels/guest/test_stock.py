"""What a capture shows on a stock kernel.

Emulated, everything takes ten times as long and more, most of all the start of a process and the compiling of a
capture's programs. So one lab, one tracer and as few captures as can be serve all tests, and traffic comes from the
system's own Python, which starts quickly.

Where the environment says ``BPFPATH_RECORD=1`` the kernel's facts and the first capture are kept, in ``tests/facts``
and ``tests/recordings``, for tests that run without that kernel.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from network import Note, lab, modules, plain, programs_at_the_end, send, settled

from bpfpath_nb import Capture, Recording
from bpfpath_nb.kernel import LAYERS, Kernel, facts, fold
from bpfpath_nb.lab import Lab, wire
from bpfpath_nb.lab.cases import CASES
from bpfpath_nb.lab.scene import Scene
from bpfpath_nb.start import StartRecord

__all__ = ["lab", "modules", "programs_at_the_end"]  # fixtures

RELEASE = os.uname().release
VERSION = tuple(int(part) for part in re.findall(r"\d+", RELEASE)[:2])
HAS_REASONS = VERSION >= (5, 17)
HAS_MULTI = VERSION >= (6, 12)  # 5.18, where CONFIG_FPROBE is on: Debian's 6.1 has it off
TESTS = Path(__file__).parents[2]

READ = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("127.0.0.1", 7200))
print("up", flush=True)
s.recv(99)
"""
# A TCP echo for each family, a UDP socket with room for few datagrams, which nobody reads, and a TCP socket to which
# nobody connects.
SERVE = """
import socket, sys
def bound(family, kind, port):
    s = socket.socket(family, kind)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    s.bind(("", port))
    return s
small = bound(socket.AF_INET, socket.SOCK_DGRAM, 7400)
small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
lonely = bound(socket.AF_INET, socket.SOCK_STREAM, 8081)
lonely.listen()
echoes = [bound(family, socket.SOCK_STREAM, 8080) for family in (socket.AF_INET, socket.AF_INET6)]
for s in echoes:
    s.listen()
print("up", flush=True)
for s in echoes:
    c, _ = s.accept()
    c.sendall(c.recv(9))
    c.recv(9)
    c.close()
sys.stdin.read()
"""
TALK = """
import socket, sys
for address in sys.argv[1:]:
    c = socket.create_connection((address, 8080))
    c.sendall(b"ping")
    assert c.recv(9) == b"ping"
    c.close()
    s = socket.socket(c.family, socket.SOCK_DGRAM)
    s.sendto(b"nobody is there", (address, 7300))
for _ in range(12):
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(bytes(1000), (sys.argv[1], 7400))
"""


def served(lab: Lab, ns: str, script: str) -> subprocess.Popen[str]:
    """A process in a namespace that has said that it is up."""
    process = lab.popen(ns, plain(script), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


def functions_of(recording: Recording | Capture, packet: int) -> list[str]:
    return [str(name) for name in recording.df.loc[packet, "func"]]


@pytest.fixture(scope="module")
def recording(lab: Lab) -> Recording:
    """One capture with the default functions that all of the traffic below went through."""
    addresses = [lab.address("server", family) for family in (4, 6)]
    ask = ["dig", "+short", "+time=3", "+tries=1", "www.example.test"]
    ports = "udp port 53 or udp port 7300 or udp port 7400 or tcp port 8080 or tcp port 8081 or tcp port 7315"
    with Capture(f"{ports} or icmp or icmp6[0] == 128 or icmp6[0] == 129", timeout=900) as cap:
        lab.run("client", [*ask, f"@{addresses[0]}"], timeout=300)
        with lab.drop("router", "udp dport 53"):
            lab.run("client", [*ask, f"@{addresses[0]}"], timeout=300)
        lab.run("client", [*ask, f"@{lab.address('router')}"], timeout=300)
        server = served(lab, "server", SERVE)
        talked = lab.run("client", plain(TALK, *addresses), timeout=300)
        assert talked.returncode == 0, talked.stderr
        with Scene(lab) as scene:
            stray = wire.tcp(scene.client, scene.server, 4000, 8081, seq=1, ack=1, flags=wire.ACK)
            scene.packet("client", wire.ipv4(scene.client, scene.server, 6, stray), scene.server)
            CASES["tcp_out_of_window"].provoke(scene)
        for address in addresses:
            lab.run("client", ["ping", "-c1", "-W5", address], timeout=300)
        lab.run("client", ["ping", "-c1", "-W5", "-s", "4000", addresses[0]], timeout=300)
        settled(cap, 40)
    server.communicate(timeout=300)
    print(cap.packets[["flow", "namespaces", "verdict", "reason", "where", "hops"]].to_string())
    if os.environ.get("BPFPATH_RECORD"):
        keep(cap.recording)
    return cap.recording


def keep(recording: Recording) -> None:
    name = ".".join(map(str, VERSION))
    for module in ("openvswitch", "mac80211", "sch_fq_codel", "vxlan"):  # built in, or none, on some
        subprocess.run(["modprobe", "-q", module], check=False)
    facts.record(TESTS / "facts" / f"{name}.json.gz")
    subprocess.run(["modprobe", "-r", "vxlan"], check=True)  # for the test that loads it
    events = recording.events
    anywhere = StartRecord.from_dict(events.start.raw | {"host": "lab"})
    Recording(replace(events, start=anywhere)).save(TESTS / "recordings" / f"stock-{name}.parquet")


def to_port(recording: Recording, port: int) -> pd.DataFrame:
    packets = recording.packets
    return packets[(packets["dport"] == port) | (packets["sport"] == port)]


def test_the_emulated_processor_sorts() -> None:
    values = np.random.default_rng(0).integers(0, 1 << 40, (300, 100))
    order = values.argsort(axis=1)
    assert (np.sort(order, axis=1) == np.arange(100)).all()


def test_the_ladder(recording: Recording, record_property: Note) -> None:
    """kprobe.multi and TCX where the kernel has them; nearly all of the default set attached, the rest named."""
    record = recording.start.raw
    assert record["ladder"] == {
        "functions": "kprobe.multi" if HAS_MULTI else "kprobe",
        "tc": "tcx" if VERSION >= (6, 6) else "clsact",
    }
    kernel = Kernel.running()
    catalogue = kernel.catalogue
    wanted = [name for name, function in catalogue.functions.items() if function.default]
    exists = {fold(name) for name in kernel.symbols.names()}
    here = [name for name in wanted if {name, *catalogue.stand_ins(name)} & exists]
    refused = {row["name"]: row["instead"] for row in record["refused"]}
    traced = {function["name"] for function in record["functions"]} - {n for n, i in refused.items() if not i}
    shown = {f for t in traced if t in catalogue.tracepoints for f in catalogue.tracepoints[t].functions}
    attached = [n for n in here if {n, *catalogue.stand_ins(n)} & (traced | shown)]
    others = sorted(set(here) - set(attached))
    layers = {
        layer: (
            sum(catalogue.layer_of(n) == layer for n in attached),
            sum(catalogue.layer_of(n) == layer for n in wanted),
        )
        for layer in LAYERS
    }
    record_property("default", f"{RELEASE}: {len(attached)} of {len(here)} attached; not: {', '.join(others) or '-'}")
    record_property("by layer", ", ".join(f"{layer} {some} of {all_}" for layer, (some, all_) in layers.items()))
    record_property("instead", ", ".join(f"{name}: {instead}" for name, instead in refused.items() if instead))
    record_property("not here", ", ".join(name for name in wanted if name in refused and not refused[name]))
    record_property("seconds", {name: round(seconds, 2) for name, seconds in record["timing"].items()})
    assert [name for name in wanted if name not in attached and name not in refused] == []
    assert len(attached) >= 0.9 * len(here)
    assert [layer for layer, (some, _) in layers.items() if not some] == []


def test_functions_of_modules(recording: Recording) -> None:
    """By the modules' BTF; on 5.10, which has none, by trying each argument."""
    traced = {function["name"] for function in recording.start.raw["functions"]}
    assert {"veth_xmit", "nft_do_chain_ipv4", "nf_conntrack_in", "br_handle_frame_finish"} <= traced
    query, dropped = (to_port(recording, 53).index[row] for row in (0, 2))
    assert functions_of(recording, query).count("veth_xmit") == 2
    assert any(name.startswith("nft_do_chain") for name in functions_of(recording, dropped))


def test_functions_of_a_module_that_is_loaded_during_the_capture(lab: Lab) -> None:
    vxlan = "link add vx0 type vxlan id 42 dstport 4789 local 10.0.1.1\naddress add 10.9.9.1/24 dev vx0\n"
    vxlan += "link set vx0 up\nneighbour add 10.9.9.2 lladdr 02:00:00:00:00:02 dev vx0\n"
    with Capture("udp port 7800", functions=["ip_output", "vxlan_xmit"], timeout=900) as cap:
        assert "vxlan_xmit" in cap.quality["not_traced"]
        subprocess.run(["modprobe", "vxlan"], check=True)
        lab.run("client", ["ip", "-batch", "-"], input=vxlan, timeout=300)
        deadline = time.monotonic() + 60
        while "vxlan_xmit" not in set(cap.df["func"]) and time.monotonic() < deadline:
            send(lab, "client", "10.9.9.2", 7800)
            time.sleep(1)
    assert "vxlan_xmit" in set(cap.df["func"])
    assert "vxlan_xmit" not in cap.quality["not_traced"]


def test_three_queries(recording: Recording) -> None:
    query, reply, dropped, closed = (to_port(recording, 53).iloc[row] for row in range(4))
    assert query["verdict"] == reply["verdict"] == "delivered"
    assert query["namespaces"] == "client > router > server"
    assert dropped["verdict"] == closed["verdict"] == "dropped"
    assert dropped["where"].startswith(("nft_do_chain", "nf_hook_slow"))
    assert closed["where"].startswith(("__udp4_lib_rcv", "udp_"))
    if HAS_REASONS:
        assert (dropped["reason"], closed["reason"]) == ("NETFILTER_DROP", "NO_SOCKET")


@pytest.mark.parametrize("family", [4, 6])
def test_udp_tcp_and_icmp_through_three_namespaces(recording: Recording, lab: Lab, family: int) -> None:
    server, client = lab.address("server", family), lab.address("client", family)
    packets = recording.packets
    packets = packets[packets["src"].isin([server, client]) & packets["dst"].isin([server, client])]
    there, back = "client > router > server", "server > router > client"
    tcp = packets[packets["proto"] == "tcp"]
    assert len(tcp) >= 7
    assert set(tcp["namespaces"].astype(str)) == {there, back}
    assert (tcp["verdict"] == "delivered").sum() >= 2
    udp = packets[packets["dport"] == 7300].iloc[0]
    assert (udp["namespaces"], udp["verdict"]) == (there, "dropped")
    pings = packets[packets["proto"].isin(["icmp", "icmp6"])]
    assert {there, back} <= set(pings["namespaces"].astype(str))
    echo = pings[pings["flow"].str.contains("echo reply")].iloc[0]
    assert echo["verdict"] == "delivered"


def test_a_full_socket_buffer(recording: Recording) -> None:
    packets = to_port(recording, 7400)
    dropped = packets[packets["verdict"] == "dropped"]
    assert len(dropped) >= 8
    assert dropped["where"].str.contains("udp").all()
    if HAS_REASONS:
        assert set(dropped["reason"]) == {"SOCKET_RCVBUFF"}


def test_a_drop_tells_the_state_of_its_socket(recording: Recording) -> None:
    """Before 6.11 the kernel does not hand the socket to kfree_skb; the functions on the way there have it."""
    (drop,) = to_port(recording, 8081).index[:1]
    drop = recording.drops.set_index("packet").loc[drop]
    assert (drop["func"], drop["tcp_state"], drop["tcp_flags"]) == ("tcp_v4_do_rcv", "LISTEN", "ACK")
    closed = recording.drops[recording.drops["flow"].astype(str).str.startswith("udp")]
    assert closed["tcp_state"].isna().all()


def test_what_tcp_itself_drops(recording: Recording) -> None:
    """Before 5.17 it frees that without a word, as it frees what it has used: acknowledgements, and the reset."""
    drops = recording.drops.set_index("packet")
    (drop,) = drops.index[drops.index.isin(to_port(recording, 7315).index)]
    assert recording.packets.loc[drop, "where"] == "tcp_validate_incoming"
    assert drops.loc[drop, ["func", "tcp_state", "tcp_flags"]].tolist() == [
        "tcp_validate_incoming",
        "ESTABLISHED",
        "ACK",
    ]
    if HAS_REASONS:
        assert drops.loc[drop, "reason"] in CASES["tcp_out_of_window"].reason


def test_fragments_become_part_of_the_first(recording: Recording) -> None:
    """Of an echo with 4000 bytes and its answer; the host that asked reads what comes together, the other uses it."""
    packets = recording.packets
    cut = packets[packets["flow"].astype(str).str.contains("icmp fragment")]
    assert cut["verdict"].tolist() == ["consumed"] * 4
    assert cut["merged_into"].nunique() == 2
    whole = packets.loc[cut["merged_into"].unique()]
    assert set(whole["verdict"]) == {"consumed", "delivered"}
    assert set(cut["parent"]) == set(whole.index)


@pytest.mark.only("6.1", "6.12", "sid")  # single kprobes, kprobe.multi, and the newest names
def test_loopback_from_socket_to_socket(lab: Lab, record_property: Note) -> None:
    """All functions: a datagram's way from the sender's socket to the reader's."""
    with Capture("udp port 7200", functions="all", timeout=1800) as cap:
        reader = served(lab, "client", READ)
        send(lab, "client", "127.0.0.1", 7200)
        reader.communicate(timeout=300)
        settled(cap, 1)
        record = cap.recording.start.raw
    planned = [function for function in record["functions"] if function["probe"] == "kprobe"]
    attached = len({function["name"] for function in planned} - {row["name"] for row in record["refused"]})
    seconds = record["timing"]["attach"]
    (packet,) = cap.packets.index
    functions = functions_of(cap, packet)
    record_property("all", f"{attached} functions attached in {seconds:.2f} s, {len(set(functions))} of them passed")
    print(cap.text())
    assert functions[0] in ("ip_send_skb", "udp_send_skb", "ip_make_skb", "__ip_local_out")
    assert len(set(functions)) > 25
    assert "__udp_enqueue_schedule_skb" in functions
    assert cap.packets.loc[packet, "verdict"] == "delivered"
    assert attached > 700
    if HAS_MULTI:
        assert seconds < 2.0


@pytest.mark.only("6.12")
@pytest.mark.parametrize("match", ["tc", "every"])
def test_the_other_entry_modes(lab: Lab, recording: Recording, match: str) -> None:
    with Capture("udp port 7500", match=match, timeout=900) as cap:
        send(lab, "client", lab.address("router"), 7500)
        settled(cap, 1)
    (packet,) = cap.packets.index
    assert (functions_of(cap, packet)[0] == "tc_egress") == (match == "tc")
    assert cap.packets.loc[packet, "verdict"] == "dropped"
    assert functions_of(recording, 1)[0] != "tc_egress"


@pytest.mark.only("6.12")
def test_a_list_in_the_papers_format(lab: Lab, tmp_path: Path) -> None:
    listing = tmp_path / "kp_funcs.txt"
    listing.write_text("ip_rcv\nip_local_deliver\nip_output\nkfree_skb 1\n")
    with Capture("udp port 7600", functions=listing, timeout=900) as cap:
        send(lab, "client", lab.address("router"), 7600)
        settled(cap, 1)
    functions = set(cap.df["func"].astype(str))
    assert {"ip_output", "ip_rcv", "ip_local_deliver", "kfree_skb"} <= functions
    assert "ip_finish_output2" not in functions


@pytest.mark.only("5.10", "6.12")  # single kprobes and clsact, kprobe.multi and TCX
def test_side_by_side_and_killed(lab: Lab) -> None:
    with Capture("udp port 7700", timeout=900) as one, Capture("udp port 7701", timeout=900) as other:
        send(lab, "client", lab.address("router"), 7700)
        send(lab, "client", lab.address("router"), 7701)
        settled(one, 1)
        settled(other, 1)
        assert other._tracer is not None
        os.kill(other._tracer.pid, signal.SIGKILL)
        send(lab, "client", lab.address("router"), 7700)
        settled(one, 2)
    assert one.packets["dport"].tolist() == [7700, 7700]
    assert other.packets["dport"].tolist() == [7701]
    # Where TC hangs on clsact the killed one's filters stay, until the next start.
    with Capture("udp port 9", timeout=900):
        pass
    shown = subprocess.run(["tc", "filter", "show", "dev", "lo", "egress"], capture_output=True, text=True, check=True)
    assert "bpfpath_nb" not in shown.stdout
