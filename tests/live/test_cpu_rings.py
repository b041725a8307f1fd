"""The rings of events, in the kernel: each event arrives once and in order, or is counted where it is missing."""

from __future__ import annotations

import ctypes
import os
import struct
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from bpfpath_nb.tracer import cpu_rings, source
from bpfpath_nb.tracer.cpu_rings import CpuRings
from bpfpath_nb.tracer.followed import MMAPABLE
from bpfpath_nb.tracer.syscall import PROG_TEST_RUN, bpf
from bpfpath_nb.tracer.toolchain import SCHED_CLS, Program
from bpfpath_nb.tracer.unit import has_total_store_order

BITS = 5
SIZE = 1 << BITS
CPUS = sorted(os.sched_getaffinity(0))
WRITE = """
int write(struct __sk_buff *context)
{
    u64 stamp = 0;
    struct record *record = record_open(&stamp);

    if (!record)
        return 0;
    record->event.time = bpf_ktime_get_ns();
    record->event.cpu = bpf_get_smp_processor_id();
    record_close(record, stamp);
    return 1;
}
"""


class Writer:
    """A program that writes one event whenever it runs."""

    def __init__(self) -> None:
        macros = {"HAVE_FETCH_ADD": 1, "MAPPED": MMAPABLE, "FACTS_PAGES": 1}
        macros |= {"CPUS": cpu_rings.cpus(), "RECORDS_BITS": BITS}
        if has_total_store_order():
            macros["TOTAL_STORE_ORDER"] = 1
        text = "".join(f"#define {name} {value}\n" for name, value in macros.items())
        for name in ("records.h", "cpu_rings.h"):
            text += (source.folder() / name).read_text()
        self.program = Program(text + WRITE)
        self.descriptor = self.program.load("write", SCHED_CLS)
        self.rings = CpuRings(self.program)

    def write(self, count: int, cpu: int = CPUS[0]) -> None:
        """So many events from one CPU."""
        data = ctypes.create_string_buffer(64)
        os.sched_setaffinity(0, [cpu])
        try:
            bpf(
                PROG_TEST_RUN,
                struct.pack("=IIIIQQII", self.descriptor, 0, 64, 0, ctypes.addressof(data), 0, count, 0) + bytes(40),
            )
        finally:
            os.sched_setaffinity(0, CPUS)

    def close(self) -> None:
        self.rings.close()
        self.program.close()


@pytest.fixture
def writer() -> Iterator[Writer]:
    made = Writer()
    yield made
    made.close()


def test_events_arrive_in_order_round_and_round(writer: Writer) -> None:
    assert len(writer.rings.take()) == 0
    numbers: list[int] = []
    for count in (3, SIZE, 1, SIZE - 1, SIZE // 2, SIZE):
        writer.write(count)
        numbers += writer.rings.take()["seq"].tolist()
    assert numbers == list(range(len(numbers)))
    assert writer.rings.begun == len(numbers)
    assert writer.rings.lost == 0


def test_what_finds_no_room_is_counted_and_leaves_a_gap(writer: Writer) -> None:
    writer.write(3 * SIZE)
    assert writer.rings.take()["seq"].tolist() == list(range(SIZE))
    assert (writer.rings.begun, writer.rings.lost) == (3 * SIZE, 2 * SIZE)
    writer.write(2)
    assert writer.rings.take()["seq"].tolist() == [3 * SIZE, 3 * SIZE + 1]


def test_a_run_ends_before_what_is_still_being_written(writer: Writer) -> None:
    writer.write(SIZE - 2)
    writer.rings.take()
    writer.write(6)
    records = writer.rings._records[CPUS[0]]
    written = int(records["stamp"][1])
    records["stamp"][1] = (
        written - SIZE
    )  # as it was a round before: four events further on, behind the end of the array
    assert len(writer.rings.take()) == 3
    assert len(writer.rings.take()) == 0
    records["stamp"][1] = written
    assert len(writer.rings.take()) == 3


def test_a_new_beginning_knows_nothing_of_before(writer: Writer) -> None:
    writer.write(2 * SIZE)
    writer.rings.reset()
    assert (len(writer.rings.take()), writer.rings.begun, writer.rings.lost) == (0, 0, 0)
    writer.write(1)
    assert writer.rings.take()["seq"].tolist() == [0]


def test_cpus_do_not_get_in_each_others_way(writer: Writer) -> None:
    """All write at once, faster than anybody reads; every event is received once, or counted."""
    rounds, count = 200, 50
    threads = [
        threading.Thread(target=lambda cpu=cpu: [writer.write(count, cpu) for _ in range(rounds)]) for cpu in CPUS
    ]
    for thread in threads:
        thread.start()
    taken = []
    while any(thread.is_alive() for thread in threads):
        taken.append(writer.rings.take())
        assert (np.diff(taken[-1]["time"].astype(np.int64)) >= 0).all(), "a run is in the order of time"
    while len(last := writer.rings.take()):
        taken.append(last)
    events = np.concatenate(taken)
    assert writer.rings.begun == rounds * count * len(CPUS)
    assert len(events) + writer.rings.lost == writer.rings.begun
    assert writer.rings.lost > 0
    for cpu in CPUS:
        numbers = events["seq"][events["cpu"] == cpu].astype(np.int64)
        assert len(numbers) >= SIZE
        assert (np.diff(numbers) > 0).all()


def test_every_cpu_has_its_share() -> None:
    room = cpu_rings.RECORD.itemsize
    for size, cpus in ((1 << 24, 2), (1 << 24, 64), (1 << 24, 1024), (1 << 30, 2), (1 << 12, 1), (1 << 12, 64)):
        each = (1 << cpu_rings.records_bits(size, cpus)) * room
        assert each * cpus > 0.9 * size
        assert each * cpus < 2 * max(cpu_rings.TIMES * size, room * cpus)
        assert each > 0.9 * min(cpu_rings.ENOUGH, cpu_rings.TIMES * size // cpus)
