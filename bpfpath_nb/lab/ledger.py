"""What labs own on this machine, written down so that nothing stays behind when a keeper is killed.

Each keeper has one file in /run/bpfpath_nb and holds an exclusive `flock` on it for as long as it lives. The kernel
drops the lock with the process, however it ends, so "can be locked" means "its keeper is dead": no guessing by
process numbers, which are used again. Whoever gets the lock of a dead keeper's file removes what the file names, and
the lock also keeps two sweepers apart.

Only what is provably ours goes. Processes carry the lab's random id in their environment (`BPFPATH_LAB`), namespaces
carry it as the alias of their loopback interface. The inode number of a namespace would not do: the kernel gives the
lowest free one, so a namespace that someone makes after ours went is likely to get the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path("/run/bpfpath_nb")
NETNS = Path("/run/netns")
MARKER = "BPFPATH_LAB"
_GRACE = 0.3  # seconds between asking a process to end and ending it


class Entry:
    """The file of one lab, locked by this process from its creation to `erase`."""

    def __init__(self, lab: str, names: list[str]) -> None:
        self.lab = lab
        FOLDER.mkdir(mode=0o755, exist_ok=True)
        self.path = FOLDER / f"lab-{lab}.json"
        self._content: dict[str, Any] = {"lab": lab, "keeper": os.getpid(), "namespaces": dict.fromkeys(names, False)}
        # Locked before it gets the name that sweepers look for: no moment in which it looks abandoned.
        draft = FOLDER / f".draft-{lab}"
        self._file = draft.open("w+")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._write()
        draft.rename(self.path)

    def made(self, name: str) -> None:
        """Note that a namespace now exists and carries the mark."""
        self._content["namespaces"][name] = True
        self._write()

    def _write(self) -> None:
        self._file.seek(0)
        self._file.write(json.dumps(self._content) + "\n")
        self._file.truncate()
        self._file.flush()

    def erase(self) -> None:
        """Take down everything that the file names, then the file."""
        take_down(self._content)
        self.path.unlink(missing_ok=True)
        self._file.close()


def sweep() -> list[str]:
    """Remove what dead keepers left. Returns the names of the namespaces that went."""
    gone: list[str] = []
    for path in sorted(FOLDER.glob("lab-*.json")):
        with contextlib.suppress(OSError), path.open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # its keeper lives
            try:
                content = json.load(file)
            except ValueError:
                content = {}  # killed in the middle of a write, before anything was made
            gone += take_down(content)
            path.unlink(missing_ok=True)
    return gone


def owner(name: str) -> int | None:
    """The process that keeps the lab which a namespace belongs to, if it is of a living lab."""
    for path in FOLDER.glob("lab-*.json"):
        with contextlib.suppress(OSError, ValueError):
            content = json.loads(path.read_text())
            if name in content.get("namespaces", ()):
                return int(content["keeper"])
    return None


def take_down(content: dict[str, Any]) -> list[str]:
    """End the processes and remove the namespaces of one lab."""
    if "lab" in content:
        end_processes(content["lab"])
    gone = []
    for name, marked in content.get("namespaces", {}).items():
        if _is_ours(name, mark(content["lab"]), marked):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
            gone.append(name)
    return gone


def enter(namespace: str) -> list[str]:
    """The words that put a command into a namespace.

    `nsenter` and neither `ip netns exec` nor `ip -n`, which also mount another /sys over the caller's: that hides
    tracefs and bpffs, and fails where the root folder is no mount point (a chroot).
    """
    return ["nsenter", f"--net={NETNS / namespace}", "--"]


def mark(lab: str) -> str:
    """The alias that the loopback interface of a lab's namespaces gets."""
    return f"bpfpath_nb:{lab}"


def _is_ours(name: str, mark: str, marked: bool) -> bool:
    shown = subprocess.run([*enter(name), "ip", "-json", "link"], capture_output=True, check=False)
    try:
        links = {link["ifname"]: link for link in json.loads(shown.stdout)}
    except ValueError:
        return False  # there is none of that name
    if links["lo"].get("ifalias") == mark:
        return True
    # The keeper may have died between making it and marking it: then it is still as new.
    return not marked and list(links) == ["lo"] and "UP" not in links["lo"]["flags"] and "ifalias" not in links["lo"]


def end_processes(lab: str) -> None:
    """End every process that carries the lab's id: first politely, then for sure."""
    deadline = time.monotonic() + _GRACE
    asked: set[int] = set()
    while found := list(_marked(lab)):
        late = time.monotonic() > deadline
        waiting = []
        for pid, handle in found:
            with contextlib.suppress(ProcessLookupError):
                if late:
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                elif pid not in asked:
                    signal.pidfd_send_signal(handle, signal.SIGTERM)
                    asked.add(pid)
            waiting.append(handle)
        select.select(waiting, [], [], 0.05)
        for handle in waiting:
            os.close(handle)


def _marked(lab: str) -> Iterator[tuple[int, int]]:
    """Processes with the lab's id in their environment, each with a pidfd, so that no signal can reach a successor."""
    wanted = f"{MARKER}={lab}".encode()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        handle = -1
        try:
            handle = os.pidfd_open(int(folder.name))
            # A zombie has no environment any more, so it is not waited for.
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                yield int(folder.name), handle
                continue
        except OSError:
            pass
        if handle >= 0:
            os.close(handle)
