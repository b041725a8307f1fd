"""Captures of a network that does not exist, for tests that need no kernel.

Packets of a few kinds cross a client, a router and a server over veth pairs, along paths as raw tracepoints show
them. Each kind is a template of hops; a capture is templates laid side by side, put in the order of time, numbered
per CPU, and thinned by losses. All of it is done on whole columns, so that ten million hops take seconds.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bpfpath_nb.recording import Recording
from bpfpath_nb.schema import EVENT_DTYPE, EVENT_FLAGS, FACTS_DTYPE, FACTS_KINDS, SCHEMA_VERSION
from bpfpath_nb.stream import Writer

CLIENT, ROUTER, SERVER = 4026532001, 4026532002, 4026532003
MONOTONIC, REALTIME = 5_000_000_000_000, 1_790_000_000_000_000_000
DEVICES = [
    (MONOTONIC, *row)
    for row in [
        (CLIENT, 0, "client"), (ROUTER, 0, "router"), (SERVER, 0, "server"),
        (CLIENT, 2, "eth0"), (ROUTER, 2, "left"), (ROUTER, 3, "right"), (SERVER, 2, "eth0"), (SERVER, 3, "wan"),
    ]
]  # fmt: skip

FUNCTIONS = [
    {"name": name, "layer": layer, "probe": probe, "target": name, "role": role}
    for name, layer, probe, role in [
        ("__dev_queue_xmit", "qdisc", "tracepoint", "send"),
        ("tc_egress", "tc", "tc_egress", ""),
        ("net_dev_start_xmit", "driver", "tracepoint", "transmit"),
        ("net_dev_xmit", "driver", "tracepoint", ""),
        ("netif_rx", "driver", "tracepoint", "receive"),
        ("netif_receive_skb", "driver", "tracepoint", "receive"),
        ("tc_ingress", "tc", "tc_ingress", ""),
        ("skb_copy_datagram_iovec", "socket", "tracepoint", "deliver"),
        ("kfree_skb", "skb", "tracepoint", "drop"),
        ("consume_skb", "skb", "tracepoint", "consume"),
        ("ip_rcv.isra.0", "ip", "kprobe", ""),
    ]
]
INDEX = {function["name"]: at for at, function in enumerate(FUNCTIONS)}
REASONS = {"0": "SKB_NOT_DROPPED_YET", "1": "SKB_CONSUMED", "2": "SKB_DROP_REASON_NOT_SPECIFIED",
           "3": "SKB_DROP_REASON_NO_SOCKET", "8": "SKB_DROP_REASON_NETFILTER_DROP",
           "9": "SKB_DROP_REASON_OTHERHOST"}  # fmt: skip
HOOK, UDP_RCV, TAP = 0xFFFFFFFF81A00123, 0xFFFFFFFF81B00456, 0xFFFFFFFF81C00789
TAP_READ, RAW_READ, KILLED = 0xFFFFFFFF81C01789, 0xFFFFFFFF81D00012, 0xFFFFFFFF81E00034
IP_RCV = 0xFFFFFFFF81D00345
TCP_RCV, TCP_CLOSE, PARTS = 0xFFFFFFFF81E01034, 0xFFFFFFFF81E02034, 0xFFFFFFFF81E03034
LOCATIONS = [(HOOK, "nf_hook_slow", 0x23), (UDP_RCV, "__udp4_lib_rcv.constprop.0", 0x56), (TAP, "packet_rcv", 0x89),
             (TAP_READ, "packet_recvmsg", 0x89), (RAW_READ, "raw_recvmsg", 0x12),
             (KILLED, "sk_stream_kill_queues", 0x34), (IP_RCV, "ip_rcv", 0x45),
             (TCP_RCV, "tcp_v4_rcv", 0x34), (TCP_CLOSE, "__tcp_close", 0x34),
             (PARTS, "skb_release_data", 0x34)]  # fmt: skip

ENTRY, END, LAST, CLONE = (EVENT_FLAGS[name] for name in ("entry", "end", "last", "clone"))


def _cross(netns: int, out: int, to: int, into: int) -> list[tuple[Any, ...]]:
    """From one namespace's interface over a veth pair to another's."""
    return [
        ("__dev_queue_xmit", netns, out), ("tc_egress", netns, out), ("net_dev_start_xmit", netns, out),
        ("netif_rx", to, into), ("net_dev_xmit", netns, out), ("netif_receive_skb", to, into), ("tc_ingress", to, into),
        ("ip_rcv.isra.0", to, into),
    ]  # fmt: skip


_TO_ROUTER, _TO_SERVER = _cross(CLIENT, 2, ROUTER, 2), _cross(ROUTER, 3, SERVER, 2)

# Hops as (function, netns, ifindex[, flags, reason, location]); flags beyond `entry` on the first.
KINDS: dict[str, list[tuple[Any, ...]]] = {
    "answered": [
        *_TO_ROUTER, *_TO_SERVER, ("skb_copy_datagram_iovec", SERVER, 2), ("consume_skb", SERVER, 2, END | LAST),
    ],
    "filtered": [*_TO_ROUTER, ("kfree_skb", ROUTER, 2, END | LAST, 8, HOOK)],
    "closed": [*_TO_ROUTER, *_TO_SERVER, ("kfree_skb", SERVER, 2, END | LAST, 3, UDP_RCV)],
    "left": [
        ("__dev_queue_xmit", SERVER, 3), ("tc_egress", SERVER, 3), ("net_dev_start_xmit", SERVER, 3),
        ("net_dev_xmit", SERVER, 3), ("consume_skb", SERVER, 3, END | LAST),
    ],
    "used": [*_TO_ROUTER, ("kfree_skb", ROUTER, 2, END | LAST, 1, HOOK)],
    "waiting": [*_TO_ROUTER, ("__dev_queue_xmit", ROUTER, 3)],
    "tapped": [
        *_TO_ROUTER, ("consume_skb", ROUTER, 2, END | CLONE), *_TO_SERVER, ("skb_copy_datagram_iovec", SERVER, 2),
        ("kfree_skb", SERVER, 2, END | LAST, 2, UDP_RCV),
    ],
}  # fmt: skip
VERDICT = {
    "answered": "delivered", "filtered": "dropped", "closed": "dropped", "left": "sent", "used": "consumed",
    "waiting": "unfinished", "tapped": "delivered",
}  # fmt: skip


def start_record(**changes: Any) -> dict[str, Any]:
    """A start record of the network."""
    record = {
        "version": SCHEMA_VERSION, "tool": "0.1.0", "release": "6.18.0-test", "machine": "x86_64", "host": "lab",
        "filter": "udp port 53",
        "options": {"match": "entry"}, "functions": FUNCTIONS,
        "refused": [{"name": "ip_forward", "why": "no kprobes", "instead": ""}], "reasons": REASONS,
        "ladder": {"functions": "tracepoint", "tc": "tcx"}, "clock": {"monotonic": MONOTONIC, "realtime": REALTIME},
    }  # fmt: skip
    return record | changes


def udp_frame(sport: int, dport: int, src: str = "10.0.1.2", dst: str = "10.0.2.2", payload: int = 28) -> bytes:
    """An Ethernet frame with IPv4 and UDP in it."""
    length = 8 + payload
    ip = bytes([0x45, 0]) + (20 + length).to_bytes(2) + bytes([0, 1, 0, 0, 64, 17, 0, 0])
    ip += bytes(map(int, src.split("."))) + bytes(map(int, dst.split(".")))
    udp = sport.to_bytes(2) + dport.to_bytes(2) + length.to_bytes(2) + b"\0\0"
    return bytes.fromhex("020000000002020000000001") + b"\x08\x00" + ip + udp + bytes(payload)


def tcp_frame(flags: int, payload: int = 0, src: str = "10.0.1.2", dst: str = "10.0.2.2") -> bytes:
    """An Ethernet frame with IPv4 and TCP in it."""
    ip = bytes([0x45, 0]) + (40 + payload).to_bytes(2) + bytes([0, 1, 0, 0, 64, 6, 0, 0])
    ip += bytes(map(int, src.split("."))) + bytes(map(int, dst.split(".")))
    tcp = (5000).to_bytes(2) + (80).to_bytes(2) + bytes(8) + bytes([0x50, flags]) + bytes(6)
    return bytes.fromhex("020000000002020000000001") + b"\x08\x00" + ip + tcp + bytes(payload)


def facts_row(headers: bytes, packet: int = 1, snapshot: int = 0, **fields: int) -> np.ndarray:
    """One row of facts."""
    row = np.zeros(1, FACTS_DTYPE)
    kept = headers[:128]
    row["headers"][0, : len(kept)] = np.frombuffer(kept, np.uint8)
    row["packet"], row["snapshot"], row["caplen"], row["len"], row["link"] = (
        packet,
        snapshot,
        len(kept),
        len(headers),
        1,
    )
    for name, value in fields.items():
        row[name] = value
    return row


@dataclass
class Capture:
    """A made-up capture, as the tracer would have it in its hands."""

    events: np.ndarray
    facts: np.ndarray
    kinds: np.ndarray
    counters: dict[str, int]
    reads: tuple[int, ...] = ()
    stacks: np.ndarray = field(default_factory=lambda: np.empty(0, FACTS_DTYPE))
    """Facts of the kind `drop`."""

    def write(self, batches: int = 3, record: dict[str, Any] | None = None, end: bool = True) -> bytes:
        """The stream that tells it."""
        sink = io.BytesIO()
        writer = Writer(sink, record or start_record())
        names = np.zeros(1, FACTS_DTYPE)
        names["kind"], names["packet"] = FACTS_KINDS["process"], 77
        names["headers"][0, :4] = np.frombuffer(b"dig\0", np.uint8)
        for at, part in enumerate(np.array_split(self.events, batches)):
            facts = np.concatenate([names, self.facts, self.stacks]) if at == 0 else None
            side: dict[str, Any] = {} if facts is None else {"facts": facts, "devices": DEVICES, "locations": LOCATIONS}
            side["reads"] = [(packet,) for packet in self.reads[at::batches]]
            writer.write(part, side, self.counters)
        if end:
            writer.write(end={"reason": "stopped", "time": int(self.events["time"].max(initial=MONOTONIC))})
        return sink.getvalue()

    def recording(self, **changes: Any) -> Recording:
        """The recording that comes of it."""
        return Recording.from_stream(io.BytesIO(self.write(record=start_record(**changes))))


def capture(
    packets: int = 50,
    seed: int = 0,
    kinds: tuple[str, ...] = tuple(KINDS),
    lost: float = 0.0,
    cpus: int = 4,
    *,
    weights: tuple[float, ...] | None = None,
    spread: str = "even",
    delay: dict[str, int] | None = None,
    run: float = 1,
) -> Capture:
    """Make up a capture of so many packets, of which a share of the events was lost.

    `weights` are the kinds' shares, else all are as likely and each occurs. `spread` says how the gaps are drawn (see
    `SPREADS`), `delay` how many ns are added after each hop in a function, `run` how many packets of a kind come in a
    row on average.
    """
    random = np.random.default_rng(seed)
    templates = [_template(KINDS[kind]) for kind in kinds]
    sizes = np.array([len(template) for template in templates])
    kind = random.integers(0, len(kinds), packets) if packets else np.empty(0, int)
    if weights is not None:
        kind = random.choice(len(kinds), packets, p=weights)
    elif packets >= len(kinds):
        kind[: len(kinds)] = np.arange(len(kinds))
    if run > 1:
        begins = np.where(random.random(packets) < 1 / run, np.arange(packets), 0)
        kind = kind[np.maximum.accumulate(begins)]
    counts = sizes[kind]
    first = np.cumsum(counts) - counts
    which = np.repeat(np.arange(packets), counts)
    hop = np.arange(counts.sum()) - np.repeat(first, counts)
    everything = np.concatenate(templates)
    events = everything[(np.cumsum(sizes) - sizes)[kind[which]] + hop]
    gaps = SPREADS[spread](random, which, packets).astype(np.uint64)
    # A hop's time is that of its packet's first hop and all gaps up to its own, so what comes after it is one later.
    for name, more in (delay or {}).items():
        gaps[1:][events["func"][:-1] == INDEX[name]] += np.uint64(more)
    elapsed = np.cumsum(gaps)
    begin = MONOTONIC + np.arange(packets, dtype=np.uint64) * np.uint64(20_000)
    base = elapsed[first] if len(events) else elapsed
    events["time"] = np.repeat(begin, counts) + elapsed - np.repeat(base, counts)
    events["packet"] = which + 1
    events["skb"] += np.uint64(0xFFFF888000000000) + (which.astype(np.uint64) % 1000) * np.uint64(0x200)
    events["cpu"] = (which + hop // 9) % cpus
    events["len"], events["pid"] = 70, np.where(hop < 4, 77, 0)
    events = events[np.argsort(events["time"], kind="stable")]
    for cpu in range(cpus):
        rows = np.flatnonzero(events["cpu"] == cpu)
        events["seq"][rows] = np.arange(len(rows))
    keep = random.random(len(events)) >= lost
    return Capture(
        events[keep],
        _facts(packets),
        np.array(kinds)[kind],
        {"events_lost": int((~keep).sum())},
        stacks=_stacks(events),
    )


def _stacks(events: np.ndarray) -> np.ndarray:
    """Of each drop where it came about: the function that dropped, and one that called it."""
    drops = events[(events["func"] == INDEX["kfree_skb"]) & (events["flags"] & END != 0)]
    stacks = np.zeros(len(drops), FACTS_DTYPE)
    stacks["time"], stacks["packet"], stacks["kind"] = drops["time"], drops["packet"], FACTS_KINDS["drop"]
    stacks["link"] = 1 + drops["packet"] % 11
    frames = stacks["headers"].view("<u8")
    frames[:, 0], frames[:, 1] = drops["location"], IP_RCV
    return stacks


SPREADS = {
    "even": lambda random, which, packets: random.integers(200, 5000, len(which)),
    # Few distinct values, as of a coarse clock.
    "tied": lambda random, which, packets: random.choice([200, 400, 600, 3000], len(which), p=[0.6, 0.3, 0.09, 0.01]),
    # The mean of these hardly exists.
    "heavy": lambda random, which, packets: np.minimum(300 * (1 + random.pareto(1.1, len(which))), 1e9),
    # A slow packet is slow in all its hops.
    "correlated": lambda random, which, packets: (
        random.lognormal(7, 1, packets)[which] * random.lognormal(0, 0.2, len(which))
    ),
}  # fmt: skip


def _template(hops: list[tuple[Any, ...]]) -> np.ndarray:
    rows = np.zeros(len(hops), EVENT_DTYPE)
    for at, (name, netns, ifindex, *rest) in enumerate(hops):
        flags, reason, location = (*rest, 0, 0, 0)[:3]
        rows[at]["func"], rows[at]["netns"], rows[at]["ifindex"] = INDEX[name], netns, ifindex
        rows[at]["flags"], rows[at]["reason"], rows[at]["location"] = flags, reason, location
        rows[at]["skb"] = 0x100 if flags & CLONE else 0
    rows["flags"][0] |= ENTRY
    return rows


def _facts(packets: int) -> np.ndarray:
    facts = np.repeat(facts_row(udp_frame(5000, 53)), packets)
    number = np.arange(packets)
    facts["packet"] = number + 1
    port = 40000 + number % 20000
    facts["headers"][:, 34], facts["headers"][:, 35] = port >> 8, port & 255
    return facts


EMPTY = Capture(np.empty(0, EVENT_DTYPE), np.empty(0, FACTS_DTYPE), np.empty(0), {})


def of_hops(*hops: dict[str, int], facts: np.ndarray | None = None, tcp_state: int = 0, **changes: Any) -> Recording:
    """A recording of these hops, one after another on one CPU; `tcp_state` is that of the sockets of its drops."""
    events = np.zeros(len(hops), EVENT_DTYPE)
    events["packet"], events["time"] = 1, MONOTONIC + np.arange(len(hops)) * 1000
    events["seq"], events["netns"], events["skb"] = np.arange(len(hops)), CLIENT, 0xFFFF888000000000
    for at, fields in enumerate(hops):
        for name, value in fields.items():
            events[name][at] = value
    facts = np.empty(0, FACTS_DTYPE) if facts is None else facts
    stacks = _stacks(events) if tcp_state else EMPTY.stacks
    stacks["link"] = tcp_state
    return Capture(events, facts, np.empty(0), {}, stacks=stacks).recording(**changes)


def hop(name: str, flags: int = 0, **fields: int) -> dict[str, int]:
    """One of them."""
    return {"func": INDEX[name], "flags": flags} | fields
