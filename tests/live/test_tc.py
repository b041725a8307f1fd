"""TC programs: through TCX links, and as filters of clsact on kernels without them. What others put there stays."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import subprocess
import time

import pyroute2
import pytest

from bpfpath_nb import Capture
from bpfpath_nb.lab import Lab
from bpfpath_nb.tracer.syscall import PROG_LOAD, bpf
from bpfpath_nb.tracer.toolchain import SCHED_CLS


def tc(namespace: str, *words: str) -> str:
    return subprocess.run(["tc", "-n", namespace, *words], capture_output=True, text=True, check=True).stdout


def send(lab: Lab, port: int) -> None:
    code = "import socket, sys; s = socket.socket(2, 2); s.sendto(b'x', (sys.argv[1], int(sys.argv[2])))"
    lab.run("client", ["python3", "-c", code, lab.address("router"), str(port)])


def device(lab: Lab) -> tuple[str, str]:
    """Namespace and interface of the client."""
    namespace = lab.names["client"]
    out = subprocess.run(["ip", "-n", namespace, "-o", "link"], capture_output=True, text=True, check=True).stdout
    return namespace, next(line.split(": ")[1].split("@")[0] for line in out.splitlines() if "LOOPBACK" not in line)


PASS, DROP = 0, 2


def add_anothers_filter(namespace: str, dev: str, side: str, verdict: int) -> None:
    """A TC program of someone else's, which ends with this verdict for every packet."""
    code = struct.pack("=BBhiBBhi", 0xB7, 0, 0, verdict, 0x95, 0, 0, 0)  # r0 = verdict; exit
    instructions, license_ = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack("=IIQQ", SCHED_CLS, 2, ctypes.addressof(instructions), ctypes.addressof(license_))
    program, _ = bpf(PROG_LOAD, attributes + bytes(24))
    parent = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}[side]
    with pyroute2.NetNS(namespace) as netlink:
        (index,) = netlink.link_lookup(ifname=dev)
        netlink.tc("add-filter", "bpf", index, fd=program, name="another", parent=parent, direct_action=True)
    os.close(program)


@pytest.fixture
def clsact(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a kernel before 6.6."""
    monkeypatch.setenv("BPFPATH_TC", "clsact")


def test_tcx_where_the_kernel_has_it(lab: Lab) -> None:
    with Capture("udp port 7000") as cap:
        send(lab, 7000)
        time.sleep(0.3)
        namespace, dev = device(lab)
        assert "clsact" not in tc(namespace, "qdisc", "show", "dev", dev)
    assert "tc tcx" in cap.quality["ladder"]
    assert {"tc_ingress", "tc_egress"} <= set(cap.df["func"])


def test_clsact_where_that_is_all(lab: Lab, clsact: None) -> None:
    with Capture("udp port 7001") as cap:
        send(lab, 7001)
        time.sleep(0.3)
        namespace, dev = device(lab)
        assert "bpfpath_nb:" in tc(namespace, "filter", "show", "dev", dev, "ingress")
    assert "tc clsact" in cap.quality["ladder"]
    assert {"tc_ingress", "tc_egress"} <= set(cap.df["func"])
    assert "clsact" not in tc(namespace, "qdisc", "show", "dev", dev)


def test_what_was_there_stays(lab: Lab, clsact: None) -> None:
    namespace, dev = device(lab)
    tc(namespace, "qdisc", "add", "dev", dev, "clsact")
    add_anothers_filter(namespace, dev, "ingress", PASS)
    before = tc(namespace, "filter", "show", "dev", dev, "ingress")
    with Capture("udp port 7002") as cap:
        send(lab, 7002)
        time.sleep(0.3)
    assert "tc_egress" in set(cap.df["func"])
    assert tc(namespace, "filter", "show", "dev", dev, "ingress") == before
    assert tc(namespace, "filter", "show", "dev", dev, "egress") == ""
    assert "clsact" in tc(namespace, "qdisc", "show", "dev", dev)


def test_the_last_of_two_takes_the_qdisc_away(lab: Lab, clsact: None) -> None:
    namespace, dev = device(lab)
    first = Capture("udp port 7003")
    second = Capture("udp port 7003")
    first.stop()
    assert tc(namespace, "filter", "show", "dev", dev, "egress").count("bpfpath_nb:") == 1
    second.stop()
    assert "clsact" not in tc(namespace, "qdisc", "show", "dev", dev)


def test_what_a_killed_tracer_left_goes_with_the_next_start(lab: Lab, clsact: None) -> None:
    namespace, dev = device(lab)
    tc(namespace, "qdisc", "add", "dev", "lo", "clsact")
    add_anothers_filter(namespace, "lo", "egress", PASS)
    killed = Capture("udp port 7004")
    assert killed._tracer is not None
    os.kill(killed._tracer.pid, signal.SIGKILL)
    killed.stop()
    assert "bpfpath_nb:" in tc(namespace, "filter", "show", "dev", dev, "egress"), "clsact outlives its maker"

    with Capture("udp port 7004"):
        names = tc(namespace, "filter", "show", "dev", dev, "egress")
        assert names.count("bpfpath_nb:") == 1
        assert f"bpfpath_nb:{killed_pid(names)}:" in names
    assert "clsact" not in tc(namespace, "qdisc", "show", "dev", dev)
    assert tc(namespace, "filter", "show", "dev", "lo", "egress").count("another") == 1
    assert "bpfpath_nb" not in tc(namespace, "filter", "show", "dev", "lo", "egress")


def killed_pid(listing: str) -> str:
    """The one process that the filters name; it is alive."""
    pids = {word.split(":")[1] for word in listing.split() if word.startswith("bpfpath_nb:")}
    assert len(pids) == 1
    os.kill(int(next(iter(pids))), 0)
    return pids.pop()


def test_programs_let_every_packet_pass(lab: Lab) -> None:
    """Ours stands before another's program, which still decides."""
    namespace, dev = device(lab)
    send(lab, 7006)  # so that the neighbour is known: a question for its address would be dropped as well
    tc(namespace, "qdisc", "add", "dev", dev, "clsact")
    add_anothers_filter(namespace, dev, "egress", DROP)
    with Capture("udp port 7005") as cap:
        send(lab, 7005)
        time.sleep(0.3)
    packet = cap.packets.iloc[0]
    assert (packet["verdict"], packet["reason"]) == ("dropped", "TC_EGRESS")
