"""What this machine can and cannot do, what that costs, and the command that mends it.

`machine.look` finds the facts; here they are judged, one small function for each requirement. Three states: `ok`;
`limited`, when captures work but show or do less; `missing`, when no capture is possible without it (or, for the
practice network, no lab). Nothing is mended here: mounting, installing and changing rights are the user's to decide.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, overload

from bpfpath_nb import machine
from bpfpath_nb.html.table import table
from bpfpath_nb.machine import CAPABILITIES, Machine
from bpfpath_nb.printable import printable

if TYPE_CHECKING:
    import pandas as pd

State = Literal["ok", "limited", "missing"]

_TOOL_PACKAGES = {
    "ip": ("iproute2", "iproute"),
    "nsenter": ("util-linux", "util-linux"),
    "nft": ("nftables", "nftables"),
    "dnsmasq": ("dnsmasq-base", "dnsmasq"),
    "dig": ("bind9-dnsutils", "bind-utils"),
}
"""Who has each tool: Debian's package, Fedora's package."""

_OLDEST, _WELL_TESTED = (5, 8), (5, 10)


@dataclass(frozen=True)
class Check:
    """One requirement and how it stands."""

    requirement: str
    found: str
    state: State = "ok"
    costs: str = ""
    """what it costs to lack it"""
    mend: str = ""
    """the command, or what to do"""
    essential: bool = True
    """whether lacking it makes captures impossible"""


class Diagnosis(Sequence[Check]):
    """The table of all checks: a sequence of `Check`, shown as text or HTML, and as a DataFrame by `frame`."""

    columns = ("requirement", "found", "state", "costs", "mend")

    def __init__(self, checks: Sequence[Check]) -> None:
        self._checks = tuple(checks)

    @property
    def able(self) -> bool:
        """Whether packets can be captured on this machine, by this user."""
        return not any(check.state == "missing" and check.essential for check in self)

    @property
    def frame(self) -> pd.DataFrame:
        """One row a requirement; columns requirement, found, state, costs, mend (all strings)."""
        import pandas as pd

        return pd.DataFrame([asdict(check) for check in self])[list(self.columns)]

    @property
    def verdict(self) -> str:
        """The whole in one sentence."""
        if not self.able:
            lacking = [check.requirement for check in self if check.state == "missing" and check.essential]
            return (
                f"No packets can be captured here yet: {', '.join(lacking)}. Saved recordings can be read all the same."
            )
        limited = [check.requirement for check in self if check.state != "ok"]
        return f"Packets can be captured here{', with limits: ' + ', '.join(limited) if limited else ''}."

    @overload
    def __getitem__(self, index: int) -> Check: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Check]: ...
    def __getitem__(self, index: int | slice) -> Check | Sequence[Check]:
        return self._checks[index]

    def __len__(self) -> int:
        return len(self._checks)

    def __repr__(self) -> str:
        width = max(len(check.requirement) for check in self) + 2
        lines = []
        for check in self:
            lines.append(f"{check.state:<9}{check.requirement:<{width}}{check.found}")
            for label, text in (("costs", check.costs), ("mend", check.mend)):
                if text:
                    first = " " * 9 + f"  {label + ':':<7}"
                    # A command must survive being copied: it is never broken at a hyphen or inside a word.
                    lines += textwrap.wrap(
                        text, 110, initial_indent=first, subsequent_indent=" " * len(first),
                        break_long_words=False, break_on_hyphens=False,
                    )  # fmt: skip
        return "\n".join([*lines, "", self.verdict])

    def _repr_html_(self) -> str:
        rows = [[getattr(check, column) for column in self.columns] for check in self]
        return table(self.columns, rows) + f"<p>{self.verdict}</p>"


def doctor() -> Diagnosis:
    """Check everything that bpfpath_nb needs on this machine.

    Returns
    -------
    Diagnosis
        A table with the columns requirement, found, state (ok, limited or missing), costs (what it costs to lack it)
        and mend (the command that mends it). `.able` tells whether captures work, `.frame` is the table as a DataFrame.

    Notes
    -----
    Works for every user and changes nothing. What can't be seen without root is said so.
    """
    return judge(machine.look())


def judge(found: Machine) -> Diagnosis:
    """What the facts mean."""
    return Diagnosis([check for judgement in _JUDGEMENTS for check in judgement(found)])


def _install(found: Machine, debian: str, fedora: str) -> str:
    """The command that installs a package of the distribution."""
    sudo = "" if found.root else "sudo "
    if {"debian", "ubuntu"} & set(found.distribution):
        return f"{sudo}apt-get install {debian}"
    if {"fedora", "rhel", "centos"} & set(found.distribution):
        return f"{sudo}dnf install {fedora}"
    return f"install the package that your distribution has for it (Debian: {debian}; Fedora: {fedora})"


def _as_root(found: Machine, command: str) -> str:
    return command if found.root else f"sudo {command}"


def _python(found: Machine) -> Iterator[Check]:
    major, minor = found.python_version
    name = f"{major}.{minor}, {printable(found.python)}"
    if found.python_version >= (3, 11):
        yield Check("Python", name)
    else:
        yield Check("Python", name, "missing", "bpfpath_nb needs 3.11 or later", "make a venv of a newer python3")
    if found.missing_packages:
        names = ", ".join(found.missing_packages)
        yield Check(
            "Python packages", f"without {names}", "missing", "what uses them does not work",
            f"{printable(found.python)} -m pip install {names.replace(',', '').lower()}",
        )  # fmt: skip
    else:
        yield Check("Python packages", "all")
    if found.notebook:
        yield Check("notebook", found.notebook, essential=False)
    else:
        yield Check(
            "notebook", "neither JupyterLab nor Notebook in this Python", "limited",
            "everything works in scripts and in IPython; a notebook server of another Python can be used too",
            f"{printable(found.python)} -m pip install 'bpfpath_nb[notebook]'", False,
        )  # fmt: skip


def _privilege(found: Machine) -> Iterator[Check]:
    if found.root:
        yield Check("privilege", "root")
    elif found.sudo:
        yield Check("privilege", "sudo without a password; only the tracer process uses it")
    else:
        user = os.environ.get("USER") or f"#{os.geteuid()}"
        yield Check(
            "privilege", "an ordinary user, and sudo -n is refused", "missing",
            "the tracer may not load BPF programs; saved recordings can be read all the same",
            "start it as root; or capture on another machine with on='ssh://root@HOST'; or allow the tracer alone, by "
            f"this line in a file of /etc/sudoers.d: {printable(user)} ALL=(root) NOPASSWD: "
            f"{printable(found.python)} -P -m bpfpath_nb.tracer",
        )  # fmt: skip
    if found.capabilities is None:
        yield Check("capabilities", "not to be seen by an ordinary user")
        return
    lacking = set(CAPABILITIES.values()) - found.capabilities
    if "CAP_SYS_ADMIN" in found.capabilities:
        lacking -= {"CAP_BPF", "CAP_PERFMON"}
    if lacking:
        yield Check(
            "capabilities", f"without {', '.join(sorted(lacking))}", "missing",
            "the kernel refuses to load or attach BPF programs, although the user is root (a container?)",
            "start the container with " + " ".join(f"--cap-add={name[4:]}" for name in sorted(lacking)),
        )  # fmt: skip
    else:
        yield Check("capabilities", ", ".join(sorted(found.capabilities)))


def _kernel(found: Machine) -> Iterator[Check]:
    shown = f"{printable(found.release)} {found.architecture}"
    if found.kernel_version < _OLDEST:
        yield Check("kernel", shown, "missing", "BPF ring buffers came with 5.8", "boot a newer kernel")
    elif found.kernel_version < _WELL_TESTED:
        yield Check("kernel", shown, "limited", "not tested before 5.10", "boot a newer kernel")
    else:
        yield Check("kernel", shown)
    if found.btf_bytes:
        yield Check("BTF", f"/sys/kernel/btf/vmlinux, {found.btf_bytes / 2**20:.1f} MiB")
    else:
        yield Check(
            "BTF", "no /sys/kernel/btf/vmlinux", "missing",
            "where the fields of the kernel's structures lie is not known, so nothing can be read from a packet",
            "boot a kernel with CONFIG_DEBUG_INFO_BTF=y (the stock kernels of Debian, Ubuntu and Fedora have it)",
        )  # fmt: skip
    if found.symbols == "addresses":
        yield Check("kernel symbols", "names and addresses", essential=False)
    elif not found.root and found.symbols == "names":
        yield Check("kernel symbols", "names (addresses are shown to root, as the tracer is)", essential=False)
    else:
        yield Check(
            "kernel symbols", "names only" if found.symbols == "names" else "not readable", "limited",
            "the function that dropped a packet is shown as an address",
            _as_root(found, "sysctl -w kernel.kptr_restrict=0"), False,
        )  # fmt: skip
    yield _lockdown(found)
    yield _tracefs(found)
    yield _memlock(found)


def _lockdown(found: Machine) -> Check:
    if found.lockdown == "confidentiality":
        return Check(
            "lockdown", found.lockdown, "missing", "BPF programs may not read kernel memory",
            "boot without lockdown=confidentiality",
        )  # fmt: skip
    if found.lockdown == "integrity":
        return Check("lockdown", "integrity: BPF may read kernel memory, and the list of traceable functions is hidden")
    return Check("lockdown", found.lockdown or "not to be seen (securityfs is not mounted, or is for root)")


def _tracefs(found: Machine) -> Check:
    if found.tracefs:
        return Check("tracefs", f"mounted at {printable(found.tracefs)}", essential=False)
    return Check(
        "tracefs", "not mounted", "limited",
        "drop reasons of kernels before 6.0 have no names, and which functions can be traced is found out by trying",
        _as_root(found, "mount -t tracefs nodev /sys/kernel/tracing"), False,
    )  # fmt: skip


def _memlock(found: Machine) -> Check:
    if found.kernel_version >= (5, 11):
        return Check("locked memory", "BPF memory is not counted there since 5.11")
    if found.memlock < 0:
        return Check("locked memory", "no limit")
    return Check(
        "locked memory", f"{found.memlock // 1024} KiB; the tracer raises it where that is allowed",
        *(("ok",) if found.root else ("limited", "maps may not fit", "ulimit -l unlimited")),
    )  # fmt: skip


def _probes(found: Machine) -> Iterator[Check]:
    if found.features is None:
        yield Check(
            "probes", "/proc/kallsyms is not readable: what the kernel offers is found out by trying", "limited",
            "nothing, if the kernel is 5.10 or newer", "", False,
        )  # fmt: skip
        return
    newer = "boot a kernel that has it: {} (Debian: linux-image-amd64 of backports)"
    if "ring_buffer" in found.features:
        yield Check("ring buffer", "yes")
    else:
        yield Check("ring buffer", "no", "missing", "events cannot be passed on", newer.format("5.8 or newer"))
    if "raw_tracepoints" in found.features:
        yield Check("raw tracepoints", "yes")
    else:
        yield Check("raw tracepoints", "no", "missing", "drops cannot be seen", newer.format("CONFIG_BPF_EVENTS=y"))
    if found.kprobes:
        yield Check("kprobes", "yes", essential=False)
    else:
        yield Check(
            "kprobes", "not in this kernel", "limited",
            "paths consist of TC, netfilter and tracepoint hops only, without the functions in between",
            newer.format("CONFIG_KPROBES=y"), False,
        )  # fmt: skip
    if found.kprobes and "kprobe_multi" not in found.features:
        yield Check(
            "kprobe.multi", "not in this kernel", "limited",
            "probes are attached one by one, so that starting and stopping takes seconds",
            newer.format("CONFIG_FPROBE=y, 5.18 or newer"), False,
        )  # fmt: skip
    elif found.kprobes:
        yield Check("kprobe.multi", "yes", essential=False)
    yield _tc(found, newer)
    if "netfilter_links" in found.features:
        yield Check("netfilter hooks", "yes", essential=False)
    else:
        yield Check(
            "netfilter hooks", "no BPF there in this kernel", "limited", "paths lack the netfilter hops",
            newer.format("CONFIG_NETFILTER_BPF_LINK=y, 6.4 or newer"), False,
        )  # fmt: skip


def _tc(found: Machine, newer: str) -> Check:
    features = found.features or frozenset()
    if "tcx" in features:
        return Check("traffic control", "TCX links")
    if "clsact" in features:
        return Check(
            "traffic control", "clsact", "limited",
            "after kill -9 of the tracer its filters stay until the next capture removes them",
            newer.format("6.6 or newer"), False,
        )  # fmt: skip
    return Check(
        "traffic control", "neither TCX nor clsact", "missing", "packets cannot be tagged where they enter",
        newer.format("CONFIG_NET_SCH_INGRESS and CONFIG_NET_CLS_BPF"),
    )  # fmt: skip


def _libraries(found: Machine) -> Iterator[Check]:
    conda = " (conda has none: use the distribution's, it is found from any Python)" if found.conda else ""
    if found.bcc:
        yield Check("bcc", f"{found.bcc_version} in {printable(str(found.bcc))}")
    else:
        yield Check(
            "bcc", f"not found{conda}", "missing", "BPF programs cannot be compiled",
            _install(found, "python3-bpfcc", "python3-bcc"),
        )  # fmt: skip
    if found.other_bcc:
        yield Check(
            "bcc of PyPI", printable(str(found.other_bcc)), "limited",
            "it is another project (crystal lattices) under the same name; the tracer passes it over",
            f"{printable(found.python)} -m pip uninstall bcc", False,
        )  # fmt: skip
    if found.libbcc:
        yield Check("libbcc", found.libbcc)
    else:
        yield Check("libbcc", "not found", "missing", "bcc does not load", _install(found, "libbpfcc", "bcc"))
    if found.libpcap:
        yield Check("libpcap", found.libpcap)
    else:
        yield Check(
            "libpcap", "not found", "missing", "packet filters cannot be compiled",
            _install(found, "libpcap0.8", "libpcap"),
        )  # fmt: skip
    if found.uapi_headers:
        yield Check("kernel headers", "those for user space, in /usr/include/linux; no others are needed")
    else:
        yield Check(
            "kernel headers", "no /usr/include/linux", "missing", "bcc cannot compile",
            _install(found, "linux-libc-dev", "kernel-headers"),
        )  # fmt: skip


def _lab(found: Machine) -> Iterator[Check]:
    if not found.missing_tools:
        yield Check("practice network", "all its tools", essential=False)
        return
    debian = " ".join(_TOOL_PACKAGES[tool][0] for tool in found.missing_tools)
    fedora = " ".join(_TOOL_PACKAGES[tool][1] for tool in found.missing_tools)
    yield Check(
        "practice network", f"without {', '.join(found.missing_tools)}", "missing",
        "bpfpath_nb.lab and `make demo` need them", _install(found, debian, fedora), False,
    )  # fmt: skip


_JUDGEMENTS: tuple[Callable[[Machine], Iterator[Check]], ...] = (
    _python,
    _privilege,
    _kernel,
    _probes,
    _libraries,
    _lab,
)
