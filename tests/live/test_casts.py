"""Reading kernel memory by a cast (Linux 6.2) gives what reading by a call does."""

from __future__ import annotations

import ctypes
import platform

import pytest

from bpfpath_nb.kernel import layout
from bpfpath_nb.kernel.btf import Btf
from bpfpath_nb.kernel.reduced import ReducedTypes, reduce
from bpfpath_nb.tracer import casts, cost, source
from bpfpath_nb.tracer.toolchain import SCHED_CLS, Program

NUMBERS = ("head", "data", "end", "tail", "len", "data_len", "mark", "protocol", "mac_header", "network_header", "hash")
SIZES = {8: "u64", 4: "u32", 2: "u16", 1: "u8"}
NOWHERE = (0, 8, 0x1000, 1 << 47, 0xFFFF800000000000 - 8, 0xFFFFFFFFFFFFFFF8)


@pytest.fixture(scope="module")
def types() -> Btf:
    found = Btf.load()
    if not found.type_id(layout.CAST):
        pytest.skip(f"this machine lacks: {layout.CAST} (its kernel is {platform.release()}, older than 6.2)")
    return found


def read(types: Btf, body: str, *, cast: bool) -> list[int]:
    """What a TC program finds in its sk_buff and puts into `out`."""
    macros = layout.macros(types) | (casts.macros(types) if cast else {})
    text = "".join(f"#define {name} {value}\n" for name, value in macros.items())
    text += (source.folder() / "memory.h").read_text()
    text += f"""
    BPF_ARRAY(out, u64, 32);
    static __always_inline void put(u32 at, u64 value) {{ out.update(&at, &value); }}
    int tc(struct __sk_buff *context)
    {{
        struct sk_buff_view view;
        struct window window;

        sk_buff_open(&view, (u64)context);
        sk_buff_read(&view);
        {body}
        return -1;
    }}
    """
    program = Program(text, cast=types.type_id(layout.CAST))
    try:
        cost.run(program.load("tc", SCHED_CLS), 0x1234)
        return [int(value.value) for value in program.map("out").values()]
    finally:
        program.close()


def test_this_kernel_takes_them(types: Btf) -> None:
    assert casts.macros(types)["HAVE_CAST"] == 1


def test_members_and_bytes_are_the_same(types: Btf) -> None:
    kinds = {name: SIZES[types.member("sk_buff", name).size] for name in NUMBERS}
    body = "".join(f"put({n}, MEMBER(&view, {kind}, sk_buff__{name}));" for n, (name, kind) in enumerate(kinds.items()))
    first = len(kinds)
    body += f"put({first}, BITS(&view, sk_buff__pkt_type)); put({first + 1}, BITS(&view, sk_buff__cloned));"
    body += "window_open(&window, MEMBER(&view, u64, sk_buff__head) + MEMBER(&view, u16, sk_buff__network_header));"
    for at, kind, offset in ((2, "u8", 9), (3, "u16", 2), (4, "u32", 12), (5, "u64", 16), (6, "u32", 20)):
        body += f"put({first + at}, WINDOW(&window, {kind}, {offset}));"
    by_call, by_cast = (read(types, body, cast=cast) for cast in (False, True))
    own = [kinds_at for kinds_at, name in enumerate(kinds) if name not in ("head", "data")]
    own += range(first, first + 7)
    assert [by_cast[n] for n in own] == [by_call[n] for n in own]
    assert by_cast[list(kinds).index("mark")] == 0x1234
    assert by_cast[list(kinds).index("len")] == len(cost.PACKET)
    assert by_cast[first + 2] == 17, "the protocol, UDP"
    for values in (by_call, by_cast):
        head, data = (values[list(kinds).index(name)] for name in ("head", "data"))
        assert 0xFFFF << 48 <= head < data < head + 4096


@pytest.mark.parametrize("cast", [True, False])
def test_what_cannot_be_read_is_0(types: Btf, cast: bool) -> None:
    here = ctypes.create_string_buffer(b"\xff" * 64)  # memory of this process is none of the kernel's
    places = (*NOWHERE, ctypes.addressof(here))
    body = "".join(f"put({n}, 1 + LOAD(u64, {place}ull));" for n, place in enumerate(places))
    assert read(types, body, cast=cast)[: len(places)] == [1] * len(places)


def test_a_record_of_a_kernel_has_the_numbers_or_says_that_it_has_none(types: Btf) -> None:
    data = reduce(types)
    assert {name: ReducedTypes(data).type_id(name) for name in layout.NUMBERED} == {
        name: types.type_id(name) for name in layout.NUMBERED
    }
    del data["type_ids"]
    assert casts.macros(ReducedTypes(data)) == {}
