"""Every table of bpfpath_nb: name, dtype, unit and meaning of each column, in one place.

Two kinds of tables stand here. The *stream* tables are what the tracer process sends: numeric, small, in the layout
that the BPF programs write. The *frames* are what a user sees: `Recording.df`, `.packets` and so on. `analysis/` turns
the first into the second.
Docstrings, checks on load and the reprs come from these tables; nothing else lists columns.

The stream
----------
The tracer's standard output is one Arrow IPC stream per capture. The metadata of its Arrow schema holds, under the
key `bpfpath_nb`, the start record as JSON (see `START_RECORD`). Each record batch is a run of events (`EVENT`), in
the order in which the ring buffer held them: by time on each CPU, nearly so across CPUs. What goes beside the events
travels in the batch's custom metadata: each side table (`SIDE_TABLES`) that has new rows, as the bytes of an Arrow
IPC stream of its own under the table's name, and `counters`, the present value of every counter as JSON. A batch may
have no events and only metadata. The last batch's metadata has `end`, a JSON object with `reason` (stopped, duration,
packets, max_events, interrupted, error) and `time`. A capture that could not start is a stream without batches whose
start record has the key `error`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

SCHEMA_VERSION: Final = 1
"""Version of the stream and of the files. A reader accepts its own and every older one."""

HEADERS_BYTES: Final = 128
"""How much of a packet is kept once per snapshot, from its first header on."""


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    name: str
    dtype: str
    meaning: str
    unit: str = ""


# What the BPF programs write, field by field; `struct event` of bpf/path.h, 64 bytes, no padding.
EVENT: Final = (
    Column("time", "uint64", "when the hop began, by the kernel's monotonic clock", "ns"),
    Column("skb", "uint64", "address of the sk_buff"),
    Column("location", "uint64", "for the end of a packet: the address in the kernel that freed it; else 0"),
    Column("packet", "uint32", "number of the packet, from 1, never used twice in a capture"),
    Column("seq", "uint32", "number of the event on its CPU, from 0; a gap is a lost event"),
    Column("netns", "uint32", "inode number of the network namespace, 0 where it cannot be told"),
    Column("ifindex", "uint32", "index of the interface in its namespace, 0 where the packet has none"),
    Column("len", "uint32", "skb->len", "bytes"),
    Column("mark", "uint32", "skb->mark"),
    Column("reason", "uint32", "drop reason as the running kernel numbers it, 0 where there is none"),
    Column("pid", "uint32", "process (thread group) in whose context it ran, 0 for the idle task"),
    Column("func", "uint16", "index into the start record's `functions`"),
    Column("cpu", "uint16", "processor it ran on"),
    Column("snapshot", "uint16", "number of the headers snapshot that holds at this hop, from 0 in each packet"),
    Column("flags", "uint16", "bits of EVENT_FLAGS"),
)

EVENT_DTYPE: Final = np.dtype([(c.name, c.dtype) for c in EVENT])
assert EVENT_DTYPE.itemsize == 64

EVENT_FLAGS: Final = {
    "entry": 1,  # the filter ran here and the packet got its number
    "end": 2,  # the sk_buff was freed here (kfree_skb, consume_skb)
    "last": 4,  # and with it the packet's data: no clone is left
    "clone": 8,  # the sk_buff shares its data with another
}

# Second ring: what is told once per packet, or again when its flow changed, and the names of processes. `struct facts`
# of bpf/path.h, 160 bytes, no padding. In the stream a row of kind 1 becomes a row of PROCESSES.
FACTS: Final = (
    Column("time", "uint64", "when it was taken, by the kernel's monotonic clock", "ns"),
    Column("packet", "uint32", "number of the packet; for a process name (kind 1) the pid"),
    Column("parent", "uint32", "number of the packet it was copied or cut from, else 0"),
    Column("len", "uint32", "length of the packet from the first byte of `headers` on", "bytes"),
    Column("snapshot", "uint16", "number of the snapshot in its packet, from 0"),
    Column("link", "uint16", "what `headers` begins with: a value of LINKS (the numbers of DLT_EN10MB and DLT_RAW)"),
    Column("vlan_tpid", "uint16", "protocol of a VLAN tag that the kernel keeps beside the data, else 0"),
    Column("vlan_tci", "uint16", "that tag"),
    Column("caplen", "uint16", "how many bytes of `headers` are the packet's; the rest is zero", "bytes"),
    Column("kind", "uint16", "a value of FACTS_KINDS"),
    Column(
        "headers", f"bytes[{HEADERS_BYTES}]", "the first bytes of the packet; for a process name its 16 bytes of comm"
    ),
)

FACTS_DTYPE: Final = np.dtype(
    [(c.name, c.dtype) for c in FACTS if c.name != "headers"] + [("headers", "u1", (HEADERS_BYTES,))]
)
assert FACTS_DTYPE.itemsize == 160

FACTS_KINDS: Final = {"snapshot": 0, "process": 1}

LINKS: Final = {"ethernet": 1, "ip": 101}

PROCESSES: Final = (
    Column("pid", "uint32", "process"),
    Column("comm", "str", "its name when it was seen; the last row of a pid counts"),
)

DEVICES: Final = (
    Column("netns", "uint32", "inode number of the namespace"),
    Column("ifindex", "uint32", "index of the interface in it; 0 for the namespace itself"),
    Column("name", "str", "the interface's name; of the namespace where ifindex is 0; the last row counts"),
)

LOCATIONS: Final = (
    Column("address", "uint64", "an address that stands in the `location` of an event"),
    Column("symbol", "str", "the kernel function that holds it, suffixes folded"),
    Column("offset", "uint32", "bytes from the function's start"),
)

SIDE_TABLES: Final = {
    "facts": FACTS,
    "processes": PROCESSES,
    "devices": DEVICES,
    "locations": LOCATIONS,
}

START_RECORD: Final = {
    "version": "SCHEMA_VERSION of the writer",
    "tool": "version of bpfpath_nb",
    "release": "kernel release (uname -r)",
    "machine": "architecture (uname -m)",
    "host": "the host's name",
    "filter": "the packet filter as given",
    "options": "every other option of the capture, by its name",
    "functions": "list of {name, layer, probe, target, role}: what `func` of an event points at; probe is one of "
    "PROBES, target what it was attached to, role one of ROLES",
    "refused": "list of {name, why, instead}: what was asked for and cannot be traced here",
    "reasons": "drop reason number (as a string) -> name, by the running kernel",
    "ladder": "which rung of attaching is in use: kprobe.multi, kprobe or tracepoint, and for TC tcx or clsact",
    "clock": "{monotonic, realtime}: the same instant by both clocks, in ns",
    "error": "only where the capture could not start: {type, message}",
}

PROBES: Final = ("tc_ingress", "tc_egress", "kprobe", "tracepoint", "netfilter")

ROLES: Final = {
    "": "a function the packet passes",
    "deliver": "its data reached a socket's owner",
    "drop": "frees a packet that was given up; with the flag `end` a drop",
    "consume": "frees a packet that was used as meant",
    "transmit": "hands the packet to a driver",
    "receive": "takes it from one",
    "send": "where a local sender's packet enters",
}

LAYERS: Final = (
    "driver", "tc", "bridge", "ip", "netfilter", "route", "neigh", "qdisc", "xfrm", "transport", "socket", "skb",
)  # fmt: skip

COUNTERS: Final = {
    "events_lost": "events that found the event ring full",
    "facts_lost": "headers snapshots and process names that found their ring full",
    "packets_untracked": "packets that matched but found skb_map full",
    "probe_misses": "probe hits that the kernel skipped (recursion)",
    "packets": "packets that got a number",
    "events": "events written",
}
