"""The kernel's own description of its types: BTF.

BTF is what `/sys/kernel/btf/vmlinux` holds. Once it is known where each type begins (`sections.py`), the types are kept
as columns (name, kind, count, reference), and questions about all of them, such as which functions take a ``struct
sk_buff *``, are array operations; only what is asked about single types (a structure's members, a prototype's spelling)
walks from type to type.

A module's BTF is *split*: its type numbers and string offsets continue those of vmlinux, which must be at hand
(`base`).

The bytes are not trusted. All lengths and references are checked, nesting and work are bounded, and what does not fit
raises `BtfError`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bpfpath_nb.errors import RequirementError
from bpfpath_nb.kernel import sections
from bpfpath_nb.kernel.sections import (
    ARRAY,
    ENUM,
    ENUM64,
    FUNC,
    FUNC_PROTO,
    FWD,
    INT,
    PTR,
    QUALIFIERS,
    REFERRING,
    STRUCT,
    TRANSPARENT,
    TYPE_TAG,
    TYPEDEF,
    UNION,
    BtfError,
    Indices,
)
from bpfpath_nb.kernel.structures import Field, Structure, Types

VMLINUX = "/sys/kernel/btf/vmlinux"

MAX_BYTES = 256 << 20  # vmlinux has 4 to 15 MB, a module at most a few
_MAX_NESTING = 32  # of types that refer to types; C of the kernel stays below 10
_MAX_FIELDS = 20_000  # of one structure; the kernel's largest have a few hundred
_POINTER_BITS = 64

Flags = npt.NDArray[np.bool_]


class Btf(Types):
    """The types of vmlinux, or of a module together with those of vmlinux (`base`)."""

    def __init__(self, data: bytes, base: Btf | None = None) -> None:
        self._words, self._strings, layout = sections.split(data)
        self._base = base
        self._first = base.count if base else 1  # number of the first type of our own; 0 is void
        self._first_string = base.string_bytes if base else 0
        self._start = sections.starts(self._words, layout)
        self._name = self._words[self._start]
        info = self._words[self._start + 1]
        self._kind = ((info >> 24) & 0x7F).astype(np.uint8)
        self._vlen = (info & 0xFFFFFF).astype(np.int64)
        self._flagged = (info >> 31).astype(bool)
        self._ref = self._words[self._start + 2].astype(np.int64)
        self._pointers: dict[str, Flags] = {}
        self._arguments: dict[str, Indices] = {}
        self._structures: dict[str, Structure | None] = {}
        # Kept because each module asks its base, by the same few names.
        self._enumerations: dict[str, dict[int, str] | None] = {}
        self._offsets: dict[str, list[int]] = {}
        self._traced: dict[str, int] | None = None
        refers = np.isin(self._kind, REFERRING)
        if bool((self._ref[refers] >= self.count).any()):
            raise BtfError("BTF is damaged: a type refers to one that does not exist.")
        if bool((self._name >= self.string_bytes).any()):
            raise BtfError("BTF is damaged: a name is outside the section of strings.")

    @classmethod
    def load(cls, path: str | Path = VMLINUX, base: Btf | None = None) -> Btf:
        """Read BTF from a file; by default that of the running kernel.

        Raises
        ------
        RequirementError
            The kernel offers no BTF; `BtfError` where it cannot be read as such.
        """
        try:
            with Path(path).open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            raise RequirementError(
                f"The kernel offers no BTF ({path} is missing), from which bpfpath_nb learns its structures. "
                "Boot a kernel built with CONFIG_DEBUG_INFO_BTF=y; the stock kernels of Debian 11, Ubuntu 20.10, "
                "Fedora 31, RHEL 8.2 and of all later releases are."
            ) from None
        except OSError as error:
            raise RequirementError(f"{path} cannot be read: {error.strerror}.") from error
        if len(data) > MAX_BYTES:
            raise BtfError(f"{path} is larger than {MAX_BYTES >> 20} MiB, which no kernel's BTF is.")
        return cls(data, base)

    @classmethod
    def from_bytes(cls, data: bytes, base: Btf | None = None) -> Btf:
        """Read BTF from memory; that of a module needs vmlinux's as its `base`. Raises `BtfError`."""
        return cls(data, base)

    @property
    def count(self) -> int:
        """Number of types, void and those of `base` included."""
        return self._first + len(self._start)

    @property
    def string_bytes(self) -> int:
        """Bytes of strings, those of `base` included."""
        return self._first_string + len(self._strings)

    # ------------------------------------------------------------------ one type

    def _at(self, number: int) -> tuple[Btf, int]:
        """Who holds type `number` (not void), and its row there."""
        if number < self._first:
            if self._base is None or number < 1:
                raise BtfError(f"BTF is damaged: type {number} is asked for where none can be.")
            return self._base._at(number)
        if number >= self.count:
            raise BtfError(f"BTF is damaged: it refers to type {number} of {self.count}.")
        return self, number - self._first

    def _string(self, offset: int) -> str:
        if offset < self._first_string and self._base is not None:
            return self._base._string(offset)
        begin = offset - self._first_string
        end = self._strings.find(b"\0", begin)
        if begin < 0 or end < 0:
            raise BtfError("BTF is damaged: a name is outside the section of strings.")
        return self._strings[begin:end].decode("ascii", "replace")

    def _offsets_of(self, name: str) -> list[int]:
        """Where a string stands; more than once where the writer of the BTF did not merge equal ones."""
        if name in self._offsets:
            return self._offsets[name]
        found = [*self._base._offsets_of(name)] if self._base else []
        wanted = name.encode() + b"\0"
        if self._strings.startswith(wanted):
            found.append(self._first_string)
        at = self._strings.find(b"\0" + wanted)
        while at >= 0 and len(found) < 1000:
            found.append(self._first_string + at + 1)
            at = self._strings.find(b"\0" + wanted, at + 1)
        self._offsets[name] = found
        return found

    def _named(self, name: str, kinds: tuple[int, ...]) -> list[int]:
        """Numbers of the types of our own that have this name and one of these kinds."""
        if not name:
            return []
        rows = np.flatnonzero(np.isin(self._name, self._offsets_of(name)) & np.isin(self._kind, kinds))
        return [int(row) + self._first for row in rows]

    def _see_through(self, number: int) -> int:
        """The type behind typedefs and qualifiers; 0 for void."""
        for _ in range(_MAX_NESTING):
            if number == 0:
                return 0
            holder, row = self._at(number)
            if holder._kind[row] not in TRANSPARENT:
                return number
            number = int(holder._ref[row])
        raise BtfError("BTF is damaged: a type is defined by itself.")

    def _bits(self, number: int) -> int:
        """Size of a type in bits."""
        factor = 1
        for _ in range(_MAX_NESTING):
            number = self._see_through(number)
            if number == 0:
                return 0
            holder, row = self._at(number)
            kind = int(holder._kind[row])
            if kind == PTR:
                return factor * _POINTER_BITS
            if kind == ARRAY:
                at = int(holder._start[row]) + 3
                number, factor = int(holder._words[at]), factor * int(holder._words[at + 2])
                continue
            return 0 if kind in (FWD, FUNC, FUNC_PROTO) else factor * int(holder._ref[row]) * 8
        raise BtfError("BTF is damaged: an array is an array of itself.")

    def _spelling(self, number: int, depth: int = 0) -> str:
        """A type as C writes it, for people and for comparing; function pointers only as ``(*)()``."""
        if number == 0:
            return "void"
        if depth > _MAX_NESTING:
            raise BtfError("BTF is damaged: a type is defined by itself.")
        holder, row = self._at(number)
        kind, name = int(holder._kind[row]), holder._string(int(holder._name[row]))
        if kind in (STRUCT, UNION, FWD):
            word = "union" if kind == UNION or (kind == FWD and holder._flagged[row]) else "struct"
            return f"{word} {name}".rstrip()
        if kind in (ENUM, ENUM64):
            return f"enum {name}".rstrip()
        if kind == PTR:
            target = self._spelling(int(holder._ref[row]), depth + 1)
            return target.replace("()", "(*)()", 1) if target.endswith("()") else f"{target} *".replace("* *", "**")
        if kind == ARRAY:
            at = int(holder._start[row]) + 3
            return f"{self._spelling(int(holder._words[at]), depth + 1)}[{int(holder._words[at + 2])}]"
        if kind == FUNC_PROTO:
            return "()"
        if kind == TYPE_TAG:
            return self._spelling(int(holder._ref[row]), depth + 1)
        if kind in QUALIFIERS:
            target = self._spelling(int(holder._ref[row]), depth + 1)
            return f"{target} {QUALIFIERS[kind]}" if target.endswith("*") else f"{QUALIFIERS[kind]} {target}"
        return name

    # ------------------------------------------------------------------ structures and enumerations

    def _members(self, holder: Btf, row: int) -> Iterator[tuple[str, int, int, int]]:
        """Name, type, bit offset and bit-field width (0 for none) of the members of a structure."""
        begin, count = int(holder._start[row]) + 3, int(holder._vlen[row])
        flagged = bool(holder._flagged[row])
        table = holder._words[begin : begin + 3 * count].reshape(-1, 3).tolist()
        for name, type_, place in table:
            if flagged:
                yield holder._string(name), type_, place & 0xFFFFFF, place >> 24
            else:
                yield holder._string(name), type_, place, 0

    def _fields(self, number: int, bit: int, fields: dict[str, Field], owner: str, depth: int = 0) -> None:
        """Collect the members of a structure and of the anonymous ones inside it."""
        if depth > _MAX_NESTING:
            raise BtfError("BTF is damaged: a structure contains itself.")
        holder, row = self._at(number)
        for name, type_, offset, width in self._members(holder, row):
            if len(fields) > _MAX_FIELDS:
                raise BtfError(f"BTF is damaged: {owner} has more members than any structure has.")
            plain = self._see_through(type_)
            inner, inner_row = self._at(plain) if plain else (self, 0)
            nested = plain != 0 and int(inner._kind[inner_row]) in (STRUCT, UNION)
            if not name:
                # A unique key counts the work, so that structures nested to explode are stopped; it goes away at the
                # end.
                fields[f"\0{len(fields)}"] = Field(0, 0, False, "")
                if nested:
                    self._fields(plain, bit + offset, fields, owner, depth + 1)
                continue
            tag = ""
            if nested:
                tag = inner._string(int(inner._name[inner_row])) or f"{owner}.{name}"
                if "." in tag:
                    self._anonymous(tag, plain)
            bits = width or self._bits(type_)
            fields.setdefault(name, Field(bit + offset, bits, width != 0, self._spelling(type_), tag))

    def _describe(self, number: int, name: str) -> Structure:
        fields: dict[str, Field] = {}
        self._fields(number, 0, fields, name)
        holder, row = self._at(number)
        return Structure(int(holder._ref[row]), {key: f for key, f in fields.items() if not key.startswith("\0")})

    def _anonymous(self, name: str, number: int) -> None:
        """Describe the type of a member that has no tag of its own, under the member's name."""
        if name not in self._structures and name.count(".") < _MAX_NESTING and len(self._structures) < _MAX_FIELDS:
            self._structures[name] = None  # first, against types that contain themselves
            self._structures[name] = self._describe(number, name)

    def structure(self, name: str) -> Structure | None:
        """See `Types.structure`."""
        if name not in self._structures:
            numbers = [n for n in self._named(name, (STRUCT, UNION)) if self._vlen[n - self._first] > 0]
            if numbers:
                self._structures[name] = self._describe(numbers[0], name)
            else:
                self._structures[name] = self._base.structure(name) if self._base else None
        return self._structures[name]

    def type_id(self, name: str) -> int:
        """See `Types.type_id`."""
        numbers = self._named(name, (STRUCT, FUNC))
        return numbers[0] if numbers else 0

    def enumeration(self, name: str) -> dict[int, str] | None:
        """See `Types.enumeration`."""
        if name not in self._enumerations:
            self._enumerations[name] = self._enumeration(name)
        return self._enumerations[name]

    def _enumeration(self, name: str) -> dict[int, str] | None:
        for number in self._named(name, (ENUM, ENUM64)):
            row = number - self._first
            begin, wide, signed = int(self._start[row]) + 3, self._kind[row] == ENUM64, bool(self._flagged[row])
            width = 3 if wide else 2
            values: dict[int, str] = {}
            for entry in self._words[begin : begin + width * int(self._vlen[row])].reshape(-1, width).tolist():
                value = entry[1] | (entry[2] << 32 if wide else 0)
                limit = 1 << (64 if wide else 32)
                values.setdefault(value - limit if signed and value >= limit // 2 else value, self._string(entry[0]))
            return values
        return self._base.enumeration(name) if self._base else None

    # ------------------------------------------------------------------ functions and tracepoints

    def _pointers_to(self, struct: str) -> Flags:
        """For every type number: is it ``struct <struct> *``, however qualified?"""
        if struct in self._pointers:
            return self._pointers[struct]
        own = len(self._start)
        inner = self._base._targets(struct) if self._base else np.zeros(1, bool)
        target = np.concatenate([inner, np.zeros(own, bool)])
        target[self._named(struct, (STRUCT, FWD))] = True
        self._spread(target)
        outer = self._base._pointers_to(struct) if self._base else np.zeros(1, bool)
        found = np.concatenate([outer, (self._kind == PTR) & target[np.where(self._kind == PTR, self._ref, 0)]])
        self._spread(found)
        self._pointers[struct], self._pointers["struct " + struct] = found, target
        return found

    def _targets(self, struct: str) -> Flags:
        self._pointers_to(struct)
        return self._pointers["struct " + struct]

    def _spread(self, flags: Flags) -> None:
        """Extend `flags` from types to the typedefs and qualified forms of them."""
        rows = np.flatnonzero(np.isin(self._kind, TRANSPARENT))
        reference = self._ref[rows]
        for _ in range(_MAX_NESTING):
            fresh = flags[reference] & ~flags[rows + self._first]
            if not fresh.any():
                return
            flags[rows[fresh] + self._first] = True

    def _argument(self, struct: str) -> Indices:
        """For every type number that is a prototype: register of the first ``struct <struct> *``; else -1."""
        if struct in self._arguments:
            return self._arguments[struct]
        inherited = self._base._argument(struct) if self._base else np.full(1, -1, np.int64)
        found = np.concatenate([inherited, np.full(len(self._start), -1, np.int64)])
        protos = np.flatnonzero((self._kind == FUNC_PROTO) & (self._vlen > 0))
        length = self._vlen[protos]
        owner = np.repeat(np.arange(len(protos)), length)
        position = np.arange(len(owner)) - np.repeat(np.cumsum(length) - length, length)
        types = self._words[self._start[protos][owner] + 4 + 2 * position].astype(np.int64)
        if len(types) and int(types.max()) >= self.count:
            raise BtfError("BTF is damaged: a parameter has a type that does not exist.")
        hits = np.flatnonzero(self._pointers_to(struct)[types])
        owners, first = np.unique(owner[hits], return_index=True)
        for index, at in zip(owners.tolist(), hits[first].tolist(), strict=True):
            before = types[at - int(position[at]) : at].tolist()
            found[int(protos[index]) + self._first] = sum(self._registers(type_) for type_ in before)
        self._arguments[struct] = found
        return found

    def _registers(self, number: int) -> int:
        """Registers that an argument takes: by value two above 8 bytes, none above 16 (System V ABI)."""
        plain = self._see_through(number)
        if plain == 0:
            return 1
        holder, row = self._at(plain)
        size = int(holder._ref[row]) if int(holder._kind[row]) in (STRUCT, UNION, INT) else 8
        return 0 if size > 16 or size == 0 else 1 + (size > 8)

    def functions_taking(self, struct: str) -> dict[str, int]:
        """See `Types.functions_taking`. Functions of our own only: a module's, not those of its `base`."""
        rows = np.flatnonzero(self._kind == FUNC)
        register = self._argument(struct)[self._ref[rows]]
        found: dict[str, int] = {}
        for row in np.flatnonzero(register >= 0).tolist():
            found.setdefault(self._string(int(self._name[rows[row]])), int(register[row]))
        return found

    def _tracepoints(self) -> dict[str, int]:
        """Number of the prototype by tracepoint, from its ``typedef void (*btf_trace_NAME)(void *, ...)``."""
        if self._traced is None:
            self._traced = {}
            for row in np.flatnonzero(self._kind == TYPEDEF).tolist():
                name = self._string(int(self._name[row]))
                if name.startswith("btf_trace_"):
                    pointer, at = self._at(self._see_through(row + self._first))
                    proto = self._see_through(int(pointer._ref[at])) if pointer._kind[at] == PTR else 0
                    if proto:
                        holder, proto_row = self._at(proto)
                        if holder._kind[proto_row] == FUNC_PROTO:
                            self._traced[name.removeprefix("btf_trace_")] = proto
        return self._traced

    def tracepoint_names(self) -> list[str]:
        """See `Types.tracepoint_names`. Of our own only."""
        return sorted(self._tracepoints())

    def tracepoint_prototype(self, name: str) -> list[str] | None:
        """See `Types.tracepoint_prototype`."""
        proto = self._tracepoints().get(name)
        if proto is None:
            return None
        holder, row = self._at(proto)
        begin = int(holder._start[row]) + 3
        types = holder._words[begin : begin + 2 * int(holder._vlen[row])].reshape(-1, 2)[1:, 1].tolist()
        return [self._spelling(type_) for type_ in types]
