"""BPF programs of two instructions that refuse every packet: for XDP, and for TC.

Loaded by bpf(2) itself (numbers and layouts of include/uapi/linux/bpf.h, which never change), so that practising needs
no compiler. XDP is attached through a link, which ends with its descriptor; TC as a filter of the qdisc clsact, which
every kernel has.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
from contextlib import suppress
from typing import Literal

from bpfpath_nb.errors import LabError
from bpfpath_nb.lab.scene import Scene, inside

_SYSCALL = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
_PROG_LOAD, _LINK_CREATE = 5, 28
_SCHED_CLS, _XDP = 3, 6
_XDP_DROP, _TC_ACT_SHOT = 1, 2
_ATTACH_XDP, _XDP_FLAGS_SKB_MODE = 37, 2
_PARENTS = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}
_libc = ctypes.CDLL(None, use_errno=True)


def attach_xdp(scene: Scene, ns: str, dev: str) -> None:
    """Drop every frame that an interface receives, until the scene ends: in the network stack, where every one can."""
    program = _load(_XDP, _XDP_DROP)
    try:
        with inside(scene.lab.names[ns]):
            link = _bpf(
                _LINK_CREATE, struct.pack("=IIII", program, scene.ifindex(ns, dev), _ATTACH_XDP, _XDP_FLAGS_SKB_MODE)
            )
    finally:
        os.close(program)
    scene.later(lambda: os.close(link))


def attach_tc(scene: Scene, ns: str, dev: str, direction: Literal["ingress", "egress"]) -> None:
    """Drop every packet that enters or leaves through an interface, until the scene ends."""
    from pyroute2 import IPRoute

    # The qdisc may be there already, and may be somebody else's by the time that ours is to go: then it stays.
    made = scene.lab.run(ns, f"tc qdisc add dev {dev} clsact").returncode == 0
    scene.later(
        lambda: scene.lab.run(
            ns, f"tc qdisc del dev {dev} clsact" if made else f"tc filter del dev {dev} {direction} pref 49001"
        )
    )
    program = _load(_SCHED_CLS, _TC_ACT_SHOT)
    try:
        with inside(scene.lab.names[ns]):
            netlink = IPRoute()
        try:
            netlink.tc(
                "add-filter", "bpf", scene.ifindex(ns, dev),
                fd=program, name="scene", parent=_PARENTS[direction], prio=49001, classid=1, direct_action=True,
            )  # fmt: skip
        finally:
            netlink.close()
    finally:
        os.close(program)


def _load(kind: int, result: int) -> int:
    """A program that returns `result`; its descriptor."""
    # Before Linux 5.11 a program counts as locked memory, and half of the usual limit may be taken.
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    instructions = struct.pack("=BBhiBBhi", 0xB7, 0, 0, result, 0x95, 0, 0, 0)  # r0 = result; exit
    code = ctypes.create_string_buffer(instructions, len(instructions))
    license_ = ctypes.create_string_buffer(b"GPL")
    head = struct.pack("=IIQQ", kind, 2, ctypes.addressof(code), ctypes.addressof(license_))
    return _bpf(_PROG_LOAD, head + bytes(48))


def _bpf(command: int, attributes: bytes) -> int:
    number = _SYSCALL.get(platform.machine())
    if number is None:
        raise LabError(f"the number of the bpf system call on {platform.machine()} is not known here")
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result: int = _libc.syscall(number, command, buffer, len(attributes))
    if result < 0:
        code = ctypes.get_errno()
        raise LabError(f"the kernel refused a BPF program (bpf command {command}): {os.strerror(code)}")
    return result
