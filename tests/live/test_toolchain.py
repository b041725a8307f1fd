"""A tracer compiles for each of the captures that it serves, one after another."""

from __future__ import annotations

import gc
import weakref

from bpfpath_nb.tracer.toolchain import RAW_TRACEPOINT, Program


def test_nothing_is_kept_of_a_program_that_was_closed() -> None:
    program = Program("BPF_ARRAY(counted, u64, 1);\nint nothing(void *ctx) { return 0; }")
    program.load("nothing", RAW_TRACEPOINT)
    table = weakref.ref(program.map("counted"))
    program.close()
    del program
    gc.collect()
    assert table() is None
