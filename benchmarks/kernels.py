"""What tracing costs on a stock kernel, in one run beside Debian's pwru, in emulated machines.

    make bench-kernels

One process sends UDP datagrams to itself over loopback. Time per datagram is the lower quartile, each timed by itself,
of the best of several rounds: what else the host does interrupts long runs, and would count against whoever is slower.
After each tool the same is measured without one; the least of all these is what every tool adds to.

All of it is measured twice. First in a machine whose clock counts the instructions that its processors execute: no
processor takes the same time for each, but the figures are the same in every run. Then by the time that emulating
takes: it is many times a processor's, and uneven, so that these figures are to be compared with each other only, and
the host should have nothing else to do.

For each tool and set of functions: what traffic pays that the filter does not take, what it pays that the filter takes,
how many events arrived and were lost, and how long attaching took. `functions` of pwru are chosen by a regular
expression, so that both trace the same ones. It is measured twice: as it comes, when it prints where a packet is, and
told to follow packets and to print what ours records of each hop (`ALIKE`). So is a program that does nothing, on the
same functions: nobody can ask for less by these probes. Then what other traffic, and traffic that is followed, pays by
number of probes.

On the host this fetches pwru (the package of the suite, unpacked, not installed) and starts the machines with itself
in them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bpfpath_nb.kernel import Kernel

ROOT = Path(__file__).resolve().parents[1]
PORT, OTHER = 7999, 9
WARM, MEASURED, ROUNDS = 200, 800, 5
"""Datagrams before measuring, and those that are measured; how often."""
ALIKE = ("--filter-track-skb", "--output-meta", "--output-tuple")
"""pwru's options for following a packet and for namespace, interface, mark, length, protocol and addresses."""
FEW, PATIENCE = 5, 10
"""So many datagrams tell how many lines pwru prints for each; what is not printed some seconds later counts as lost."""
NUMBERS = (10, 50, 100, 400)
SUITE = "trixie"


@dataclass
class Row:
    """One tool with one set of functions."""

    tool: str
    functions: int
    attach: float
    none: float
    other: float
    matching: float
    delivered: int
    lost: str

    def line(self) -> str:
        """As a row of a Markdown table; times per datagram are what the tool adds."""
        return (
            f"| {self.tool} | {self.functions or 'all'} | {self.attach:.1f} s | {self.other - self.none:+.1f} us "
            f"| {self.matching - self.none:+.1f} us | {self.delivered} | {self.lost} |"
        )

    def beside(self, row: Row) -> str:
        """What this one adds, as parts of what the other does."""
        other, matching = (
            (getattr(self, on) - self.none) / max(getattr(row, on) - row.none, 0.1) for on in ("other", "matching")
        )
        return f"{self.tool} / {row.tool}: other traffic {other:.2f}, matching traffic {matching:.2f}"


HEAD = (
    "| tool | functions | to attach | other traffic | matching traffic | events delivered | lost |\n"
    "|---|---|---|---|---|---|---|"
)


class Load:
    """A socket that sends to itself."""

    def __init__(self, port: int) -> None:
        self._socket = socket.socket(type=socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", port))
        self._to = ("127.0.0.1", port)
        self.sent = 0

    def per_datagram(self) -> float:
        """Microseconds for each: the lower quartile, of the best round."""
        return min(self._round() for _ in range(ROUNDS))

    def _round(self) -> float:
        self.send(WARM)
        times = []
        for _ in range(MEASURED):
            begin = time.perf_counter()
            self.send(1)
            times.append((time.perf_counter() - begin) * 1e6)
        return statistics.quantiles(times, n=4)[0]

    def send(self, count: int) -> None:
        """Send and receive so many."""
        self.sent += count
        for _ in range(count):
            self._socket.sendto(b"x" * 32, self._to)
            self._socket.recv(99)


def ours(functions: str | list[str], plain: Load, watched: Load) -> Row:
    """bpfpath_nb, first with a filter that nothing matches."""
    from bpfpath_nb import Capture

    begin = time.perf_counter()
    with Capture(f"udp port {OTHER}", functions=functions, timeout=1800) as cap:
        attach = time.perf_counter() - begin
        other = plain.per_datagram()
    with Capture(f"udp port {PORT}", functions=functions, timeout=1800, events_ring=1 << 26) as cap:
        matching = watched.per_datagram()
    record = cap.recording.start
    probes = [function for function in record.functions if function.probe == "kprobe"]
    print(record.ladder, cap.quality.to_dict(), record.raw["timing"], file=sys.stderr, flush=True)
    lost = cap.quality["events_lost"] + cap.quality["events_over"]
    return Row("bpfpath_nb", len(probes), attach, 0.0, other, matching, len(cap.recording), str(lost))


@contextmanager
def pwru(program: str, names: list[str], options: Sequence[str], port: int) -> Iterator[tuple[float, Path]]:
    """Run pwru; seconds until it listens, and the file that it prints to."""
    with tempfile.TemporaryDirectory() as folder:
        out, said = Path(folder, "out"), Path(folder, "said")
        only = ["--filter-func", f"^({'|'.join(names)})$"] if names else []
        with out.open("wb") as stdout, said.open("wb") as stderr:
            begin = time.perf_counter()
            process = subprocess.Popen([program, *only, *options, f"udp port {port}"], stdout=stdout, stderr=stderr)
            try:
                while "istening" not in said.read_text():
                    if process.poll() is not None or time.perf_counter() - begin > 600:
                        raise RuntimeError(f"pwru does not start: {said.read_text()[-500:]}")
                    time.sleep(0.05)
                yield time.perf_counter() - begin, out
            finally:
                process.send_signal(signal.SIGINT)
                process.wait(300)
            print(said.read_text(), file=sys.stderr, flush=True)


def theirs(program: str, names: list[str], options: Sequence[str], plain: Load, watched: Load) -> Row:
    """pwru, the same way."""
    with pwru(program, names, options, OTHER) as (attach, _):
        other = plain.per_datagram()
    with pwru(program, names, options, PORT) as (_, out):
        watched.send(FEW)
        time.sleep(PATIENCE)
        few = _lines(out)
        before = watched.sent
        matching = watched.per_datagram()
        expected = few * (watched.sent - before) // FEW
        time.sleep(PATIENCE)
        delivered = _lines(out) - few
    lost = str(max(0, expected - delivered))
    return Row(" ".join(("pwru", *options)), len(names), attach, 0.0, other, matching, delivered, lost)


def nothing(kernel: Kernel, names: list[str], plain: Load) -> Row:
    """A program on these functions that returns at once: what the kernel takes to run one."""
    from bpfpath_nb.tracer import kprobes
    from bpfpath_nb.tracer.syscall import KPROBE_MULTI, link_create_kprobe_multi
    from bpfpath_nb.tracer.toolchain import KPROBE, Program

    known = kprobes.traceable() or set()
    symbols = [symbol for name in names for symbol in kernel.symbols.variants(name) if symbol in known]
    addresses = [address for symbol in symbols for address in kernel.symbols.addresses(symbol)]
    program = Program("int nothing(void *ctx) { return 0; }")
    begin = time.perf_counter()
    link = link_create_kprobe_multi(program.load("nothing", KPROBE, KPROBE_MULTI), addresses, [0] * len(addresses))
    attach = time.perf_counter() - begin
    try:
        paid = plain.per_datagram()
    finally:
        os.close(link)
        program.close()
    return Row("a program that does nothing", len(addresses), attach, 0.0, paid, paid, 0, "0")


def _lines(out: Path) -> int:
    """How many hops pwru has printed."""
    return sum(line.startswith("0x") for line in out.read_text(errors="replace").splitlines())


def inside(program: str, result: Path) -> None:
    """In the machine: measure everything, write the rows as JSON."""
    from bpfpath_nb import tracers
    from bpfpath_nb.kernel import Kernel

    plain, watched = Load(PORT + 1), Load(PORT)
    available = Kernel.running()
    every = sorted(name for name, register in available.functions.items() if register <= 4)
    default = [name for name, function in available.catalogue.functions.items() if function.default and name in every]
    rows: list[Row] = []
    without = [plain.per_datagram()]

    def measure(row: Row) -> None:
        without.append(plain.per_datagram())
        rows.append(row)
        for told in rows:
            told.none = min(without)
        result.write_text(json.dumps([asdict(told) for told in rows]))
        print(f"{row.line()} (without any {without[-1]:.0f} us)", flush=True)

    for functions, names in (("default", default), ("all", [])):
        measure(ours(functions, plain, watched))
        tracers.close_idle()
        for options in ((), ALIKE):
            measure(theirs(program, names, options, plain, watched))
        measure(nothing(available, names or every, plain))
    on_the_way = [name for name in default if name.startswith(("ip_", "__ip", "udp_", "__udp", "sk_", "skb_", "sock_"))]
    for number in NUMBERS:
        names = [*on_the_way, *(name for name in every if name not in on_the_way)][:number]
        measure(ours(names, plain, watched))
    tracers.close_idle()
    print(f"Without any, at best: {min(without):.1f} us.", HEAD, *(row.line() for row in rows), sep="\n", flush=True)
    for set_of_functions in (rows[:3], rows[4:7]):
        print(*(set_of_functions[0].beside(row) for row in set_of_functions[1:]), sep="\n", flush=True)


def fetch(folder: Path) -> Path:
    """pwru's program out of Debian's package, once."""
    from bpfpath_nb.lab import kernels

    program = folder / "usr/bin/pwru"
    if not program.exists():
        apt = kernels._Apt(folder / "apt", kernels.sources_list([SUITE], kernels._system_sources()))
        apt.run("update")
        apt.run("download", "pwru", cwd=folder)
        (package,) = folder.glob("pwru_*.deb")
        subprocess.run(["dpkg-deb", "-x", str(package), str(folder)], check=True)
        shutil.rmtree(folder / "apt")
    return program


def main() -> None:
    """Start the machine, or measure where this is it."""
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--kernel", default="6.12")
    arguments.add_argument("--pwru", help="the program, where Debian's package is not to be fetched")
    arguments.add_argument("--inside", help=argparse.SUPPRESS)
    arguments.add_argument("--only", choices=("counted", "timed"), help="one of the two machines")
    chosen = arguments.parse_args()
    folder = ROOT / ".cache" / "pwru"
    folder.mkdir(parents=True, exist_ok=True)
    if chosen.inside:
        inside(chosen.pwru, Path(chosen.inside))
        return
    program = chosen.pwru or str(fetch(folder))
    (ROOT / "out").mkdir(exist_ok=True)
    for clock, said in (("counted", "1 us is 1,000 instructions"), ("timed", "by the clock")):
        if chosen.only in (None, clock):
            print(f"\n{said}:", flush=True)
            result = ROOT / "out" / f"bench-kernels-{clock}.json"
            machine = ["--counted"] if clock == "counted" else []
            command = [sys.executable, "-m", "bpfpath_nb.cli", "vm", "--memory", "3G", *machine, chosen.kernel, "--"]
            command += [sys.executable, str(Path(__file__)), "--inside", str(result), "--pwru", program]
            if status := subprocess.run(command, cwd=ROOT, env=dict(os.environ), check=False).returncode:
                raise SystemExit(status)


if __name__ == "__main__":
    main()
