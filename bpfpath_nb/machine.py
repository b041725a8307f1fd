"""What this machine has of the things that a capture needs. Facts only; `doctor` says what they mean.

All of it is found by looking: at /proc, /sys and the file system, at the names of the kernel's own functions (a
kernel without a feature has no function for it, so backports and unusual configurations are told right where version
numbers are not). Nothing is loaded, attached, mounted or imported, so an ordinary user may look too, and sees nearly
everything.
"""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from bpfpath_nb.tracer.find_bcc import is_bcc, locate

CAPABILITIES = {12: "CAP_NET_ADMIN", 21: "CAP_SYS_ADMIN", 38: "CAP_PERFMON", 39: "CAP_BPF"}
"""What the tracer uses, by the numbers of linux/capability.h. CAP_SYS_ADMIN includes the last two."""

PACKAGES = ("numpy", "pandas", "pyarrow", "pyroute2", "scipy", "matplotlib", "ipywidgets", "IPython")
LAB_TOOLS = ("ip", "nsenter", "nft", "dnsmasq", "dig")

_SYMBOLS = {
    "raw_tracepoints": ("bpf_probe_register",),
    "kprobe_multi": ("bpf_kprobe_multi_link_attach", "register_fprobe_ips"),
    "tcx": ("tcx_link_attach",),
    "netfilter_links": ("bpf_nf_link_attach",),
    "ring_buffer": ("bpf_ringbuf_reserve",),
}
_CLSACT = {"clsact_init": "sch_ingress", "cls_bpf_classify": "cls_bpf"}


@dataclass(frozen=True)
class Machine:
    """What was found."""

    python: str
    python_version: tuple[int, int]
    missing_packages: tuple[str, ...]
    notebook: str | None
    """the notebook server found, if any"""
    root: bool
    sudo: bool
    """whether sudo would start the tracer without asking for a password"""
    capabilities: frozenset[str] | None
    """those of `CAPABILITIES` that the tracer would have; None where that can't be seen"""
    release: str
    architecture: str
    btf_bytes: int
    symbols: str
    """`addresses`, `names` or `none`: what /proc/kallsyms shows us"""
    features: frozenset[str] | None
    """those of `_SYMBOLS`, and `clsact`, that the kernel has; None where the names of its functions can't be read"""
    kprobes: bool
    lockdown: str | None
    """`none`, `integrity`, `confidentiality`; None where that can't be seen"""
    tracefs: str | None
    """where it is mounted"""
    memlock: int
    """limit in bytes, -1 for none"""
    bcc: Path | None
    bcc_version: str
    other_bcc: Path | None
    """a package `bcc` that is not the tracing one"""
    libbcc: str | None
    libpcap: str | None
    uapi_headers: bool
    missing_tools: tuple[str, ...]
    distribution: tuple[str, ...]
    """ID and ID_LIKE of /etc/os-release"""
    conda: bool

    @property
    def kernel_version(self) -> tuple[int, int]:
        """The first two numbers of the release."""
        numbers = [int(part) for part in self.release.replace("-", ".").split(".")[:2] if part.isdigit()]
        major, minor, *_ = [*numbers, 0, 0]
        return major, minor


def look() -> Machine:
    """Look at this machine. Takes a fraction of a second and changes nothing."""
    root = os.geteuid() == 0
    sudo = not root and _sudo()
    kallsyms = _read(Path("/proc/kallsyms"))
    bcc = locate()
    return Machine(
        python=sys.executable,
        python_version=(sys.version_info.major, sys.version_info.minor),
        missing_packages=tuple(name for name in PACKAGES if _spec(name) is None),
        notebook=next((name for name in ("jupyterlab", "notebook") if _spec(name)), None),
        root=root,
        sudo=sudo,
        capabilities=_capabilities(root, sudo),
        release=platform.release(),
        architecture=platform.machine(),
        btf_bytes=_size(Path("/sys/kernel/btf/vmlinux")),
        symbols=_symbols(kallsyms),
        features=_features(kallsyms) if kallsyms else None,
        kprobes=Path("/sys/bus/event_source/devices/kprobe").exists(),
        lockdown=_lockdown(root),
        tracefs=_tracefs(),
        memlock=_memlock(),
        bcc=bcc,
        bcc_version=_bcc_version(bcc) if bcc else "",
        other_bcc=_other_bcc(),
        libbcc=_library("bcc"),
        libpcap=_library("pcap"),
        uapi_headers=Path("/usr/include/linux/types.h").is_file(),
        missing_tools=tuple(name for name in LAB_TOOLS if _tool(name) is None),
        distribution=_distribution(),
        conda=(Path(sys.prefix) / "conda-meta").is_dir(),
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _spec(name: str) -> Path | None:
    """Where a top-level package would be imported from; it is not imported."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin else None


def _sudo() -> bool:
    if shutil.which("sudo") is None:
        return False
    # With -l sudo tells whether it would, and runs nothing. A line in sudoers may allow the tracer and no other
    # command.
    asked = ["sudo", "-n", "-l", "--", sys.executable, "-P", "-m", "bpfpath_nb.tracer"]
    return subprocess.run(asked, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0


def _capabilities(root: bool, sudo: bool) -> frozenset[str] | None:
    if not root and not sudo:
        return None
    if root:
        status = _read(Path("/proc/self/status"))
    else:
        status = subprocess.run(
            ["sudo", "-n", "cat", "/proc/self/status"], stdin=subprocess.DEVNULL, capture_output=True, check=False
        ).stdout
    for line in status.splitlines():
        if line.startswith(b"CapEff:"):
            bits = int(line.split()[1], 16)
            return frozenset(name for number, name in CAPABILITIES.items() if bits >> number & 1)
    return None


def _symbols(kallsyms: bytes) -> str:
    if not kallsyms:
        return "none"
    # Who may not see them gets every address as zero.
    return "addresses" if kallsyms[:4096].split(b"\n")[-2].split()[0].strip(b"0") else "names"


def _features(kallsyms: bytes) -> frozenset[str]:
    found = {name for name, needed in _SYMBOLS.items() if all(_has(kallsyms, symbol) for symbol in needed)}
    modules = _read(Path(f"/lib/modules/{platform.release()}/modules.dep"))
    if all(_has(kallsyms, symbol) or f"/{module}.ko".encode() in modules for symbol, module in _CLSACT.items()):
        found.add("clsact")
    return frozenset(found)


def _has(kallsyms: bytes, symbol: str) -> bool:
    # A line ends after the name, or goes on with a tab and the module's name.
    return f" {symbol}\n".encode() in kallsyms or f" {symbol}\t".encode() in kallsyms


def _lockdown(root: bool) -> str | None:
    shown = _read(Path("/sys/kernel/security/lockdown")).decode()
    if "[" in shown:
        return shown.partition("[")[2].partition("]")[0]
    # securityfs is not mounted in many containers. Root is refused this file with EPERM by lockdown alone.
    listed = Path("/sys/kernel/tracing/available_filter_functions")
    if root and listed.exists():
        try:
            with listed.open("rb") as file:
                file.read(1)
        except PermissionError:
            return "integrity"
        except OSError:
            return None
        return "none"
    return None


def _tracefs() -> str | None:
    for line in _read(Path("/proc/self/mounts")).decode(errors="replace").splitlines():
        fields = line.split()
        if len(fields) > 2 and fields[2] == "tracefs":
            return fields[1]
    return None


def _memlock() -> int:
    import resource

    return resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]


def _bcc_version(package: Path) -> str:
    for line in _read(package / "version.py").decode(errors="replace").splitlines():
        if line.startswith("__version__"):
            return line.partition("=")[2].strip().strip("'\"")
    return "unknown version"


def _other_bcc() -> Path | None:
    origin = _spec("bcc")
    return None if origin is None or is_bcc(origin.parent) else origin.parent


def _library(name: str) -> str | None:
    """The file name of a shared library. It is not loaded: libbcc brings all of LLVM along."""
    found = ctypes.util.find_library(name)
    if found is None:
        places = ("/usr/lib*", "/usr/lib/*-linux-gnu", "/usr/local/lib*", str(Path(sys.prefix) / "lib")[1:])
        hits = [hit for place in places for hit in Path("/").glob(f"{place.lstrip('/')}/lib{name}.so*")]
        found = min((hit.name for hit in hits), key=len, default=None)
    return found


def _tool(name: str) -> str | None:
    # An ordinary user's PATH often lacks the folders where Debian has these.
    return shutil.which(name, path=os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin")


def _distribution() -> tuple[str, ...]:
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return ()
    return (release.get("ID", ""), *release.get("ID_LIKE", "").split())
