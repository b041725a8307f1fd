"""A tracer compiles for each of the captures that it serves, one after another; and for every kernel."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

from bpfpath_nb.kernel import facts
from bpfpath_nb.tracer import casts
from bpfpath_nb.tracer import unit as units
from bpfpath_nb.tracer.request import Request
from bpfpath_nb.tracer.toolchain import RAW_TRACEPOINT, Program

FACTS = Path(__file__).parents[1] / "facts"


def test_nothing_is_kept_of_a_program_that_was_closed() -> None:
    program = Program("BPF_ARRAY(counted, u64, 1);\nint nothing(void *ctx) { return 0; }")
    program.load("nothing", RAW_TRACEPOINT)
    table = weakref.ref(program.map("counted"))
    program.close()
    del program
    gc.collect()
    assert table() is None


CASTS = {"HAVE_CAST": 1, "bpf_rdonly_cast__TYPE_ID": 70_000, "pt_regs__TYPE_ID": 70}
COMPILE = "import sys; from bpfpath_nb.tracer.toolchain import Program; Program(sys.stdin.read(), cast=70_000).close()"


@pytest.mark.parametrize(
    ("release", "with_exchange", "with_casts"),
    [("5.10", False, False), ("6.1", True, False), ("6.12", True, True), ("7.2", True, True)],
)
@pytest.mark.parametrize("returns", [False, True])
def test_it_compiles_for_every_stock_kernel(
    monkeypatch: pytest.MonkeyPatch, release: str, with_exchange: bool, with_casts: bool, returns: bool
) -> None:
    """512 bytes of stack are all that a program has, and what it needs is another for each kernel's structures.

    In a process of its own: LLVM ends the one in which the stack does not do.
    """
    monkeypatch.setattr(units, "has_fetch_add", lambda: with_exchange)
    monkeypatch.setattr(casts, "macros", lambda types: CASTS if with_casts else {})
    kernel = facts.load(FACTS / f"{release}.json.gz")
    text, _ = units.unit(Request(filter="vlan and tcp port 80", returns=returns), kernel, with_kprobes=True)
    done = subprocess.run([sys.executable, "-c", COMPILE], input=text, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
