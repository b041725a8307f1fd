"""Beside bcc's tcpdrop, as the distribution has it: whatever that prints of a drop, the frame of drops has.

tcpdrop wants the kernel's headers, of which it uses six members of three structures. `headers` writes these from the
running kernel's BTF, so that it compiles where no headers are installed.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from bpfpath_nb import Capture
from bpfpath_nb.kernel.layout import macros
from bpfpath_nb.kernel.running import Kernel
from bpfpath_nb.lab import Lab
from bpfpath_nb.lab.cases import CASES
from bpfpath_nb.lab.scene import Scene

TCPDROP = Path("/usr/sbin/tcpdrop-bpfcc")
PYTHON = "/usr/bin/python3"  # the distribution's, for which bcc is installed
OURS = Path(__file__).parents[2] / "bpf" / "headers" / "include"

# It asks for the list of functions that may not be probed, and a kernel without kprobes has none.
START = (
    "import os, runpy, sys, bcc\n"
    "if not os.path.exists('/sys/kernel/debug/kprobes/blacklist'):\n"
    "    bcc.BPF.get_kprobe_functions = staticmethod(lambda name: [])\n"
    f"sys.argv = ['tcpdrop']; runpy.run_path('{TCPDROP}', run_name='__main__')"
)

REGISTERS = "r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di, orig_ax, ip, cs, flags, sp, ss"

SOCK_H = """
#pragma once
#define AF_INET 2
#define AF_INET6 10
#define NULL ((void *)0)
#define ntohs(x) __builtin_bswap16(x)
typedef u8 u_int8_t;
enum skb_drop_reason {{ SKB_NOT_DROPPED_YET, SKB_CONSUMED, SKB_DROP_REASON_NOT_SPECIFIED }};
struct address {{ struct {{ u32 u6_addr32[4]; }} in6_u; }};
struct sock_common {{ {sock} }};
struct sock {{ struct sock_common __sk_common; }};
struct sk_buff {{ {sk_buff} }};
"""


def headers(folder: Path) -> Path:
    """A tree of kernel headers with no more in it than tcpdrop uses."""
    include = folder / "include"
    shutil.copytree(OURS, include)
    multiarch = sysconfig.get_config_var("MULTIARCH") or f"{os.uname().machine}-linux-gnu"
    for place in (Path("/usr/include/linux"), Path("/usr/include", multiarch, "asm"), Path("/usr/include/asm-generic")):
        (include / "uapi" / place.name).mkdir(exist_ok=True)
        for file in place.iterdir():
            if not (include / "uapi" / place.name / file.name).exists():
                (include / "uapi" / place.name / file.name).symlink_to(file)
    registers = include / "uapi" / "linux" / "ptrace.h"
    registers.unlink()
    registers.write_text(f"struct pt_regs {{ unsigned long {REGISTERS}; }};\n")
    (include / "linux" / "log2.h").write_text("#define roundup_pow_of_two(n) (n)\n")
    (include / "linux" / "skbuff.h").write_text("")
    (include / "net").mkdir()
    (include / "net" / "sock.h").write_text(SOCK_H.format(sock=members("sock"), sk_buff=members("sk_buff")))
    return folder


MEMBERS = {
    "sock": {
        "skc_family": "u16",
        "skc_state": "u8",
        "skc_v6_daddr": "struct address",
        "skc_v6_rcv_saddr": "struct address",
    },
    "sk_buff": {"head": "u8 *", "sk": "struct sock *", "network_header": "u16", "transport_header": "u16"},
}


def members(struct: str) -> str:
    """The members of a structure in C, each at its offset in the running kernel."""
    offsets = macros(Kernel.running().btf)
    at = {name: offsets[f"{struct}__{name}"] for name in MEMBERS[struct]}
    parts = [f"struct {{ char before_{n}[{at[n]}]; {kind} {n}; }};" for n, kind in MEMBERS[struct].items()]
    return f"union {{ {' '.join(parts)} }};"


@dataclass
class Printed:
    """What tcpdrop prints of one drop."""

    src: str
    dst: str
    state: str
    flags: str
    stack: list[str] = field(default_factory=list)


def parse(text: str) -> list[Printed]:
    found: list[Printed] = []
    for line in text.splitlines():
        if drop := re.match(r"\d\d:\d\d:\d\d \d+ +\d +(\S+) +> (\S+) +(\S+) \((.*)\)$", line):
            found.append(Printed(*drop.groups()))
        elif found and (frame := re.match(r"\tb'([A-Za-z0-9_]+)[.+]", line)):
            found[-1].stack.append(frame[1])
    return found


def is_same(ours: list[str], theirs: list[str]) -> bool:
    """Whether a stack of ours is theirs from the innermost on. bcc takes a module's functions for `cleanup_module`."""
    pairs = zip(ours, theirs, strict=False)
    return len(ours) <= len(theirs) and all(their in (our, "cleanup_module") for our, their in pairs)


@pytest.fixture
def tcpdrop(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """tcpdrop, running; it has printed its head line."""
    if not TCPDROP.exists():
        pytest.skip("this machine lacks: tcpdrop-bpfcc (Debian's package bpfcc-tools)")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    process = subprocess.Popen(
        [PYTHON, "-u", "-c", START],
        env=environment | {"BCC_KERNEL_SOURCE": str(headers(tmp_path / "kernel"))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    said, deadline = "", time.monotonic() + 60
    while not said.endswith("\n") or "SADDR:SPORT" not in said:
        ready, _, _ = select.select([process.stdout], [], [], max(deadline - time.monotonic(), 0))
        piece = os.read(process.stdout.fileno(), 4096).decode() if ready else ""
        if not piece:
            process.kill()
            pytest.fail(f"tcpdrop did not start: {said}")
        said += piece
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_whatever_tcpdrop_prints_is_in_the_drops(tcpdrop: subprocess.Popen[str], lab_prefix: str) -> None:
    causes = ["tcp_listen_overflow", "tcp_out_of_window", "tcp_abort_on_data", "tcp_flags", "tcp_no_socket"]
    with Lab(prefix=lab_prefix) as lab, Capture("tcp", namespaces=list(lab.names.values())) as capture:
        for name in causes:
            with Scene(lab) as scene:
                CASES[name].provoke(scene)
        time.sleep(0.3)
    time.sleep(0.3)
    tcpdrop.send_signal(signal.SIGINT)
    output, _ = tcpdrop.communicate(timeout=20)
    theirs = [drop for drop in parse(output) if drop.dst.startswith("10.0.2.2:73")]
    ours = capture.drops

    assert len(theirs) >= 3, output
    for drop in theirs:
        same = ours[ours["flow"] == f"tcp {drop.src} > {drop.dst}"]
        same = same[(same["tcp_state"] == drop.state) & (same["tcp_flags"] == drop.flags.replace("|", " "))]
        stack = [name for name in drop.stack if not name.startswith("__traceiter_")]
        stacks = [text.split(" < ") for text in same["stack"].dropna()]
        assert any(is_same(known, stack) for known in stacks), (drop, stacks)
    # It knows of a segment only once the kernel has given it a socket.
    assert len(ours) > len(theirs)
    known = {name.removeprefix("SKB_DROP_REASON_") for name in Kernel.running().reasons.values()}
    expected = known & {"TCP_LISTEN_OVERFLOW", "TCP_INVALID_SEQUENCE", "TCP_ABORT_ON_DATA", "TCP_FLAGS", "NO_SOCKET"}
    assert len(expected) >= 4
    assert expected <= set(ours["reason"])
    assert ours[["func", "offset", "stack", "tcp_flags"]].notna().all(axis=None)
