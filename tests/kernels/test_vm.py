"""`bpfpath vm` for real: one boot for what goes through and comes out, three for how it ends."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from bpfpath_nb.lab import kernels

KERNEL = "6.12"
LIMIT = 600.0  # seconds; 25 to 60 when nobody else uses the machine

IN_THE_GUEST = f"""
{{
	uname -r
	pwd
	id -u
	printf '%s\\n' "$BPFPATH_TEST"
	ip -br link show up
	{sys.executable} -c 'import numpy; print("sum", numpy.arange(4).sum())'
	test -w /sys/kernel/tracing/kprobe_events && echo kprobes
	test -r /sys/kernel/btf/vmlinux && echo BTF
	grep -q '^ip_rcv$' /sys/kernel/tracing/available_filter_functions && echo functions
	mount -t bpf | grep -q /sys/fs/bpf && echo bpffs
	ip netns add one && ip -n one link show lo | grep -q LOOPBACK && echo netns
	modprobe nf_tables && grep -q '^nf_tables ' /proc/modules && echo modules
	touch /usr/bpfpath-was-here /tmp/bpfpath-was-here && echo writable
}} > results.txt 2> complaints.txt
cat > input.copy
cat output.blob
cat errors.blob >&2
exit 42
"""


@dataclass(frozen=True)
class Outcome:
    folder: Path
    status: int
    output: bytes
    errors: bytes

    @property
    def results(self) -> list[str]:
        return (self.folder / "results.txt").read_text().splitlines()


@pytest.fixture(scope="module")
def kernel() -> kernels.Kernel:
    """The kernel, fetched before anything is measured or compared."""
    with kernels.held(kernels.SOURCES[KERNEL]) as kernel:
        return kernel


@pytest.fixture(scope="module")
def outcome(kernel: kernels.Kernel, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What one machine left: its streams, its status, and the files in its working directory."""
    folder = tmp_path_factory.mktemp("it's shared")
    noise = random.Random(1)
    for name in ("input", "output", "errors"):
        # Whatever a terminal would change, and more than any buffer on the way holds.
        content = b"\r\n\x00\x03\x04\x1a\x1b[2J\xff\n\r" + noise.randbytes(1 << 20) + b"no line end"
        (folder / f"{name}.blob").write_bytes(content)
    with (folder / "input.blob").open("rb") as given:
        done = subprocess.run(
            command("sh", "-c", IN_THE_GUEST),
            cwd=folder, stdin=given, capture_output=True, timeout=LIMIT, check=False,
            env={**os.environ, "BPFPATH_TEST": "a 'word' $and \\another"},
        )  # fmt: skip
    return Outcome(folder, done.returncode, done.stdout, done.stderr)


def command(*words: str, options: Sequence[str] = ()) -> list[str]:
    return [sys.executable, "-m", "bpfpath_nb.cli", "vm", *options, KERNEL, "--", *words]


def test_streams_come_out_apart_and_to_the_byte(outcome: Outcome) -> None:
    assert outcome.errors == (outcome.folder / "errors.blob").read_bytes()
    assert outcome.output == (outcome.folder / "output.blob").read_bytes()


def test_standard_input_goes_in(outcome: Outcome) -> None:
    assert (outcome.folder / "input.copy").read_bytes() == (outcome.folder / "input.blob").read_bytes()


def test_exit_status_is_the_commands(outcome: Outcome) -> None:
    assert outcome.status == 42


def test_the_guest_is_this_machine_with_another_kernel(outcome: Outcome, kernel: kernels.Kernel) -> None:
    assert outcome.results[:4] == [kernel.release, str(outcome.folder), "0", "a 'word' $and \\another"]
    assert "sum 6" in outcome.results, (outcome.folder / "complaints.txt").read_text()
    assert any(line.startswith("lo ") for line in outcome.results)


@pytest.mark.parametrize("what", ["kprobes", "BTF", "functions", "bpffs", "netns", "modules"])
def test_the_guest_can_be_traced(outcome: Outcome, what: str) -> None:
    assert what in outcome.results, (outcome.folder / "complaints.txt").read_text()


def test_only_the_working_directory_is_changed(outcome: Outcome) -> None:
    assert "writable" in outcome.results
    assert not Path("/usr/bpfpath-was-here").exists()
    assert not Path("/tmp/bpfpath-was-here").exists()
    assert not Path("/lib/modules", os.uname().release, "..", KERNEL).exists()


def test_a_counted_machines_clock_is_its_instructions(kernel: kernels.Kernel, tmp_path: Path) -> None:
    """Work takes the same each time, and waiting none of ours."""
    work = """
import time
times = []
for _ in range(20):
    begun = time.perf_counter_ns()
    for _ in range(100_000): pass
    times.append(time.perf_counter_ns() - begun)
begun = time.monotonic()
time.sleep(3600)
print(*sorted(times)[:10], round(time.monotonic() - begun))
"""
    counted = command(sys.executable, "-c", work, options=["--counted"])
    done = subprocess.run(counted, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT, check=True)
    *times, slept = map(int, done.stdout.split())
    assert slept == 3600
    assert times[-1] < 1.01 * times[0]


class Running:
    """A `bpfpath vm` that has started QEMU."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            command(*words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            cwd=folder, env={**os.environ, "TMPDIR": str(folder)}, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + LIMIT
        while not (found := self._machine()):
            assert time.monotonic() < deadline
            assert self.process.poll() is None
            time.sleep(0.05)
        self.machine = os.pidfd_open(found)

    def _machine(self) -> int | None:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for child in children:
            try:
                if Path(f"/proc/{child}/comm").read_text().startswith("qemu-system"):
                    return int(child)
            except OSError:
                pass
        return None

    def ended(self, seconds: float) -> bool:
        """Whether QEMU is gone within some seconds."""
        return bool(select.select([self.machine], [], [], seconds)[0])


def test_ctrl_c_goes_to_the_command_and_leaves_nothing(kernel: kernels.Kernel, tmp_path: Path) -> None:
    say = "trap 'echo asked; exit 5' INT; echo started; while :; do sleep 0.2; done"
    running = Running(tmp_path, "sh", "-c", say)
    assert running.process.stdout is not None
    assert running.process.stdout.readline() == b"started\n"  # while the command runs, not when it has ended

    running.process.send_signal(signal.SIGINT)
    output, errors = running.process.communicate(timeout=LIMIT)

    assert (output, errors, running.process.returncode) == (b"asked\n", b"", 5)
    assert running.ended(5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_while_it_boots_it_leaves_nothing(
    kernel: kernels.Kernel, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    running = Running(tmp_path, "true")
    time.sleep(1)

    running.process.send_signal(number)

    assert running.process.wait(10) == status
    assert running.ended(5)
    assert list(tmp_path.iterdir()) == []


def test_killed_it_takes_the_machine_along(kernel: kernels.Kernel, tmp_path: Path) -> None:
    running = Running(tmp_path, "true")

    running.process.kill()
    running.process.wait()

    assert running.ended(5)
