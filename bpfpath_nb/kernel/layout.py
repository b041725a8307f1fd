"""Where in the kernel's structures our C finds what it reads: one macro for each member.

The C is compiled without the kernel's headers, so a member is read as *address + offset*, and the offsets come from the
running kernel's BTF as ``-D`` macros. The table below is the whole list of what the C may read. A macro is named after
the structure and the member, ``sk_buff__head``; the value is in bytes. A bit-field gets three: the byte to start at,
``..._SHIFT`` and ``..._BITS``, and the C reads one byte:

::

    value = (byte at sk_buff__pkt_type >> sk_buff__pkt_type_SHIFT) & ((1 << sk_buff__pkt_type_BITS) - 1)

Members that some kernels lack are optional: the macro is then not defined and the C asks with ``#ifdef``. Those that
moved or were renamed have several paths, of which the first that exists is taken. A required one that is missing ends
the attempt, naming it, since reading at a guessed offset would record nonsense.
"""

from __future__ import annotations

from typing import NamedTuple

from bpfpath_nb.errors import RequirementError
from bpfpath_nb.kernel.structures import Types


class Need(NamedTuple):
    """One thing the C reads: the macro, the structure, and the paths to it, newest kernels' first."""

    macro: str
    struct: str
    paths: tuple[str, ...]
    required: bool = True


def _plain(struct: str, *members: str, required: bool = True) -> tuple[Need, ...]:
    return tuple(Need(f"{struct}__{m.replace('.', '_')}", struct, (m,), required) for m in members)


def _sock(*members: str, required: bool = True) -> tuple[Need, ...]:
    """Members of `struct sock_common`, which every `struct sock` begins with, named as if they were the sock's own."""
    return tuple(Need(f"sock__{m}", "sock", (f"__sk_common.{m}",), required) for m in members)


NEEDS: tuple[Need, ...] = (
    *_plain("sk_buff", "prev", "head", "data", "len", "data_len", "end", "tail", "users", "truesize", "cb"),
    *_plain("sk_buff", "mark", "dev", "sk", "hash", "skb_iif", "queue_mapping", "tstamp", "priority"),
    *_plain("sk_buff", "mac_header", "network_header", "transport_header", "mac_len", "protocol"),
    *_plain("sk_buff", "vlan_proto", "vlan_tci"),
    *_plain("sk_buff", "vlan_present", required=False),  # until 6.1; since then vlan_proto or vlan_tci is 0
    *_plain("sk_buff", "pkt_type", "cloned", "nohdr", "fclone", "head_frag"),
    *_plain("sk_buff", "_nfct", "_skb_refdst", required=False),
    *_plain("skb_shared_info", "dataref", "nr_frags", "gso_size", "gso_segs", "frag_list"),
    *_plain("net_device", "ifindex", "name", "type"),
    Need("net_device__nd_net", "net_device", ("nd_net.net", "nd_net")),
    *_plain("net", "ns.inum"),
    *_plain("net", "net_cookie", required=False),  # since 5.12; since 6.18 some builds keep it in ns
    Need("sock__skc_net", "sock", ("__sk_common.skc_net.net", "__sk_common.skc_net")),
    *_sock("skc_family", "skc_state", "skc_daddr", "skc_rcv_saddr", "skc_dport", "skc_num"),
    *_sock("skc_v6_daddr", "skc_v6_rcv_saddr", required=False),  # CONFIG_IPV6
    *_plain("sock", "sk_protocol"),
    *_plain("sock", "sk_drops", required=False),  # an atomic_t, until 6.17
    *_plain("neighbour", "arp_queue", "arp_queue.next", "arp_queue.prev", "dev", "nud_state"),
    *_plain("Qdisc", "dev_queue", "handle"),
    *_plain("netdev_queue", "dev"),
    *_plain("nf_hook_state", "hook", "pf", "in", "out", "net", required=False),  # CONFIG_NETFILTER
    *_plain("task_struct", "tgid", "comm", "group_leader"),
    *_plain("bpf_nf_ctx", "state", "skb", required=False),  # since 6.4
    *_plain("bpf_trace_run_ctx", "bpf_cookie", required=False),  # since 5.15
    *_plain("pt_regs", "di", "si", "dx", "cx", "r8", "ip", "sp", required=False),  # x86
    *_plain("pt_regs", "regs", "pc", "sp", required=False),  # arm64
)

SIZES: tuple[str, ...] = ("sk_buff",)

CAST = "bpf_rdonly_cast"
"""The kernel function by which a program may read a structure at an address (6.2; see bpf/memory.h)."""
NUMBERED: tuple[str, ...] = (CAST, "pt_regs")
"""Whose numbers in BTF the C has to know where it is to be used."""

STRUCTURES: tuple[str, ...] = (
    *dict.fromkeys(need.struct for need in NEEDS),
    "sock_common",
    "sk_buff_head",
    "ns_common",
)
"""All structures that the paths lead through; what a reduced record of a kernel has to keep."""


def macros(types: Types, release: str = "") -> dict[str, int]:
    """The macros for a kernel.

    Parameters
    ----------
    types
        The kernel's types.
    release
        Its release, for the error message.

    Returns
    -------
    dict
        Value by macro: bytes, or for ``_SHIFT`` and ``_BITS`` bits.

    Raises
    ------
    RequirementError
        The kernel lacks something required, or has a bit-field that does not fit into one byte.
    """
    found: dict[str, int] = {}
    missing: list[str] = []
    for need in NEEDS:
        path = next((path for path in need.paths if types.has(need.struct, path)), None)
        if path is None:
            if need.required:
                missing.append(f"{need.struct}.{need.paths[0]}")
            continue
        member = types.member(need.struct, path)
        if member.bits % 8 or member.shift:
            if member.size != 1:
                missing.append(f"{need.struct}.{path} within one byte")
                continue
            found[f"{need.macro}_SHIFT"], found[f"{need.macro}_BITS"] = member.shift, member.bits
        found[need.macro] = member.offset
    for struct in SIZES:
        if types.has(struct):
            found[f"{struct}__SIZE"] = types.size(struct)
        else:
            missing.append(f"struct {struct}")
    if missing:
        raise RequirementError(
            f"The BTF of kernel {release or 'under test'} has no {', '.join(missing)}, which the tracer reads. "
            "Report the kernel's release and distribution; a newer bpfpath_nb may know this kernel."
        )
    return found
