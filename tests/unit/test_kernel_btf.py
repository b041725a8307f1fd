"""BTF: small ones written here, kind by kind, and damaged ones. Those of real kernels: test_kernel_facts.py."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from bpfpath_nb.errors import RequirementError
from bpfpath_nb.kernel.btf import Btf
from bpfpath_nb.kernel.sections import BtfError
from bpfpath_nb.kernel.structures import Member, MissingTypeError

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST = range(1, 11)
RESTRICT, FUNC, FUNC_PROTO, VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = range(11, 20)


class Writer:
    """Writes BTF as Documentation/bpf/btf.rst lays it out, independently of the reader under test."""

    def __init__(self, base: Writer | None = None) -> None:
        self.base = base
        self.strings = b"" if base else b"\0"
        self.types: list[bytes] = []

    @property
    def first(self) -> int:
        return self.base.first + len(self.base.types) if self.base else 1

    @property
    def first_string(self) -> int:
        return self.base.first_string + len(self.base.strings) if self.base else 0

    def name(self, text: str) -> int:
        if not text:
            return 0
        at = self.first_string + len(self.strings)
        self.strings += text.encode() + b"\0"
        return at

    def add(self, kind: int, name: str, third: int, *rest: int, vlen: int = 0, flag: bool = False) -> int:
        info = kind << 24 | vlen | flag << 31
        self.types.append(struct.pack(f"<{3 + len(rest)}I", self.name(name), info, third, *rest))
        return self.first + len(self.types) - 1

    def integer(self, name: str = "int", size: int = 4) -> int:
        return self.add(INT, name, size, size * 8)

    def structure(
        self, name: str, size: int, *members: tuple[str, int, int], kind: int = STRUCT, flag: bool = False
    ) -> int:
        """Members as (name, type, bit offset); with `flag` the width of a bit-field is in the upper byte."""
        words = [word for label, type_, place in members for word in (self.name(label), type_, place)]
        return self.add(kind, name, size, *words, vlen=len(members), flag=flag)

    def prototype(self, *arguments: int) -> int:
        return self.add(FUNC_PROTO, "", 0, *(w for a in arguments for w in (0, a)), vlen=len(arguments))

    def bytes(self, layout: bytes = b"") -> bytes:
        types = b"".join(self.types)
        header = 32 if layout else 24
        head = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, header, 0, len(types), len(types), len(self.strings))
        tail = struct.pack("<II", len(types) + len(self.strings), len(layout)) if layout else b""
        return head + tail + types + self.strings + layout

    def read(self, base: Btf | None = None) -> Btf:
        return Btf.from_bytes(self.bytes(), base)


def packets(writer: Writer) -> tuple[int, int]:
    """A `struct sk_buff` and a pointer to it."""
    number = writer.integer()
    skb = writer.structure("sk_buff", 8, ("len", number, 0), ("mark", number, 32))
    return skb, writer.add(PTR, "", skb)


def test_offset_goes_through_anonymous_and_named_structures() -> None:
    writer = Writer()
    number = writer.integer()
    leaf = writer.structure("leaf", 8, ("a", number, 0), ("b", number, 32))
    anonymous = writer.structure("", 8, ("x", number, 0), ("y", number, 32))
    union = writer.structure("", 8, ("", anonymous, 0), ("z", number, 0), kind=UNION)
    alias = writer.add(TYPEDEF, "leaf_t", leaf)
    untagged = writer.structure("", 8, ("pad", number, 0), ("net", number, 32))
    writer.structure("outer", 32, ("first", number, 0), ("", union, 64), ("inner", alias, 128), ("id", untagged, 192))
    btf = writer.read()

    paths = ("first", "y", "z", "inner", "inner.b", "id.net")
    assert [btf.offset("outer", path) for path in paths] == [0, 12, 8, 16, 20, 28]
    assert btf.size("outer") == 32
    assert btf.has("outer", "x")
    assert not btf.has("outer", "pad")
    assert not btf.has("outer", "first.x")
    with pytest.raises(MissingTypeError, match=r"outer\.inner\.c"):
        btf.offset("outer", "inner.c")
    with pytest.raises(MissingTypeError, match="nothing"):
        btf.size("nothing")


def test_bit_fields_say_where_to_read_and_how_far_to_shift() -> None:
    writer = Writer()
    byte = writer.integer("unsigned char", 1)
    members = [("plain", byte, 0), ("one", byte, 9 | 1 << 24), ("three", byte, 13 | 3 << 24)]
    members.append(("across", byte, 22 | 4 << 24))
    writer.structure("flags", 4, *members, flag=True)
    btf = writer.read()

    assert btf.member("flags", "plain") == Member(offset=0, shift=0, bits=8, size=1)
    assert btf.member("flags", "one") == Member(offset=1, shift=1, bits=1, size=1)
    assert btf.member("flags", "three") == Member(offset=1, shift=5, bits=3, size=1)
    assert btf.member("flags", "across") == Member(offset=2, shift=6, bits=4, size=2)


def test_enumerations_narrow_signed_and_wide() -> None:
    writer = Writer()
    names = [writer.name(n) for n in ("ZERO", "ONE", "ALSO_ONE", "MINUS")]
    writer.add(ENUM, "plain", 4, names[0], 0, names[1], 1, names[2], 1, vlen=3)
    writer.add(ENUM, "signed", 4, names[3], 0xFFFFFFFF, vlen=1, flag=True)
    writer.add(ENUM64, "wide", 8, names[1], 1, 2, vlen=1)
    btf = writer.read()

    assert btf.enum("plain") == {0: "ZERO", 1: "ONE"}
    assert btf.enum("signed") == {-1: "MINUS"}
    assert btf.enum("wide") == {(2 << 32) + 1: "ONE"}
    assert btf.enumeration("none") is None


def test_functions_that_take_a_packet_however_it_is_qualified() -> None:
    writer = Writer()
    skb, pointer = packets(writer)
    number = writer.integer("long", 8)
    const = writer.add(PTR, "", writer.add(CONST, "", writer.add(VOLATILE, "", skb)))
    named = writer.add(TYPEDEF, "skb_t", writer.add(CONST, "", pointer))
    double = writer.add(PTR, "", pointer)
    by_value = writer.structure("sockptr_t", 16, ("p", pointer, 0), ("k", number, 64))
    huge = writer.structure("huge", 24, ("a", number, 0))
    for name, arguments in {
        "first": (pointer,),
        "second": (number, const, pointer),
        "typedefed": (number, number, named),
        "pointer_to_pointer": (double,),
        "after_a_structure": (by_value, pointer),
        "after_a_huge_one": (number, huge, pointer),
        "none": (number,),
        "nothing": (),
    }.items():
        writer.add(FUNC, name, writer.prototype(*arguments), vlen=1)

    # A structure of 16 bytes by value takes two registers, one of 24 none (System V ABI for x86-64).
    assert writer.read().functions_taking("sk_buff") == {
        "first": 0, "second": 1, "typedefed": 2, "after_a_structure": 2, "after_a_huge_one": 1,
    }  # fmt: skip


def test_tracepoints_are_known_by_their_typedef() -> None:
    writer = Writer()
    skb, pointer = packets(writer)
    anything = writer.add(PTR, "", 0)
    reason = writer.add(ENUM, "skb_drop_reason", 4)
    const = writer.add(PTR, "", writer.add(CONST, "", skb))
    proto = writer.prototype(anything, anything, const, reason, writer.add(ARRAY, "", 0, reason, reason, 3))
    writer.add(TYPEDEF, "btf_trace_made_up", writer.add(PTR, "", proto))
    writer.add(TYPEDEF, "btf_trace_without", writer.add(PTR, "", writer.prototype(anything)))
    writer.add(TYPEDEF, "btf_trace_odd", anything)
    btf = writer.read()

    assert btf.tracepoint_arguments("made_up") == [
        "void *", "const struct sk_buff *", "enum skb_drop_reason", "enum skb_drop_reason[3]",
    ]  # fmt: skip
    assert btf.tracepoint_names() == ["made_up", "without"]
    assert btf.tracepoints_taking("sk_buff") == {"made_up": 1}
    assert pointer
    with pytest.raises(MissingTypeError, match="odd"):
        btf.tracepoint_arguments("odd")


def test_a_module_continues_the_numbers_and_strings_of_its_base() -> None:
    base_writer = Writer()
    _, pointer = packets(base_writer)
    proto = base_writer.prototype(pointer)
    module = Writer(base_writer)
    number = module.integer("u64", 8)
    module.add(FUNC, "of_base_prototype", proto, vlen=1)
    module.add(FUNC, "of_own_prototype", module.prototype(number, module.add(CONST, "", pointer)), vlen=1)
    module.structure("nf_conn", 16, ("status", number, 64))
    base = base_writer.read()
    btf = module.read(base)

    assert btf.functions_taking("sk_buff") == {"of_base_prototype": 0, "of_own_prototype": 1}
    assert base.functions_taking("sk_buff") == {}
    assert btf.offset("nf_conn", "status") == 8
    assert btf.offset("sk_buff", "mark") == 4
    assert not base.has("nf_conn")


def test_kinds_of_the_future_are_stepped_over_by_the_table_in_the_header() -> None:
    writer = Writer()
    writer.add(25, "new", 0, 1, 2, 3, 4, 5, vlen=2)  # 4 bytes once, 8 for each of two
    _, pointer = packets(writer)
    writer.add(FUNC, "after", writer.prototype(pointer), vlen=1)
    layout = bytearray(26 * 4)
    layout[25 * 4 : 25 * 4 + 2] = bytes([4, 8])

    assert Btf.from_bytes(writer.bytes(bytes(layout))).functions_taking("sk_buff") == {"after": 0}
    with pytest.raises(BtfError):
        writer.read()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "truncated"),
        (b"\x9f\xeb\x01", "truncated"),
        (b"\xeb\x9f" + bytes(40), "big-endian"),
        (b"\x7fELF" + bytes(40), "not BTF"),
        (struct.pack("<HBBIIIII", 0xEB9F, 2, 0, 24, 0, 0, 0, 0), "version 2"),
        (struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, 4096, 0, 0), "truncated"),
        (struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, 0, 0xFFFFFFF0, 0xFFFFFFF0), "truncated"),
        (struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 0, 0, 0, 0, 0), "damaged header"),
    ],
)
def test_what_is_no_btf_is_refused_with_the_reason(data: bytes, message: str) -> None:
    with pytest.raises(BtfError, match=message) as caught:
        Btf.from_bytes(data)
    assert isinstance(caught.value, RequirementError)
    assert isinstance(caught.value, ValueError)


def test_types_that_contain_themselves_end() -> None:
    writer = Writer()
    writer.add(TYPEDEF, "loop", 1)
    writer.structure("itself", 8, ("", 2, 0))
    writer.structure("array", 8, ("a", 4, 0))
    writer.add(ARRAY, "", 0, 4, 4, 2)
    writer.add(PTR, "", 5)
    writer.structure("spelled", 8, ("p", 5, 0))
    btf = writer.read()
    for name in ("itself", "array", "spelled"):
        with pytest.raises(BtfError, match="damaged"):
            btf.structure(name)


def test_structures_nested_to_explode_are_stopped() -> None:
    writer = Writer()
    number = writer.integer()
    inner = writer.structure("", 4, ("a", number, 0))
    for _ in range(20):  # each has ten of the one before: 10 to the 20th members
        inner = writer.structure("", 4, *[("", inner, 0)] * 10)
    writer.structure("bomb", 4, ("", inner, 0))
    with pytest.raises(BtfError, match="more members"):
        writer.read().structure("bomb")


def test_any_damage_gives_an_error_of_ours_or_none() -> None:
    writer = Writer()
    skb, pointer = packets(writer)
    writer.structure("net", 16, ("ns", skb, 0), ("id", pointer, 64))
    writer.add(ENUM, "skb_drop_reason", 4, writer.name("X"), 1, vlen=1)
    proto = writer.prototype(pointer, skb)
    writer.add(FUNC, "f", proto, vlen=1)
    writer.add(TYPEDEF, "btf_trace_t", writer.add(PTR, "", proto))
    good = writer.bytes()
    chance = random.Random(7)
    outcomes = set()
    for _ in range(4000):
        data = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.choice((0, 1, 0xFF, chance.randrange(256)))
        if chance.random() < 0.2:
            del data[chance.randrange(len(data)) :]
        try:
            btf = Btf.from_bytes(bytes(data))
            btf.functions_taking("sk_buff")
            btf.tracepoints_taking("sk_buff")
            btf.enumeration("skb_drop_reason")
            btf.member("net", "ns.mark")
            outcomes.add("read")
        except RequirementError as error:
            outcomes.add(type(error).__name__)
    assert outcomes == {"read", "BtfError", "MissingTypeError"}


def test_a_kernel_without_btf_gets_advice(tmp_path: Path) -> None:
    with pytest.raises(RequirementError, match="CONFIG_DEBUG_INFO_BTF"):
        Btf.load(tmp_path / "vmlinux")
