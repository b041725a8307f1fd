"""The table of cookies, in the kernel: every function at its own place or at none."""

from __future__ import annotations

import random

import numpy as np

from bpfpath_nb.tracer import source
from bpfpath_nb.tracer.cookies import HASH, Cookies, bits
from bpfpath_nb.tracer.followed import MMAPABLE
from bpfpath_nb.tracer.toolchain import Program

FUNCTIONS = 1000
TEXT = (
    "".join(f"#define {name} {value}\n" for name, value in {"MAPPED": MMAPABLE, "FACTS_PAGES": 1}.items())
    + (source.folder() / "records.h").read_text()
    + f"""
struct known_cookies {{ u64 at[{2 << bits(FUNCTIONS)}]; }};
ONE_VALUE(struct known_cookies, known_cookies);
"""
)


def entries(program: Program) -> list[tuple[int, int]]:
    """Of each place its address and cookie."""
    table: list[list[int]] = np.frombuffer(bytes(program.map("known_cookies")[0]), "u8").reshape(-1, 2).tolist()
    return [(address, cookie) for address, cookie in table]


def test_each_function_is_found_at_the_place_that_the_program_computes_or_left_to_the_kernel() -> None:
    addresses = [0xFFFFFFFF81000000 + 16 * number for number in random.Random(5).sample(range(1 << 20), FUNCTIONS)]
    program = Program(TEXT)
    try:
        cookies = Cookies(program, carried=True)
        cookies.of_multi({address: number for number, address in enumerate(addresses)})
        cookies.of_multi({addresses[0]: 77})  # a module that came again
        table = entries(program)
    finally:
        program.close()
    kept = {place: entry for place, entry in enumerate(table) if entry[0]}
    assert all(
        place == (address * HASH & (1 << 64) - 1) >> 64 - bits(FUNCTIONS) for place, (address, _) in kept.items()
    )
    assert dict(kept.values()) == {
        address: 77 if address == addresses[0] else addresses.index(address) for address, _ in kept.values()
    }
    assert len(kept) > 0.95 * FUNCTIONS


def test_no_function_is_taken_for_one_that_begins_within_16_bytes() -> None:
    first = 0xFFFFFFFF81000000
    program = Program(TEXT)
    try:
        # At an entry the program knows the multiple of 16 before the place that it was called from.
        Cookies(program, carried=True).of_multi({first + at: at for at in (0, 16, 26, 32, 48, 64, 74)})
        kept = {address for address, _ in entries(program) if address}
    finally:
        program.close()
    assert kept == {first, first + 48}
