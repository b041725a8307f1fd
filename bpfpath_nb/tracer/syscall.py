"""The few commands of bpf(2) that bcc does not offer: links, tracepoints, and asking about objects.

Plain system calls through ctypes; the numbers and layouts are of `include/uapi/linux/bpf.h`, which never change.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import struct
from collections.abc import Iterator, Sequence

from bpfpath_nb.errors import RequirementError

NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}

PROG_LOAD = 5
PROG_TEST_RUN = 10
PROG_GET_NEXT_ID = 11
OBJ_GET_INFO_BY_FD = 15
MAP_LOOKUP_BATCH = 24
RAW_TRACEPOINT_OPEN = 17
LINK_CREATE = 28

SOCKET_FILTER = 1

PERF_EVENT, KPROBE_MULTI, NETFILTER, TCX_INGRESS, TCX_EGRESS, KPROBE_SESSION = 41, 42, 45, 46, 47, 56
KPROBE_MULTI_RETURN = 1

PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241, "riscv64": 241, "ppc64le": 319, "s390x": 331}
PERF_FLAG_FD_CLOEXEC = 8
PERF_EVENT_IOC_ENABLE, PERF_EVENT_IOC_SET_BPF = 0x2400, 0x40042408

CLONE_NEWNET = 0x40000000

libc = ctypes.CDLL(None, use_errno=True)


def bpf(command: int, attributes: bytes) -> tuple[int, bytes]:
    """One bpf(2) call: its result and the attributes as the kernel left them.

    Raises
    ------
    OSError
        With the kernel's errno.
    """
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    return bpf_in_place(command, buffer), buffer.raw


def bpf_in_place(command: int, buffer: ctypes.Array[ctypes.c_char]) -> int:
    """The same, for a command that answers in its attributes also when it fails."""
    number = NUMBERS.get(platform.machine())
    if number is None:
        raise RequirementError(f"The number of the bpf system call on {platform.machine()} is not known to bpfpath_nb.")
    result: int = libc.syscall(number, command, buffer, len(buffer))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def raw_tracepoint_open(name: str, program: int) -> int:
    """Attach a raw tracepoint program; the descriptor of the link."""
    text = ctypes.create_string_buffer(name.encode())
    return bpf(RAW_TRACEPOINT_OPEN, struct.pack("=QI12x", ctypes.addressof(text), program))[0]


def run_raw_tracepoint(program: int, argument: int) -> int:
    """Run a raw tracepoint program here and now, for one argument; what it returns."""
    arguments = ctypes.create_string_buffer(struct.pack("=Q", argument), 8)
    test = struct.pack("=IIIIQQIIIIQ", program, 0, 0, 0, 0, 0, 0, 0, 8, 0, ctypes.addressof(arguments))
    _, answer = bpf(PROG_TEST_RUN, test + bytes(24))
    return int(struct.unpack_from("=I", answer, 4)[0])


def link_create_tcx(program: int, ifindex: int, attach_type: int) -> int:
    """Attach a TC program to an interface of the present namespace; the descriptor of the link (kernel 6.6)."""
    return bpf(LINK_CREATE, struct.pack("=IIII", program, ifindex, attach_type, 0) + bytes(32))[0]


def link_create_netfilter(program: int, family: int, hook: int, priority: int) -> int:
    """Attach a netfilter program to a hook of the present namespace; the descriptor of the link (kernel 6.4)."""
    attributes = struct.pack("=IIIIIIiI", program, 0, NETFILTER, 0, family, hook, priority, 0)
    return bpf(LINK_CREATE, attributes + bytes(16))[0]


def recursion_misses(program: int) -> int:
    """How many hits of a program the kernel skipped because it was running already on that CPU."""
    info = ctypes.create_string_buffer(232)
    attributes = struct.pack("=IIQ", program, len(info), ctypes.addressof(info))
    _, answer = bpf(OBJ_GET_INFO_BY_FD, attributes)
    length = struct.unpack_from("=I", answer, 4)[0]
    # struct bpf_prog_info: recursion_misses stands behind run_cnt (kernel 5.12).
    return int(struct.unpack_from("=Q", info, 208)[0]) if length >= 216 else 0


def has_fetch_add() -> bool:
    """Whether BPF programs may add atomically and get the old value (kernel 5.12): by loading one that does."""
    instructions = struct.pack(
        "=" + "BBhi" * 5,
        *(0x7A, 0x0A, -8, 0),  # *(u64 *)(r10 - 8) = 0
        *(0xB7, 0x01, 0, 1),  # r1 = 1
        *(0xDB, 0x1A, -8, 0x01),  # r1 = atomic_fetch_add((u64 *)(r10 - 8), r1)
        *(0xB7, 0x00, 0, 0),  # r0 = 0
        *(0x95, 0x00, 0, 0),  # exit
    )
    return is_loadable(SOCKET_FILTER, instructions)


def is_loadable(kind: int, instructions: bytes) -> bool:
    """Whether the kernel takes a program, given by its instructions; it is gone again at once."""
    code = ctypes.create_string_buffer(instructions, len(instructions))
    license_ = ctypes.create_string_buffer(b"GPL")
    count = len(instructions) // 8
    attributes = struct.pack("=IIQQ", kind, count, ctypes.addressof(code), ctypes.addressof(license_))
    try:
        os.close(bpf(PROG_LOAD, attributes + bytes(24))[0])
    except OSError:
        return False
    return True


def program_ids() -> Iterator[int]:
    """The numbers of all BPF programs that are loaded."""
    last = 0
    while True:
        try:
            _, answer = bpf(PROG_GET_NEXT_ID, struct.pack("=III", last, 0, 0))
        except FileNotFoundError:
            return
        last = struct.unpack_from("=I", answer, 4)[0]
        yield last


def setns(descriptor: int) -> None:
    """Move this thread into a network namespace."""
    if libc.setns(descriptor, CLONE_NEWNET) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def link_create_kprobe_multi(
    program: int, addresses: Sequence[int], cookies: Sequence[int], attach_type: int = KPROBE_MULTI, flags: int = 0
) -> int:
    """Attach a program to many functions at once; the descriptor of the link (kernel 5.18; `KPROBE_SESSION` 6.10)."""
    count = len(addresses)
    address_array, cookie_array = (ctypes.c_uint64 * count)(*addresses), (ctypes.c_uint64 * count)(*cookies)
    attributes = struct.pack(
        "=IIIIIIQQQ",
        *(program, 0, attach_type, 0, flags, count, 0),
        *(ctypes.addressof(address_array), ctypes.addressof(cookie_array)),
    )
    return bpf(LINK_CREATE, attributes)[0]


def link_create_perf(program: int, event: int, cookie: int) -> int:
    """Attach a program to a perf event, with a cookie; the descriptor of the link (kernel 5.15)."""
    return bpf(LINK_CREATE, struct.pack("=IIIIQ", program, event, PERF_EVENT, 0, cookie) + bytes(24))[0]


def perf_event_open_kprobe(kind: int, address: int, *, returns: bool = False) -> int:
    """A perf event for a kprobe at an address, or for the returns of the function there; its descriptor.

    `kind` is the number of that kind of event.
    """
    number = PERF_EVENT_OPEN.get(platform.machine())
    if number is None:
        raise RequirementError(f"The number of perf_event_open on {platform.machine()} is not known to bpfpath_nb.")
    # struct perf_event_attr: type, size, config (bit 0: returns), sample_period at 16, config1 (a name: none) at 56,
    # config2 (the address) at 64.
    attributes = ctypes.create_string_buffer(
        struct.pack("=IIQQ32xQQ", kind, 112, returns, 1, 0, address) + bytes(40), 112
    )
    result: int = libc.syscall(number, attributes, -1, 0, -1, ctypes.c_ulong(PERF_FLAG_FD_CLOEXEC))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def perf_event_set_bpf(event: int, program: int) -> None:
    """Attach a program to a perf event, as kernels before 5.15 do it."""
    fcntl.ioctl(event, PERF_EVENT_IOC_SET_BPF, program)
    fcntl.ioctl(event, PERF_EVENT_IOC_ENABLE, 0)
