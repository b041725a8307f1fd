"""Nothing is lost without being counted, and a number is never two packets."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from typing import Any

import in_process
import numpy as np
import pytest

from bpfpath_nb import Capture
from bpfpath_nb.lab import Lab
from bpfpath_nb.lab.scene import Scene
from bpfpath_nb.schema import EVENT_FLAGS
from bpfpath_nb.tracer import attachment
from bpfpath_nb.tracer.probes import FREES
from bpfpath_nb.tracer.request import Request
from bpfpath_nb.tracer.unit import TRACKED_PACKETS

BLAST = """
import socket, sys, time
out = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(8)]
for i in range(int(sys.argv[3])):
    out[i % 8].sendto(b"x" * (20 + i * 37 % 900), (sys.argv[1], int(sys.argv[2])))
    if i % 100 == 0:
        time.sleep(0.002)
"""
SINK = """
import socket, sys
s = socket.socket(type=socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE
s.bind(("", int(sys.argv[1])))
print("ready", flush=True)
s.settimeout(60)
count = 0
try:
    while count < int(sys.argv[2]):
        s.recv(2000)
        count += 1
        s.settimeout(5)
except TimeoutError:
    pass
print(count, flush=True)
"""
# On one CPU: of ten datagrams nine are dropped at once, and one is sent by the qdisc's timer, which interrupts.
INTERRUPTED = """
import os, socket, sys
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
s = socket.socket(type=socket.SOCK_DGRAM)
for i in range(int(sys.argv[2])):
    try:
        s.sendto(b"x" * 50, (sys.argv[1], 7109 if i % 10 else 7108))
    except PermissionError:
        pass
"""


def blast(lab: Lab, port: int, count: int) -> None:
    """Send so many datagrams across the router, and have all of them read; the reader waits 5 s for one at most."""
    sink = lab.popen("server", ["python3", "-c", SINK, str(port), str(count)], stdout=subprocess.PIPE)
    assert sink.stdout is not None
    assert sink.stdout.readline() == "ready\n"
    lab.run("client", ["python3", "-c", BLAST, lab.address("server"), str(port), str(count)], timeout=60)
    read = int(sink.stdout.readline())
    sink.wait(5)
    assert read == count, f"{count - read} of {count} datagrams were lost on their way to the reader"


def test_buffers_are_reused_and_packets_stay_apart(lab: Lab) -> None:
    count = 50_000
    with Capture("udp port 7100", events_ring=1 << 26, facts_ring=1 << 25) as cap:
        blast(lab, 7100, count)

    packets, events = cap.packets, cap.recording.events
    assert len(packets) == count
    assert packets["complete"].all()
    assert (packets["verdict"] == "delivered").all()
    entries = events.hops["flags"] & EVENT_FLAGS["entry"] != 0
    assert entries[events.first].all(), "every path begins where the filter took the packet"
    assert entries.sum() == count, "and nowhere else"
    assert (cap.df["flow"].groupby(level="packet", observed=True).nunique() == 1).all()
    assert (packets["namespaces"] == " > ".join(lab.names.values())).all()
    buffers = cap.df["skb"].groupby(level="packet").first()
    assert buffers.nunique() < count / 10, "addresses were in fact reused"


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """The allocator's tracepoints tell nothing, as where the kernel skips the programs on them."""
    attach = attachment.raw_tracepoint_open

    def attach_to_others(name: str, program: int) -> int:
        return os.open(os.devnull, os.O_RDONLY) if name in FREES else attach(name, program)

    monkeypatch.setattr(attachment, "raw_tracepoint_open", attach_to_others)


@pytest.mark.usefixtures("blind")
def test_a_buffer_that_is_in_use_again_is_another_packet(lab: Lab) -> None:
    count = 4_000
    traffic = threading.Thread(target=blast, args=(lab, 7106, count))
    recording = in_process.record(Request(filter="udp port 7106", events_ring=1 << 25), traffic)

    packets, events = recording.packets, recording.events
    assert len(packets) == count
    entries = events.hops["flags"] & EVENT_FLAGS["entry"] != 0
    assert entries[events.first].all()
    assert entries.sum() == count
    assert recording.quality["ends_unseen"] > 0
    assert (packets["verdict"] == "delivered").all(), "what was on its way to a socket was read"
    assert packets["complete"].all(), "nobody saw the end, and no hop is missing"


def test_a_full_ring_loses_and_every_loss_is_counted(lab: Lab) -> None:
    """lost + received = sent, exactly. What was sent is told by another capture, whose ring is large enough."""
    with (
        Capture("udp port 7101", events_ring=1 << 25, facts_ring=1 << 24) as whole,
        Capture("udp port 7101", events_ring=1 << 12, facts_ring=1 << 14) as cap,
    ):
        blast(lab, 7101, 5_000)
        time.sleep(0.2)  # what was read is freed meanwhile

    events, quality = cap.recording.events, cap.quality
    assert whole.quality["events_lost"] == whole.quality["facts_lost"] == 0
    assert quality["events_lost"] > 0
    assert quality["facts_lost"] > 0
    assert quality["events_lost"] + len(events) == len(whole.recording)
    assert len(whole.packets) == 5_000
    cpus = np.unique(events.hops["cpu"])
    last = [int(events.hops["seq"][events.hops["cpu"] == cpu].max()) + 1 for cpu in cpus]
    missing = sum(last) - len(events)  # what was lost behind a CPU's last event leaves no gap
    assert 0 < missing <= quality["events_lost"]
    counted = cap._collector.counters
    assert counted["events"] == len(events)
    assert not cap.packets["complete"].all()
    assert "lost" in repr(cap).lower()
    assert "lost" in cap._repr_html_().lower()


def test_one_packet_in_so_many_is_followed_whole(lab: Lab) -> None:
    with Capture("udp port 7104") as all_of_them:
        blast(lab, 7104, 200)
    with Capture("udp port 7104", sample=10) as cap:
        blast(lab, 7104, 200)
    assert len(cap.packets) == 20
    assert cap.quality["packets_sampled_out"] == 180
    assert cap.packets["complete"].all()
    assert (cap.packets["verdict"] == "delivered").all()

    def ways(capture: Capture) -> set[tuple[str, ...]]:
        """The functions of each packet, without its end, which a reader may put off until after the capture."""
        hops = capture.df[capture.df["layer"] != "skb"]
        return set(hops["func"].astype(str).groupby(level="packet").agg(tuple))

    assert ways(cap) <= ways(all_of_them)


def test_a_sample_has_questions_and_answers(lab: Lab) -> None:
    """They come by turns, and whoever took every second one would see one kind only."""
    with Capture("icmp", sample=2, namespaces=list(lab.names.values())) as cap:
        lab.run("client", ["ping", "-c", "40", "-i", "0.01", "-q", lab.address("server")], timeout=30)
    kinds = cap.packets["flow"].astype(str).str.extract("(request|reply)")[0].value_counts()
    assert kinds.sum() == 40
    assert kinds.min() >= 8


def test_packets_that_find_no_room_are_counted_once_each(lab: Lab) -> None:
    """More packets than can be followed wait for a reader that does not come."""
    count = TRACKED_PACKETS + 3000
    hold = "import socket, sys; s = socket.socket(type=socket.SOCK_DGRAM); s.setsockopt(1, 33, 1 << 29); "
    hold += "s.bind(('127.0.0.1', 7105)); print('ready', flush=True); sys.stdin.read()"
    burst = "import socket; s = socket.socket(type=socket.SOCK_DGRAM); "
    burst += f"[s.sendto(b'x', ('127.0.0.1', 7105)) for _ in range({count})]"
    holder = lab.popen("client", ["python3", "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "ready\n"
    with Capture("udp port 7105", events_ring=1 << 27, facts_ring=1 << 25) as cap:
        lab.run("client", ["python3", "-c", burst], timeout=60)
        time.sleep(0.5)
    holder.communicate(timeout=10)
    assert cap.quality["events_lost"] == 0
    assert len(cap.packets) == TRACKED_PACKETS
    assert len(cap.packets) + cap.quality["packets_untracked"] == count
    assert (cap.packets["verdict"] == "unfinished").all()


def test_every_packet_that_is_not_followed_is_counted(lab: Lab) -> None:
    with Capture("udp port 7102", packets=10) as cap:
        blast(lab, 7102, 50)
        cap.wait(seconds=5)
    assert len(cap.packets) == 10
    assert cap.status.reason == "packets"


def test_long_filters_load_with_all_of_our_programs(lab: Lab) -> None:
    hosts = " or ".join(f"host 10.{n // 200}.{n % 200}.9" for n in range(200))
    with Capture(f"udp port 7103 and ({hosts} or dst host {lab.address('router')})") as cap:
        lab.run("client", ["python3", "-c", BLAST, lab.address("router"), "7103", "1"])
        cap.wait(packets=1, seconds=5)
    assert cap.packets["dport"].tolist() == [7103]


TAP = """
import fcntl, os, socket, struct, subprocess, sys
count, spread, batch = map(int, sys.argv[1:])
tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH22x", b"tap0", 0x1002))
for command in ("addr add 10.9.0.1/24 dev tap0", "link set tap0 address 02:00:00:00:00:01 up"):
    subprocess.run(["ip", *command.split()], check=True)
open("/proc/sys/net/ipv4/conf/all/rp_filter", "w").write("0")
readers = {}
for port in (7110, 7111):
    readers[port] = socket.socket(type=socket.SOCK_DGRAM)
    readers[port].bind(("10.9.0.1", port))
    readers[port].settimeout(2)
answer = socket.socket(type=socket.SOCK_DGRAM)
answer.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("10.9.0.1"))
member = socket.socket(type=socket.SOCK_DGRAM)
group = socket.inet_aton("239.1.2.3") + socket.inet_aton("10.9.0.1")
member.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)  # so that what is sent there is copied
cpus = sorted(os.sched_getaffinity(0))
print("ready", flush=True)
sys.stdin.readline()
for n in range(count):
    port = 7110 + (n % 3 > 0)
    udp = struct.pack("!HHHH", 1111, port, 13, 0) + b"n%04d" % n
    ends = bytes((10, 9, 0, 2)), bytes((10, 9, 0, 1))
    head = struct.pack("!BBHHHBBH4s4s", 69, 0, 20 + len(udp), n, 0, 64, 17, 0, *ends)
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    check = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    ip = head[:10] + struct.pack("!H", check) + head[12:]
    os.sched_setaffinity(0, [cpus[-1] if spread and n % spread == 0 else cpus[0]])
    os.write(tap, bytes.fromhex("0200000000010200000000020800") + ip + udp)
    os.sched_setaffinity(0, [cpus[0]])
    if n % batch == batch - 1:
        for m in range(n + 1 - batch, n + 1):
            assert readers[7110 + (m % 3 > 0)].recv(100) == b"n%04d" % m
        for _ in range(batch if batch > 1 else 0):
            answer.sendto(b"to all", ("239.1.2.3", 7777))
print("done", flush=True)
"""


@pytest.mark.parametrize(
    ("count", "spread", "batch", "options"),
    [
        (60, 0, 1, {}),
        (6000, 7, 1, {}),
        (6000, 0, 40, {}),
        (3000, 7, 1, {"functions": ["netif_receive_skb"]}),
        (3000, 7, 1, {"match": "tc"}),
        (3000, 0, 1, {"sample": 10}),
        (3000, 7, 1, {"sample": 10}),
    ],
)
def test_buffers_from_pages_are_reused_and_packets_stay_apart(
    lab: Lab, count: int, spread: int, batch: int, options: dict[str, Any]
) -> None:
    """What a TAP device hands up lies in page fragments, which go without a word: the next packet takes the place.

    What is written on one CPU and read on another is freed late, on the first one. Meanwhile the next packets lie
    further on, and the sk_buff of one that was read comes with another buffer, as another packet. So it does where some
    are read together, and their sk_buffs are copies of what is sent to several: seen first behind the network layer.
    """
    numbers = map(str, (count, spread, batch))
    sender = lab.popen("client", ["python3", "-c", TAP, *numbers], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert sender.stdin is not None
    assert sender.stdout is not None
    assert sender.stdout.readline() == "ready\n"
    with Capture("udp port 7110", **options) as cap:
        sender.stdin.write("\n")
        sender.stdin.flush()
        assert sender.stdout.readline() == "done\n"
    matched = count // 3
    assert len(cap.packets) == matched // options.get("sample", 1)
    assert cap.quality["packets_sampled_out"] == matched - len(cap.packets)
    assert (cap.packets["dport"] == 7110).all()
    assert cap.df["flow"].dropna().nunique() == 1
    assert set(cap.packets["verdict"]) == {"delivered"}
    assert "nf_postrouting" not in set(cap.df["func"])
    entries = cap.recording.events.hops["flags"] & EVENT_FLAGS["entry"] != 0
    assert entries.sum() == len(cap.packets)


FLOOD = """
import fcntl, os, socket, struct, subprocess, sys
tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
fcntl.ioctl(tap, 0x400454CA, struct.pack("16sH22x", b"tap0", 0x1002))
commands = ["link add br0 type bridge", "addr add 10.9.0.1/24 dev br0", "link set br0 up"]
commands += ["link set tap0 master br0 up"]
for port in ("one", "two", "three"):
    commands += [f"link add {port} type veth peer name {port}x", f"link set {port}x up"]
    commands += [f"link set {port} master br0 up"]
for command in commands:
    subprocess.run(["ip", *command.split()], check=True)
open("/proc/sys/net/ipv4/conf/all/rp_filter", "w").write("0")
print("ready", flush=True)
sys.stdin.readline()
udp = struct.pack("!HHHH", 1111, 7112, 13, 0) + b"hello"
ip = bytes.fromhex("4500002100000000401100000a0900020a0900ff")
total = sum(struct.unpack("!10H", ip))
ip = ip[:10] + struct.pack("!H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF) + ip[12:]
for n in range(60):
    os.write(tap, bytes.fromhex("ffffffffffff0200000000020800") + ip + udp)
print("done", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("sample", [1, 5])
def test_a_packet_in_pages_that_a_bridge_floods_keeps_its_number(lab: Lab, sample: int) -> None:
    """One of its clones is at a socket, or nobody's there, while the next one is handed up behind another port."""
    sender = lab.popen("client", ["python3", "-c", FLOOD], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert sender.stdin is not None
    assert sender.stdout is not None
    assert sender.stdout.readline() == "ready\n"
    with Capture("udp port 7112", sample=sample) as cap:
        sender.stdin.write("\n")
        sender.stdin.flush()
        assert sender.stdout.readline() == "done\n"
    sender.communicate("\n", timeout=10)
    assert len(cap.packets) == 60 / sample
    assert cap.quality["packets_sampled_out"] == 60 - len(cap.packets)
    for packet in cap.packets.index:
        assert {"br0", "onex", "twox", "threex"} <= set(cap.df.loc[packet, "dev"].astype(str))
    entries = cap.recording.events.hops["flags"] & EVENT_FLAGS["entry"] != 0
    assert entries.sum() == len(cap.packets)


def test_a_copied_buffer_carries_the_number_on(lab: Lab) -> None:
    """TCP keeps what it sends, so the router has to copy a segment before it changes the TTL."""
    serve = "import socket; s = socket.create_server(('', 7120)); print('up', flush=True); "
    serve += "c, _ = s.accept(); c.sendall(c.recv(99))"
    server = lab.popen("server", ["python3", "-c", serve], stdout=subprocess.PIPE)
    assert server.stdout is not None
    assert server.stdout.readline() == "up\n"
    talk = "import socket, sys; c = socket.create_connection((sys.argv[1], 7120)); c.sendall(b'ping'); print(c.recv(9))"
    with Capture("tcp dst port 7120 and tcp[13] & 2 != 0") as cap:
        lab.run("client", ["python3", "-c", talk, lab.address("server")])
    (syn,) = cap.packets.index
    assert cap.packets.loc[syn, "namespaces"] == " > ".join(lab.names.values())
    assert "nf_forward" in set(cap.df.loc[syn, "func"])


def test_the_estimated_cost_is_that_of_this_machine(lab: Lab) -> None:
    """Measured at arming; nothing of the measuring is in the capture."""
    with Capture("udp port 7106") as cap:
        time.sleep(0.3)
        assert len(cap.recording) == 0
        blast(lab, 7106, 100)
    quality = cap.quality
    counters = cap.recording.events.counters
    assert 250 < counters["hops_timed"] < 256 + len(cap.recording) / 16
    cost_of_a_hop = counters["hops_time"] / counters["hops_timed"]
    assert 10 < cost_of_a_hop < 50_000
    assert len(cap.packets) == 100
    assert 1 in cap.packets.index, "numbers begin anew"
    assert quality["gaps"] == 0
    assert 10 < quality["cost_refused"] < quality["cost_hop"] < 50_000
    assert quality["cost_packet"] == quality["cost_refused"] + cost_of_a_hop * len(cap.recording) / 100
    print(quality[["cost_hop", "cost_refused", "cost_packet"]].to_dict())


def test_what_the_kernel_skips_is_counted(lab: Lab) -> None:
    """It runs no program that was interrupted by itself: a drop in an interrupt that came in the middle of another."""
    count, sent = 20_000, 0
    drop = "chain out { type filter hook output priority 0; udp dport 7109 drop; }"
    with Scene(lab) as scene:
        scene.nft("client", drop)
        tbf = "dev eth0 root tbf rate 8mbit burst 200 limit 2000"
        scene.change("client", f"tc qdisc add {tbf}", f"tc qdisc del {tbf}")
        with Capture("udp port 7108 or udp port 7109", functions="drops") as cap:
            while not cap.quality["probe_misses"] and sent < 10 * count:
                lab.run("client", ["python3", "-c", INTERRUPTED, scene.router, str(count)], timeout=60)
                sent += count
                time.sleep(0.3)
            late = time.monotonic() + 10  # on a busy machine the timer's last packets are
            while sent - len(cap.df) > cap.quality["probe_misses"] and time.monotonic() < late:
                time.sleep(0.1)

    missed = sent - len(cap.df)
    assert missed > 0, "each is dropped once, somewhere"
    assert cap.quality["probe_misses"] >= missed, "other packets' drops are among them"
    assert cap.quality["events_lost"] == 0
    assert "probe hits were skipped" in cap.text()
