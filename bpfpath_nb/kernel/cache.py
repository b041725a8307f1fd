"""What was learnt of a kernel, kept on disk for the next start.

A kernel's BTF never changes, and its build id (the GNU build-id note) tells it from every other build. So the reduced
types (`reduced.reduce`) are kept in one file a kernel, ``$XDG_CACHE_HOME/bpfpath_nb/kernel-<build id>.json``, with
those of its modules under the modules' own build ids. Reading that file takes a few milliseconds; parsing BTF takes 20
times as long.

The reader is the tracer, which is root, and offsets from this file decide which kernel memory is read. So a file that
anybody else could have written is not used: it must belong to the reading user and be writable by nobody else, and so
must its folder; symbolic links are not followed. Whatever else is wrong with it (damaged, of another version, too
large) only means that BTF is parsed again. Writing is atomic, and where it fails the result is simply not kept.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
import struct as binary
import tempfile
import zlib
from pathlib import Path
from typing import Any

from bpfpath_nb.kernel import layout, reasons

NOTES = "/sys/kernel/notes"
MAX_BYTES = 32 << 20

# A file made for another list of structures, or by other code, is not used. Count up when `reduced.reduce` changes.
_VERSION = [3, zlib.crc32(repr((layout.STRUCTURES, layout.NUMBERED, reasons.ENUMS)).encode())]
_BUILD_ID = re.compile(r"[0-9a-f]{8,128}")


def build_id(path: str | Path = NOTES) -> str:
    """The build id of the kernel, or of a module from its note, in hexadecimal; empty where there is none.

    Notes are records of name, number and content (elf(5)); the build id is number 3 of the name ``GNU``.
    """
    try:
        data = Path(path).read_bytes()[: 1 << 16]
    except OSError:
        return ""
    at = 0
    while at + 12 <= len(data):
        name_size, size, kind = binary.unpack_from("<III", data, at)
        name_at, content_at = at + 12, at + 12 + (name_size + 3) // 4 * 4
        if kind == 3 and data[name_at : name_at + name_size] == b"GNU\0" and 4 <= size <= 64:
            return data[content_at : content_at + size].hex()
        at = content_at + (size + 3) // 4 * 4
    return ""


def folder() -> Path | None:
    """Where the cache is; None where there is no home to keep it in."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not base.startswith("/"):
        try:
            base = str(Path.home() / ".cache")
        except RuntimeError:
            return None
    return Path(base) / "bpfpath_nb"


def load(build: str) -> dict[str, Any]:
    """What was kept for the kernel of this build id; empty where nothing was, or nothing that can be trusted."""
    place = folder()
    if place is None or not _BUILD_ID.fullmatch(build):
        return {}
    try:
        if not _ours(os.lstat(place), stat.S_ISDIR):
            return {}
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = os.open(place / f"kernel-{build}.json", flags)
        with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor, not a path
            about = os.fstat(descriptor)
            if not _ours(about, stat.S_ISREG) or about.st_size > MAX_BYTES:
                return {}
            kept = json.loads(file.read(MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(kept, dict) or kept.get("version") != _VERSION or kept.get("build_id") != build:
        return {}
    return kept


def _ours(about: os.stat_result, is_kind: Any) -> bool:
    return bool(is_kind(about.st_mode)) and about.st_uid == os.geteuid() and not about.st_mode & 0o022


def store(build: str, content: dict[str, Any]) -> bool:
    """Keep `content` for the kernel of this build id. Returns whether that worked; a full disk is no error."""
    place = folder()
    if place is None or not _BUILD_ID.fullmatch(build):
        return False
    data = json.dumps({**content, "version": _VERSION, "build_id": build}, separators=(",", ":")).encode()
    temporary = ""
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _ours(os.lstat(place), stat.S_ISDIR):
            return False
        descriptor, temporary = tempfile.mkstemp(prefix=".kernel-", dir=place)  # mode 0600
        with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor, not a path
            file.write(data)
        Path(temporary).replace(place / f"kernel-{build}.json")
    except OSError:
        if temporary:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
        return False
    return True
