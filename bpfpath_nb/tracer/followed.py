"""The packets that are followed, as the kernel side keeps them (bpf/skb_map.h): buffers and paths.

Most have a place of their own in an array that is mapped here, and read as any memory is. What was crowded out of it
is in a hash table, which is read in batches.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from bpfpath_nb.tracer.syscall import MAP_LOOKUP_BATCH, bpf_in_place
from bpfpath_nb.tracer.toolchain import Program

SLOTS_BITS = 14
"""How many packets have a place of their own, as a power of two."""
MMAPABLE = 1 << 10
"""The flag of a map that user space may map (BPF_F_MMAPABLE; kernel 5.5)."""
BUSY = 1

BATCH = 4096
LONGEST_LOOK = 16
"""Batches at most in one look; skb_map has no more entries."""


def path_dtype(size: int) -> np.dtype[np.void]:
    """What all kernels have of `struct path` (bpf/skb_map.h); so many bytes it has on this one."""
    fields = [
        *((name, "u8") for name in ("flow", "skb", "seen", "dev")),
        *((name, "u4") for name in ("parent", "entered", "packet", "pid", "netns", "ifindex", "len", "mark", "parted")),
        *((name, "u2") for name in ("snapshot", "func", "kind")),
        *((name, "u1") for name in ("link", "protocol")),
    ]
    offsets = np.cumsum([0, *(np.dtype(kind).itemsize for _, kind in fields)])[:-1].tolist()
    names, formats = zip(*fields, strict=True)
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": size})


class Followed:
    """The maps of one capture.

    Parameters
    ----------
    program
        The compiled unit, which has them.
    """

    def __init__(self, program: Program) -> None:
        self._crowded = program.map("skb_map")
        self._path = path_dtype(ctypes.sizeof(self._crowded.Leaf))
        self._memory: mmap.mmap | None = None
        self._slots: npt.NDArray[np.void] = np.zeros(0, self._slot)
        with suppress(KeyError):  # kernels before 5.12 have the table alone
            slots = program.map("slots")
            self._memory = mmap.mmap(slots.map_fd, ctypes.sizeof(slots.Leaf))
            self._slots = np.frombuffer(self._memory, self._slot)

    @property
    def _slot(self) -> np.dtype[np.void]:
        return np.dtype([("head", "u8"), ("path", self._path)])

    def rows(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.void]]:
        """Buffers, and their packets' paths (`path_dtype`)."""
        taken = self._slots[self._slots["head"] > BUSY]
        taken = taken[taken["head"] > BUSY]  # those that were given back while they were copied
        heads, paths = [taken["head"]], [taken["path"]]
        keys, values = np.zeros(BATCH, np.uint64), np.zeros(BATCH, self._path)
        position = ctypes.c_uint32()
        following = ctypes.c_uint32()
        for number in range(LONGEST_LOOK):
            request = struct.pack(
                "=QQQQIIQQ",
                ctypes.addressof(position) if number else 0,
                ctypes.addressof(following),
                keys.ctypes.data,
                values.ctypes.data,
                BATCH,
                self._crowded.map_fd,
                0,
                0,
            )
            attributes = ctypes.create_string_buffer(request, len(request))
            last = False
            try:
                bpf_in_place(MAP_LOOKUP_BATCH, attributes)
            except FileNotFoundError:  # the end of the map; the last elements are there all the same
                last = True
            count = struct.unpack_from("=I", attributes, 32)[0]
            heads.append(keys[:count].copy())
            paths.append(values[:count].copy())
            if last:
                break
            position.value = following.value
        return np.concatenate(heads), np.concatenate(paths)

    def clear(self) -> None:
        """Follow nobody."""
        self._slots["head"] = 0
        self._crowded.clear()

    def close(self) -> None:
        """Unmap."""
        self._slots = np.zeros(0, self._slot)
        if self._memory is not None:
            with suppress(BufferError):  # somebody holds a part of it; it goes with that
                self._memory.close()
