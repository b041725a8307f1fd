"""Network namespaces and the interfaces in them: which there are, what they are called, and what comes and goes.

A namespace is known by its inode number. Its name is the file under /run/netns that is bound to it (`ip
netns`), `host` for the one that the tracer itself was started in, the container's where a process in it is of one
(`containers`), else `net:[inode]` as the kernel writes it.
Namespaces without a name are found through the processes in them.

To be told of interfaces, a netlink socket has to live in the namespace. A socket (or an open namespace file)
keeps a namespace alive that its owner wants gone, so they are closed as soon as the name or the last process
is: the names are compared at every look, the processes once a second. The notifications are not parsed:
whatever they say, the interfaces are listed again.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import resource
import socket
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bpfpath_nb.errors import NamespaceError
from bpfpath_nb.tracer.containers import container_of
from bpfpath_nb.tracer.syscall import setns

NAMED = Path("/run/netns")
OWN = Path("/proc/self/ns/net")
OF_PROCESS = re.compile(r"/proc/\d+/ns/net")
RTMGRP_LINK = 1
PROCESSES_EVERY = 1.0
FILES_OF_A_CAPTURE, FILES_OF_A_NAMESPACE, FILES_TO_WORK = 192, 16, 16
"""Descriptors: for programs, maps, links and the compiler; for links on a namespace's hooks and interfaces, most of
which are made later; that must be free at any time."""

GONE = (errno.ENOENT, errno.ESRCH, errno.ENOTDIR)


@dataclass(eq=False)
class Namespace:
    """A network namespace that is watched."""

    inum: int
    name: str
    file: int
    home: int = field(repr=False)
    """The namespace that this process lives in."""
    monitor: socket.socket = field(repr=False)
    named: bool = False
    devices: dict[int, str] = field(default_factory=dict)

    def list_devices(self) -> dict[int, str]:
        """Name by index of the interfaces that there are now."""
        with self.netlink() as netlink:
            return {int(link["index"]): str(link.get_attr("IFLA_IFNAME")) for link in netlink.get_links()}

    @contextmanager
    def inside(self) -> Iterator[None]:
        """This thread in the namespace, for calls that mean "the present one"."""
        setns(self.file)
        try:
            yield
        finally:
            setns(self.home)

    @contextmanager
    def netlink(self) -> Iterator[Any]:
        """A pyroute2 `IPRoute` there. Opened when needed: it takes 1.6 ms, and four descriptors while it is open."""
        from pyroute2 import IPRoute

        with self.inside():
            netlink = IPRoute()
        try:
            yield netlink
        finally:
            netlink.close()

    def heard(self) -> bool:
        """Whether something was said about interfaces since the last time."""
        heard = False
        while True:
            try:
                heard |= bool(self.monitor.recv(65536))
            except BlockingIOError:
                return heard
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # more was said than the socket holds: list anyway
                    raise
                heard = True

    def close(self) -> None:
        """Hold it no longer."""
        self.monitor.close()
        os.close(self.file)


@dataclass(frozen=True)
class Change:
    """Something came or went. `ifindex` is None where it is the namespace itself."""

    namespace: Namespace
    ifindex: int | None
    came: bool


class Places:
    """The namespaces that a capture covers.

    Parameters
    ----------
    wanted
        Names, paths or inode numbers; None for all that there are, and that will be.

    Attributes
    ----------
    known
        The namespaces that are watched, by inode number.
    unreachable
        Name and reason, by inode number, of those that are there and cannot be watched.

    Raises
    ------
    NamespaceError
        One of `wanted` does not exist.
    """

    def __init__(self, wanted: Sequence[str | int] | None) -> None:
        self._own = os.open(OWN, os.O_RDONLY | os.O_CLOEXEC)
        self._own_inum = os.fstat(self._own).st_ino
        self._all = wanted is None
        self._next_look = 0.0
        self.known: dict[int, Namespace] = {}
        self.unreachable: dict[int, tuple[str, str]] = {}
        try:
            paths = self._look() if wanted is None else dict(self._find(name) for name in wanted)
            for inum, path in paths.items():
                self._open(inum, path)
            if not self.known and self.unreachable:
                name, why = next(iter(self.unreachable.values()))
                raise NamespaceError(
                    f"None of the network namespaces that are asked for can be watched ({name}: {why}). Name others, "
                    "or let the tracer run with more rights and limits."
                )
        except BaseException:
            self.close()
            raise

    def inside(self, namespace: Namespace) -> AbstractContextManager[None]:
        """This thread in a namespace, for calls that mean "the present one"."""
        return namespace.inside()

    def changes(self, *, unknown: bool = False) -> Iterator[Change]:
        """What came and went since the last call.

        Parameters
        ----------
        unknown
            Events have shown a namespace that is not known: look at the processes now.
        """
        if self._all:
            yield from self._namespace_changes(unknown)
        for namespace in list(self.known.values()):
            try:
                if not namespace.heard():
                    continue
                changes = list(self._device_changes(namespace))
            except Exception as error:
                # One namespace is no reason to give up the others.
                yield from self._give_up(namespace, error)
            else:
                yield from changes

    def refresh_devices(self, namespace: Namespace) -> list[Change]:
        """List the interfaces of a namespace again; none where that fails, which `unreachable` then tells."""
        try:
            return list(self._device_changes(namespace))
        except Exception as error:
            self.unreachable[namespace.inum] = (namespace.name, _why(error))
            return []

    def close(self) -> None:
        """Hold nothing any more."""
        for namespace in self.known.values():
            namespace.close()
        self.known.clear()
        with suppress(OSError):
            os.close(self._own)

    # -- namespaces

    def _namespace_changes(self, unknown: bool) -> Iterator[Change]:
        now = time.monotonic()
        names = _named()
        thorough = unknown or now >= self._next_look
        if not thorough and {n.inum for n in self.known.values() if n.named} == set(names):
            return
        self._next_look = now + PROCESSES_EVERY
        present = self._look()
        for inum, namespace in list(self.known.items()):
            if inum not in present:
                yield Change(namespace, None, came=False)
                del self.known[inum]
                namespace.close()
        for inum in self.unreachable.keys() - present.keys():
            del self.unreachable[inum]
        for inum, path in present.items():
            if inum not in self.known and self._open(inum, path):
                yield Change(self.known[inum], None, came=True)
            elif inum in self.known and (name := self._name(inum, path)) != self.known[inum].name:
                self.known[inum].name = name
                self.known[inum].named = path.parent == NAMED
                yield Change(self.known[inum], None, came=True)

    def _look(self) -> dict[int, Path]:
        """A path by inode number of every namespace that there is."""
        found: dict[int, Path] = {}
        for process in os.scandir("/proc"):
            if process.name.isdigit():
                try:
                    target = str(Path(process.path, "ns/net").readlink())
                except OSError:
                    continue
                number = re.fullmatch(r"net:\[(\d+)\]", target)
                if number:
                    found.setdefault(int(number[1]), Path(f"/proc/{process.name}/ns/net"))
        found.update(_named())
        found[self._own_inum] = OWN
        return found

    def _find(self, wanted: str | int) -> tuple[int, Path]:
        present = self._look()
        by_name = {self._name(inum, path): inum for inum, path in present.items()}
        number = re.fullmatch(r"(?:net:\[)?(\d+)\]?", str(wanted))
        if wanted in by_name:
            inum = by_name[str(wanted)]
        elif number and int(number[1]) in present:
            inum = int(number[1])
        elif str(wanted).startswith("/") and (inum_of_path := _inum(Path(str(wanted)))):
            return inum_of_path, Path(str(wanted))
        else:
            near = difflib.get_close_matches(str(wanted), by_name, n=3, cutoff=0.5)
            names = ", ".join(sorted(near or by_name)[:20])
            raise NamespaceError(
                f"There is no network namespace {str(wanted)[:200]!r}. "
                f"{'Nearest' if near else 'There are'}: {names}. `ip netns list` shows those with a name; a "
                "path such as "
                "/proc/PID/ns/net or an inode number names any other."
            )
        return inum, present[inum]

    def _name(self, inum: int, path: Path) -> str:
        if path.parent == NAMED:
            return path.name
        if inum == self._own_inum:
            return "host"
        # Of a path that the notebook has named, nothing beside it is read: whoever made it may have put it there.
        container = container_of(path.parents[1]) if OF_PROCESS.fullmatch(str(path)) else None
        # A container may have several namespaces; the first one met has the name.
        if container is None or any(n.name == container and n.inum != inum for n in self.known.values()):
            return f"net:[{inum}]"
        return container

    def _give_up(self, namespace: Namespace, error: Exception) -> Iterator[Change]:
        """Watch a namespace no longer."""
        self.unreachable[namespace.inum] = (namespace.name, _why(error))
        yield Change(namespace, None, came=False)
        del self.known[namespace.inum]
        namespace.close()

    def _open(self, inum: int, path: Path) -> bool:
        """Start to watch a namespace; False where it is gone already, or cannot be watched (see `unreachable`)."""
        name = self._name(inum, path)
        with ExitStack() as undo:
            try:
                # The notebook may have named the path, and can put a device or a pipe there meanwhile: what it names
                # is looked at before it is opened.
                place = os.open(path, os.O_PATH | os.O_CLOEXEC)
                with ExitStack() as looked:
                    looked.callback(os.close, place)
                    status = os.fstat(place)
                    if status.st_ino != inum or not stat.S_ISREG(status.st_mode):
                        return False  # the file names another namespace by now
                    file = os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC)
                undo.callback(os.close, file)
                self._spare_files()
                setns(file)
                try:
                    monitor = socket.socket(
                        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
                    )
                    undo.callback(monitor.close)
                finally:
                    setns(self._own)
                monitor.setblocking(False)
                monitor.bind((0, RTMGRP_LINK))
            except OSError as error:
                if error.errno not in GONE:
                    self.unreachable[inum] = (name, _why(error))
                return False
            undo.pop_all()
        self.unreachable.pop(inum, None)
        self.known[inum] = Namespace(inum, name, file, self._own, monitor, named=path.parent == NAMED)
        return True

    def _spare_files(self) -> None:
        """Refuse a namespace while what is watched already can still do its work."""
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if limit == resource.RLIM_INFINITY:
            return
        # The kernel hands out the lowest number that is free.
        lowest = os.dup(self._own)
        os.close(lowest)
        planned = FILES_OF_A_CAPTURE + FILES_OF_A_NAMESPACE * (len(self.known) + 1)
        if planned > limit or lowest > limit - FILES_TO_WORK:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    # -- interfaces

    @staticmethod
    def _device_changes(namespace: Namespace) -> Iterator[Change]:
        before, now = namespace.devices, namespace.list_devices()
        namespace.devices = now
        for ifindex in before.keys() - now.keys():
            yield Change(namespace, ifindex, came=False)
        for ifindex, name in now.items():
            if before.get(ifindex) != name:
                yield Change(namespace, ifindex, came=True)


def _why(error: Exception) -> str:
    code = getattr(error, "errno", None) or getattr(error, "code", None)
    if code in (errno.EMFILE, errno.ENFILE):
        return "the tracer has too many open files; raise its hard limit (`ulimit -Hn`)"
    return "the namespace may not be entered" if code in (errno.EPERM, errno.EACCES) else str(error)


def _inum(path: Path) -> int | None:
    """The inode number of a namespace file; None for any other file (one that `ip netns` has not bound yet)."""
    try:
        status = path.stat()
    except OSError:
        return None
    # Namespace files lie in nsfs: no permission to write, numbers from the upper end.
    return status.st_ino if stat.S_ISREG(status.st_mode) and status.st_ino >= 0xEFFF0000 else None


def _named() -> dict[int, Path]:
    try:
        files = [NAMED / entry.name for entry in os.scandir(NAMED)]
    except FileNotFoundError:
        return {}
    return {inum: path for path in files if (inum := _inum(path))}
