"""What a capture shows on a stock kernel; run inside a virtual machine by `make test-kernels`, on each kernel in turn.

Emulated, everything takes ten times as long and more, and most of all the start of a process. So one lab and one
tracer serve all tests, and traffic comes from the system's own Python, which starts quickly.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpfpath_nb import Capture, tracers
from bpfpath_nb.kernel import Kernel, fold
from bpfpath_nb.lab import Lab
from bpfpath_nb.tracer.syscall import program_ids

RELEASE = os.uname().release
VERSION = tuple(int(part) for part in re.findall(r"\d+", RELEASE)[:2])
MODULES = (
    "veth",
    "bridge",
    "nf_tables",
    "nf_conntrack",
    "nf_nat",
    "nft_chain_nat",
    "nft_ct",
    "vxlan",
    "tun",
    "ip_tables",
)
HAS_REASONS = VERSION >= (5, 17)

SEND = (
    "import socket, sys; family = socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET; "
    "s = socket.socket(family, socket.SOCK_DGRAM); "
    "[s.sendto(b'x' * int(sys.argv[4]), (sys.argv[1], int(sys.argv[2]))) for _ in range(int(sys.argv[3]))]"
)

ECHO = "c, _ = s.accept(); c.sendall(c.recv(9)); c.recv(9)"


def listen(port: int, address: str = "", *, kind: str = "DGRAM", then: str = "s.recv(9)", small: bool = False) -> str:
    """Code that binds a socket, says so, and then does something with it."""
    buffer = "s.setsockopt(1, 8, 2048)" if small else "pass"
    family = "AF_INET6" if kind == "STREAM6" else "AF_INET"
    return (
        f"import socket, sys; s = socket.socket(socket.{family}, socket.SOCK_{kind.rstrip('6')}); {buffer}; "
        f"s.setsockopt(1, 2, 1); s.bind(({address!r}, {port})); "
        f"{'s.listen()' if kind != 'DGRAM' else 'pass'}; print('up', flush=True); {then}"
    )


def plain(*command: str) -> list[str]:
    """The system's own Python: it starts in a second where ours takes ten."""
    return ["/usr/bin/python3", "-S", "-c", *command]


def send(lab: Lab, ns: str, address: str, port: int, count: int = 1, size: int = 10) -> None:
    lab.run(ns, plain(SEND, address, str(port), str(count), str(size)), timeout=120)


def settled(cap: Capture, packets: int, seconds: float = 20.0) -> Capture:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        frame = cap.packets
        if (frame["verdict"] != "unfinished").sum() >= packets:
            break
        time.sleep(0.2)
    return cap


@pytest.fixture(scope="module", autouse=True)
def modules() -> None:
    for module in MODULES:
        subprocess.run(["modprobe", "-q", module], check=False)


@pytest.fixture(scope="module")
def lab(modules: None) -> Iterator[Lab]:
    with Lab.dns() as lab:
        yield lab


@pytest.fixture(scope="module", autouse=True)
def programs_at_the_end() -> Iterator[None]:
    before = set(program_ids())
    yield
    tracers.close_idle()
    deadline = time.monotonic() + 30
    while left := set(program_ids()) - before:
        assert time.monotonic() < deadline, f"BPF programs left: {left}"
        time.sleep(0.2)


def test_the_ladder(lab: Lab) -> None:
    """kprobe.multi and TCX where the kernel has them; nearly all of the default set attached, the rest named."""
    with Capture("udp port 9", timeout=600) as cap:
        record = cap.recording.start.raw
    multi = VERSION >= (6, 12)
    assert record["ladder"] == {
        "functions": "kprobe.multi" if multi else "kprobe",
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
    print(f"{RELEASE}: {len(attached)} of {len(here)} of the default set attached; not: {others}")
    unnamed = [name for name in wanted if name not in attached and name not in refused]
    assert not unnamed
    assert len(attached) >= 0.9 * len(here)


def test_three_queries(lab: Lab) -> None:
    ask = ["dig", "+short", "+time=3", "+tries=1"]
    with Capture("udp port 53", timeout=600) as cap:
        lab.run("client", [*ask, f"@{lab.address('server')}", "www.example.test"], timeout=120)
        settled(cap, 2)
        with lab.drop("router", "udp dport 53"):
            lab.run("client", [*ask, f"@{lab.address('server')}", "www.example.test"], timeout=120)
        lab.run("client", [*ask, f"@{lab.address('router')}", "www.example.test"], timeout=120)
        settled(cap, 4)
    print(cap.packets[["flow", "namespaces", "verdict", "reason", "where", "hops"]].to_string())
    query, reply, dropped, closed = (cap.packets.iloc[row] for row in range(4))
    assert query["verdict"] == reply["verdict"] == "delivered"
    assert query["namespaces"] == "client > router > server"
    assert dropped["verdict"] == closed["verdict"] == "dropped"
    assert dropped["where"].startswith(("nft_do_chain", "nf_hook_slow"))
    assert closed["where"].startswith(("__udp4_lib_rcv", "udp_"))
    if HAS_REASONS:
        assert (dropped["reason"], closed["reason"]) == ("NETFILTER_DROP", "NO_SOCKET")


def test_loopback_from_socket_to_socket(lab: Lab) -> None:
    """All functions: a datagram's way from the sender's socket to the reader's."""
    read = listen(7200, "127.0.0.1")
    with Capture("udp port 7200", functions="all", timeout=900) as cap:
        reader = lab.popen("client", plain(read), stdout=subprocess.PIPE)
        assert reader.stdout is not None
        assert reader.stdout.readline() == "up\n"
        send(lab, "client", "127.0.0.1", 7200)
        reader.wait(60)
        settled(cap, 1)
        record = cap.recording.start.raw
    attached = len([f for f in record["functions"] if f["probe"] == "kprobe"]) - len(record["refused"])
    print(cap.text(), f"{attached} functions attached in {record['timing']['kprobes']:.2f} s", sep="\n")
    (packet,) = cap.packets.index
    functions = cap.df.loc[packet, "func"].astype(str).tolist()
    assert functions[0] in ("ip_send_skb", "udp_send_skb", "ip_make_skb", "__ip_local_out")
    assert len(set(functions)) > 25
    assert "__udp_enqueue_schedule_skb" in functions
    assert cap.packets.loc[packet, "verdict"] == "delivered"
    if VERSION >= (6, 12):
        assert attached > 700
        assert record["timing"]["kprobes"] < 2.0


@pytest.mark.parametrize("family", [4, 6])
def test_udp_tcp_and_icmp_through_three_namespaces(lab: Lab, family: int) -> None:
    server = lab.address("server", family)
    serve = listen(8080, kind="STREAM6" if family == 6 else "STREAM", then=ECHO)
    talk = "import socket, sys; c = socket.create_connection((sys.argv[1], 8080)); "
    talk += "c.sendall(b'ping'); assert c.recv(9) == b'ping'"
    icmp = "icmp" if family == 4 else "icmp6[0] == 128 or icmp6[0] == 129"
    with Capture(f"udp port 7300 or tcp port 8080 or {icmp}", timeout=600) as cap:
        process = lab.popen("server", plain(serve), stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        lab.run("client", plain(talk, server), timeout=120)
        process.wait(60)
        send(lab, "client", server, 7300)
        lab.run("client", ["ping", "-c1", "-W5", server], timeout=60)
        settled(cap, 10)
    packets = cap.packets
    print(packets[["flow", "namespaces", "verdict", "hops"]].to_string())
    there, back = "client > router > server", "server > router > client"
    tcp = packets[packets["proto"] == "tcp"]
    assert len(tcp) >= 7
    assert set(tcp["namespaces"].astype(str)) == {there, back}
    assert (tcp["verdict"] == "delivered").sum() >= 2
    udp = packets[packets["proto"] == "udp"].iloc[0]
    assert (udp["namespaces"], udp["verdict"]) == (there, "dropped")
    pings = packets[packets["proto"].isin(["icmp", "icmp6"])]
    assert {there, back} <= set(pings["namespaces"].astype(str))


def test_a_full_socket_buffer(lab: Lab) -> None:
    hold = listen(7400, then="sys.stdin.read()", small=True)
    with Capture("udp port 7400", timeout=600) as cap:
        holder = lab.popen("server", plain(hold), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert holder.stdout is not None
        assert holder.stdout.readline() == "up\n"
        send(lab, "client", lab.address("server"), 7400, count=12, size=1000)
        settled(cap, 8)
    holder.communicate(timeout=60)
    dropped = cap.packets[cap.packets["verdict"] == "dropped"]
    assert len(dropped) >= 8
    print(dropped[["reason", "where"]].drop_duplicates().to_string())
    assert dropped["where"].str.contains("udp").all()
    if HAS_REASONS:
        assert set(dropped["reason"]) == {"SOCKET_RCVBUFF"}


@pytest.mark.parametrize("match", ["entry", "tc", "every"])
def test_the_three_entry_modes(lab: Lab, match: str) -> None:
    with Capture("udp port 7500", match=match, timeout=600) as cap:
        send(lab, "client", lab.address("router"), 7500)
        settled(cap, 1)
    (packet,) = cap.packets.index
    functions = cap.df.loc[packet, "func"].astype(str).tolist()
    assert (functions[0] == "tc_egress") == (match == "tc")
    assert cap.packets.loc[packet, "verdict"] == "dropped"


def test_a_list_in_the_papers_format(lab: Lab, tmp_path: Path) -> None:
    listing = tmp_path / "kp_funcs.txt"
    listing.write_text("ip_rcv\nip_local_deliver\nip_output\nkfree_skb 1\n")
    with Capture("udp port 7600", functions=listing, timeout=600) as cap:
        send(lab, "client", lab.address("router"), 7600)
        settled(cap, 1)
    functions = set(cap.df["func"].astype(str))
    assert {"ip_output", "ip_rcv", "ip_local_deliver", "kfree_skb"} <= functions
    assert "ip_finish_output2" not in functions


def test_side_by_side_and_killed(lab: Lab) -> None:
    with Capture("udp port 7700", timeout=600) as one, Capture("udp port 7701", timeout=600) as other:
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
    with Capture("udp port 9", timeout=600):
        pass
    shown = subprocess.run(["tc", "filter", "show", "dev", "lo", "egress"], capture_output=True, text=True, check=True)
    assert "bpfpath_nb" not in shown.stdout
