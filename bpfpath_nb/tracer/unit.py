"""The compilation unit of a capture: the plan of its probes, the kernel's layout and the request, as C."""

from __future__ import annotations

import platform
import re

from bpfpath_nb.errors import RequirementError
from bpfpath_nb.filter import Filter
from bpfpath_nb.kernel import Kernel
from bpfpath_nb.tracer import casts, cookies, cpu_rings, followed, probes, source
from bpfpath_nb.tracer.kprobes import registers, skipping
from bpfpath_nb.tracer.request import Request
from bpfpath_nb.tracer.syscall import has_fetch_add
from bpfpath_nb.tracer.toolchain import LOAD_COOKIE

PAGE = 4096
TRACKED_PACKETS = 65536
OPEN_CALLS = 16384
OLDEST = (5, 8)


def check_release(release: str) -> None:
    """Refuse a kernel without ring buffers, the first thing that cannot be done without."""
    numbers = re.match(r"(\d+)\.(\d+)", release)
    if numbers and (int(numbers[1]), int(numbers[2])) < OLDEST:
        raise RequirementError(
            f"Kernel {release} is too old: BPF ring buffers came with {OLDEST[0]}.{OLDEST[1]}. Boot a newer "
            "kernel, or trace "
            "on another host with on='ssh://root@host'. What others have recorded can be loaded here all the same."
        )


def has_total_store_order() -> bool:
    """Whether CPUs see each other's stores in their order (bpf/records.h)."""
    return platform.machine() == "x86_64"


def unit(request: Request, kernel: Kernel, *, with_kprobes: bool = False) -> tuple[str, probes.Plan]:
    """The C of a capture, and the plan that it follows.

    Raises
    ------
    RequirementError
        The kernel is too old, or has no BTF.
    """
    check_release(kernel.release)
    plan = probes.plan(request, kernel, with_kprobes=with_kprobes)
    macros: dict[str, int | str] = {**kernel.macros, **plan.macros}
    macros["EVENTS_PAGES"] = request.events_ring // PAGE
    macros["FACTS_PAGES"] = request.facts_ring // PAGE
    macros["SKB_MAP_ENTRIES"] = TRACKED_PACKETS
    macros["SLOTS_BITS"] = followed.SLOTS_BITS
    macros["MAPPED"] = followed.MMAPABLE
    macros["MOVED_ENTRIES"] = TRACKED_PACKETS // 4
    macros["SAMPLE"] = request.sample
    macros |= probes.skbuff_macros(kernel)
    macros |= probes.reason_macros(kernel)
    macros |= casts.macros(kernel.btf)
    if has_fetch_add():
        macros |= {"HAVE_FETCH_ADD": 1, **cpu_rings.macros(request.events_ring)}
    if has_total_store_order():
        macros["TOTAL_STORE_ORDER"] = 1
    if request.packets is not None:
        macros["PACKETS_LIMIT"] = request.packets
    if request.namespaces is not None:
        macros["ONLY_NAMESPACES"] = 1
    if request.interfaces is not None:
        macros["ONLY_INTERFACES"] = 1
    if functions := plan.of_kind("kprobe"):
        macros |= {"HAVE_KPROBES": 1, **registers(kernel.macros, platform.machine()), **skipping(kernel.symbols)}
        macros |= {"COOKIES_HASH": f"{cookies.HASH:#x}ull", "COOKIES_BITS": cookies.bits(len(functions))}
        if request.returns:
            macros |= {"HAVE_RETURNS": 1, "CALLS_ENTRIES": OPEN_CALLS}
    if plan.of_kind("tc_ingress"):
        macros["HAVE_TC"] = 1
    macros["LOAD_COOKIE"] = LOAD_COOKIE
    return source.assemble(Filter(request.filter).c_source(), macros), plan
