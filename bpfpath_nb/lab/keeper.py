"""The process that builds a lab, holds it, and takes it down: `python -m bpfpath_nb.lab.keeper`.

A notebook can be killed at any moment, and what is killed cannot tidy up. So the user's process owns nothing: it
starts a keeper, which makes the namespaces and the services in them and then waits for the first of

- the end of its standard input: the lab was closed, or the user's process is gone;
- the end of the user's process itself, seen through a pidfd. Standard input alone is not enough, because a process
  that was forked from the user's (multiprocessing) holds the pipe open too. PR_SET_PDEATHSIG is not used: it fires
  when the *thread* that started the keeper ends, and notebooks have threads;
- SIGTERM, SIGHUP or SIGINT.

A keeper that is killed itself leaves its ledger file, and the next one removes what that names (`ledger`).

It speaks JSON lines: one in with what to build, one out with how that went.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bpfpath_nb.errors import BpfpathError, LabError
from bpfpath_nb.lab import ledger
from bpfpath_nb.lab.plan import Node, Plan, node_script, plan

ZONE = "example.test"
_LIMIT = 20.0  # seconds for links to be ready, and for dnsmasq to listen; natively it takes milliseconds
_TENTATIVE = 0x40  # IFA_F_TENTATIVE


def main() -> None:
    """Build what the first line of standard input asks for, and hold it."""
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # noted through the pipe, acted on where nothing is half done

    # Unbuffered: what poll() sees must not already sit in a buffer of ours.
    request = json.loads(_read_line(0))
    entry = None
    try:
        ledger.sweep()
        layout = plan(request["chain"], request["prefix"])
        names = [node.namespace for node in layout.nodes]
        _refuse_taken(names)
        entry = ledger.Entry(request["lab"], names)
        _build(layout, entry)
        if request["dns_server"]:
            _serve_dns(layout, request["dns_server"], request["lab"])
        answer: dict[str, Any] = {"ready": True}
    except (BpfpathError, OSError) as error:
        known = error if isinstance(error, BpfpathError) else LabError(f"the lab could not be built: {error}")
        answer = {"error": known.to_record()}
    try:
        with contextlib.suppress(BrokenPipeError):
            os.write(1, (json.dumps(answer) + "\n").encode())
        if "ready" in answer:
            _hold(request["parent"], wake)
    finally:
        if entry is not None:
            entry.erase()


def _read_line(fd: int) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(fd, 1)
        if not piece:
            raise SystemExit(1)
        line += piece
    return line


def _hold(parent: int, wake: int) -> None:
    try:
        alive = os.pidfd_open(parent)
    except ProcessLookupError:
        return
    if os.getppid() != parent:
        return
    watch = select.poll()
    for fd in (0, alive, wake):
        watch.register(fd, select.POLLIN)
    watch.poll()


def _refuse_taken(names: list[str]) -> None:
    for name in names:
        if not (ledger.NETNS / name).exists():
            continue
        keeper = ledger.owner(name)
        whose = f"it belongs to another lab (process {keeper})" if keeper else "this lab did not make it"
        raise LabError(
            f"there is already a network namespace {name!r}, and {whose}, so it is left alone. Give this lab names of "
            f"its own with Lab(prefix='my-'), or, if you know that nobody needs it, remove it with: ip netns del {name}"
        )


def _build(layout: Plan, entry: ledger.Entry) -> None:
    for node in layout.nodes:
        _tell(["ip", "netns", "add", node.namespace])
        _tell([*ledger.enter(node.namespace), "ip", "link", "set", "lo", "alias", ledger.mark(entry.lab)])
        entry.made(node.namespace)
    _tell(["ip", "-batch", "-"], layout.link_batch())
    for node in layout.nodes:
        _tell([*ledger.enter(node.namespace), "sh"], node_script(node))
    for node in layout.nodes:
        _await_ipv6(node)


def _await_ipv6(node: Node) -> None:
    """Wait until the kernel is done with the interfaces that came up.

    It notes the carrier of a link in a work queue, and only then does IPv6 give the interface its multicast route. A
    neighbour solicitation that comes before is dropped, and repeated a second later (seen on 6.18: the first IPv6
    packet after each build was lost). The link-local address comes after that route, so it is the sign that all is
    there.
    """
    deadline = time.monotonic() + _LIMIT
    wanted = {interface.name for interface in node.interfaces}
    while time.monotonic() < deadline:
        lines = _tell([*ledger.enter(node.namespace), "cat", "/proc/net/if_inet6"]).splitlines()
        fields = [line.split() for line in lines]
        if wanted <= {f[5] for f in fields if f[0].startswith("fe80") and not int(f[4], 16) & _TENTATIVE}:
            return
        time.sleep(0.002)
    raise LabError(f"the interfaces of namespace {node.namespace!r} did not get IPv6 within {_LIMIT:g} s of coming up")


def _tell(command: list[str], text: str = "") -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        what = (done.stderr.strip() or f"exit status {done.returncode}").replace("\n", "; ")
        raise LabError(
            f"the lab could not be built: `{' '.join(command)}` failed: {what}. The kernel needs network namespaces "
            "and veth, and you need to be root with CAP_SYS_ADMIN and CAP_NET_ADMIN; `bpfpath doctor` shows both"
        )
    return done.stdout


def _serve_dns(layout: Plan, role: str, lab: str) -> None:
    """Start dnsmasq in a namespace, and wait until it listens."""
    node = next(node for node in layout.nodes if node.role == role)
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(
            [*ledger.enter(node.namespace), *dnsmasq_command(layout, node)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | {ledger.MARKER: lab},
        )
        # Its own view of its namespace's sockets tells when it listens; a query to find out would be in the user's
        # captures.
        sockets = Path(f"/proc/{server.pid}/net/udp")
        # That file shows an address as the number that its bytes make in memory.
        address = f"{int.from_bytes(socket.inet_aton(node.interfaces[0].ipv4), sys.byteorder):08X}"
        deadline = time.monotonic() + _LIMIT
        while time.monotonic() < deadline and server.poll() is None:
            with contextlib.suppress(OSError):
                if f"{address}:0035" in sockets.read_text():
                    return
            time.sleep(0.005)
        log.seek(0)
        said = log.read().strip().replace("\n", "; ") or f"it did not listen within {_LIMIT:g} s"
        raise LabError(f"dnsmasq did not start in namespace {node.namespace!r}: {said}")


def dnsmasq_command(layout: Plan, node: Node) -> list[str]:
    """A name server for the lab's own names: no upstream, no DHCP, none of the machine's configuration."""
    command = [
        "dnsmasq", "--keep-in-foreground", "--log-facility=-", "--conf-file=/dev/null", "--pid-file", "--no-resolv",
        "--no-hosts", "--no-poll", "--bind-interfaces", f"--local=/{ZONE}/",
        f"--host-record=www.{ZONE},{node.interfaces[0].ipv4},{node.interfaces[0].ipv6}",
    ]  # fmt: skip
    for interface in node.interfaces:
        command += [f"--listen-address={interface.ipv4}", f"--listen-address={interface.ipv6}"]
    for each in layout.nodes:
        first = each.interfaces[0]
        command.append(f"--host-record={each.role}.{ZONE},{first.ipv4},{first.ipv6}")
    return command


if __name__ == "__main__":
    main()
