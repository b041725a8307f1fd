"""What a container calls itself, for the namespace that it lives in: from the cgroup of one of its processes.

Container runtimes put each container into a cgroup of its own, whose path holds the container's identifier (64 hex
digits) or, for LXC and systemd's machines, its name:

    /system.slice/docker-ID.scope                                         Docker, systemd's cgroups
    /docker/ID                                                            Docker, its own
    /kubepods.slice/kubepods-POD.slice/cri-containerd-ID.scope            Kubernetes
    /machine.slice/libpod-ID.scope/container                              Podman
    /lxc.payload.NAME/init.scope, /lxc/NAME                               LXC, Incus
    /machine.slice/machine-NAME.scope, .../systemd-nspawn@NAME.service    systemd

What an identifier is called, Docker and Podman keep in files of the host; elsewhere its first twelve digits serve, as
they do in the runtimes' own listings. Nothing is read that a container can write, but the path of its cgroup.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

CGROUP_LIMIT, FILE_LIMIT = 1 << 16, 1 << 22
SHORT = 12

_IDENTIFIED = re.compile(
    r"/(?:(docker|libpod|crio|cri-containerd|containerd|cri-o)[-/])?([0-9a-f]{64})(?:\.scope)?(?=/|$)"
)
_NAMED = (
    (re.compile(r"/lxc(?:\.payload\.|/)([\w.-]{1,64})"), "lxc"),
    (re.compile(r"/(?:machine-|systemd-nspawn@)([\w.\\-]{1,64}?)\.(?:scope|service)"), "machine"),
)
_RUNTIMES = {"libpod": "podman", "crio": "cri-o", "cri-containerd": "containerd"}
_NAME = re.compile(r"/?([A-Za-z0-9][\w.-]{0,127})")


def container_of(process: Path) -> str | None:
    """The name of the container that a process lives in, such as ``docker:web``; None where that cannot be told.

    Parameters
    ----------
    process
        Its folder in /proc.
    """
    try:
        with (process / "cgroup").open("rb") as file:
            text = file.read(CGROUP_LIMIT).decode("utf-8", "replace")
    except OSError:
        return None
    # Of the unified hierarchy (0::) first; of containers in containers the innermost.
    paths = [line.split(":", 2)[2] for line in sorted(text.splitlines()) if line.count(":") >= 2]
    for path in paths:
        found = list(_IDENTIFIED.finditer(path))
        if found:
            runtime, identifier = found[-1][1] or "container", found[-1][2]
            runtime = _RUNTIMES.get(runtime, runtime)
            return f"{runtime}:{called(runtime, identifier) or identifier[:SHORT]}"
        for pattern, runtime in _NAMED:
            if named := pattern.search(path):
                return f"{runtime}:{named[1]}"
    return None


def called(runtime: str, identifier: str) -> str | None:
    """The name that an identifier has, by the runtime's files."""
    with suppress(OSError, ValueError, RecursionError):
        for entry in _entries(runtime, identifier):
            name = _NAME.fullmatch(str(entry))
            if name:
                return name[1]
    return None


def _entries(runtime: str, identifier: str) -> Iterator[object]:
    if runtime == "docker":
        kept = _json(Path(f"/var/lib/docker/containers/{identifier}/config.v2.json"))
        yield kept.get("Name") if isinstance(kept, dict) else None
    if runtime == "podman":
        kept = _json(Path("/var/lib/containers/storage/overlay-containers/containers.json"))
        for container in kept if isinstance(kept, list) else ():
            if isinstance(container, dict) and container.get("id") == identifier:
                yield from container.get("names") or ()


def _json(path: Path) -> object:
    with path.open("rb") as file:
        content: object = json.loads(file.read(FILE_LIMIT))
    return content
