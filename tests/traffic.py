"""Traffic of any size, for what is measured at ten million hops.

DNS across a router as kprobes of Linux 6.12 show it, some fifty hops a packet: queries and answers, queries that a
firewall drops, that meet no socket or an unknown neighbour, and, as on real machines, packets that skip a function here
and there. Whole columns are made at once.
"""

from __future__ import annotations

import numpy as np
from streams import (
    CLIENT,
    CLONE,
    DEVICES,
    END,
    ENTRY,
    HOOK,
    LAST,
    LOCATIONS,
    MONOTONIC,
    ROUTER,
    SERVER,
    UDP_RCV,
    facts_row,
    start_record,
    udp_frame,
)

from bpfpath_nb.analysis.events import Events
from bpfpath_nb.kernel.catalogue import load
from bpfpath_nb.recording import Recording
from bpfpath_nb.schema import EVENT_DTYPE
from bpfpath_nb.start import StartRecord

READ = 0xFFFFFFFF81E00042

_SEND = "ip_send_skb __ip_local_out nf_hook_slow ip_output nf_hook_slow ip_finish_output ip_finish_output2"
_XMIT = (
    "neigh_resolve_output __dev_queue_xmit tc_egress validate_xmit_skb dev_hard_start_xmit net_dev_start_xmit veth_xmit"
)
_RECEIVE = (
    "netif_rx_entry netif_rx_internal enqueue_to_backlog __netif_receive_skb_one_core netif_receive_skb tc_ingress "
    "ip_rcv ip_rcv_core nf_hook_slow ip_route_input_noref ip_route_input_slow fib_validate_source"
)
_FORWARD = "ip_forward nf_hook_slow ip_output nf_hook_slow ip_finish_output ip_finish_output2"
_LOCAL = (
    "ip_local_deliver nf_hook_slow ip_local_deliver_finish ip_protocol_deliver_rcu raw_local_deliver udp_rcv "
    "udp_queue_rcv_one_skb sk_filter_trim_cap __udp_enqueue_schedule_skb"
)
_TRACEPOINTS = {"netif_rx_entry", "netif_receive_skb", "net_dev_start_xmit", "consume_skb", "kfree_skb"}
_ROLES = {
    "kfree_skb": "drop",
    "consume_skb": "consume",
    "net_dev_start_xmit": "transmit",
    "netif_receive_skb": "receive",
}
_SKIPPED = ("raw_local_deliver", "ip_route_input_slow", "fib_validate_source", "validate_xmit_skb")


def _hops(names: str, netns: int, ifindex: int) -> list[tuple]:
    return [(name, netns, ifindex, 0, 0, 0) for name in names.split()]


_TO_ROUTER = [*_hops(f"{_SEND} {_XMIT}", CLIENT, 2), *_hops(_RECEIVE, ROUTER, 2)]
_TO_SERVER = [*_TO_ROUTER, *_hops(f"{_FORWARD} {_XMIT}", ROUTER, 3), *_hops(_RECEIVE, SERVER, 2)]
_DROPPED = _hops("ip_forward nf_hook_slow", ROUTER, 2)
_QUEUED = [*_TO_SERVER, *_hops(_LOCAL, SERVER, 2)]
_ASK = [
    *_hops(f"{_SEND} neigh_resolve_output __neigh_event_send skb_clone", CLIENT, 2),
    ("consume_skb", CLIENT, 2, END | CLONE, 0, 0),
]
KINDS = {
    "answered": (70, [*_QUEUED, ("consume_skb", SERVER, 2, END | LAST, 0, READ)]),
    "filtered": (15, [*_TO_ROUTER, *_DROPPED, ("kfree_skb", ROUTER, 3, END | LAST, 8, HOOK)]),
    "closed": (8, [*_TO_SERVER, *_hops(_LOCAL, SERVER, 2)[:6], ("kfree_skb", SERVER, 2, END | LAST, 3, UDP_RCV)]),
    "looked at": (5, [*_TO_ROUTER, *_hops(_LOCAL, ROUTER, 2), ("consume_skb", ROUTER, 2, END | LAST, 0, READ)]),
    "neighbour": (1, [*_ASK, *_QUEUED[7:], ("consume_skb", SERVER, 2, END | LAST, 0, READ)]),
    "waiting": (1, _QUEUED),
}  # fmt: skip
"""Share in percent, and hops as (function, netns, ifindex, flags, reason, location)."""


def recording(packets: int, seed: int = 0) -> Recording:
    """So many packets, as a recording that a capture would give."""
    random = np.random.default_rng(seed)
    names = sorted({hop[0] for _, hops in KINDS.values() for hop in hops})
    templates = [_template(hops, names, skip) for _, hops in KINDS.values() for skip in (None, *_SKIPPED)]
    share = np.repeat([share for share, _ in KINDS.values()], len(_SKIPPED) + 1).astype(float)
    share *= np.tile([0.8, *[0.2 / len(_SKIPPED)] * len(_SKIPPED)], len(KINDS))
    kind = random.choice(len(templates), packets, p=share / share.sum())
    sizes = np.array([len(template) for template in templates])
    counts = sizes[kind]
    first = np.cumsum(counts) - counts
    rows = np.repeat((np.cumsum(sizes) - sizes)[kind] - first, counts) + np.arange(counts.sum())
    everything = np.concatenate(templates)
    hops = {name: everything[name][rows] for name in EVENT_DTYPE.names}
    # What a function takes differs, and so does each time: most near the median, few far above.
    usual = random.integers(100, 900, len(everything))
    gap = (usual[rows] * random.lognormal(0, 0.5, len(rows))).astype(np.uint64) + np.uint64(20)
    elapsed = np.cumsum(gap) - gap
    begin = MONOTONIC + np.cumsum(random.exponential(40_000, packets)).astype(np.uint64)
    hops["time"] = np.repeat(begin - elapsed[first], counts) + elapsed
    hops["packet"] = np.repeat(np.arange(1, packets + 1, dtype=np.uint32), counts)
    hops["skb"] += np.repeat(0xFFFF888000000000 + random.integers(0, 500, packets).astype(np.uint64) * 256, counts)
    hops["cpu"] = np.repeat(random.integers(0, 4, packets).astype(np.uint16), counts)
    hops["pid"] = np.where(hops["netns"] == CLIENT, 300 + hops["packet"] % 7, 0).astype(np.uint32)
    order = np.argsort(hops["time"], kind="stable")
    for cpu in range(4):
        mine = order[hops["cpu"][order] == cpu]
        hops["seq"][mine] = np.arange(len(mine))
    functions = [
        {
            "name": name, "layer": load().layer_of(name), "target": name, "role": _ROLES.get(name, ""),
            "probe": name if name.startswith("tc_") else "tracepoint" if name in _TRACEPOINTS else "kprobe",
        }
        for name in names
    ]  # fmt: skip
    start = StartRecord.from_dict(start_record(functions=functions, readers=["udp_recvmsg"], release="6.12.0-test"))
    events = Events.build(
        start, hops, _facts(packets), processes=[(300 + at, "dig") for at in range(7)], devices=DEVICES,
        locations=[*LOCATIONS, (READ, "udp_recvmsg", 66)], end={"reason": "stopped", "time": int(hops["time"].max())},
    )  # fmt: skip
    return Recording(events)


def _template(hops: list[tuple], names: list[str], skip: str | None) -> np.ndarray:
    hops = [hop for hop in hops if hop[0] != skip]
    rows = np.zeros(len(hops), EVENT_DTYPE)
    for at, (name, netns, ifindex, flags, reason, location) in enumerate(hops):
        rows[at]["func"], rows[at]["netns"], rows[at]["ifindex"] = names.index(name), netns, ifindex
        rows[at]["flags"], rows[at]["reason"], rows[at]["location"] = flags, reason, location
        rows[at]["skb"], rows[at]["len"] = (128 if flags & CLONE else 0), 70
    rows["flags"][0] |= ENTRY
    return rows


def _facts(packets: int) -> np.ndarray:
    facts = np.repeat(facts_row(udp_frame(5000, 53)), packets)
    number = np.arange(packets)
    facts["packet"] = number + 1
    for at, value in ((18, number), (34, 40000 + number % 20000)):
        facts["headers"][:, at], facts["headers"][:, at + 1] = value >> 8 & 255, value & 255
    return facts
