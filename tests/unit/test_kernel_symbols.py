"""Symbols: kallsyms as the kernel writes it, with modules, copies, clones and hidden addresses."""

from __future__ import annotations

import numpy as np
import pytest

from bpfpath_nb.errors import RequirementError
from bpfpath_nb.kernel.symbols import Symbol, Symbols, fold

KALLSYMS = b"""\
ffffffff81000000 T _text
ffffffff81000000 t __local_alias
ffffffff81000010 t copies
ffffffff81000100 T ip_rcv
ffffffff811000f0 t __pfx_kfree_skb
ffffffff81100100 T kfree_skb
ffffffff81100200 t ip_rcv_finish_core.isra.0
ffffffff81100300 t ip_rcv_finish_core.isra.0.cold
ffffffff81100400 D init_net
ffffffff81100500 t copies
000000000002c570 A bpf_prog_active
ffffffffc0000000 t br_forward\t[bridge]
ffffffffc0000080 d of_a_module\t[bridge]
ffffffffc0000100 t bpf_prog_6deef7357e7b4530_x\t[bpf]
"""


@pytest.fixture(scope="module")
def symbols() -> Symbols:
    return Symbols(KALLSYMS)


def test_variables_have_addresses_and_of_a_cpus_offsets(symbols: Symbols) -> None:
    assert symbols.variable("init_net") == 0xFFFFFFFF81100400
    assert symbols.variable("bpf_prog_active") == 0x2C570
    for name in ("kfree_skb", "of_a_module", "nothing_of_this_name"):
        assert symbols.variable(name) is None
    assert Symbols(b"0000000000000000 T ip_rcv\n0000000000000000 D init_net\n").variable("init_net") is None


def test_names_have_all_their_addresses_and_modules(symbols: Symbols) -> None:
    assert symbols.addresses("copies") == [0xFFFFFFFF81000010, 0xFFFFFFFF81100500]
    assert symbols.modules("copies") == ["", ""]
    assert symbols.addresses("br_forward") == [0xFFFFFFFFC0000000]
    assert symbols.modules("br_forward") == ["bridge"]
    assert symbols.addresses("absent") == []
    assert "ip_rcv" in symbols
    assert "init_net" not in symbols  # data, not a function
    assert len(symbols) == 11


def test_addresses_resolve_to_function_offset_and_module(symbols: Symbols) -> None:
    asked = [0xFFFFFFFF81000100, 0xFFFFFFFF81000123, 0xFFFFFFFFC0000010, 0xFFFFFFFF81000123]
    assert symbols.resolve(asked) == [
        Symbol("ip_rcv", 0, ""),
        Symbol("ip_rcv", 0x23, ""),
        Symbol("br_forward", 0x10, "bridge"),
        Symbol("ip_rcv", 0x23, ""),
    ]
    assert symbols.resolve(np.array(asked, np.uint64)) == symbols.resolve(asked)
    assert symbols.resolve([]) == []


def test_of_two_names_the_global_one_is_shown(symbols: Symbols) -> None:
    assert symbols.resolve([0xFFFFFFFF81000004]) == [Symbol("_text", 4, "")]


def test_padding_before_a_function_is_no_function(symbols: Symbols) -> None:
    assert symbols.resolve([0xFFFFFFFF811000F8]) == [Symbol("ip_rcv", 0xFFFF8, "")]


@pytest.mark.parametrize("address", [0, 0x7FFF_0000_1234, 2**64 - 1, 0xFFFFFFFF90000000])
def test_an_address_in_no_function_stays_a_number(symbols: Symbols, address: int) -> None:
    assert symbols.resolve([address]) == [Symbol("", address, "")]


def test_variants_are_the_exact_names_behind_a_folded_one(symbols: Symbols) -> None:
    assert symbols.variants("ip_rcv_finish_core") == ["ip_rcv_finish_core.isra.0"]
    assert symbols.variants("ip_rcv") == ["ip_rcv"]
    assert symbols.variants("absent") == []


@pytest.mark.parametrize(
    ("name", "folded"),
    [
        ("tcp_ack.constprop.0.isra.0", "tcp_ack"),
        ("f.part.12.cold", "f"),
        ("f.llvm.1234567890", "f"),
        ("f.lto_priv.3", "f"),
        ("plain", "plain"),
        ("kept.by.hand", "kept.by.hand"),
    ],
)
def test_fold_takes_off_what_compilers_add(name: str, folded: str) -> None:
    assert fold(name) == folded


def test_hidden_addresses_are_noticed() -> None:
    hidden = Symbols(b"0000000000000000 T ip_rcv\n0000000000000000 t br_forward\t[bridge]\n")
    assert hidden.hidden
    assert hidden.modules("br_forward") == ["bridge"]
    assert hidden.resolve([0x1234]) == [Symbol("", 0x1234, "")]
    assert not Symbols(KALLSYMS).hidden
    assert not Symbols(b"").hidden


@pytest.mark.parametrize("data", [b"nonsense\n", b"ffffffff8100000g T ip_rcv\n", b"\n"])
def test_damaged_lists_are_refused(data: bytes) -> None:
    with pytest.raises(RequirementError, match="damaged"):
        Symbols(data)
