"""Reading kernel memory by one instruction instead of a call: `bpf_rdonly_cast()` (Linux 6.2, see bpf/memory.h).

It is a function of the kernel, not a helper: a program calls it by its number in BTF, and the call is marked as one of
this kind. Neither clang without BTF nor bcc can do so. So the C calls a helper of that number, which no helper has, and
before a load the mark is written into these calls (toolchain.py).

Whether the kernel takes it (it wants the JIT compiler, for one) is found out by loading a program that does it.
"""

from __future__ import annotations

import struct

from bpfpath_nb.kernel.layout import CAST, NUMBERED
from bpfpath_nb.kernel.structures import Types
from bpfpath_nb.tracer.syscall import is_loadable
from bpfpath_nb.tracer.toolchain import RAW_TRACEPOINT

PACKET_WORDS = 112  # bpf/packet.h
WORDS = "pt_regs"
"""The structure that all is read as: words, any part of which may be read."""


def macros(types: Types) -> dict[str, int]:
    """For the C: how to read by a cast; empty where this kernel has or takes none."""
    numbers = {name: types.type_id(name) for name in NUMBERED}
    if not all(numbers.values()) or not _is_taken(numbers[CAST], numbers[WORDS]):
        return {}
    if _words(types) < max(types.size("sk_buff") // 8 - types.offset("sk_buff", "len") // 8, PACKET_WORDS // 8):
        return {}  # what is looked at of an sk_buff, and of a packet's beginning, must lie in them
    return {"HAVE_CAST": 1, **{f"{name}__TYPE_ID": number for name, number in numbers.items()}}


def _words(types: Types) -> int:
    """How many words the structure begins with."""
    structure = types.structure(WORDS)
    fields = structure.fields.values() if structure is not None else ()
    other = (field.bit_offset // 64 for field in fields if field.bit_offset % 64 or field.bits % 64 or not field.bits)
    return min(other, default=types.size(WORDS) // 8)


def _is_taken(cast: int, words: int) -> bool:
    instructions = struct.pack(
        "=" + "BBhi" * 5,
        *(0xB7, 0x02, 0, words),  # r2 = words
        *(0x85, 0x20, 0, cast),  # r0 = cast(r1, r2)
        *(0x79, 0x00, 0, 0),  # r0 = *(u64 *)r0
        *(0xB7, 0x00, 0, 0),  # r0 = 0
        *(0x95, 0x00, 0, 0),  # exit
    )
    return is_loadable(RAW_TRACEPOINT, instructions)
