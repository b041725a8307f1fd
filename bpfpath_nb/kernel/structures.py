"""What can be asked of a kernel's types, whoever answers.

Two things know the types of a kernel: its BTF, which has all of them (`btf.Btf`), and a small record of the ones we
use, kept in a cache or in a test fixture (`reduced.ReducedTypes`). Both describe a structure in the same flat form, and
everything that is asked about structures is computed here from that form, so that a question has one answer.

The flat form. A C structure has members without a name: anonymous structures and unions, whose members are reached as
if they were the outer structure's own. They are folded into their parent here. A named member whose own type is a
structure keeps the name under which that structure is described, and a path such as ``__sk_common.skc_net.net`` walks
from one to the next, adding offsets. A path never crosses a pointer: what is behind it has no fixed distance.

::

    struct sock                         structure("sock")
      struct sock_common __sk_common      "__sk_common" at bit 0, structure "sock_common"
                                        structure("sock_common")
        possible_net_t skc_net            "skc_net" at bit 384, structure "sock_common.skc_net" (its type has no tag of
        its own)
                                        structure("sock_common.skc_net")
          struct net *net                   "net" at bit 0, type "struct net *"
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

from bpfpath_nb.errors import RequirementError


class MissingTypeError(RequirementError, LookupError):
    """A structure, member, enumeration or tracepoint that this kernel does not have."""


class Field(NamedTuple):
    """One member of a structure, anonymous levels folded away.

    Attributes
    ----------
    bit_offset : int
        From the start of the structure, in bits.
    bits : int
        Width in bits.
    bitfield : bool
        Declared with a width (``u8 cloned:1``).
    type : str
        C spelling, ``"struct sk_buff *"``.
    structure : str
        Where the type is a structure or union: the name to describe it by; else empty.
    """

    bit_offset: int
    bits: int
    bitfield: bool
    type: str
    structure: str = ""


class Structure(NamedTuple):
    """Size in bytes, and the members by name."""

    size: int
    fields: Mapping[str, Field]


class Member(NamedTuple):
    """Where a member is, ready to be read.

    Attributes
    ----------
    offset : int
        Byte at which to start reading, from the start of the outermost structure.
    shift : int
        Bits to shift what was read to the right (little-endian); 0 unless a bit-field.
    bits : int
        Width of the value in bits.
    size : int
        Bytes to read: 1, 2, 4 or 8 for a bit-field, the whole member otherwise.
    """

    offset: int
    shift: int
    bits: int
    size: int


_POINTER_TO = re.compile(r"(?:const )?struct (\w+) \*")


class Types(ABC):
    """Questions about a kernel's types. All names are C names, without ``struct`` or ``enum``."""

    @abstractmethod
    def structure(self, name: str) -> Structure | None:
        """The structure in its flat form, or None where the kernel has none of that name."""

    @abstractmethod
    def enumeration(self, name: str) -> dict[int, str] | None:
        """Names by value of an enumeration, or None. Where two names share a value the first wins."""

    @abstractmethod
    def type_id(self, name: str) -> int:
        """The number of a structure or function of `layout.NUMBERED`; 0 where the kernel has none of that name."""

    @abstractmethod
    def functions_taking(self, struct: str) -> dict[str, int]:
        """Functions with an argument ``struct <struct> *``, and the register (0-based) of the first such argument."""

    @abstractmethod
    def tracepoint_names(self) -> list[str]:
        """All tracepoints, in alphabetical order."""

    @abstractmethod
    def tracepoint_prototype(self, name: str) -> list[str] | None:
        """Types of a tracepoint's arguments, or None where there is no such tracepoint."""

    def member(self, struct: str, path: str) -> Member:
        """Where a member is; `path` may lead through nested structures (``"ns.inum"``).

        Raises
        ------
        MissingTypeError
            There is no such structure or member.
        """
        owner, bit = struct, 0
        field: Field | None = None
        for name in path.split("."):
            described = self.structure(owner) if owner else None
            if described is None:
                raise MissingTypeError(
                    f"This kernel's BTF has no structure to look for '{name}' of {struct}.{path} in."
                )
            field = described.fields.get(name)
            if field is None:
                raise MissingTypeError(f"This kernel's BTF has no member '{name}' of {struct}.{path}.")
            owner, bit = field.structure, bit + field.bit_offset
        assert field is not None  # split() gives at least one name
        if not field.bitfield:
            return Member(bit // 8, 0, field.bits, field.bits // 8)
        start, shift = divmod(bit, 8)
        size = next((s for s in (1, 2, 4, 8) if shift + field.bits <= s * 8), 16)
        return Member(start, shift, field.bits, size)

    def offset(self, struct: str, path: str) -> int:
        """Bytes from the start of `struct` to a member that begins on a byte. Raises `MissingTypeError`."""
        return self.member(struct, path).offset

    def has(self, struct: str, path: str | None = None) -> bool:
        """Whether the kernel has the structure, and in it the member."""
        if path is None:
            return self.structure(struct) is not None
        try:
            self.member(struct, path)
        except MissingTypeError:
            return False
        return True

    def size(self, struct: str) -> int:
        """Size of a structure in bytes. Raises `MissingTypeError`."""
        described = self.structure(struct)
        if described is None:
            raise MissingTypeError(f"This kernel's BTF has no struct {struct}.")
        return described.size

    def enum(self, name: str) -> dict[int, str]:
        """Names by value of an enumeration. Raises `MissingTypeError`."""
        values = self.enumeration(name)
        if values is None:
            raise MissingTypeError(f"This kernel's BTF has no enum {name}.")
        return values

    def tracepoint_arguments(self, name: str) -> list[str]:
        """Types of what a tracepoint passes, in order, ``["struct sk_buff *", "void *", "enum skb_drop_reason"]``.

        The position in the list is the index in a raw tracepoint's ``ctx->args``. Raises `MissingTypeError`.
        """
        prototype = self.tracepoint_prototype(name)
        if prototype is None:
            raise MissingTypeError(f"This kernel's BTF has no tracepoint {name}.")
        return prototype

    def tracepoints_taking(self, struct: str) -> dict[str, int]:
        """Tracepoints that pass a ``struct <struct> *``, and the position (0-based) of the first such argument."""
        found = {}
        for name in self.tracepoint_names():
            for position, type_ in enumerate(self.tracepoint_arguments(name)):
                match = _POINTER_TO.fullmatch(type_)
                if match and match[1] == struct:
                    found[name] = position
                    break
        return found
