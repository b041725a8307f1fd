"""Python's folders as one file, so that an emulated machine can import from it quickly.

Importing pandas opens some thousand files. A virtual machine that shows the host's files through 9p asks the
host for each of them several times over, and where the processor is emulated each question is slow. The same
files in a squashfs image on a virtual disk are read by the guest's kernel alone, in little more than half the
time. Making the image takes some 20 seconds, and it serves until one of its files changes.

Into it go the environment of this Python (`sys.prefix`), its standard library, and the distribution's bcc with the
compiler libraries below it. The guest puts them in the places of the host's (`guest.sh`). Parts of those that are left
out of the image (tests of the standard library, packages of the interpreter that an environment was made from) are the
host's own there.

Measured on 6.12, emulated, in seconds of the host's CPU: `import pandas` 17 to 20 from the image, 18 to 33 through 9p
with cache=loose.

Images are kept in ``$XDG_CACHE_HOME/bpfpath_nb/packs``, one for each environment. Without mksquashfs there are none;
everything works as well, but slower.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bpfpath_nb.lab import kernels

_MOST = 4 << 30
"""Bytes of files beyond which packing would take longer than it saves."""
_BCC = ("usr/lib/python3/dist-packages/bcc",)
_LIBRARIES = ("libbcc.so.*", "libbpf.so.*", "libLLVM*.so.*", "libclang-cpp.so.*")


@dataclass(frozen=True)
class Pack:
    """An image that is open, and what it stands for. `image` is good for children that inherit `descriptor`."""

    descriptor: int
    paths: tuple[str, ...]
    left_out: tuple[str, ...]
    """Below `paths`, but not in the image."""

    @property
    def image(self) -> str:
        # Open, so nobody who makes a newer one and removes this can pull it away from under a machine.
        return f"/proc/self/fd/{self.descriptor}"


@contextlib.contextmanager
def packed() -> Iterator[Pack | None]:
    """The image for this Python, made where there is none or it is out of date; None where it cannot be made."""
    paths = contents()
    tool = shutil.which("mksquashfs", path=kernels.search_path())
    image = _image(tool, paths) if tool else None
    if image is None:
        yield None
        return
    with image.open("rb") as file:
        yield Pack(file.fileno(), tuple(paths), tuple(filter(os.path.exists, _left_out())))


def contents() -> list[str]:
    """The folders and files to pack, none within another."""
    wanted = [Path(sys.prefix), Path(sysconfig.get_path("stdlib"))]
    wanted += [Path("/") / name for name in _BCC]
    libraries = Path("/usr/lib") / str(sysconfig.get_config_var("MULTIARCH") or "x86_64-linux-gnu")
    wanted += [path for pattern in _LIBRARIES for path in libraries.glob(pattern)]
    return outermost(path.resolve() for path in wanted if path.exists())


def outermost(paths: Iterable[Path]) -> list[str]:
    """Paths without those that lie within another, and without what stands for a whole system."""
    ordered = sorted({path for path in paths if path not in (Path("/"), Path("/usr"), Path("/usr/local"))})
    return [str(path) for path in ordered if not any(parent in ordered for parent in path.parents)]


def _left_out() -> list[str]:
    library = Path(sysconfig.get_path("stdlib")).resolve()
    names = ["test", "idlelib"]
    if sys.prefix != sys.base_prefix:
        names.append("site-packages")  # of the interpreter that the environment was made from
    return [str(library / name) for name in names]


def fingerprint(paths: Iterable[str], left_out: Iterable[str]) -> tuple[str, int]:
    """A word that changes when any file below the paths does (name, size or time), and the bytes they hold."""
    digest, total = hashlib.sha256(), 0
    skipped = set(left_out)
    # os.scandir and plain strings: 30,000 files take half a second so, and three as Path objects.
    for top in paths:
        waiting = [top]
        while waiting:
            path = waiting.pop()
            if path in skipped:
                continue
            state = os.lstat(path)
            line = f"{path}\0{state.st_mode}\0{state.st_size}\0{state.st_mtime_ns}\0"
            digest.update(line.encode(errors="surrogateescape"))
            total += state.st_size
            if stat.S_ISDIR(state.st_mode):
                with os.scandir(path) as entries:
                    waiting += sorted(entry.path for entry in entries)
    return digest.hexdigest()[:16], total


def _image(tool: str, paths: list[str]) -> Path | None:
    left_out = _left_out()
    folder = kernels.cache().parent / "packs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        content, size = fingerprint(paths, left_out)
        owner = hashlib.sha256("\0".join(paths).encode(errors="surrogateescape")).hexdigest()[:8]
        image = folder / f"{owner}-{content}.squashfs"
        if image.exists():
            return image
        if size > _MOST or shutil.disk_usage(folder).free < size:
            return None
        if sys.stderr.isatty():
            print("bpfpath: packing Python's folders for the guest (once until they change)", file=sys.stderr)
        with tempfile.TemporaryDirectory(prefix=".packing-", dir=folder) as draft:
            made = Path(draft) / "image"
            excluded = ["-e", *(path.lstrip("/") for path in left_out)]
            command = [tool, *paths, str(made), "-no-strip", "-comp", "lz4", "-no-progress", "-quiet", *excluded]
            if subprocess.run(command, capture_output=True, check=False).returncode:
                return None  # older than 4.5, which has no -no-strip
            made.rename(image)
        for old in folder.glob(f"{owner}-*.squashfs"):
            if old != image:
                old.unlink(missing_ok=True)
    except OSError:
        return None  # no room, or a file that went away: it is only about speed
    return image
