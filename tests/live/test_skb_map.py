"""The packets that are followed, in the kernel: what the array and the table behind it keep, a dict would."""

from __future__ import annotations

import ctypes
import os
import random
import struct
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from bpfpath_nb.tracer import source
from bpfpath_nb.tracer.counters import STATE
from bpfpath_nb.tracer.followed import MMAPABLE, Followed
from bpfpath_nb.tracer.syscall import PROG_TEST_RUN, bpf, run_raw_tracepoint
from bpfpath_nb.tracer.toolchain import RAW_TRACEPOINT, SCHED_CLS, Program
from bpfpath_nb.tracer.unit import has_total_store_order

ROOM = 16
"""Entries of the table; the array has a quarter of that."""
HEADS = [0xFFFF888100000000 + 512 * n for n in range(12)]
EEXIST = -17
OPERATIONS = """
int put(struct bpf_raw_tracepoint_args *ctx)
{
    struct state *state = state_of_capture();
    struct path path = {.packet = (u32)(ctx->args[0] >> 9)};

    return path_put(state, ctx->args[0], &path);
}

int at(struct bpf_raw_tracepoint_args *ctx)
{
    struct state *state = state_of_capture();
    struct path *path = path_at(state, ctx->args[0]);

    return path ? path->packet : 0;
}

int take(struct bpf_raw_tracepoint_args *ctx)
{
    struct state *state = state_of_capture();

    return path_take(state, ctx->args[0]);
}

BPF_ARRAY(succeeded, u64, 3);

int contend(struct __sk_buff *context)
{
    u32 put = 0, taken = 1, refused = 2;
    struct state *state = state_of_capture();
    struct path path = {.packet = 1};
    u64 *counted;

    for (int n = 0; n < 12; n++) {
        u64 head = 0xFFFF888100000000ull + 512 * n;

        counted = path_put(state, head, &path) ? succeeded.lookup(&refused) : succeeded.lookup(&put);
        if (counted)
            COUNT(counted);
        counted = succeeded.lookup(&taken);
        if (counted && !path_take(state, head))
            COUNT(counted);
    }
    return 0;
}
"""


class Table:
    """skb_map, a key at a time."""

    def __init__(self, bits: int) -> None:
        macros = {"HAVE_FETCH_ADD": 1, "MAPPED": MMAPABLE, "FACTS_PAGES": 1, "SLOTS_BITS": bits}
        macros["SKB_MAP_ENTRIES"] = ROOM
        if has_total_store_order():
            macros["TOTAL_STORE_ORDER"] = 1
        text = "".join(f"#define {name} {value}\n" for name, value in macros.items())
        for name in ("records.h", "skb_map.h"):
            text += (source.folder() / name).read_text()
        self.program = Program(text + OPERATIONS)
        self._programs = {name: self.program.load(name, RAW_TRACEPOINT) for name in ("put", "at", "take")}
        self._contend = self.program.load("contend", SCHED_CLS)

    def run(self, name: str, head: int) -> int:
        """The result of an operation."""
        result = run_raw_tracepoint(self._programs[name], head)
        return int(struct.unpack("=i", struct.pack("=I", result))[0])

    def contend(self, cpu: int, times: int) -> None:
        """Put and take every head so often, on one CPU."""
        os.sched_setaffinity(0, [cpu])
        data = ctypes.create_string_buffer(64)
        attributes = struct.pack("=IIIIQQII", self._contend, 0, 64, 0, ctypes.addressof(data), 0, times, 0)
        bpf(PROG_TEST_RUN, attributes + bytes(40))

    def crowded(self) -> int:
        state = np.frombuffer(bytes(self.program.map("state_map")[0]), "u8")
        return int(state[STATE.index("crowded")])


@pytest.fixture
def table() -> Iterator[Table]:
    made = Table(2)
    yield made
    made.program.close()


def test_it_keeps_what_a_dict_would(table: Table) -> None:
    chance = random.Random(7)
    kept: dict[int, int] = {}
    crowded = 0
    for _ in range(4000):
        head = chance.choice(HEADS)
        operation = chance.choice(("put", "at", "take"))
        result = table.run(operation, head)
        if operation == "put":
            assert result == (EEXIST if head in kept else 0)
            kept[head] = head >> 9 & 0xFFFFFFFF
        elif operation == "at":
            assert result & 0xFFFFFFFF == kept.get(head, 0)
        else:
            assert (result == 0) == (head in kept)
            kept.pop(head, None)
        crowded = max(crowded, table.crowded())
    assert crowded > 2, "the table behind was used"
    for head in list(kept):
        table.run("take", head)
    assert table.crowded() == 0


def test_of_several_cpus_one_puts_it_there_and_one_takes_it_away(table: Table) -> None:
    """Both do so with the same few, as fast as they can; each success of putting has one of taking."""
    refused, deadline = 0, time.monotonic() + 60
    while refused <= 100 and time.monotonic() < deadline:
        threads = [threading.Thread(target=table.contend, args=(cpu, 5000)) for cpu in sorted(os.sched_getaffinity(0))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        put, taken, refused = (int(value.value) for value in table.program.map("succeeded").values())
    assert refused > 100, "they met"
    left = [head for head in HEADS for _ in range(3) if table.run("take", head) == 0]
    assert put == taken + len(left)
    assert len(left) == len(set(left)), "nothing is there twice"
    assert table.crowded() == 0


@pytest.mark.parametrize("head", [0, 1])
def test_what_is_no_address_is_nowhere(table: Table, head: int) -> None:
    assert table.run("put", HEADS[0]) == 0
    assert table.run("at", head) == 0
    assert table.run("take", head) < 0
    assert table.run("put", head) < 0
    assert table.run("take", HEADS[0]) == 0


def test_user_space_sees_all_of_it_and_forgets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bpfpath_nb.tracer.followed.SLOTS_BITS", 9)  # a page is what can be mapped
    table = Table(9)
    try:
        followed = Followed(table.program)
        heads = [HEADS[0] + 64 * n for n in range(520)]
        there = [head for head in heads if table.run("put", head) == 0]
        assert 0 < table.crowded() <= ROOM
        seen, paths = followed.rows()
        assert sorted(seen.tolist()) == there
        assert paths["packet"].tolist() == [head >> 9 & 0xFFFFFFFF for head in seen.tolist()]
        followed.clear()
        assert len(followed.rows()[0]) == 0
        # They come and go while they are looked at. Hardly ever is one there at the moment.
        met: set[int] = set()
        deadline = time.monotonic() + 20
        while len(met) < 3 and time.monotonic() < deadline:
            thread = threading.Thread(target=table.contend, args=(max(os.sched_getaffinity(0)), 200_000))
            thread.start()
            while thread.is_alive():
                met.update(followed.rows()[0].tolist())
            thread.join()
        assert len(met) >= 3
        assert met <= set(HEADS)
        followed.close()
    finally:
        table.program.close()
