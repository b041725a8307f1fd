"""What it costs: figures measured in one run on one machine, to be compared with each other and not with another day's.

    make bench

Drained events: rings are filled by the same program (BPF_PROG_TEST_RUN of our TC program, whose packet the filter
takes) and emptied in turn by our drain and, where it is compiled for the kernel's own ring buffer, by bcc's callback
per event. Cost of a hop: the kernel's own timing of that program. Time to arm: from the call of `Capture` to its
return, for a fresh tracer process and for one that had served a capture before.
"""

from __future__ import annotations

import ctypes
import statistics
import struct
import time
from collections.abc import Callable

from bpfpath_nb import Capture, tracers
from bpfpath_nb.kernel import Kernel
from bpfpath_nb.kernel.layout import CAST
from bpfpath_nb.tracer.counters import ARMED, DISARMED, Counters
from bpfpath_nb.tracer.cpu_rings import CpuRings
from bpfpath_nb.tracer.request import Request
from bpfpath_nb.tracer.ring import EventRing
from bpfpath_nb.tracer.syscall import PROG_TEST_RUN, bpf
from bpfpath_nb.tracer.toolchain import SCHED_CLS, Program
from bpfpath_nb.tracer.unit import unit

EVENTS = 200_000
ROUNDS = 5

# A DNS query: Ethernet, IPv4, UDP 10.0.0.1:5000 > 10.0.0.2:53.
PACKET = (
    bytes.fromhex("0200000000010200000000020800")
    + struct.pack("!BBHHHBBH4s4s", 0x45, 0, 60, 1, 0, 64, 17, 0, bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2)))
    + struct.pack("!HHHH", 5000, 53, 40, 0)
    + bytes(32)
)


def run_in_kernel(program: int, packet: bytes, times: int) -> int:
    """Run a TC program on a packet so often; the kernel's average in ns."""
    data = ctypes.create_string_buffer(packet, len(packet))
    attributes = struct.pack("=IIIIQQII", program, 0, len(packet), 0, ctypes.addressof(data), 0, times, 0)
    _, answer = bpf(PROG_TEST_RUN, attributes + bytes(40))
    return int(struct.unpack_from("=I", answer, 36)[0])


class Bench:
    """Our programs, loaded but attached to nothing."""

    def __init__(self, expression: str, *, shared: bool = False) -> None:
        kernel = Kernel.running()
        request = Request(filter=expression, events_ring=1 << 25)
        text = unit(request, kernel)[0]
        if shared:  # as on kernels before 5.12: the kernel's ring buffer, which bcc can read
            text = text.replace("#define HAVE_FETCH_ADD 1\n", "")
        self.program = Program(text, cast=kernel.btf.type_id(CAST))
        self.tc = self.program.load("tc", SCHED_CLS, cookie=0)
        self.ring: EventRing | CpuRings
        self.ring = EventRing(self.program, request.events_ring) if shared else CpuRings(self.program)
        self.counters = Counters(self.program, self.ring)

    def close(self) -> None:
        self.ring.close()
        self.program.close()


def drain_rates() -> tuple[list[float], list[float], list[float]]:
    """Events per second: our drain, bcc's callback doing nothing, and bcc's callback decoding the event."""
    bench, other = Bench("udp port 53"), Bench("udp port 53", shared=True)
    for each in (bench, other):
        each.counters.arm(ARMED)
    taken = 0

    class Event(ctypes.Structure):
        _fields_ = [(name, ctypes.c_uint64) for name in ("time", "skb", "location")] + [
            (name, ctypes.c_uint32)
            for name in ("packet", "seq", "netns", "ifindex", "len", "mark", "reason", "pid", "rest", "more")
        ]

    rows: list[tuple[int, ...]] = []
    decoding = False

    def callback(context: object, data: int, size: int) -> None:
        nonlocal taken
        taken += 1
        if decoding:
            event = ctypes.cast(data, ctypes.POINTER(Event)).contents
            rows.append((event.time, event.skb, event.packet, event.seq, event.netns, event.ifindex, event.len))

    other.program.map("events").open_ring_buffer(callback)

    def ours() -> None:
        nonlocal taken
        while len(events := bench.ring.take()):
            taken += len(events)

    def theirs() -> None:
        other.program.consume()

    def rate(filled: Bench, drain: Callable[[], None]) -> float:
        nonlocal taken
        run_in_kernel(filled.tc, PACKET, EVENTS)
        taken = 0
        begin = time.perf_counter()
        drain()
        rate = taken / (time.perf_counter() - begin)
        assert taken == EVENTS, f"{taken} of {EVENTS} events arrived"
        rows.clear()
        return rate

    results: tuple[list[float], list[float], list[float]] = ([], [], [])
    for _ in range(ROUNDS):
        decoding = False
        results[0].append(rate(bench, ours))
        results[1].append(rate(other, theirs))
        decoding = True
        results[2].append(rate(other, theirs))
    bench.close()
    other.close()
    return results


def hop_costs() -> dict[str, list[int]]:
    """ns per run of the TC program."""
    costs: dict[str, list[int]] = {"not armed": [], "filter says no": [], "packet followed": []}
    bench = Bench("udp port 53")
    other = PACKET[:36] + struct.pack("!H", 54) + PACKET[38:]
    for _ in range(ROUNDS):
        bench.counters.arm(DISARMED)
        costs["not armed"].append(run_in_kernel(bench.tc, PACKET, EVENTS))
        bench.counters.arm(ARMED)
        costs["filter says no"].append(run_in_kernel(bench.tc, other, EVENTS))
        costs["packet followed"].append(run_in_kernel(bench.tc, PACKET, EVENTS))
        while len(bench.ring.take()):
            pass
    bench.close()
    return costs


def arm_times() -> tuple[list[float], list[float]]:
    """Seconds to arm: first capture of a tracer process, and a later one."""
    cold, warm = [], []
    for _ in range(3):
        tracers.close_idle()
        for times in (cold, warm):
            begin = time.perf_counter()
            capture = Capture("udp port 53")
            times.append(time.perf_counter() - begin)
            capture.stop()
    tracers.close_idle()
    return cold, warm


def main() -> None:
    """Measure and print."""
    ours, theirs, decoded = (statistics.median(rates) for rates in drain_rates())
    print("events drained per second (median of", ROUNDS, "rounds of", EVENTS, "events of 64 bytes)")
    print(f"  bpfpath_nb, runs into numpy     {ours / 1e6:8.2f} million")
    print(f"  bcc's callback, doing nothing   {theirs / 1e6:8.2f} million   ours is {ours / theirs:6.1f} times that")
    print(f"  bcc's callback, decoding        {decoded / 1e6:8.2f} million   ours is {ours / decoded:6.1f} times that")
    print("cost of one run of the TC program (median, BPF_PROG_TEST_RUN)")
    for name, costs in hop_costs().items():
        print(f"  {name:30s}  {statistics.median(costs):5.0f} ns")
    cold, warm = arm_times()
    print("from Capture(...) to armed (median of 3)")
    print(f"  fresh tracer process            {statistics.median(cold):8.2f} s")
    print(f"  tracer that served before       {statistics.median(warm):8.2f} s")


if __name__ == "__main__":
    main()
