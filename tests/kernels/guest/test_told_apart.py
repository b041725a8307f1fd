"""Packets that come in buffers of others before them, or while the kernel looks away: told apart, nothing unsaid."""

from __future__ import annotations

import subprocess

import numpy as np
import pandas as pd
import pytest
from network import SEND, Note, lab, modules, plain, programs_at_the_end, settled
from test_entry import test_a_sender_begins_where_it_sends_in_the_buffer_of_what_was_refused_and_dropped
from test_losses import BLAST, SINK
from test_out_of_order import test_segments_behind_a_lost_one_wait_out_of_order

from bpfpath_nb import Capture
from bpfpath_nb.kernel import Kernel
from bpfpath_nb.lab import Lab
from bpfpath_nb.lab.scene import Scene
from bpfpath_nb.schema import EVENT_FLAGS
from bpfpath_nb.tracer.kprobes import skipping

__all__ = [
    "lab",
    "modules",
    "programs_at_the_end",
    "test_a_sender_begins_where_it_sends_in_the_buffer_of_what_was_refused_and_dropped",
    "test_segments_behind_a_lost_one_wait_out_of_order",
]

# Has the kernel copy the large value of a map, on one processor; meanwhile it skips programs of functions there.
COPY = """
import ctypes, os, resource, struct, time
os.sched_setaffinity(0, [0])
resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))  # before 5.11
bpf = lambda command, given: call(321, command, given, len(given))
call = ctypes.CDLL(None, use_errno=True).syscall
made = bpf(0, ctypes.create_string_buffer(struct.pack("=IIII", 2, 4, 1 << 19, 1), 72))  # BPF_MAP_TYPE_ARRAY
assert made >= 0, os.strerror(ctypes.get_errno())
key, value = ctypes.create_string_buffer(4), ctypes.create_string_buffer(1 << 19)
look_up = struct.pack("=I4xQQQ", made, ctypes.addressof(key), ctypes.addressof(value), 0)
look_up = ctypes.create_string_buffer(look_up, len(look_up))
print("up", flush=True)
end = time.monotonic() + 120
while time.monotonic() < end:
    assert bpf(1, look_up) == 0, os.strerror(ctypes.get_errno())
"""


def reused(lab: Lab, count: int, functions: str | list[str], note: Note) -> None:
    """Send so many packets through all three namespaces, and hold their paths apart."""
    with Capture("udp port 7900", functions=functions, events_ring=1 << 26, facts_ring=1 << 24, timeout=900) as cap:
        sink = lab.popen("server", plain(SINK, "7900", str(count)), stdout=subprocess.PIPE)
        assert sink.stdout is not None
        assert sink.stdout.readline() == "ready\n"
        sent = lab.run("client", plain(BLAST, lab.address("server"), "7900", str(count)), timeout=300)
        assert sent.returncode == 0, sent.stderr
        assert sink.stdout.readline() == f"{count}\n"
        settled(cap, count)
    packets, events = cap.packets, cap.recording.events
    print(cap.quality.to_string())
    buffers = cap.df["skb"].groupby(level="packet").first().nunique()
    note("reuse", f"{len(packets)} packets with {len(events)} hops in {buffers} sk_buffs")
    entries = np.flatnonzero(events.hops["flags"] & EVENT_FLAGS["entry"])
    assert entries.tolist() == events.first.tolist()
    assert buffers < count / 2, "addresses were in fact reused"
    # What may lack a hop says so, but where the kernel skipped a program between two that could tell. Two packets are
    # one only where it skipped the end of one and the beginning of the next.
    misses, whole = cap.quality["probe_misses"], packets["complete"]
    ends = events.hops["flags"] & EVENT_FLAGS["end"] != 0  # of the last to be read the kernel keeps some (5.18)
    passed = pd.Series(events.hops["packet"][~ends]).value_counts().reindex(packets.index)
    usual = passed.mode()[0] if functions != "default" else 0  # of those some depend on how busy the reader is
    untold = int((whole & (passed < usual)).sum())
    mixed = int((cap.df["flow"].groupby(level="packet", observed=True).nunique() != 1).sum())
    missing = count - len(packets)
    note("skipped", f"{misses} hits, {(~whole).sum()} packets that say so, {untold} that do not, {missing} in others")
    assert set(packets["verdict"][whole]) == {"delivered"}
    assert whole.all() or misses
    assert whole.mean() > 0.9
    assert untold <= misses
    assert mixed <= missing <= min(10, misses)


@pytest.mark.only("5.10", "6.12")  # single kprobes, kprobe.multi
def test_buffers_are_reused_and_packets_stay_apart(lab: Lab, record_property: Note) -> None:
    reused(lab, 5000, "default", record_property)


def test_buffers_are_reused_by_fifty_thousand(lab: Lab, record_property: Note) -> None:
    """In few functions: so many hops of all of them take an emulated processor too long to look at.

    The first of them is where a sender's packets are new, and tells the next one in its place where the kernel skipped
    the program that would have seen an end (`probe_misses`). On 7.2 it skips some at a time, also at the beginnings.
    """
    few = ["__ip_local_out", "ip_output", "ip_rcv", "__udp_enqueue_schedule_skb"]
    reused(lab, 50_000, few, record_property)


def test_what_passes_while_the_kernel_skips_programs_says_so(lab: Lab, record_property: Note) -> None:
    """A queue's timer sends, and interrupts a process for which the kernel copies from a map."""
    assert len(skipping(Kernel.running().symbols)) == 3
    few, count = ["__ip_local_out", "ip_output", "ip_rcv", "__udp4_lib_rcv"], 1000
    with Scene(lab) as scene, Capture("udp port 7910", functions=few, timeout=900) as cap:
        rate = "dev eth0 root tbf rate 120kbit burst 1600 limit 200000"
        scene.change("client", f"tc qdisc add {rate}", "tc qdisc del dev eth0 root")
        copying = lab.popen("client", plain(COPY), stdout=subprocess.PIPE)
        assert copying.stdout is not None
        assert copying.stdout.readline() == "up\n"
        done = lab.run("client", ["taskset", "-c", "0", *plain(SEND, scene.router, "7910", str(count))], timeout=300)
        assert done.returncode == 0, done.stderr
        settled(cap, count)
        assert copying.poll() is None
        copying.terminate()
        copying.wait(60)
    packets, events = cap.packets, cap.recording.events
    seen = events.hops["packet"][events.hops["flags"] & EVENT_FLAGS["skipped"] != 0]
    record_property("skipped", f"{cap.quality['probe_misses']} hits, {len(seen)} hops seen meanwhile")
    assert len(packets) == count
    assert len(seen) > 0
    assert packets.index[~packets["complete"]].tolist() == np.unique(seen).tolist()
    assert cap.quality["probe_misses"] > 0
    assert "probe hits were skipped" in cap.text()
