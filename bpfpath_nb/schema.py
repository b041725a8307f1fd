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
IPC stream of its own under the table's name, `counters`, the present value of every counter as JSON, and `refused`,
more rows for that list of the start record, as JSON. A batch may have no events and only metadata. The last batch's
metadata has `end`, a JSON object with `reason` (stopped, duration, packets, max_events, interrupted, error; BROKEN_OFF
in what was read from a file that has no end) and `time`. A capture that could not start is a stream without batches
whose start record has the key `error`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

SCHEMA_VERSION: Final = 2
"""Version of the stream and of the files. A reader accepts its own and every older one.

2 has the stacks of drops and the returns of functions; what is of version 1 has none.
"""

HEADERS_BYTES: Final = 128
"""How much of a packet is kept once per snapshot, from its first header on."""

TIME_LIMIT: Final = 1 << 62
"""No clock of a capture reaches this (146 years, in ns); so no sum or difference of two times overflows."""


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    name: str
    dtype: str
    meaning: str
    unit: str = ""


def document(columns: Sequence[Column], indent: int = 8) -> str:
    """The columns as a table for a docstring."""
    rows = [("column", "dtype", "meaning")]
    rows += [(c.name, c.dtype, c.meaning + (f" [{c.unit}]" if c.unit else "")) for c in columns]
    widths = [max(len(row[at]) for row in rows) for at in (0, 1)]
    lines = [f"{name:{widths[0]}}  {dtype:{widths[1]}}  {meaning}" for name, dtype, meaning in rows]
    rule = f"{'=' * widths[0]}  {'=' * widths[1]}  {'=' * max(len(row[2]) for row in rows)}"
    return "\n".join(" " * indent + line for line in (rule, lines[0], rule, *lines[1:], rule))


# What the BPF programs write, field by field; `struct event` of bpf/records.h, 64 bytes, no padding.
EVENT: Final = (
    Column("time", "uint64", "when the hop began, by the kernel's monotonic clock", "ns"),
    Column("skb", "uint64", "address of the sk_buff"),
    # Where returns are traced, an entry and its return find each other by the stack pointer at entry.
    Column(
        "location",
        "uint64",
        "of a packet's end the kernel's address that freed it; of a merging the number of the packet that it was "
        "merged into; of a call its stack pointer; or 0",
    ),
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
    "return": 16,  # the function returned; its entry is the last event before with this function and `location`
    "merged": 32,  # GRO merged the sk_buff into that of an earlier packet, whose number is in `location`
    "skipped": 64,  # the kernel was skipping programs of functions on that CPU: the packet may lack hops
}

# Second ring: what is told of a packet once, or again when its flow changed, of a process or a drop. `struct facts` of
# bpf/records.h, 160 bytes, no padding. In the stream rows of kind 1 are rows of PROCESSES, those of kind 2 of STACKS.
FACTS: Final = (
    Column("time", "uint64", "when it was taken, by the kernel's monotonic clock", "ns"),
    Column("packet", "uint32", "number of the packet; for a process name (kind 1) the pid"),
    Column("parent", "uint32", "number of the packet it was copied or cut from, else 0"),
    Column("len", "uint32", "length of the packet from the first byte of `headers` on", "bytes"),
    Column("snapshot", "uint16", "number of the snapshot in its packet, from 0"),
    # For a drop (kind 2) the state of the TCP socket.
    Column("link", "uint16", "what `headers` begins with: a value of LINKS (the numbers of DLT_EN10MB and DLT_RAW)"),
    Column("vlan_tpid", "uint16", "protocol of a VLAN tag that the kernel keeps beside the data, else 0"),
    Column("vlan_tci", "uint16", "that tag"),
    Column("caplen", "uint16", "how many bytes of `headers` are the packet's; the rest is zero", "bytes"),
    Column("kind", "uint16", "a value of FACTS_KINDS"),
    # For a process name its 16 bytes of comm, for a drop the stack.
    Column("headers", f"bytes[{HEADERS_BYTES}]", "the first bytes of the packet"),
)

FACTS_DTYPE: Final = np.dtype(
    [(c.name, c.dtype) for c in FACTS if c.name != "headers"] + [("headers", "u1", (HEADERS_BYTES,))]
)
assert FACTS_DTYPE.itemsize == 160

FACTS_KINDS: Final = {"snapshot": 0, "process": 1, "drop": 2, "unseen": 3}

LINKS: Final = {"ethernet": 1, "ip": 101}

STACK_DEPTH: Final = 16
"""How many functions of a stack are kept, from the innermost on."""

STACKS: Final = (
    Column("time", "uint64", "time of the end that this tells more of, by the kernel's monotonic clock", "ns"),
    Column("packet", "uint32", "number of the packet; with `time` this is the event of its end"),
    Column("tcp_state", "uint16", "sk_state of its TCP socket (include/net/tcp_states.h), 0 where it has none"),
    # Little-endian and of 8 bytes each, zero behind the last; `locations` names them.
    Column("frames", f"bytes[{8 * STACK_DEPTH}]", "addresses in the kernel, innermost first"),
)

STACKS_DTYPE: Final = np.dtype(
    [(c.name, c.dtype) for c in STACKS if c.name != "frames"] + [("frames", "<u8", (STACK_DEPTH,))]
)

PROCESSES: Final = (
    Column("pid", "uint32", "process"),
    Column("comm", "str", "its name when it was seen; the last row of a pid counts"),
)

DEVICES: Final = (
    Column("time", "uint64", "from when on it is called so, by the kernel's monotonic clock", "ns"),
    Column("netns", "uint32", "inode number of the namespace"),
    Column("ifindex", "uint32", "index of the interface in it; 0 for the namespace itself"),
    Column("name", "str", "the interface's name; of the namespace where ifindex is 0; empty where it went"),
)

LOCATIONS: Final = (
    Column("address", "uint64", "an address that stands in the `location` of an event or in a stack"),
    Column("symbol", "str", "the kernel function that holds it, suffixes folded"),
    Column("offset", "uint32", "bytes from the function's start"),
)

READS: Final = (
    Column("packet", "uint32", "a packet that a program has read; told where no hop shows it, and without the time"),
)

SIDE_TABLES: Final = {
    "facts": FACTS,
    "processes": PROCESSES,
    "devices": DEVICES,
    "locations": LOCATIONS,
    "reads": READS,
    "stacks": STACKS,
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
    "readers": "list of functions that free a packet when the owner of its socket has read it: an end there is a "
    "delivery",
    "timing": "seconds that compiling the probes took, the kprobes in all, and the kernel to attach these",
    "cost": "ns that the program takes for a hop: `hop` of a packet that is followed, `refused` of one that the filter "
    "refuses",
    "ladder": "which rung of attaching is in use: kprobe.multi, kprobe or tracepoint, and for TC tcx or clsact",
    "clock": "{monotonic, realtime}: the same instant by both clocks, in ns",
    "redacted": "true where names and addresses were replaced (`Recording.redact`)",
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
    "events_over": "events that came after `max_events` was reached, and were not sent",
    "facts_lost": "headers snapshots and process names that found their ring full",
    "packets_untracked": "packets that matched but found skb_map full",
    "probe_misses": "probe hits that the kernel skipped (recursion), as far as it counts them",
    "returns_lost": "calls whose return was not seen, where returns are traced",
    "packets_sampled_out": "packets that matched and were not followed, as `sample` asks",
    "ends_unseen": "packets whose end was not seen, though their buffer was in use again",
    "packets": "packets that got a number",
    "events": "events written",
    "hops_timed": "hops whose own cost was measured while they were recorded: the first 256, and about one in 64",
    "hops_time": "ns that these cost",
}

BROKEN_OFF: Final = "broken off"
"""Why a capture ended whose notebook was killed."""

# What a user sees. The dtypes hold for empty frames too; `check_frame` of the tests compares.
HOPS_INDEX: Final = (
    Column("packet", "uint32", "number of the packet"),
    Column("hop", "uint32", "number of the hop in its packet, from 0"),
)

HOPS: Final = (
    Column("time", "datetime64[ns, UTC]", "when the hop began"),
    Column("since", "timedelta64[ns]", "since this packet's first hop"),
    Column(
        "gap",
        "timedelta64[ns]",
        "until this packet's next hop: how long the packet was in and after this function; NaT on the last",
    ),
    Column("duration", "timedelta64[ns]", "inside the function, entry to return; NaT where returns are not traced"),
    Column("depth", "Int16", "call depth, where returns are traced"),
    Column("func", "category", "kernel function, compiler suffixes folded into the name"),
    Column("layer", "category", "part of the network stack, one of LAYERS"),
    Column("probe", "category", "how it was traced, one of PROBES"),
    Column("netns", "category", "name of the network namespace, else `net:[inum]`"),
    Column("dev", "category", "name of the interface, else `if` and its index"),
    Column("netns_inum", "UInt32", "inode number of the network namespace"),
    Column("ifindex", "UInt32", "index of the interface in its namespace"),
    Column("cpu", "uint16", "processor it ran on"),
    Column("pid", "Int32", "process in whose context it ran, 0 for the idle task"),
    Column("comm", "category", "that process's name"),
    Column("len", "UInt32", "skb->len at this hop", "bytes"),
    Column("mark", "UInt32", "skb->mark at this hop"),
    Column("flow", "category", "protocol and ends as they are at this hop, as `udp 10.0.0.1:5000 > 10.0.0.2:53`"),
    Column("reason", "category", "drop reason, named by the kernel that was traced"),
    Column("skb", "uint64", "address of the sk_buff, to tell clones apart"),
)

VERDICTS: Final = ("delivered", "dropped", "sent", "consumed", "unfinished")

PACKETS_INDEX: Final = (Column("packet", "uint32", "number of the packet"),)

PACKETS: Final = (
    Column("first", "datetime64[ns, UTC]", "time of its first hop"),
    Column("last", "datetime64[ns, UTC]", "time of its last hop"),
    Column("total", "timedelta64[ns]", "from the first hop to the last"),
    Column("hops", "uint32", "how many hops it has"),
    Column("path", "category", "its functions in order, as an id that is the same in every capture"),
    Column("flow", "category", "its flow at its first hop"),
    Column("proto", "category", "udp, tcp, icmp, arp, ..."),
    Column("src", "category", "source address"),
    Column("sport", "UInt16", "source port, where the protocol has one"),
    Column("dst", "category", "destination address"),
    Column("dport", "UInt16", "destination port"),
    Column("length", "UInt32", "length when first seen, from its first header on", "bytes"),
    Column("netns", "category", "the namespace it was first seen in"),
    Column("namespaces", "category", "all that it visited, in order, as `client > router > server`"),
    Column("verdict", "category", "what became of it, one of VERDICTS"),
    Column("reason", "category", "of a dropped one: why, as the kernel that was traced names it"),
    Column(
        "where", "category", "the function that decided the verdict; of a dropped one, the function that gave it up"
    ),
    Column("parent", "UInt32", "the packet that it was copied or cut from"),
    Column("complete", "bool", "False where events were lost meanwhile, or it was seen while programs were skipped"),
    Column("merged_into", "UInt32", "the packet that receiving made it part of: merged (GRO), or as a fragment"),
)

QUEUES: Final = ("backlog", "qdisc", "neighbour", "socket", "out-of-order")

TRANSITION_KINDS: Final = ("work", "wait")


def _quantiles(of: str, meaning: str) -> tuple[Column, ...]:
    told = {"p50": "median", "p90": "90th percentile", "p99": "99th percentile", "max": "longest", "total": "sum"}
    return tuple(Column(f"{of}{name}", "timedelta64[ns]", f"{what} of {meaning}") for name, what in told.items())


PATHS_INDEX: Final = (Column("path", "str", "id of the path, the same in every capture and on every kernel"),)

PATHS: Final = (
    Column("packets", "int64", "how many packets took it"),
    Column("share", "float64", "of all packets, from 0 to 1"),
    Column("hops", "uint32", "how many functions it has"),
    Column("functions", "category", "its functions in order, as `a > b > c`"),
    Column("verdict", "category", "what became of most of these packets, one of VERDICTS"),
    Column("median", "timedelta64[ns]", "median of the time from the first hop to the last"),
    Column("p99", "timedelta64[ns]", "99th percentile of that time"),
)

FUNCTIONS_INDEX: Final = (Column("func", "str", "kernel function"),)

LATENCY: Final = (
    Column("hits", "int64", "how many hops there are"),
    *_quantiles("gap_", "the time until the packet's next hop"),
    *_quantiles("duration_", "the time inside the function; NaT where returns are not traced"),
)

FUNCTIONS: Final = (
    Column("layer", "category", "part of the network stack, one of LAYERS"),
    Column("hits", "int64", "how often it was passed"),
    Column("packets", "int64", "by how many packets"),
    *LATENCY[1:],
)

TRANSITIONS_INDEX: Final = (
    Column("from", "str", "kernel function"),
    Column("to", "str", "the one that the packet passed next"),
)

TRANSITIONS: Final = (
    Column("count", "int64", "how often packets went so"),
    *_quantiles("", "the time from the one to the other"),
    Column("kind", "category", "what most of that time was: work, or wait in a queue"),
    Column("queue", "category", "the queue that most of the waiting was in, one of QUEUES; missing where it was work"),
)

DROPS: Final = (
    Column("time", "datetime64[ns, UTC]", "when it was dropped"),
    Column("packet", "uint32", "number of the packet"),
    Column("reason", "category", "why, as the kernel that was traced names it; missing before Linux 5.17"),
    Column("func", "category", "the function that gave it up"),
    Column("offset", "UInt32", "how far into that function", "bytes"),
    Column("stack", "category", "how the kernel came there, as `inner < outer < ...`"),
    Column("flow", "category", "the packet's flow there"),
    Column("netns", "category", "the namespace where it was dropped"),
    Column("dev", "category", "the interface that it was at"),
    Column("tcp_state", "category", "state of the TCP socket that it was for, as ESTABLISHED"),
    Column("tcp_flags", "category", "flags of its TCP header, as `SYN ACK`"),
    Column("advice", "category", "what that means and what to look at next"),
)

NAMESPACES_INDEX: Final = (Column("netns", "str", "name of the network namespace, else `net:[inum]`"),)

NAMESPACES: Final = (
    Column("packets", "int64", "how many packets were seen in it"),
    Column("hops", "int64", "and in how many hops"),
    Column("time", "timedelta64[ns]", "how long they were there in all: sum of the gaps after these hops"),
    Column("waiting", "timedelta64[ns]", "how much of that in queues"),
    Column("drops", "int64", "drops that happened there"),
    Column("delivered", "int64", "packets that were delivered there"),
    Column("interfaces", "category", "its interfaces at which packets were seen, as `eth0, lo`"),
)

SEVERITIES: Final = ("fault", "warning", "note")

FINDINGS: Final = (
    Column("severity", "category", "one of SEVERITIES: packets are lost; something is slow or odd; good to know"),
    Column("rule", "category", "name of the rule in advice.toml that fits"),
    Column("title", "category", "what was found, in a line"),
    Column("packets", "int64", "how many packets show it"),
    Column("share", "float64", "that as a part of all packets of the recording"),
    Column("first", "datetime64[ns, UTC]", "when it was first seen"),
    Column("last", "datetime64[ns, UTC]", "when it was last seen"),
    Column("longest", "timedelta64[ns]", "of waiting: how long at most; else NaT"),
    Column("netns", "category", "the namespace where it was seen; missing where it is of the whole capture"),
    Column("dev", "category", "the interface there"),
    Column("func", "category", "the function there; of a drop, the one that gave the packet up"),
    Column("reason", "category", "of a drop: why, as the kernel that was traced names it"),
    Column("flow", "category", "the flow that shows it most often"),
    Column("example", "uint32", "number of a packet of that flow that shows it"),
    Column("meaning", "category", "what it means"),
    Column("check", "category", "commands to look further with, one in a line; for a shell on the traced machine"),
)

QUALITY: Final = (
    Column("events_lost", "int", "events that found the event ring full"),
    Column("events_over", "int", "events that came after `max_events` was reached, and were not kept"),
    Column("facts_lost", "int", "headers snapshots and process names that found their ring full"),
    Column("packets_untracked", "int", "packets that matched but could not be followed, too many were under way"),
    Column("probe_misses", "int", "probe hits that the kernel skipped, as it counts them; before 6.7 at least"),
    Column("returns_lost", "int", "calls whose return was not seen, where returns are traced"),
    Column("packets_sampled_out", "int", "packets that matched and were not followed, as `sample` asks"),
    Column("ends_unseen", "int", "packets whose end was not seen, though their buffer was in use again"),
    Column("gaps", "int", "places where a CPU's count of events jumps"),
    Column("headers_missing", "int", "packets whose headers were not told"),
    Column("incomplete", "int", "packets that may lack a hop"),
    Column("unfinished", "int", "packets whose end was not seen"),
    Column("packets", "int", "packets"),
    Column("hops", "int", "hops"),
    Column("probes", "int", "places in the kernel that were traced"),
    Column("refused", "int", "places that were asked for and could not be traced"),
    Column("not_traced", "str", "those places, each with what is traced in its stead where something is"),
    Column("cost_hop", "float", "what a hop of a packet that is followed costs, estimated at arming", "ns"),
    Column("cost_refused", "float", "what the filter's refusal costs a packet wherever it is asked, likewise", "ns"),
    Column("cost_packet", "float", "what a packet costs that is followed, by its hops and their timing", "ns"),
    Column("ladder", "str", "how the probes were attached"),
    Column("end", "str", "why the capture ended; empty while it runs, or where the tracer died"),
)

# What `compare` shows. `a` and `b` are its two sides, in the order in which they were given.
CHANGES: Final = {
    "added": "b has it and a has not, beyond what chance can do",
    "gone": "a has it and b has not, beyond chance",
    "shifted": "both have it, in shares that differ beyond chance",
    "slower": "b takes longer there, beyond chance",
    "faster": "b takes less time there, beyond chance",
    "same": "no difference that could be told from chance",
    "unclear": "one side alone has it, which may be chance; or too few packets to tell anything",
}

_SHARES: Final = (
    Column("packets_a", "uint32", "packets of a that are counted here"),
    Column("packets_b", "uint32", "packets of b"),
    Column("share_a", "float64", "of all packets of a"),
    Column("share_b", "float64", "of all packets of b"),
    Column("difference", "float64", "share_b less share_a"),
    Column("difference_low", "float64", "its 95 % confidence interval (Newcombe): from"),
    Column("difference_high", "float64", "to"),
    Column("share_p", "float64", "of Fisher's test or between blocks, corrected (Holm); NaN where too few for it"),
)

_LATENCIES: Final = (
    Column("compared_a", "uint32", "packets of a with a duration here and a like in b"),
    Column("compared_b", "uint32", "packets of b with a duration here and a like in a"),
    Column("median_a", "timedelta64[ns]", "median duration of the packets of a"),
    Column("median_b", "timedelta64[ns]", "median duration of the packets of b"),
    Column("p99_a", "timedelta64[ns]", "99th percentile in a"),
    Column("p99_b", "timedelta64[ns]", "99th percentile in b"),
    Column("shift", "timedelta64[ns]", "median_b less median_a; NaT where nothing can be compared"),
    Column("shift_low", "timedelta64[ns]", "its 95 % confidence interval (Woodruff): from"),
    Column("shift_high", "timedelta64[ns]", "to"),
    Column("longer", "float64", "how likely a packet of b takes longer than a like one of a; 0.5 is no difference"),
    Column("shift_p", "float64", "of the stratified rank test, corrected (Holm); NaN where too few to be tested"),
)

_WAITS: Final = tuple(column for column in TRANSITIONS if column.name in {"kind", "queue"})

_CHANGE: Final = Column("change", "category", "what can be claimed, one of CHANGES")

COMPARED_PATHS_INDEX: Final = (Column("path", "str", "the path's id"),)
COMPARED_PATHS: Final = (
    *_SHARES,
    _CHANGE,
    Column("hops", "uint32", "how many hops it has"),
    Column("verdict", "category", "the most frequent verdict of its packets"),
    Column("functions", "category", "its functions in order, as `a > b > c`"),
)

COMPARED_FUNCTIONS_INDEX: Final = FUNCTIONS_INDEX
COMPARED_FUNCTIONS: Final = (FUNCTIONS[0], *_SHARES, *_LATENCIES, _CHANGE)

COMPARED_TRANSITIONS_INDEX: Final = (
    Column("from", "category", "kernel function"),
    Column("to", "category", "the packet's next function"),
)
COMPARED_TRANSITIONS: Final = (*_WAITS, *_SHARES, *_LATENCIES, _CHANGE)

COMPARED_PLACES_INDEX: Final = (
    Column("netns", "category", "namespace; missing where the two sides have none in common"),
    Column("dev", "category", "interface; missing where the two sides have none in common"),
    Column("func", "category", "kernel function"),
)
COMPARED_PLACES: Final = (*_WAITS, *_SHARES, *_LATENCIES, _CHANGE)

COMPARED_DROPS_INDEX: Final = (
    Column("reason", "category", "why, as the kernel that was traced names it; empty where it gave none"),
    Column("func", "category", "the function that gave the packet up"),
    Column("netns", "category", "the namespace in which it did"),
)
COMPARED_DROPS: Final = (*_SHARES, _CHANGE)

COMPARED_VERDICTS_INDEX: Final = (Column("verdict", "category", "what became of a packet, one of VERDICTS"),)
COMPARED_VERDICTS: Final = (*_SHARES, *_LATENCIES, _CHANGE)

ALIGNMENT: Final = (
    Column("func", "category", "kernel function"),
    Column("side", "category", "which path has it here: both, a, or b"),
    Column("hop_a", "UInt32", "number of the hop in the path of a"),
    Column("hop_b", "UInt32", "number of the hop in the path of b"),
    Column("netns_a", "category", "namespace where most packets of a are there"),
    Column("dev_a", "category", "interface"),
    Column("netns_b", "category", "namespace where most packets of b are there"),
    Column("dev_b", "category", "interface"),
    Column("gap_a", "timedelta64[ns]", "median time until the next hop, of the packets of a on this path"),
    Column("gap_b", "timedelta64[ns]", "the same of b"),
)
