"""Which probes a capture gets on this kernel: the plan, made before anything is compiled.

The ladder's upper rungs are kprobes on the functions of the catalogue, or on whichever were asked for
(`kprobes`). A few tracepoints come along there all the same: they alone tell why a packet was dropped, and they
stand in for functions that are inlined. On the last rung there is what every kernel with BPF has, raw
tracepoints that are given a packet. They show receiving, queueing, sending, dropping; between an interface and
a socket they show nothing, and there the hooks of netfilter help, where the kernel lets BPF programs in (6.4).
TC programs come on every rung: there the filter is asked with all of the packet at hand.

A probe is known by its position in the plan: that is `func` of its events.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bpfpath_nb.kernel import SETS, Kernel, Selection, select, select_tracepoints
from bpfpath_nb.kernel.catalogue import Catalogue, Function, Tracepoint
from bpfpath_nb.kernel.sets import Request as Wish
from bpfpath_nb.tracer.request import Request
from bpfpath_nb.tracer.tc import DIRECTIONS

HOOKS = ("nf_prerouting", "nf_input", "nf_forward", "nf_output", "nf_postrouting")
"""Netfilter's hooks in the order of enum nf_inet_hooks, by nftables' names for them."""

FREES = ("kfree", "kmem_cache_free")
"""Where the allocator takes memory back: the end of packets that the stack frees without a word (see identity.h)."""
FREED = "skb_free_head"
"""What such an end is called: which of the two frees a buffer depends on its size only."""

MERGES = "napi_gro_receive_exit"
"""Where the kernel tells that a received packet was merged into an earlier one of its flow (see merging.h)."""
HANDED_OVER = "napi_gro_receive_entry"
"""And where it tells before which packet that is."""
MERGED = "skb_gro_receive"
"""What such an end is called."""

ENDS = ("kfree_skb", "consume_skb")
"""Tracepoints that report an end; they come with every plan."""
STEADY = ("netif_receive_skb", "net_dev_start_xmit", "skb_copy_datagram_iovec")
"""Tracepoints that tell what becomes of a packet (`role`), on every kernel alike."""
COPIES = ("skb_copy", "__pskb_copy_fclone", "skb_copy_expand")
"""Functions that make another packet of one; identity.h wants to know of them."""
EXPANDS = "pskb_expand_head"
"""The function that gives a packet another buffer: identity.h wants to know of it."""
RELEASES = "skb_release_data"
"""The function that frees a packet's buffer, but for the one above. Where both are probed, the allocator is not."""
TCP_DROPS = "tcp_drop"
"""What such an end is called where TCP dropped the packet, on kernels that have no reasons: the function is inlined
there, and frees without a word. (`note_tcp_drop` of bpf/hop.h)"""
DEFERS = "skb_attempt_defer_free"
"""The function that a socket's reader gives what it has read; the kernel may take a long time to free it then."""
LAST_REGISTER = 4

SKBUFF = (
    "skb_release_data", "pskb_expand_head", "__kfree_skb", "consume_skb", "napi_consume_skb", "kfree_skb_partial",
    "skb_attempt_defer_free", "kfree_skbmem", "skb_free_head", "__consume_stateless_skb",
)  # fmt: skip
"""Functions of net/core/skbuff.c that free, or lead to it."""
DATAGRAM = ("skb_free_datagram", "__skb_free_datagram_locked")
"""Functions of net/core/datagram.c, which lies next, that free what a socket's reader is done with: it is who counts.
Before 5.18 the first does something after it has freed, and is on the stack."""
SKBUFF_LARGEST = 1 << 20
"""All of that file's functions take less, in bytes; more means that the linker has scattered them."""

# bpf/records.h and bpf/probes.h
ENTRY, END, NEIGHBOUR, EXPAND, DEVICE, RECEIVE, BIRTH, COPY = 1, 2, 4, 8, 16, 32, 128, 256
RELEASE, AGAIN, AT_SOCKET = 512, 1024, 2048
KIND_AT, PACKET_AT, LOCATION_AT, REASON_AT, SOCKET_AT, DROP_AT, RANK_AT = 16, 32, 36, 40, 44, 48, 52
"""Bits of a cookie."""
DRIVERS = (
    "napi_gro_receive", "gro_receive_skb", "napi_gro_receive_entry", "napi_gro_frags_entry", "netif_receive_skb_entry",
    "netif_receive_skb_list_entry",
)  # fmt: skip
"""Where a driver hands up what it received: nothing that is known of the buffer says anything of the packet."""
RANKS = {
    name: rank
    for rank, names in enumerate(
        (
            ("ip_send_skb", "ip6_send_skb"),
            ("__ip_local_out", "ip_local_out", "__ip6_local_out", "ip6_local_out", "nf_output"),
            ("ip_output", "ip_mc_output", "ip6_output", "arp_xmit"),
            ("__dev_queue_xmit", "dev_queue_xmit", "net_dev_queue"),
            ("tc_egress",),
            ("net_dev_start_xmit",),
            ("__netif_rx",),
            ("netif_rx_entry", "netif_rx_ni_entry"),
            ("netif_rx_internal",),
            ("netif_rx",),
            DRIVERS,
            ("netif_receive_skb",),
            ("tc_ingress",),
        ),
        1,
    )
    for name in names
}
"""Entries in the order in which one packet passes them (bpf/asked.h)."""
AT_DEVICES = ("driver", "tc", "bridge", "qdisc")
"""Layers in which a packet is at a device, or on its way from one to another."""
BESIDE_SOCKETS = (
    "skb_copy_datagram_from_iter", "sock_wfree", "__sock_wfree", "tcp_wfree",
    "packet_rcv", "tpacket_rcv",
)  # fmt: skip
"""Functions of the layer `socket` on the way out, or that look at what is under way to others; all others of the
catalogue's are on the way in."""
TO_SOCKETS = ("__udp_enqueue_schedule_skb", "tcp_add_backlog", "tcp_data_queue", "tcp_data_queue_ofo", "tcp_queue_rcv")
"""Functions of other layers that put a packet into a socket's queue."""
NO_ARGUMENT = 15
CALLER, REASON, SOCK = "void *", "enum skb_drop_reason", "struct sock *"
"""Types by which the arguments of kfree_skb are known."""
SOCKET = 0
"""Which argument the socket is where a function takes it before the packet (`socket` in the catalogue)."""


@dataclass(frozen=True)
class Probe:
    """A place where packets are seen; the fields are those of the start record's `functions`.

    What has no `cookie` has no program of its own: another's tells of it.
    """

    name: str
    layer: str
    probe: str
    target: str
    role: str = ""
    final: bool = False
    cookie: int = 0

    @property
    def entry(self) -> bool:
        """Whether the filter runs there."""
        return bool(self.cookie & ENTRY << KIND_AT)

    def record(self) -> dict[str, str | bool]:
        """For the start record."""
        return {
            "name": self.name,
            "layer": self.layer,
            "probe": self.probe,
            "target": self.target,
            "role": self.role,
            "final": self.final,
        }


@dataclass
class Plan:
    """All probes of a capture, and what the C has to know of them.

    Attributes
    ----------
    probes
        In the order of `func`.
    macros
        For the C.
    refused
        What was asked for and cannot be had here, for the start record.
    awaited
        Those of `probes` that are functions of no loaded module: one that has them may be loaded any time.
    """

    probes: list[Probe] = field(default_factory=list)
    macros: dict[str, int] = field(default_factory=dict)
    refused: list[dict[str, str]] = field(default_factory=list)
    awaited: list[Probe] = field(default_factory=list)

    def of_kind(self, probe: str) -> list[Probe]:
        """The probes that are attached in one way."""
        return [candidate for candidate in self.probes if candidate.probe == probe]


def plan(request: Request, kernel: Kernel, *, with_kprobes: bool) -> Plan:
    """The probes for a request.

    Parameters
    ----------
    request, kernel
        What is asked for, and of which kernel.
    with_kprobes
        Whether functions can be probed.

    Raises
    ------
    FunctionError
        A function that nobody knows, or none that can be seen here.
    """
    made = Plan()
    if request.functions != "drops":  # who wants drops only, wants little cost: no program on any interface
        for name in DIRECTIONS:
            made.macros[f"FUNC_{name}"] = len(made.probes)
            made.probes.append(Probe(name, "tc", name, name, cookie=_cookie(name, len(made.probes), ENTRY)))
    if with_kprobes and request.functions != "drops":
        _plan_functions(made, request, kernel)
    else:
        _plan_tracepoints(made, request, kernel)
    released = {RELEASES, EXPANDS} <= {probe.target for probe in made.of_kind("kprobe")}
    for name in () if released else FREES:
        made.macros[f"FUNC_{name}"] = len(made.probes)
        made.probes.append(Probe(FREED, "skb", "tracepoint", name, "consume"))
    if request.functions != "drops" and HANDED_OVER in kernel.tracepoints:
        made.macros[f"FUNC_{MERGED}"] = len(made.probes)
        made.probes.append(Probe(MERGED, kernel.catalogue.layer_of(MERGED), "tracepoint", MERGES, "consume"))
    return made


def _wish(request: Request) -> str | Wish:
    wish = request.functions
    return wish if isinstance(wish, str) else Wish(names=tuple(wish), final=frozenset(request.final))


def _plan_functions(made: Plan, request: Request, kernel: Kernel) -> None:
    """Kprobes, and the tracepoints that belong to them."""
    catalogue = kernel.catalogue
    tracepoints = catalogue.tracepoints
    wish = _wish(request)
    extra: list[str] = []
    if isinstance(wish, Wish):
        extra = [name for name in wish.names if name in kernel.tracepoints and name not in kernel.functions]
        wish = Wish(names=tuple(name for name in wish.names if name not in extra), final=wish.final)
    in_register = {name: register for name, register in kernel.functions.items() if register <= LAST_REGISTER}
    in_register |= dict.fromkeys(kernel.untyped_functions, NO_ARGUMENT)
    chosen = Selection({})
    if not isinstance(wish, Wish) or wish.names:
        chosen = select(wish, in_register, catalogue, symbols=frozenset(kernel.symbols.names()), files=False)
    ends = {name for name in ENDS for name in tracepoints[name].functions}
    for name, register in chosen.probes.items():
        if name in ends or name in (EXPANDS, RELEASES) or name in COPIES:
            continue  # the tracepoint shows the same, and the reason; the other comes below
        described = catalogue.find(name)
        kind = _kind(request, name, described, catalogue.layer_of(name))
        made.probes.append(_function(name, len(made.probes), kind, register, kernel, name in chosen.final))
        if register == NO_ARGUMENT:
            made.macros["SEARCH_REGISTERS"] = 1
    if _position(kernel.tracepoint_arguments("kfree_skb"), SOCK) == NO_ARGUMENT:
        made.macros["SOCKET_UNTOLD"] = 1
    if EXPANDS in in_register:
        made.probes.append(_function(EXPANDS, len(made.probes), EXPAND, in_register[EXPANDS], kernel, False))
        made.macros["EXPAND_PROBED"] = 1
        if RELEASES in in_register and skbuff_macros(kernel):
            kind = END | RELEASE
            made.probes.append(_function(RELEASES, len(made.probes), kind, in_register[RELEASES], kernel, False))
            if not kernel.reasons and "sock__sk_drops" in kernel.macros:
                made.macros[f"FUNC_{TCP_DROPS}"] = len(made.probes)
                layer = catalogue.layer_of(TCP_DROPS)
                made.probes.append(Probe(TCP_DROPS, layer, "kprobe", RELEASES, "drop", True))
    for name in COPIES:
        if name in in_register:
            made.probes.append(_function(name, len(made.probes), COPY, in_register[name], kernel, False))
    shown = {probe.name for probe in made.probes}
    for name, position in kernel.tracepoints.items():
        described_tracepoint = tracepoints.get(name)
        stands_alone = described_tracepoint is not None and not shown & set(described_tracepoint.functions)
        wanted = name in (*ENDS, *STEADY, *extra) or (request.functions in SETS and stands_alone)
        if wanted and not _unsafe(name, kernel, made):
            made.probes.append(_tracepoint(name, len(made.probes), request, kernel, position, name in chosen.final))
    _tell_what_is_missing(made, chosen)
    for name in chosen.missing if kernel.loaded else ():
        kind = _kind(request, name, None, catalogue.layer_of(name))
        made.awaited.append(_function(name, len(made.probes), kind, NO_ARGUMENT, kernel, False))
        made.probes.append(made.awaited[-1])
    if made.awaited and not kernel.modules:
        made.macros["SEARCH_REGISTERS"] = 1


def _function(name: str, func: int, kind: int, register: int, kernel: Kernel, final: bool) -> Probe:
    described = kernel.catalogue.find(name)
    socket = SOCKET if described is not None and described.socket and register == SOCKET + 1 else NO_ARGUMENT
    cookie = _cookie(name, func, kind, register, socket=socket)
    if name == RELEASES:
        return Probe(FREED, "skb", "kprobe", name, "consume", final, cookie)
    role = "deliver" if name == DEFERS else ""
    return Probe(name, kernel.catalogue.layer_of(name), "kprobe", name, role, final, cookie)


def _cookie(
    name: str,
    func: int,
    kind: int,
    packet: int = 0,
    *,
    location: int = 0,
    reason: int = 0,
    socket: int = 0,
    drop: int = 0,
) -> int:
    """What a probe's program is told: what it is, and which arguments are the packet and what else it has."""
    arguments = packet << PACKET_AT | location << LOCATION_AT | reason << REASON_AT | socket << SOCKET_AT
    return func | kind << KIND_AT | arguments | drop << DROP_AT | RANKS.get(name, 0) << RANK_AT


def in_register(cookie: int, register: int) -> int:
    """The cookie of a function that takes its packet in another register."""
    return cookie & ~(NO_ARGUMENT << PACKET_AT) | register << PACKET_AT


def _plan_tracepoints(made: Plan, request: Request, kernel: Kernel) -> None:
    """Tracepoints, and netfilter's hooks between them."""
    catalogue = kernel.catalogue
    hooks = HOOKS if "nf_hook_state__hook" in kernel.macros and "bpf_nf_ctx__skb" in kernel.macros else ()
    available = {**kernel.tracepoints, **dict.fromkeys(hooks, 0)}
    chosen = select_tracepoints(_wish(request), available, catalogue, known=kernel.functions, files=False)
    probed = dict(chosen.probes)
    if request.functions != "drops":
        # Whatever was asked for: what tells of a packet's end, and whose a buffer is.
        steady = (*ENDS, *STEADY, *(name for name in available if _tells_apart(name, catalogue)))
        probed |= {name: available[name] for name in steady if name in available}
    if any(hook in probed for hook in hooks):
        made.macros["FUNC_netfilter"] = len(made.probes)
        made.macros["NETFILTER_ENTRIES"] = 0
        for number, name in enumerate(hooks):
            entry = _is_entry(request, catalogue.tracepoints[name].entry)
            made.macros["NETFILTER_ENTRIES"] |= entry << number
            made.probes.append(Probe(name, catalogue.layer_of(name), "netfilter", name))
    for name, position in probed.items():
        if name not in hooks and not _unsafe(name, kernel, made):
            made.probes.append(_tracepoint(name, len(made.probes), request, kernel, position, name in chosen.final))
    if request.functions != "drops":
        seen = "only netfilter's hooks are" if hooks else "nothing is"
        why = f"no kprobes here: between TC and socket {seen} seen"
        made.refused.append({"name": "kprobes", "why": why, "instead": "tracepoints"})
    _tell_what_is_missing(made, chosen)


def _tells_apart(name: str, catalogue: Catalogue) -> bool:
    """Whether a packet passes there when it is new (`RECEIVE`), or on its way to a socket (identity.h)."""
    described = catalogue.tracepoints.get(name)
    return name in HOOKS or (described is not None and described.entry == "receive" and described.layer == "driver")


def skbuff_macros(kernel: Kernel) -> dict[str, str]:
    """Where the functions that free a packet lie, for telling from the stack who freed it; empty where it is hidden.

    They are all of net/core/skbuff.c, which the linker keeps together.
    """
    symbols = kernel.symbols
    spans = [span for name in SKBUFF for span in symbols.spans(name)]
    expand = symbols.spans("pskb_expand_head")
    if not spans or len(expand) != 1:
        return {}
    start, end = min(begin for begin, _ in spans), max(end for _, end in spans)
    if end - start > SKBUFF_LARGEST:
        return {}
    (expand_start, expand_end) = expand[0]
    datagram = [span for name in DATAGRAM for span in symbols.spans(name)]
    end = max([end, *(last for first, last in datagram if start < first and last < start + SKBUFF_LARGEST)])
    untold = {} if "void *" in kernel.tracepoint_arguments("consume_skb") else {"CONSUMED_UNTOLD": "1"}
    return untold | {
        "SKBUFF_START": f"{start:#x}ull",
        "SKBUFF_SIZE": f"{end - start:#x}ull",
        "EXPAND_HEAD_START": f"{expand_start:#x}ull",
        "EXPAND_HEAD_SIZE": f"{expand_end - expand_start:#x}ull",
    }


def reason_macros(kernel: Kernel) -> dict[str, int]:
    """What the C has to know of drop reasons; empty on kernels without."""
    reasons = kernel.btf.enumeration("skb_drop_reason")
    if not reasons:
        return {"HAVE_REASONS": 1} if kernel.reasons else {}
    consumed = [number for number, name in reasons.items() if name == "SKB_CONSUMED"]
    return {"HAVE_REASONS": 1, **({"REASON_CONSUMED": consumed[0]} if consumed else {})}


def _kind(request: Request, name: str, described: Function | Tracepoint | None, layer: str) -> int:
    entry = described.entry if described else ""
    kind = ENTRY if _is_entry(request, entry) else 0
    kind |= AGAIN if request.match == "entry" and entry and name in RANKS and name not in DRIVERS else 0
    kind |= DEVICE if layer in AT_DEVICES else 0
    kind |= AT_SOCKET if name in TO_SOCKETS or (layer == "socket" and described and name not in BESIDE_SOCKETS) else 0
    kind |= BIRTH if entry == "send" and layer == "ip" else 0  # what is cut into fragments or segments, is cut below
    return kind | (RECEIVE if entry == "receive" and layer == "driver" else 0)


def _is_entry(request: Request, entry: str) -> bool:
    return request.match == "every" or (request.match == "entry" and bool(entry))


def _unsafe(name: str, kernel: Kernel, made: Plan) -> bool:
    """A packet that may be freed already cannot be looked at: its memory may be another packet's by now."""
    described = kernel.catalogue.tracepoints.get(name)
    if described is None or not described.freed:
        return False
    made.refused.append({"name": name, "why": "the packet may be gone there", "instead": "net_dev_start_xmit"})
    return True


def _tracepoint(name: str, func: int, request: Request, kernel: Kernel, position: int, final: bool) -> Probe:
    described = kernel.catalogue.tracepoints.get(name)
    arguments = kernel.tracepoint_arguments(name)
    kind, role = 0, ""
    location = reason = socket = NO_ARGUMENT
    drop = False
    if described is not None:
        role = described.role or ("drop" if described.drop else "consume" if described.final else "")
        role = role or (described.entry if described.entry in ("receive", "send") else "")
        kind |= _kind(request, name, described, described.layer)
        if described.via:
            kind |= NEIGHBOUR
        if described.final:
            kind |= END
            location, reason, socket = (_position(arguments, kind) for kind in (CALLER, REASON, SOCK))
            drop = role == "drop"
    elif request.match == "every":
        kind |= ENTRY
    cookie = _cookie(name, func, kind, position, location=location, reason=reason, socket=socket, drop=drop)
    layer = kernel.catalogue.layer_of(name)
    return Probe(name, layer, "tracepoint", name, role, final, cookie)


def _position(arguments: list[str], wanted: str) -> int:
    """Which argument of a tracepoint is of a type; the socket is `const` on the newest kernels."""
    types = [kind.removeprefix("const ") for kind in arguments]
    return types.index(wanted) if wanted in types else NO_ARGUMENT


def _tell_what_is_missing(made: Plan, chosen: Selection) -> None:
    for name, instead in chosen.stand_ins.items():
        made.refused.append({"name": name, "why": "not here under this name", "instead": instead})
    for name in chosen.missing:
        made.refused.append(
            {
                "name": name,
                "why": "not here: inlined, of another kernel, or in a module that is not loaded",
                "instead": "",
            }
        )
