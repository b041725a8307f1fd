"""Debian's stock kernels: which there are, how they get here, and where they are kept.

Packet tracing differs from kernel to kernel more than most things do, so a tool like this has to be tried on several.
Debian still serves the kernels of its older releases, each as its users run it. This module fetches the packages of
one (about 60 to 120 MB), keeps what a virtual machine needs of them, and throws the rest away::

    $XDG_CACHE_HOME/bpfpath_nb/kernels/      ~/.cache where the variable is not set
        6.12/
            lock                             shared by machines that run this kernel, exclusive while it is replaced
            apt/                             lists, settings and downloads of this kernel's own apt
            6.12.117+deb12-amd64/            a kernel that is complete: it gets its name last
                boot/vmlinuz-...  lib/modules/...

Apt does the fetching, because it knows this machine's proxy and certificates and checks signatures. But it runs with
lists, sources, pins and a status file of its own, all in the cache: what the machine has installed is neither
looked at nor changed. The mirror is the one that the machine's own sources name, with Debian's usual one
where they name none (on Ubuntu, say).

Which packages a kernel consists of is looked up, not known: their names change with every release, and from 7.1 on
one package became three. The metapackage (``linux-image-amd64``) is followed through its dependencies instead.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from bpfpath_nb.errors import LabError

_ARCHIVE = "http://deb.debian.org/debian/"
_SECURITY = "http://deb.debian.org/debian-security/"
_KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_PART = re.compile(r"linux-(?:image|binary|modules)-(?P<release>\d\S*-amd64)(?:-unsigned)?")
_LOOK_AGAIN = 86_400.0  # seconds until a kernel that moves is looked up again
_SPACE = 1 << 30  # bytes that fetching and unpacking need at most
_LEFT_OUT = ("gpu", "media", "infiniband", "iio", "hwmon", "scsi", "staging", "comedi", "accel")
"""Drivers that a virtual machine without such devices cannot load; nearly half of all modules."""


@dataclass(frozen=True)
class Source:
    """Where one kernel comes from."""

    name: str
    suites: tuple[str, ...]
    metapackage: str
    moves: bool = False
    """Whether a new release replaces it every few days."""


SOURCES = {
    source.name: source
    for source in (
        Source("5.10", ("bullseye", "bullseye-security"), "linux-image-amd64"),
        Source("6.1", ("bookworm", "bookworm-security"), "linux-image-amd64"),
        Source("6.12", ("bookworm-security",), "linux-image-6.12-amd64"),
        Source("sid", ("sid",), "linux-image-amd64", moves=True),
    )
}


@dataclass(frozen=True)
class Kernel:
    """A kernel that is here, complete."""

    name: str
    release: str
    folder: Path

    @property
    def image(self) -> Path:
        return self.folder / "boot" / f"vmlinuz-{self.release}"

    @property
    def modules(self) -> Path:
        return self.folder / "lib" / "modules" / self.release


def load_order(dependencies: str, modules: Sequence[str]) -> list[str]:
    """The files to load for some modules, each after what it needs, from the text of a ``modules.dep``.

    A line names a file, a colon, and all that it needs, the innermost last. A module that the kernel has built in is
    not in the list.
    """
    needs = {file: rest.split() for file, _, rest in (line.partition(":") for line in dependencies.splitlines())}
    files = {file.rpartition("/")[2].removesuffix(".ko"): file for file in needs}
    ordered: dict[str, None] = {}
    for module in modules:
        if module in files:
            ordered.update(dict.fromkeys([*reversed(needs[files[module]]), files[module]]))
    return list(ordered)


def cache() -> Path:
    """The folder of all kernels; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "bpfpath_nb" / "kernels"


def find(wanted: str) -> Source:
    """The source that a user means: by its name, or by the release of a kernel that is here (``7.2`` for sid's)."""
    if wanted in SOURCES:
        return SOURCES[wanted]
    for source in SOURCES.values():
        kernel = present(source)
        if kernel and wanted and re.match(re.escape(wanted) + r"(?!\d)", kernel.release):
            return source
    names = ", ".join(SOURCES)
    raise LabError(f"there is no kernel {wanted!r} to be had; there are {names}. bpfpath vm list tells more.")


def present(source: Source) -> Kernel | None:
    """The kernel of a source as far as it is here, the newest if there are several."""
    found = [
        Kernel(source.name, folder.name, folder)
        for folder in (cache() / source.name).glob("*-amd64")
        if (folder / "boot" / f"vmlinuz-{folder.name}").is_file()
    ]
    return max(found, key=lambda kernel: version(kernel.release), default=None)


def version(release: str) -> tuple[int, ...]:
    """The numbers of a release, for ordering: ``5.10.0-46-amd64`` is (5, 10, 0, 46)."""
    return tuple(int(number) for number in re.findall(r"\d+", release.partition("+")[0].removesuffix("-amd64")))


def table() -> str:
    """Which kernels can be had, and which are here, for people."""
    rows = [("KERNEL", "HERE", "FROM")]
    for source in SOURCES.values():
        kernel = present(source)
        here = f"{kernel.release} ({_size(kernel.folder) >> 20} MB)" if kernel else "no"
        rows.append((source.name, here, f"Debian {source.suites[-1]}{', its newest' if source.moves else ''}"))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{name:{widths[0]}}  {here:{widths[1]}}  {origin}" for name, here, origin in rows]
    return "\n".join([*lines, f"kept in {cache()}"])


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*"))


@contextlib.contextmanager
def held(source: Source, *, newest: bool = False) -> Iterator[Kernel]:
    """The kernel of a source, fetched where it is not here, and not replaced by anybody inside the block.

    Parameters
    ----------
    source : Source
    newest : bool, default False
        Look whether there is a newer release even if one is here. A kernel that moves is looked up once a day anyway;
        where that fails, the one that is here does.

    Raises
    ------
    LabError
        It is not here and cannot be fetched.
    """
    folder = cache() / source.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise LabError(
            f"the folder for kernels cannot be written: {error}. Set XDG_CACHE_HOME to one that can."
        ) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        kernel = present(source)
        if kernel is None or newest or (source.moves and _age(folder) > _LOOK_AGAIN):
            kernel = _renewed(source, folder, lock.fileno(), must=kernel is None or newest)
        yield kernel


def _age(folder: Path) -> float:
    """Seconds since this kernel was last looked up."""
    try:
        return time.time() - (folder / "apt" / "looked").stat().st_mtime
    except OSError:
        return float("inf")


def _renewed(source: Source, folder: Path, lock: int, *, must: bool) -> Kernel:
    """Fetch the newest release, with the lock of the folder exclusive meanwhile."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX if must else fcntl.LOCK_EX | fcntl.LOCK_NB)
        kernel = _fetch(source, folder)
    except BlockingIOError:
        kernel = None  # a machine runs on the one that is here: another time
    except LabError as error:
        if must:
            raise
        kernel = None
        print(f"bpfpath: {error} The kernel that is here is used.", file=sys.stderr)
    fcntl.flock(lock, fcntl.LOCK_SH)
    # Between giving up one lock and getting the other, somebody else may have replaced it.
    kernel = present(source)
    if kernel is None:
        raise LabError(f"the kernel {source.name} went away while it was waited for. Try again.")
    return kernel


def _fetch(source: Source, folder: Path) -> Kernel:
    if platform.machine() != "x86_64":
        raise LabError(f"stock kernels are fetched for x86_64 only, and this machine is {platform.machine()}.")
    for tool, package in (("apt-get", "apt"), ("dpkg-deb", "dpkg"), ("depmod", "kmod"), ("xz", "xz-utils")):
        if not shutil.which(tool, path=search_path()):
            raise LabError(f"fetching a kernel needs {tool}. On Debian and Ubuntu: apt-get install {package}")
    if not _KEYS.exists():
        raise LabError("Debian's keys are not here. On Debian and Ubuntu: apt-get install debian-archive-keyring")
    free = shutil.disk_usage(folder).free
    if free < _SPACE:
        raise LabError(
            f"a kernel takes up to {_SPACE >> 20} MB in {folder} while it is unpacked, and {free >> 20} MB are free. "
            "Make room, or set XDG_CACHE_HOME to a folder that has some."
        )
    apt = _Apt(folder / "apt", sources_list(source.suites, _system_sources()))
    apt.run("update")
    release, packages = parts(apt.run("depends", *_ONLY_DEPENDS, source.metapackage, tool="apt-cache"))
    (folder / "apt" / "looked").touch()
    kernel = Kernel(source.name, release, folder / release)
    if not kernel.image.is_file():
        print(f"bpfpath: fetching Debian's kernel {release} (once)", file=sys.stderr)
        downloads = folder / "apt" / "downloads"
        shutil.rmtree(downloads, ignore_errors=True)
        downloads.mkdir()
        apt.run("download", *packages, cwd=downloads)
        _unpack(sorted(downloads.glob("*.deb")), kernel)
        shutil.rmtree(downloads)
    for other in folder.iterdir():
        if other.is_dir() and other.name not in (release, "apt"):
            shutil.rmtree(other, ignore_errors=True)
    return kernel


_ONLY_DEPENDS = [
    "--recurse",
    *(f"--no-{kind}" for kind in ("recommends", "suggests", "breaks", "conflicts", "replaces", "enhances")),
]


def parts(depends: str) -> tuple[str, list[str]]:
    """The release and the packages of a kernel, from what ``apt-cache depends --recurse METAPACKAGE`` printed.

    Packages stand at the start of a line, their dependencies indented below.
    """
    found = {match[0]: match["release"] for line in depends.splitlines() if (match := _PART.fullmatch(line))}
    if not found:
        raise LabError("Debian's package lists name no kernel where one was expected; try again later.")
    newest = max(found.values(), key=version)
    return newest, sorted(name for name, release in found.items() if release == newest)


def sources_list(suites: Sequence[str], system: str) -> str:
    """The sources for some suites, from the mirrors that the system's own sources use.

    Parameters
    ----------
    suites : sequence of str
    system : str
        What ``apt-get indextargets --format '$(LABEL)|$(REPO_URI)'`` printed. The label is ``Debian`` or
        ``Debian-Security``; it is empty as long as the lists were never updated, and then the address tells.
    """
    mirrors: dict[bool, str] = {}
    for line in system.splitlines():
        label, _, address = line.partition("|")
        archive = address.rstrip("/").rpartition("/")[2]
        if label == "Debian-Security" or (not label and archive == "debian-security"):
            mirrors.setdefault(True, address)
        elif label == "Debian" or (not label and archive == "debian"):
            mirrors.setdefault(False, address)
    defaults = {True: _SECURITY, False: _ARCHIVE}
    return "".join(
        f"deb [signed-by={_KEYS}] {mirrors.get(security, defaults[security])} {suite} main\n"
        for suite in suites
        for security in [suite.endswith("-security")]
    )


def _system_sources() -> str:
    asked = ["apt-get", "indextargets", "--format", "$(LABEL)|$(REPO_URI)", "Created-By: Packages"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout


class _Apt:
    """Apt with a state of its own in `folder`. The machine's settings for the way out (proxy, certificates) hold."""

    def __init__(self, folder: Path, sources: str) -> None:
        for name in ("lists/partial", "archives/partial"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "sources.list").write_text(sources)
        (folder / "status").touch()
        settings = {
            "Dir::Etc::sourcelist": folder / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::State": folder,
            "Dir::State::lists": folder / "lists",
            "Dir::State::status": folder / "status",
            "Dir::Cache": folder,
            "APT::Architecture": "amd64",
            "APT::Architectures": "amd64",
            "APT::Sandbox::User": "root",  # or it complains that its own user cannot write into this folder
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
        }
        self._options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]

    def run(self, action: str, *arguments: str, tool: str = "apt-get", cwd: Path | None = None) -> str:
        command = [tool, *self._options, "-q", action, *arguments]
        environment: Mapping[str, str] = {**os.environ, "LC_ALL": "C.UTF-8"}
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
        # `update` succeeds where it could get nothing, and says so only by a warning.
        complaints = [line for line in done.stderr.splitlines() if line.startswith(("E:", "Err:", "W: Failed"))]
        if done.returncode or complaints:
            why = " ".join(complaints[-3:]) or f"exit status {done.returncode}"
            raise LabError(
                f"{tool} {action} failed: {why} Does 'apt-get update' work on this machine? Kernels that are here "
                "already (bpfpath vm list) can be used without a network."
            )
        return done.stdout


def _unpack(packages: Sequence[Path], kernel: Kernel) -> None:
    """Bring a kernel into the layout of the cache. It gets its name when all is there.

    Modules are uncompressed: an emulated machine would take seconds for what takes none here.
    """
    release = kernel.release
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=kernel.folder.parent) as name:
        raw, done = Path(name) / "raw", Path(name) / "done"
        raw.mkdir()
        left_out = [f"--exclude=*/kernel/{drop}" for drop in ("sound", *(f"drivers/{kind}" for kind in _LEFT_OUT))]
        for package in packages:
            with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as archive:
                _do(["tar", "-x", "-C", str(raw), "--no-same-owner", *left_out], stdin=archive.stdout)
            if archive.returncode:
                raise LabError(f"{package.name} cannot be unpacked: dpkg-deb ended with {archive.returncode}.")
        modules = next((raw / top / "modules" / release for top in ("usr/lib", "lib")
                        if (raw / top / "modules" / release).is_dir()), None)  # fmt: skip
        images = [raw / "boot" / f"vmlinuz-{release}", raw / "usr/lib/modules" / release / "vmlinuz"]
        image = next((path for path in images if path.is_file()), None)
        if modules is None or image is None:
            raise LabError(f"the packages of {release} hold no kernel where it was expected.")
        for folder in ("boot", "lib/modules"):
            (done / folder).mkdir(parents=True)
        image.rename(done / "boot" / f"vmlinuz-{release}")
        modules.rename(done / "lib/modules" / release)
        packed = "".join(f"{path}\0" for path in (done / "lib").rglob("*.ko.xz"))
        if packed:
            _do(["xargs", "-0", "-P", "2", "-n", "200", "xz", "-d"], text=packed)
        _do(["depmod", "-b", str(done), release])
        done.rename(kernel.folder)


def _do(command: list[str], *, stdin: IO[bytes] | None = None, text: str | None = None) -> None:
    given: dict[str, Any] = {"input": text} if text is not None else {"stdin": stdin}
    environment = {**os.environ, "PATH": search_path()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, **given)
    if done.returncode:
        raise LabError(f"{command[0]} failed with {done.returncode}: {done.stderr.strip()[-500:]}")


def search_path() -> str:
    """PATH with the folders of administration, which a user's often lacks."""
    folders = os.environ.get("PATH", os.defpath).split(":")
    return ":".join([*folders, *(extra for extra in ("/usr/sbin", "/sbin") if extra not in folders)])
