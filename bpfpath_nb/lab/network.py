"""A small network to practise on: namespaces in a chain, real services in them, and faults to switch on and off.

    >>> with Lab.dns() as lab:                                           # doctest: +SKIP
    ...     lab.run("client", ["dig", "+short", "@10.0.2.2", "www.example.test"]).stdout
    '10.0.2.2\\n'

This side owns nothing. A keeper process (`keeper`) makes the namespaces and removes them when the lab is closed or
when this process ends, however it ends. Commands are started from here, by `nsenter`, with the lab's id in their
environment, by which the keeper finds them again when it takes the lab down.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import shlex
import shutil
import subprocess
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import bpfpath_nb
from bpfpath_nb.errors import BpfpathError, LabError, PrivilegeError
from bpfpath_nb.lab import ledger
from bpfpath_nb.lab.faults import Drop, Hook
from bpfpath_nb.lab.plan import Node, plan

PACKAGES = {
    "ip": "iproute2",
    "tc": "iproute2",
    "ss": "iproute2",
    "nft": "nftables",
    "dnsmasq": "dnsmasq-base",
    "dig": "bind9-dnsutils",
    "ping": "iputils-ping",
    "nsenter": "util-linux",
    "tcpdump": "tcpdump",
    "curl": "curl",
    "nc": "netcat-openbsd",
    "iperf3": "iperf3",
    "conntrack": "conntrack",
}
"""Debian's package for each tool that a lab uses or that is often run in one."""

_BUILD_LIMIT = 180.0  # seconds; natively it takes 0.2, in an emulated machine much longer
_CLOSE_LIMIT = 30.0

_open: weakref.WeakValueDictionary[tuple[str, ...], Lab] = weakref.WeakValueDictionary()


class Lab:
    """Network namespaces in a chain, joined by veth pairs, with IPv4 and IPv6 addresses and routes.

    Parameters
    ----------
    chain
        The names, left to right. Those between the two ends forward. Link number n is 10.0.n.0/24 and fd00:n::/64,
        its left end is .1 and its right end .2.
    prefix
        Put in front of each name to make the name of the network namespace, so that several labs can stand side by
        side. The methods take the names of `chain`.
    dns_server
        The one in which a `dnsmasq` answers for `www.example.test` (its own address) and `NAME.example.test` for
        every NAME.

    Raises
    ------
    PrivilegeError
        Not root.
    LabError
        A tool is missing, a namespace of that name exists already, or the kernel refused something.

    Notes
    -----
    A lab lasts until `close`, the end of its `with` block, or the end of this process. A second lab with the same
    names in the same process replaces the first, so that a notebook's cell can be run again.
    """

    def __init__(
        self,
        chain: Sequence[str] = ("client", "router", "server"),
        *,
        prefix: str = "",
        dns_server: str | None = None,
    ) -> None:
        self._plan = plan(chain, prefix)
        self._nodes = {node.role: node for node in self._plan.nodes}
        if dns_server is not None:
            self._node(dns_server)
        if os.geteuid() != 0:
            raise PrivilegeError(
                "a lab makes network namespaces, which only root may do: start the notebook or the command with sudo"
            )
        for tool in ("ip", "nsenter", *(["dnsmasq"] if dns_server else [])):
            _require(tool)
        self._dns_server = dns_server
        self._id = secrets.token_hex(8)
        self._started: list[subprocess.Popen[str]] = []
        names = tuple(self.names.values())
        if (former := _open.pop(names, None)) is not None:
            former.close()
        self._keeper = _start_keeper(
            {
                "lab": self._id,
                "chain": list(chain),
                "prefix": prefix,
                "dns_server": dns_server,
                "parent": os.getpid(),
            }
        )
        self._finalizer = weakref.finalize(self, _close, self._keeper, self._started)
        _open[names] = self

    @classmethod
    def dns(cls, *, prefix: str = "") -> Self:
        """Client, router and server, with a name server on the server that knows `www.example.test`."""
        return cls(("client", "router", "server"), prefix=prefix, dns_server="server")

    @property
    def names(self) -> dict[str, str]:
        """Network namespace of each of the chain, as `ip netns` and `Capture(namespaces=...)` know it."""
        return {node.role: node.namespace for node in self._plan.nodes}

    @property
    def closed(self) -> bool:
        """Whether it was taken down."""
        return not self._finalizer.alive or self._keeper.poll() is not None

    def address(self, ns: str, family: Literal[4, 6] = 4, *, towards: str | None = None) -> str:
        """An address of one of the chain.

        Parameters
        ----------
        ns
            Its name in the chain.
        family
            4 or 6.
        towards
            Of one with two interfaces: the neighbour that is meant. Without it, the left one.
        """
        node = self._node(ns)
        if family not in (4, 6):
            raise LabError(f"the family of an address is 4 or 6, not {family!r}")
        for interface in node.interfaces:
            if towards in (None, interface.peer):
                return interface.ipv4 if family == 4 else interface.ipv6
        raise LabError(
            f"{towards!r} is no neighbour of {ns!r}: its neighbours are {_list(i.peer for i in node.interfaces)}"
        )

    def command(self, ns: str, argv: Sequence[str] | str) -> list[str]:
        """What has to be executed to run a command in a namespace; a string is split as a shell would."""
        node = self._node(ns)
        words = shlex.split(argv) if isinstance(argv, str) else [str(word) for word in argv]
        if not words:
            raise LabError("there is no command to run")
        if self.closed:
            raise LabError("this lab is closed, its namespaces are gone: make a new one with Lab() or Lab.dns()")
        _require(words[0])
        return [*ledger.enter(node.namespace), *words]

    def run(
        self,
        ns: str,
        argv: Sequence[str] | str,
        *,
        timeout: float = 30.0,
        input: str | None = None,  # noqa: A002 - as in subprocess
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a namespace and wait for its end.

        Parameters
        ----------
        ns
            The name in the chain.
        argv
            The command: a list of words, or one string that is split as a shell would.
        timeout
            Seconds after which the command is ended.
        input
            What it reads from standard input; nothing by default.

        Returns
        -------
        subprocess.CompletedProcess
            With `returncode`, `stdout` and `stderr` (text). A status other than 0 is no error here.

        Raises
        ------
        LabError
            The command is not installed, the lab is closed, or the time ran out.
        """
        command = self.command(ns, argv)
        try:
            return subprocess.run(
                command,
                input=input or "",
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
                check=False,
                env=self._environment(),
            )
        except subprocess.TimeoutExpired:
            raise LabError(
                f"`{shlex.join(command[3:])}` in namespace {ns!r} did not end within {timeout:g} s and was "
                "ended; give it more with timeout=, or start it with popen()"
            ) from None

    def popen(self, ns: str, argv: Sequence[str] | str, **options: Any) -> subprocess.Popen[str]:
        """Start a command in a namespace and go on. It ends with the lab at the latest.

        Parameters
        ----------
        ns, argv
            As for `run`.
        options
            For `subprocess.Popen`, such as `stdout=subprocess.PIPE`. Nothing is read from standard input unless
            asked for.
        """
        settings: dict[str, Any] = {"text": True, "stdin": subprocess.DEVNULL} | options
        settings["env"] = self._environment() | dict(settings.get("env") or {})
        process: subprocess.Popen[str] = subprocess.Popen(self.command(ns, argv), **settings)
        self._started.append(process)
        return process

    def drop(self, ns: str, match: str, *, hook: Hook | None = None) -> Drop:
        """Let a namespace drop packets, by an nftables rule.

        Parameters
        ----------
        ns
            The name in the chain.
        match
            What nftables is to match, such as `udp dport 53`.
        hook
            Where: `prerouting`, `input`, `forward`, `output` or `postrouting`. By default `forward` for one that
            stands between two others, `input` for the ends.

        Returns
        -------
        Drop
            The rule. `remove()` or the end of a `with` block takes it away; `packets` tells how many it dropped.
        """
        node = self._node(ns)
        return Drop(self, ns, match, hook or ("forward" if node.forwards else "input"))

    def close(self) -> None:
        """Take everything down: processes, namespaces, rules. A second call does nothing."""
        self._finalizer()
        _open.pop(tuple(self.names.values()), None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self.closed:
            return f"Lab({' - '.join(self.names.values())}, closed)"
        return "Lab(" + " --- ".join(self._describe(node) for node in self._plan.nodes) + ")"

    def _describe(self, node: Node) -> str:
        service = ", dnsmasq" if node.role == self._dns_server else ""
        return f"{node.namespace} [{', '.join(f'{i.name} {i.ipv4} {i.ipv6}' for i in node.interfaces)}{service}]"

    def _node(self, role: str) -> Node:
        try:
            return self._nodes[role]
        except KeyError:
            raise LabError(f"{role!r} is not in this lab, which has {_list(self._nodes)}") from None

    def _environment(self) -> dict[str, str]:
        return dict(os.environ) | {ledger.MARKER: self._id}


def _list(names: Any) -> str:
    return ", ".join(repr(name) for name in names)


def _require(tool: str) -> None:
    if shutil.which(tool) is not None:
        return
    # A plain user's PATH on Debian lacks the sbin folders, root's under `su` too.
    if any((Path(folder) / tool).exists() for folder in ("/usr/sbin", "/sbin")):
        os.environ["PATH"] = os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"
        return
    package = PACKAGES.get(tool)
    mend = f"install it with: apt-get install {package}" if package else "is it spelled right, and installed?"
    raise LabError(f"the command {tool!r} was not found on this machine; {mend}")


def _start_keeper(request: dict[str, Any]) -> subprocess.Popen[bytes]:
    # Found as this package was found: from an installation, or from a checkout that is only on sys.path.
    root = str(Path(bpfpath_nb.__path__[0]).parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    keeper = subprocess.Popen(
        [sys.executable, "-m", "bpfpath_nb.lab.keeper"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": path},
        start_new_session=True,  # Ctrl-C in a terminal is for the user's process alone
    )
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    try:
        keeper.stdin.write((json.dumps(request) + "\n").encode())
        keeper.stdin.flush()
        line = _answer(keeper)
        if "error" in line:
            raise BpfpathError.from_record(line["error"])
    except BaseException:
        _close(keeper, [])
        raise
    return keeper


def _answer(keeper: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert keeper.stdout is not None
    ready, _, _ = select.select([keeper.stdout], [], [], _BUILD_LIMIT)
    if not ready:
        raise LabError(f"the lab was not built within {_BUILD_LIMIT:g} s; nothing of it is left")
    line = keeper.stdout.readline()
    if not line:
        assert keeper.stderr is not None
        said = keeper.stderr.read().decode(errors="replace").strip().splitlines()
        raise LabError(f"the process that builds the lab failed: {said[-1] if said else 'it said nothing'}")
    answer: dict[str, Any] = json.loads(line)
    return answer


def _close(keeper: subprocess.Popen[bytes], started: list[subprocess.Popen[str]]) -> None:
    """End a keeper through its standard input, and reap what was started. A finalizer: must not hold the Lab."""
    for stream in (keeper.stdin, keeper.stdout):
        if stream is not None:
            with contextlib.suppress(BrokenPipeError):
                stream.close()
    try:
        keeper.wait(_CLOSE_LIMIT)
    except subprocess.TimeoutExpired:
        keeper.kill()
        keeper.wait()
    if keeper.stderr is not None:
        keeper.stderr.close()
    if keeper.returncode != 0:
        ledger.sweep()  # it was killed: do its work
    for process in started:
        process.wait()
