"""What the tests ask of processes that are not theirs to wait for."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def soon(condition: Callable[[], object], seconds: float = 8.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return bool(condition())


def programs(pid: int) -> set[int]:
    """The BPF programs that a process holds."""
    found = set()
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found |= {int(line.split()[1]) for line in entry.read_text().splitlines() if line.startswith("prog_id:")}
    return found


def is_there(pid: int) -> bool:
    return status(pid)[:1] not in ([], ["Z"], ["X"])


def status(pid: int) -> list[str]:
    """State, parent and so on of a process; empty where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def children(pid: int) -> list[int]:
    every = (int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit())
    return [child for child in every if status(child)[1:2] == [str(pid)]]


def tracer_of(pid: int) -> int:
    """The tracer below a process: the one that holds BPF programs, through sudo or sshd or not."""
    found = [pid] if programs(pid) else []
    for child in children(pid):
        with suppress(LookupError, OSError):
            return tracer_of(child)
    if not found:
        raise LookupError(f"no tracer below process {pid}")
    return found[0]
