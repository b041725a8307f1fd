"""TC programs on ingress and egress of interfaces.

Where the kernel has TCX (6.6), a program hangs on a BPF link, and the link on a file descriptor of this
process: whatever ends the process ends the link. Older kernels have the clsact qdisc with a filter, and these
stay when a process is killed. So our filters carry in their names which process made them, and whether the
qdisc was made with them:

    bpfpath_nb:PID:START_TIME:CAPTURE:q

The next start on such a kernel removes the filters whose process is gone, and the qdisc where one of ours made
it and no filter is left on it. What anybody else put there stays.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from bpfpath_nb.tracer.places import Namespace, Places
from bpfpath_nb.tracer.syscall import TCX_EGRESS, TCX_INGRESS, link_create_tcx

DIRECTIONS = ("tc_ingress", "tc_egress")
PREFIX = "bpfpath_nb:"
CLSACT = 0xFFFF0000
PARENTS = {"tc_ingress": 0xFFFFFFF2, "tc_egress": 0xFFFFFFF3}


class Attacher(Protocol):
    """How TC programs come to an interface and leave it."""

    kind: str

    def attach(self, namespace: Namespace, ifindex: int) -> None:
        """Attach both programs; an OSError where the interface takes none or is gone."""

    def detach(self, namespace: Namespace, ifindex: int | None) -> None:
        """Forget an interface, or a whole namespace, that is gone."""

    def close(self) -> None:
        """Take everything away that was attached."""


def choose(programs: Mapping[str, int], places: Places) -> Attacher:
    """TCX where the kernel has it, by trying; else clsact. `BPFPATH_TC=clsact` in the environment forbids TCX."""
    if os.environ.get("BPFPATH_TC") != "clsact":
        try:
            # Interface 0 does not exist: a kernel with TCX says so, one without does not know the request.
            os.close(link_create_tcx(programs["tc_ingress"], 0, TCX_INGRESS))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return Tcx(programs, places)
    return Clsact(programs)


class Tcx:
    """TC programs through BPF links."""

    kind = "tcx"

    def __init__(self, programs: Mapping[str, int], places: Places) -> None:
        self._programs = programs
        self._places = places
        self._links: dict[tuple[int, int], list[int]] = {}

    def attach(self, namespace: Namespace, ifindex: int) -> None:
        """See `Attacher`."""
        key = (namespace.inum, ifindex)
        if key in self._links:
            return
        links: list[int] = []
        with self._places.inside(namespace):
            try:
                for direction, attach_type in zip(DIRECTIONS, (TCX_INGRESS, TCX_EGRESS), strict=True):
                    links.append(link_create_tcx(self._programs[direction], ifindex, attach_type))
            except OSError:
                _close_all(links)
                raise
        self._links[key] = links

    def detach(self, namespace: Namespace, ifindex: int | None) -> None:
        """See `Attacher`."""
        for key in [key for key in self._links if key[0] == namespace.inum and ifindex in (None, key[1])]:
            _close_all(self._links.pop(key))

    def close(self) -> None:
        """See `Attacher`."""
        for key in reversed(list(self._links)):
            _close_all(self._links.pop(key))


class Clsact:
    """TC programs as filters of the clsact qdisc."""

    kind = "clsact"
    _captures = 0

    def __init__(self, programs: Mapping[str, int]) -> None:
        Clsact._captures += 1
        self._programs = programs
        self._name = f"{PREFIX}{os.getpid()}:{_start_time(os.getpid())}:{Clsact._captures}"
        self._attached: dict[tuple[int, int], Namespace] = {}

    def attach(self, namespace: Namespace, ifindex: int) -> None:
        """See `Attacher`."""
        if (namespace.inum, ifindex) in self._attached:
            return
        with namespace.netlink() as netlink:
            remove_filters(netlink, ifindex, _is_orphan)
            self._add(netlink, namespace, ifindex)

    def _add(self, netlink: Any, namespace: Namespace, ifindex: int) -> None:
        made = False
        try:
            netlink.tc("add", "clsact", ifindex)
            made = True
        except Exception as error:
            if getattr(error, "code", None) != errno.EEXIST:
                raise _as_os_error(error) from error
        # A qdisc of ours that another capture of ours made goes with the last of them.
        ours = made or any(name.endswith(":q") for _, _, name in _filters(netlink, ifindex))
        name = self._name + (":q" if ours else ":-")
        self._attached[namespace.inum, ifindex] = namespace
        try:
            for direction in DIRECTIONS:
                netlink.tc(
                    "add-filter", "bpf", ifindex,
                    fd=self._programs[direction], name=name, parent=PARENTS[direction], classid=1, direct_action=True,
                )  # fmt: skip
        except Exception as error:
            self._attached.pop((namespace.inum, ifindex))
            self._remove(netlink, ifindex)
            raise _as_os_error(error) from error

    def detach(self, namespace: Namespace, ifindex: int | None) -> None:
        """See `Attacher`."""
        for key in [key for key in self._attached if key[0] == namespace.inum and ifindex in (None, key[1])]:
            del self._attached[key]

    def close(self) -> None:
        """See `Attacher`."""
        for (_, ifindex), namespace in reversed(list(self._attached.items())):
            with suppress(OSError), namespace.netlink() as netlink:
                self._remove(netlink, ifindex)
        self._attached.clear()

    def _remove(self, netlink: Any, ifindex: int) -> None:
        remove_filters(netlink, ifindex, lambda name: name.startswith(self._name + ":"))


def remove_filters(netlink: Any, ifindex: int, mine: Callable[[str], bool]) -> None:
    """Remove the filters of ours whose name `mine` accepts, and the qdisc where it was ours and is empty now."""
    filters = _filters(netlink, ifindex)
    chosen = [(parent, message, name) for parent, message, name in filters if name.startswith(PREFIX) and mine(name)]
    for parent, message, _ in chosen:
        info = message["info"]
        with suppress(Exception):  # it may be gone with its interface
            netlink.tc(
                "del-filter", "bpf", ifindex,
                parent=parent, handle=message["handle"], info=info, prio=info >> 16, protocol=info & 0xFFFF,
            )  # fmt: skip
    if any(name.endswith(":q") for _, _, name in chosen) and not _filters(netlink, ifindex):
        with suppress(Exception):
            netlink.tc("del", "clsact", ifindex)


def _filters(netlink: Any, ifindex: int) -> list[tuple[int, Any, str]]:
    """(parent, message, name) of the filters on clsact; the name is empty where there is none."""
    found = []
    for parent in PARENTS.values():
        try:
            messages = list(netlink.get_filters(index=ifindex, parent=parent))
        except Exception:
            continue
        for message in messages:
            options = message.get_attr("TCA_OPTIONS")
            name = options.get_attr("TCA_BPF_NAME") if hasattr(options, "get_attr") else None
            # The head of a chain is listed too, without a handle.
            if message["handle"]:
                found.append((parent, message, str(name or "")))
    return found


def _is_orphan(name: str) -> bool:
    parts = name.removeprefix(PREFIX).split(":")
    return len(parts) == 4 and parts[0].isdigit() and _start_time(int(parts[0])) != parts[1]


def _start_time(pid: int) -> str:
    """When a process began, in clock ticks since boot: tells it from a later one of the same number. Empty for none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _as_os_error(error: Exception) -> OSError:
    return OSError(getattr(error, "code", errno.EIO), str(error))


def _close_all(descriptors: list[int]) -> None:
    for descriptor in reversed(descriptors):
        os.close(descriptor)
