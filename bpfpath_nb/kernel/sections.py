"""The sections of BTF, and where in them each type begins.

BTF is a header, a section of types, a section of strings (Documentation/bpf/btf.rst). A type has no stored number; the
first in the section is type 1, the next type 2, and each is as long as its kind and its count of members make it:

::

    word 0        word 1 (info)                 word 2          then, by kind
    name offset   kind flag | kind | vlen       size or type    members, parameters, enumerators ...

So to know where type 100,000 is one must have walked over the 99,999 before it, and a kernel has about 130,000. Done
type by type in Python that takes a noticeable part of a second, and many seconds in an emulated guest. Here the length
that a type *would* have is computed for every 4-byte word at once, as one array; the walk that is left only adds
numbers.

In the header of newer kernels (7.x) a table may give the lengths of kinds that were unknown when a reader was written;
it is used. Of the info word, kind is read with 7 bits and vlen with 24, as newer kernels define them; on older ones the
extra bits are 0.
"""

from __future__ import annotations

import struct as binary
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bpfpath_nb.errors import RequirementError

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST = range(1, 11)
RESTRICT, FUNC, FUNC_PROTO, VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(11, 20)

_KINDS = 128
_FIXED_WORDS = {INT: 1, ARRAY: 3, VAR: 1, DECL_TAG: 1}  # after the three that all types have
_WORDS_EACH = {STRUCT: 3, UNION: 3, ENUM: 2, FUNC_PROTO: 2, DATASEC: 3, ENUM64: 3}  # for each member, parameter, ...
REFERRING = (PTR, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, VAR, DECL_TAG, TYPE_TAG)
TRANSPARENT = (TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG)  # the same value, seen through
QUALIFIERS = {CONST: "const", VOLATILE: "volatile", RESTRICT: "restrict"}

Words = npt.NDArray[np.uint32]
Indices = npt.NDArray[np.int64]


class BtfError(RequirementError, ValueError):
    """BTF that is damaged, truncated, or of a kind that cannot be read."""


class Sections(NamedTuple):
    """Types as 4-byte words, strings, and the table of the lengths of kinds (4 bytes each; mostly empty)."""

    words: Words
    strings: bytes
    layout: bytes


def split(data: bytes) -> Sections:
    """Find the sections and check that they are there. Raises `BtfError`."""
    if len(data) < 24:
        raise BtfError(f"BTF of {len(data)} bytes is shorter than its header; the file is truncated.")
    if data[:2] == b"\xeb\x9f":
        raise BtfError("This BTF is big-endian; bpfpath_nb reads the BTF of little-endian machines only.")
    magic, version, _flags, header, type_off, type_len, str_off, str_len = binary.unpack_from("<HBBIIIII", data)
    if magic != 0xEB9F:
        raise BtfError(f"This is not BTF: it starts with {data[:2].hex()} instead of 9feb.")
    if version != 1:
        raise BtfError(f"BTF version {version} is unknown; bpfpath_nb reads version 1.")
    layout_off, layout_len = binary.unpack_from("<II", data, 24) if 32 <= header <= len(data) else (0, 0)
    for what, start, length in (
        ("types", type_off, type_len),
        ("strings", str_off, str_len),
        ("kinds", layout_off, layout_len),
    ):
        if header + start + length > len(data):
            raise BtfError(f"BTF is truncated: its section of {what} ends after the file.")
    if header < 24 or type_len % 4 or type_off % 4:
        raise BtfError("BTF has a damaged header.")
    begin = header + str_off
    strings = data[begin : begin + str_len]
    if strings and strings[-1]:
        raise BtfError("BTF has a section of strings that does not end with one.")
    words = np.frombuffer(data, "<u4", type_len // 4, header + type_off)
    return Sections(words, strings, data[header + layout_off : header + layout_off + layout_len])


def starts(words: Words, layout: bytes) -> Indices:
    """Index of the first word of each type. Raises `BtfError` where the types do not fill their section."""
    count = len(words)
    if count == 0:
        return np.empty(0, np.int64)
    if count < 3:
        raise BtfError("BTF is truncated in its only type.")
    known = np.zeros(_KINDS, bool)
    known[1 : ENUM64 + 1] = True
    fixed, each = np.full(_KINDS, 3, np.int32), np.zeros(_KINDS, np.int32)
    for kind, length in _FIXED_WORDS.items():
        fixed[kind] += length
    for kind, length in _WORDS_EACH.items():
        each[kind] = length
    # Kinds newer than this code, by the table in the header: 4 bytes each, bytes after the first three words, bytes for
    # each member.
    for kind in range(ENUM64 + 1, min(_KINDS, len(layout) // 4)):
        after, member = layout[kind * 4], layout[kind * 4 + 1]
        if after % 4 == 0 and member % 4 == 0:
            known[kind] = True
            fixed[kind] += after // 4
            each[kind] = member // 4
    info = words[1:-1]
    kinds = (info >> 24) & 0x7F
    lengths = fixed[kinds]
    counted = np.flatnonzero(each[kinds])
    lengths[counted] += each[kinds[counted]] * (info[counted] & 0xFFFFFF).astype(np.int32)

    length_at = memoryview(lengths)
    begins: list[int] = []
    append, at, last = begins.append, 0, count - 2
    while at < last:
        append(at)
        at += length_at[at]
    if at != count:
        raise BtfError("BTF is damaged: its types do not fill their section.")
    found = np.array(begins, np.int64)
    strange = found[~known[kinds[found]]]
    if len(strange):
        raise BtfError(
            f"BTF has a type of unknown kind {int(kinds[strange[0]])}; bpfpath_nb is older than this kernel."
        )
    return found
